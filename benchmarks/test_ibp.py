"""The saving, as a ratio, of bounding neighbouring placements together and leaving a failed image: `make bench`."""

from __future__ import annotations

import torch

from robustpatch import PatchThreat
from robustpatch.checkpoints import load_checkpoint
from robustpatch.data.images import load_images

THREAT = PatchThreat(5, 5)


@torch.no_grad()
def test_certificate_against_one_placement_after_the_other(against) -> None:
    """The certificate against bounds of each of the 576 placements of every image, which certify the same images."""
    model = load_checkpoint("mnist-ibp").model
    x, _ = load_images("mnist-sample").batch(range(64))
    prediction = model.predict(x)
    masks = THREAT.footprint(THREAT.placements(28, 28)[:, None], 28, 28)

    def naive() -> torch.Tensor:
        each = [model.margins(x, mask.expand(len(x), -1, -1), prediction) for mask in masks]
        return torch.stack(each, dim=1)

    assert torch.equal((naive() >= 0).all(dim=1), model.certify(x, THREAT).certified)
    against(
        "certificate of each placement in turn / certificate",
        lambda: model.certify(x, THREAT),
        naive,
        rounds=3,
        target="at least 3",
        inverse=True,
    )
