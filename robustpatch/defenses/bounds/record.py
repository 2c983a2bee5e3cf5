"""Recording what a network runs: every ATen operator, below hooks, methods and functions of whatever kind."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import _pop_mode_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from robustpatch.defenses.bounds.graph import Held, Meta, Node, Ref, mapped
from robustpatch.errors import InvalidInput

aten = torch.ops.aten

_WHOLE = {aten._pad_circular.default, aten.upsample_nearest2d.vec}  # composed of writes in place, of indexing
_SAME = {aten.lift_fresh.default, aten.detach.default, aten.detach_.default, aten.alias.default, aten.clone.default}
_RESHAPED = {
    getattr(packet, name)
    for packet in (aten.view, aten._unsafe_view, aten._reshape_alias, aten.squeeze, aten.unsqueeze)
    for name in packet.overloads()
    if name in ("default", "dim", "dims")
}
_IN_PLACE = {
    aten.relu_.default: aten.relu.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.clamp_.default: aten.clamp.default,
    aten.clamp_min_.default: aten.clamp_min.default,
    aten.clamp_max_.default: aten.clamp_max.default,
    aten.add_.Tensor: aten.add.Tensor,
    aten.sub_.Tensor: aten.sub.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.div_.Tensor: aten.div.Tensor,
    aten.neg_.default: aten.neg.default,
    aten.abs_.default: aten.abs.default,
}
_FILLED = {
    aten.new_zeros.default: aten.zeros.default,
    aten.new_ones.default: aten.ones.default,
    aten.new_full.default: aten.full.default,
    aten.zeros_like.default: aten.zeros.default,
    aten.ones_like.default: aten.ones.default,
    aten.full_like.default: aten.full.default,
}


def record(network: nn.Module, x: Tensor, batch: int) -> tuple[list[Node], Ref]:
    """The calls that `network`, as it is, makes of `batch` images of the shape, type and device of those in `x`, and
    which is its output. The images are given as tensors without values: nothing can be decided by them.

    Raises `InvalidInput` where a value is asked for, a tensor from outside is written to, or the network raises.
    """
    with _without_modes(), torch.inference_mode(), _quiet(), FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty((batch, *x.shape[1:]), dtype=x.dtype, device=x.device)
        recorder, out = _Recorder(network, images), None
        try:
            with recorder:
                out = network(images)
        except Exception as error:
            if recorder.refused is None:
                said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise InvalidInput(
                    f"network cannot be traced on images of shape {tuple(x.shape[1:])}, where it sees shapes but no "
                    f"values: {said}"
                ) from error
        if recorder.refused is not None:
            raise recorder.refused
        return recorder.nodes, recorder.output(out)


@contextmanager
def _without_modes() -> Iterator[None]:
    """Without the modes of torch that are on: those that the network itself switches on count."""
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        while torch._C._len_torch_function_stack():
            stack.enter_context(_pop_mode_temporarily())
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's log of what it raises here, which `record` says in one line."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class _Recorder(TorchDispatchMode):
    """Keeps what it has seen of each tensor, by identity: which node's output it is, and whose memory it shares."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.names = {id(module): name for name, module in network.named_modules()}
        self.nodes = [Node(None, {}, "images", (_meta(images),))]
        self.refused: InvalidInput | None = None
        self._alive: list[Tensor] = []  # an identity is a tensor's as long as that lives
        self._ref: dict[int, Ref | Held] = {}
        self._memory: dict[int, int] = {}
        self._stale: set[int] = set()
        self._learn(images, Ref(0), None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if (
            func not in _WHOLE
            and func.namespace != "prim"
            and func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)
        ):
            with self:
                return func.decompose(*args, **kwargs)
        functional: Any = _IN_PLACE.get(func, func)
        if functional._schema.is_mutable and func not in _SAME:
            self._refuse(f"writes in place by {func}; compute a new tensor instead")
        arguments = {name: mapped(own, self._argument) for name, own in _bound(functional, args, kwargs).items()}
        if any(str(one.type) not in ("Tensor", "List[Tensor]") for one in func._schema.returns):
            self._refuse(f"asks for a value by {func}: what it computes may not depend on the values of tensors")
        out: Any = func(*args, **kwargs)
        several = isinstance(out, tuple | list)
        outputs: list[Any] = list(out) if several else [out]
        if functional is not func:
            self._write(args[0], func)
        if func in _SAME:
            self._learn(out, arguments["self"], None if func is aten.clone.default else args[0])
            return out
        if func in _RESHAPED:
            functional, arguments = aten.reshape.default, {"self": arguments["self"], "shape": list(out.shape)}
        if func in _FILLED:
            functional = _FILLED[func]
            filled = {"size": list(out.shape), "fill_value": arguments.get("fill_value")}
            arguments = {one.name: filled.get(one.name) for one in functional._schema.arguments}
        if "layout" in arguments:  # of those that make a tensor: its type and device, not what is default later
            arguments |= {"dtype": out.dtype, "device": out.device}
        self.nodes.append(Node(functional, arguments, self._where(), tuple(map(_meta, outputs))))
        base = next((tensor for tensor in _tensors(args)), None) if _may_alias(func) else None
        for number, one in enumerate(outputs):
            self._learn(one, Ref(len(self.nodes) - 1, number if several else None), base)
        return out

    def output(self, out: Any) -> Ref:
        """Finds the node whose output the network returned."""
        ref = self._ref.get(id(out))
        if not isinstance(ref, Ref) or id(out) in self._stale:
            raise InvalidInput(
                f"network returns {type(out).__name__}, no tensor computed of the images; return outputs of [batch, "
                "classes] alone"
            )
        return ref

    def _argument(self, own: Any) -> Any:
        if not isinstance(own, Tensor):
            return own
        if id(own) in self._stale:
            self._refuse("uses a tensor whose memory was written to in place through another one; compute a new tensor")
        if id(own) not in self._ref:
            # Nothing but a plain tensor promises that operators do to it what they say.
            plain = type(own) in (Tensor, nn.Parameter) and own.layout is torch.strided and not own.is_quantized
            if not plain or own.is_conj() or own.is_neg():
                self._refuse(f"uses a {type(own).__name__} that is no plain tensor; use torch.Tensor and nn.Parameter")
            self._learn(own, Held(own), None)
        return self._ref[id(own)]

    def _write(self, target: Tensor, func: Any) -> None:
        memory = self._memory[id(target)]
        sharing = {own for own, other in self._memory.items() if other == memory}
        if any(isinstance(self._ref[own], Held) for own in sharing):
            self._refuse(f"writes to a parameter, a buffer or a constant by {func}; compute a new tensor instead")
        self._stale |= sharing - {id(target)}

    def _learn(self, tensor: Tensor, ref: Ref | Held, base: Tensor | None) -> None:
        """The tensor is what `ref` says; it shares the memory of `base`, or has its own."""
        self._alive.append(tensor)
        self._ref[id(tensor)] = ref
        known = self._memory.get(id(tensor), len(self._alive))
        self._memory[id(tensor)] = known if base is None else self._memory.get(id(base), known)

    def _refuse(self, what: str) -> None:
        # Kept, as the network may catch what is raised here.
        self.refused = self.refused or InvalidInput(f"{self._where()} {what}")
        raise self.refused

    def _where(self) -> str:
        """The innermost module whose method is running."""
        frame = sys._getframe(1)
        while frame is not None:
            own = frame.f_locals.get("self")
            if isinstance(own, nn.Module) and id(own) in self.names:
                name = self.names[id(own)]
                return f"network{'.' if name else ''}{name} ({type(own).__name__})"
            frame = frame.f_back
        return "network"


def _bound(op: OpOverload, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by their names, as called or by default."""
    found, given = {}, list(args)
    for one in op._schema.arguments:
        if given and not one.kwarg_only:
            found[one.name] = given.pop(0)
        else:
            found[one.name] = kwargs.get(one.name, one.default_value)
    return found


def _may_alias(op: Any) -> bool:
    return any(one.alias_info is not None for one in op._schema.returns)


def _tensors(args: Any) -> list[Tensor]:
    return [one for one in args if isinstance(one, Tensor)]


def _meta(tensor: Tensor) -> Meta:
    return Meta(tuple(tensor.shape), tensor.dtype)
