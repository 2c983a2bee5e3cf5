"""The budget holds within a batch, not only between batches."""

from __future__ import annotations

import pytest
import torch

from attacks.search import Search
from robustpatch.ablations.kinds import Columns
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, images, smoothed


@pytest.mark.parametrize("batch", [1, 7, 512])
@pytest.mark.parametrize("budget", [50, None])
def test_patches_of_one_image_in_one_batch_share_its_budget(batch, budget):
    """Of a hundred patches for either of two images, as many are scored as the budget begins; without one, all."""
    model, x = smoothed(Level(3), Columns(2), 3), torch.ones(2, 1, 5, 6) * images(1, (5, 6))
    threat = PatchThreat(1, 1)
    search = Search(model, x, model.predict(x), threat, touched_only=False, budget=budget, generator=torch.Generator())
    image, none = torch.arange(200) % 2, torch.zeros(200, 1, dtype=torch.long)
    value = search.try_patches(image, none, torch.zeros(200, 1, 1, 1, 1), batch=batch)
    tried = 8 if budget else 100  # 6 for the clean image, then 8 times 6 begin below 50
    assert search.evaluations.tolist() == [6 + 6 * tried] * 2
    assert value.isfinite().tolist() == [row < 2 * tried for row in range(200)]
