"""python benchmarks/ibp_gap.py: whether images that IBP leaves open, and no attack breaks, can be broken at all.

The shipped network has one hidden layer. At a placement it is the maximum of a sum of ReLUs over 25 pixels in [0, 1]: a
mixed-integer linear program, which a solver bounds from both sides in double precision, by far more tightly than
intervals. It is no certificate of ours: its rounding is not bounded.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from robustpatch import PatchThreat
from robustpatch.checkpoints import load_checkpoint
from robustpatch.data.images import load_images
from robustpatch.defenses.ibp import BoundedClassifier

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
THREAT = PatchThreat(5, 5)


def most(first: nn.Linear, slope: Tensor, offset: float, x: Tensor, free: Tensor, whole: bool, seconds: float) -> float:
    """An upper bound of slope·relu(first(x)) + offset over all contents of the pixels `free`. Of the program with
    binary variables where `whole`, else of its relaxation.
    """
    weight, rest = first.weight.double(), torch.where(free, 0, x).double()
    w = weight[:, free].numpy()
    b = (first.bias.double() + weight @ rest).numpy()
    low, high = b + np.minimum(w, 0).sum(axis=1), b + np.maximum(w, 0).sum(axis=1)
    c, pixels = slope.double().numpy(), w.shape[1]
    on, loose = low >= 0, (low < 0) & (high > 0)
    n = int(loose.sum())
    wl, bl, lo, hi = w[loose], b[loose], low[loose], high[loose]
    eye, none = np.eye(n), np.zeros((n, n))
    rows = np.block([[-wl, eye, none], [-wl, eye, -np.diag(lo)], [np.zeros((n, pixels)), eye, -np.diag(hi)]])
    bottom = np.concatenate([bl, np.full(2 * n, -np.inf)])  # relu(a) >= a, <= a - lo (1 - z), <= hi z
    top = np.concatenate([np.full(n, np.inf), bl - lo, np.zeros(n)])
    sides: Any = (bottom, top)
    value = np.concatenate([c[on] @ w[on], c[loose], np.zeros(n)])
    ends: Any = (np.zeros(pixels + 2 * n), np.concatenate([np.ones(pixels), np.maximum(hi, 0), np.ones(n)]))
    kinds = np.concatenate([np.zeros(pixels + n), np.full(n, int(whole))])
    found = milp(
        -value,
        constraints=LinearConstraint(rows, *sides),
        bounds=Bounds(*ends),
        integrality=kinds,
        options={"time_limit": seconds},
    )
    least = found.mip_dual_bound if whole else found.fun if found.success else None
    return (np.inf if least is None else -least) + float(c[on] @ b[on]) + offset


@app.command()
def main(
    indices: Annotated[str, typer.Argument(help="Images of the sample, by number.")],
    seconds: Annotated[float, typer.Option(help="For each placement and class whose relaxation proves nothing.")] = 30,
) -> None:
    """A line of JSON for each image: placements that IBP leaves open, that the relaxation does, and the program."""
    model = load_checkpoint("mnist-ibp").model.eval().requires_grad_(False)
    assert isinstance(model, BoundedClassifier)
    first, head = (layer for layer in model.network.modules() if isinstance(layer, nn.Linear))
    for index in map(int, indices.split(",")):
        x, _ = load_images("mnist-sample").batch([index])
        c, margins = int(model.predict(x)), model.placement_margins(x, THREAT)[0]
        opened, relaxed, left = (margins < 0).nonzero()[:, 0], 0, 0
        frees = THREAT.family(28, 28).footprint(opened).flatten(1)
        for free in frees:
            open_ = []
            for j in (k for k in range(10) if k != c):
                case = (first, head.weight[j] - head.weight[c], float(head.bias[j] - head.bias[c]), x.flatten(), free)
                if most(*case, whole=False, seconds=seconds) >= 0:
                    open_.append(most(*case, whole=True, seconds=seconds) >= 0)
            relaxed, left = relaxed + bool(open_), left + any(open_)
        note = {"image": index, "open by IBP": len(opened), "by the relaxation": relaxed, "by the program": left}
        typer.echo(json.dumps(note))


if __name__ == "__main__":
    app()
