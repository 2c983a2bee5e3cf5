"""ONNX files: answered by onnxruntime, with the gradients of their conversion to PyTorch.

A file holds a graph of operators by name, and no code; onnxruntime has no other operators than its own unless a program
registers them. Tensors in other files are read from the file's own folder alone.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.gradients import StraightThrough
from robustpatch.intake.preprocessing import InBatches, Preprocessing

_MOST = 2**31 - 1  # bytes of a protobuf
_KNOWN = 17  # the version of ONNX's operators that onnx2torch knows best
_NEAR = 1e-3  # of the largest score: how far a conversion may be from what it converts


class OnnxNetwork(nn.Module):
    """The scores [B,K] that onnxruntime gives of images, to the bit; where a gradient is asked for, with that of
    `converted`, None where there is none.
    """

    graph: UInt8[Tensor, " n"]

    def __init__(self, graph: bytes, converted: nn.Module | None = None) -> None:
        super().__init__()
        self.register_buffer("graph", torch.frombuffer(bytearray(graph), dtype=torch.uint8))
        self.converted = converted

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        if isinstance(x, FakeTensor):  # whoever records a network's layers, as IBP does, would record none
            raise InvalidInput("an ONNX graph shows PyTorch no layers; take the network in PyTorch")
        session = _session(self.graph.cpu().numpy().tobytes(), torch.get_num_threads())
        given = session.get_inputs()[0]
        kind = np.float16 if given.type == "tensor(float16)" else np.float32
        found = session.run(None, {given.name: x.detach().cpu().numpy().astype(kind)})[0]
        scores = torch.from_numpy(np.asarray(found)).float().to(x.device)
        if self.converted is None or not (torch.is_grad_enabled() and x.requires_grad):
            return scores
        return StraightThrough.apply(self.converted(x).float(), scores)


def load(path: Path) -> tuple[nn.Module, Preprocessing, str | None]:
    """The network of an ONNX file, the images it takes, and why it has no gradients, None where it has. Where its graph
    is of a number of images, it is asked with so many. Raises `InvalidInput`.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InvalidInput(
            f"model is {path}, but {error.name} is not installed; pip install 'robustpatch[onnx]'"
        ) from error
    try:
        _check_places(onnx, path)
        graph = onnx.load(str(path))
        if graph.ByteSize() > _MOST:
            raise InvalidInput(f"model is {path}, of {graph.ByteSize():,} bytes; at most {_MOST:,} are read")
        content = graph.SerializeToString()
        session = _session(content, torch.get_num_threads())
    except InvalidInput:
        raise
    except Exception as error:  # onnxruntime has no common class of its errors, and protobuf another
        raise InvalidInput(
            f"model is {path}, which onnxruntime {onnxruntime.__version__} does not read ({one_line(error, 200)}); "
            "export it anew"
        ) from error
    batch, channels, size = _input(session, path)
    preprocessing = Preprocessing(size=size, channels=channels, source="the file says no more")
    converted, why_not = _converted(graph, content, batch, channels, size)
    network: nn.Module = OnnxNetwork(content, converted)
    return (network if batch is None else InBatches(network, batch)).eval(), preprocessing, why_not


def _check_places(onnx: Any, path: Path) -> None:
    """Refuse tensors that are to be read from elsewhere than files beside this one."""
    graph = onnx.load(str(path), load_external_data=False)
    for tensor in onnx.external_data_helper._get_all_tensors(graph):
        for entry in tensor.external_data if tensor.data_location == onnx.TensorProto.EXTERNAL else ():
            beside = path.parent / entry.value
            plain = Path(entry.value).name == entry.value and not beside.is_symlink()
            if entry.key == "location" and not plain:
                raise InvalidInput(
                    f"model is {path}, which reads tensors from {one_line(repr(entry.value), 200)}; put them into a "
                    "file beside it, or into the file itself"
                )


@lru_cache(maxsize=4)
def _session(graph: bytes, threads: int) -> Any:
    """One for each graph: what a module holds is the graph alone, so that it can be copied and sent."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _input(session: Any, path: Path) -> tuple[int | None, int | None, tuple[int, int] | None]:
    given = session.get_inputs()
    shape = given[0].shape if len(given) == 1 else []
    if len(shape) != 4 or given[0].type not in ("tensor(float)", "tensor(float16)"):
        what = ", ".join(f"{one.type} {one.shape}" for one in given)
        raise InvalidInput(
            f"model is {path}, which takes {one_line(what, 200)}; export a network of one input, float images [B,C,H,W]"
        )
    batch, channels, height, width = (one if type(one) is int else None for one in shape)
    return batch, channels, None if height is None or width is None else (height, width)


def _converted(
    graph: Any, content: bytes, batch: int | None, channels: int | None, size: tuple[int, int] | None
) -> tuple[nn.Module | None, str | None]:
    """The graph as a module of PyTorch, where that has its answers on two images of noise; else why not."""
    try:
        import onnx2torch
    except ImportError:
        return None, "onnx2torch is not installed (pip install 'robustpatch[onnx]')"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = onnx2torch.convert(_in_older_operators(graph)).eval().requires_grad_(False)
        x = torch.rand(batch or 2, channels or 3, *(size or (64, 64)), generator=torch.Generator().manual_seed(0))
        expected = OnnxNetwork(content)(x)
        leaf = x.clone().requires_grad_()
        found = module(leaf)
        torch.autograd.grad(found.sum(), leaf)
    except Exception as error:  # a library's, of graphs that it does not know
        return None, f"onnx2torch does not convert it ({one_line(error, 120)})"
    off = float((found.detach().float() - expected).abs().max())
    if not off <= _NEAR * (1 + float(expected.abs().max())):
        return None, f"onnx2torch converts it to a network whose scores are off by {off:.2g}"
    return module, None


def _in_older_operators(graph: Any) -> Any:
    """The same graph in operators that onnx2torch knows, where onnx can say it in them."""
    from onnx import version_converter

    versions = [one.version for one in graph.opset_import if one.domain in ("", "ai.onnx")]
    try:
        return version_converter.convert_version(graph, _KNOWN) if max(versions, default=0) > _KNOWN else graph
    except (RuntimeError, ValueError):
        return graph
