"""The base network of a model as an ONNX graph, answered by onnxruntime as `--model net.onnx` is."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.smoothed import guarded_classifier
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.intake.onnx_graph import load


class OnnxBase(nn.Module):
    """A one-pass base whose graph scores all ablations [B,N,K] of an image, whichever of them are asked for."""

    def __init__(self, graph: nn.Module, ablation: object) -> None:
        super().__init__()
        self.graph, self.ablation = graph, ablation

    def score_all(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None) -> Float[Tensor, "B n K"]:
        scores = self.graph(x)
        if index is None:
            return scores
        index = index.expand(len(x), -1) if index.ndim == 1 else index
        return scores.gather(1, index[..., None].expand(-1, -1, scores.shape[2]))


class _Every(nn.Module):
    """Of a one-pass base the scores of all ablations: what its graph computes."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base.score_all(x)  # type: ignore[operator]


def onnx(model: nn.Module, x: Tensor) -> nn.Module:
    """The model around its base network exported to ONNX: votes, masks and certificates are computed as before, of what
    onnxruntime answers on the CPU. Its rounding is another than PyTorch's, within the same guard.

    Raises `InvalidInput` without the packages of `robustpatch[onnx]`, and for a network that cannot be exported.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise InvalidInput(f"to is onnx, but {package} is not installed; pip install 'robustpatch[onnx]'")
    base, voting = as_classifier(model).weights_module(), guarded_classifier(as_classifier(model))
    one_pass = voting is not None and voting.one_pass
    example = x[:2] if one_pass else _seen(model, base, x[:2])
    graph = _through_a_file(_Every(base) if one_pass else base, example)
    exported = OnnxBase(graph, base.ablation).eval() if one_pass else graph
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child is base:
                setattr(parent, name, exported)
    return exported if model is base else model


@torch.no_grad()
def _seen(model: nn.Module, base: nn.Module, x: Tensor) -> Tensor:
    """What the base is shown when the model predicts, of two images."""
    seen: list[Tensor] = []
    hook = base.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        as_classifier(model).predict(x)
    finally:
        hook.remove()
    return seen[0][:1].repeat(2, 1, 1, 1).clone()


def _through_a_file(network: nn.Module, example: Tensor) -> nn.Module:
    with TemporaryDirectory() as folder, _silence():
        path = Path(folder) / "network.onnx"
        try:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(network, (example,), path, dynamic_shapes=shapes, verbose=False)
        except Exception as error:  # the exporter has no common class of its errors
            why = one_line(error.__cause__ or error, 200)
            raise InvalidInput(
                f"to is onnx, but PyTorch does not export {type(network).__name__} ({why}); leave this [[convert]] out"
            ) from error
        return load(path)[0]


@contextmanager
def _silence():
    """Without the exporter's words about what it does."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
