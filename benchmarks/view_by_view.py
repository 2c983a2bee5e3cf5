"""python benchmarks/view_by_view.py: how much of the gap between an attack and a certificate of votes is the network's.

A patch is one content for all ablations that it touches. Here each of them is attacked by a content of its own, which
no patch can show: at every placement and for every rival that the certificate leaves in reach, as many votes are turned
as gradients turn. Where even that does not change the prediction, the certificate was out of reach of every patch that
gradients find: its worst case assumes answers of the base that nothing seems to bring about.
"""

from __future__ import annotations

import json
from typing import Annotated

import torch
import typer
from torch import Tensor

from robustpatch import PatchThreat, SmoothedClassifier
from robustpatch.certificates.margins import rival_margins
from robustpatch.data.images import load_images

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
THREAT = PatchThreat(5, 5)


def turned(model: SmoothedClassifier, x: Tensor, y: int, sites: Tensor, steps: int, restarts: int) -> Tensor:
    """Int[M,N,K]: by how many votes each ablation alone can be brought to change the lead of y over each class, the
    patch at these placements of the image [1,C,H,W]; 0 of those not touched.
    """
    family, size = THREAT.family(*x.shape[2:]), (x.shape[2], x.shape[3])
    shown = family.footprint(sites)
    views = (model.ablation.masks(*size)[None] & shown[:, None]).flatten(2).any(dim=2)
    cast = model.votes(x).cast[0].int()
    found = torch.zeros(len(sites), *cast.shape, dtype=torch.int)
    generator = torch.Generator().manual_seed(0)
    for j in (k for k in range(model.num_classes) if k != y):
        site, view = views.nonzero(as_tuple=True)
        for _ in range(restarts):
            adv = torch.where(shown[site][:, None], torch.rand(len(site), *x.shape[1:], generator=generator), x)
            for step in range(steps + 1):
                adv.requires_grad_()
                logits = model.logits(adv, view[:, None])[:, 0]
                votes = model.voting.votes(model.voting.scores(logits.detach()), 0.0).cast.int()
                gained = (cast[view, y] - cast[view, j]) - (votes[:, y] - votes[:, j])
                found[site, view, j] = torch.maximum(found[site, view, j], gained)
                if step == steps:
                    break
                loss = logits.log_softmax(dim=1)[:, y] - logits.log_softmax(dim=1)[:, j]
                (slope,) = torch.autograd.grad(loss.sum(), adv)
                moved = (adv.detach() - 0.5 * (1 - step / steps) * slope.sign()).clamp(0, 1)
                adv = torch.where(shown[site][:, None], moved, x)
            most = 1 + cast[view, y] - cast[view, j]
            left = found[site, view, j] < most
            site, view = site[left], view[left]
            if not len(site):
                break
    return found


@app.command()
def main(
    indices: Annotated[str, typer.Argument(help="Images of the sample, by number.")],
    checkpoint: Annotated[str, typer.Option()] = "mnist-columns2-rows2",
    steps: Annotated[int, typer.Option()] = 10,
    restarts: Annotated[int, typer.Option()] = 3,
) -> None:
    """A line of JSON for each image: the certificate's margin, and the lead that is left view by view, in votes."""
    torch.set_num_threads(1)
    model = SmoothedClassifier.from_pretrained(checkpoint).requires_grad_(False)
    touched = model.ablation.touched(THREAT, 28, 28)
    for index in map(int, indices.split(",")):
        x, y = load_images("mnist-sample").batch([index])
        votes = model.votes(x)
        margins = rival_margins(votes, y, touched)[0][touched.set_of_placement]
        sites = (margins.amin(dim=1) < 0).nonzero()[:, 0]
        counts, number = votes.counts[0].int(), torch.arange(model.num_classes)
        lead = counts[y] - counts - (number < y).int()
        left = lead - turned(model, x, int(y), sites, steps, restarts).sum(dim=1)
        left[:, y] = counts.sum()
        note = {"image": index, "margin": int(margins.min()), "open": len(sites), "view by view": int(left.min())}
        typer.echo(json.dumps(note))


if __name__ == "__main__":
    app()
