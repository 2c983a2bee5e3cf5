"""One small network in every kind of file that models come in."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from tests import toys

SIZE, CLASSES = (8, 8), 3


class Small(nn.Module):
    """A convolution and a linear layer, of grey images 8×8."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(1, 2, 3, padding=1)
        self.name = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.name(self.look(x).relu().flatten(1))


def small() -> nn.Module:
    net = toys.seeded(Small).eval().requires_grad_(False)
    net.name.weight.mul_(8)
    return net


KEPT = small()


def scores(x: np.ndarray) -> np.ndarray:
    """The same as a function of NumPy images."""
    return KEPT(torch.from_numpy(x)).numpy()


def write_script(net: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is out of fashion
        torch.jit.save(torch.jit.trace(net, torch.zeros(2, 1, *SIZE)), str(path))


def write_exported(net: nn.Module, path: Path, *, batch: int | None = None) -> None:
    shapes = {"x": {0: torch.export.Dim("batch")}} if batch is None else None
    example = torch.zeros(batch or 2, 1, *SIZE)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=shapes), path)


def graph(net: nn.Module, *, batch: int | str = "batch", strange: bool = False) -> onnx.ModelProto:
    """The network as ONNX; `strange`, with a node that onnx2torch does not know."""
    weights = [numpy_helper.from_array(value.numpy(), name) for name, value in net.state_dict().items()]
    nodes = [
        helper.make_node("Conv", ["x", "look.weight", "look.bias"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["seen"], ["positive"]),
        helper.make_node("Hardmax" if strange else "Identity", ["positive"], ["passed"]),
        helper.make_node("Flatten", ["passed"], ["flat"]),
        helper.make_node("Gemm", ["flat", "name.weight", "name.bias"], ["scores"], transB=1),
    ]
    kind = onnx.TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", kind, [batch, 1, *SIZE])]
    outputs = [helper.make_tensor_value_info("scores", kind, [batch, CLASSES])]
    made = helper.make_graph(nodes, "small", inputs, outputs, weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
