"""What can change in a model without any of its attributes being another object: all of it is told."""

from __future__ import annotations

import collections
import enum
import functools
import itertools
import types
import weakref
from array import array

import numpy as np
import pytest
import torch
from beartype import beartype
from torch import nn
from torch.nn import functional as F

from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.classifiers.state_digest import digest
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import TopOne
from tests.shape_checks import check_every_call


class Plain:
    def __init__(self, value=0.0) -> None:
        self.value = value


class Private:
    __slots__ = ("__value",)

    def __init__(self) -> None:
        self.__value = 0.0

    def change(self) -> None:
        self.__value = 1.0


class Derived(Private):
    """The same name, in a slot of its own."""

    __slots__ = ("__value",)


class Colour(enum.Enum):
    RED = 1


def attributed(kind: type, *given):
    """An object of a class that derives from that type, with an attribute."""
    made = types.new_class(f"Own{kind.__name__}", (kind,))(*given)
    made.value = 0.0
    return made


def put(held) -> None:
    held.value = 1.0


def closures():
    value = 0.0

    def get():
        return value

    def change():
        nonlocal value
        value = 1.0

    get.change = change
    return get


def disguised():
    """A function that says that it is torch's."""
    value = [0.0]

    @functools.wraps(F.relu)
    def relu(x):
        return x * value[0]

    relu.__dict__.clear()
    return relu, value


def structured() -> np.ndarray:
    return np.zeros(2, dtype=[("a", "f4"), ("b", "i4")])


def masked():
    return np.ma.masked_array([1.0, 2.0], mask=[False, False])


def changed_default(function):
    function.__defaults__[0]["value"] = 1.0


def with_default():
    def function(x, table={"value": 0.0}):  # noqa: B006  what changes within it is the point
        return x * table["value"]

    return function


def ordered():
    table = collections.OrderedDict()
    table.value = 0.0
    return table


def cell():
    (found,) = closures().__closure__
    return found


def set_cell(held) -> None:
    held.cell_contents = 1.0


WEAK = Plain()
HELD = {  # what a model holds, and a change within it
    **{f"a {kind.__name__}": (functools.partial(attributed, kind), put) for kind in (dict, list, set, int, float, str)},
    "a partial": (lambda: functools.partial(max, 1), put),
    "a derived partial": (functools.partial(attributed, functools.partial, max), put),
    "an ordered dict": (ordered, put),
    "a tuple": (lambda: attributed(tuple), put),
    "a deque": (lambda: attributed(collections.deque), put),
    "an ndarray": (lambda: np.zeros(2).view(types.new_class("Own", (np.ndarray,))), put),
    "a function": (lambda: closures(), put),
    "a namespace": (types.SimpleNamespace, put),
    "an enumeration": (lambda: Colour.RED, lambda held: setattr(held, "extra", object())),
    "private slots": (Private, Private.change),
    "private slots of a base": (Derived, Private.change),
    "array": (lambda: array("f", [0.0]), lambda held: held.__setitem__(0, 1.0)),
    "bytearray": (lambda: bytearray(b"0"), lambda held: held.__setitem__(0, 1)),
    "memoryview": (lambda: memoryview(bytearray(b"0")), lambda held: held.__setitem__(0, 1)),
    "structured array": (structured, lambda held: held["a"].__setitem__(0, 1.0)),
    "mask of an array": (masked, lambda held: setattr(held, "mask", [True, False])),
    "record": (lambda: structured()[0], lambda held: held.__setitem__("a", 1.0)),
    "distribution": (
        lambda: torch.distributions.Normal(torch.zeros(1), torch.ones(1)),
        lambda held: held.loc.fill_(2.0),
    ),
    "user dict": (collections.UserDict, lambda held: held.__setitem__("a", 1)),
    "default of a dict": (lambda: collections.defaultdict(closures()), lambda held: held.default_factory.change()),
    "slice": (lambda: slice(None, Plain()), lambda held: put(held.stop)),
    "cell": (cell, set_cell),
    "weak reference": (lambda: weakref.ref(WEAK), lambda held: setattr(WEAK, "value", WEAK.value + 1)),
    "method of a list": (lambda: [0.0].append, lambda held: held(1.0)),
    "closure": (closures, lambda held: held.change()),
    "disguised closure": (lambda: disguised(), lambda held: held[1].__setitem__(0, 1.0)),
    "default": (with_default, changed_default),
    "cached": (lambda: functools.lru_cache(with_default()), lambda held: changed_default(held.__wrapped__)),
}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("where", ["attribute", "nested", "class"])
def test_changes_within_what_a_model_holds(name, where):
    """Held by the model itself, within containers of it, and by its class; unchanged, it equals itself."""
    make, change = HELD[name]
    held = make()
    module = types.new_class("Holder", (nn.Module,))()
    if where == "class":
        type(module).held = held if not isinstance(held, types.FunctionType) else staticmethod(held)
    else:
        module.held = held if where == "attribute" else {"own": [(held,)]}
    before = digest(module)
    assert digest(module) == before
    change(held)
    assert digest(module) != before
    assert digest(module) == digest(module)


@pytest.mark.parametrize("kind", [int, float, str, bytes, complex])
def test_values_of_derived_types(kind):
    """The number itself, whatever the class says of it."""
    own = types.new_class("Own", (kind,), exec_body=lambda body: body.update(__repr__=lambda self: "same"))
    module = nn.Module()
    module.held = own(*([b"1"] if kind is bytes else ["1"]))
    before = digest(module)
    module.held = own(*([b"2"] if kind is bytes else ["2"]))
    assert digest(module) != before


def test_what_classes_hold():
    """Modules, inner classes, objects under names of Python, defaults, and what a metaclass defines."""

    class Meta(type):
        gain = 0.0

    class Inner:
        value = 0.0

    class Callable:
        value = 0.0

        def __call__(self, *_):
            return self.value

    class Network(nn.Module, metaclass=Meta):
        layer, inner, __call__ = nn.Linear(1, 1), Inner, Callable()

        def with_default(self, table={"value": 0.0}):  # noqa: B006
            return table["value"]

    def layer():
        Network.layer.weight.data.fill_(9.0)

    def inner():
        Inner.value = 1.0

    def meta():
        Meta.gain = 1.0

    def called():
        vars(Network)["__call__"].value = 1.0

    def default():
        Network.with_default.__defaults__[0]["value"] = 1.0

    module = Network()
    for change in (layer, inner, meta, called, default):
        before = digest(module)
        assert digest(module) == before
        change()
        assert digest(module) != before, change.__name__


def test_iterators_are_told_by_identity():
    """As documented: what they hold is not theirs to be read. Nor is an object of a class derived from theirs."""
    module = nn.Module()
    module.held = attributed(itertools.count)
    before = digest(module)
    assert digest(module) == before
    module.held = attributed(itertools.count)
    assert digest(module) != before


def test_a_certificate_after_a_change_within_is_refused():
    """The base votes by all of the image, in all bands but the one that the next call would ask."""

    class Base(nn.Module):
        config = types.SimpleNamespace(gain=0.0)
        ablation = Columns(1)

        def score_all(self, x, index=None):
            columns = torch.arange(x.shape[3])
            seen = 20 * self.config.gain * x.sum((1, 2, 3))[:, None] * (columns > 0)
            scores = torch.stack([5 + 0 * seen, seen], dim=2)
            if index is None:
                return scores
            return scores[torch.arange(len(x))[:, None], index if index.ndim == 2 else index[None]]

    model = SmoothedClassifier(Base(), Columns(1), num_classes=2, voting=TopOne()).eval()
    x = torch.zeros(1, 1, 4, 8)
    assert model.certify(x, PatchThreat(1, 1)).certified.all()
    Base.config.gain = 1.0
    with pytest.raises(InvalidInput, match="sees more than its band"):
        model.certify(x, PatchThreat(1, 1))


def of_checked(kind: str) -> tuple[nn.Module, list[float], types.FunctionType, types.FunctionType]:
    """A module whose method a type checker wraps, what the method holds, the method and its wrapper."""
    held = [1.0]

    def forward(self, x: torch.Tensor, by: float = 2.0) -> torch.Tensor:
        return x * by + held[0]

    wrapper = check_every_call(forward, typechecker=beartype) if kind == "jaxtyping" else beartype(forward)
    return type("Checked", (nn.Module,), {"forward": wrapper})(), held, forward, wrapper


@pytest.mark.parametrize("kind", ["jaxtyping", "beartype"])
def test_what_a_type_checker_wraps(kind):
    """Is told as if it were not wrapped: what it holds, its defaults and code; and so is what the wrapper was given."""
    model, held, forward, wrapper = of_checked(kind)
    told = [digest(model)]
    assert told[0] == digest(model)
    held[0] = 3.0
    told.append(digest(model))
    forward.__defaults__ = (5.0,)
    told.append(digest(model))
    forward.__code__ = forward.__code__.replace(co_name="other")
    told.append(digest(model))
    wrapper.scale = 2.0  # type: ignore[attr-defined]
    told.append(digest(model))
    assert all(one != other for one, other in itertools.combinations(told, 2))


def equal(model: nn.Module) -> bool:
    return digest(model) == digest(model)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning", "ignore:Sparse CS[RC]:UserWarning")
def test_tensors_of_all_kinds_are_told():
    """Bits, not numbers: NaN equals itself, and -0 is not 0. Sparse and quantised ones, narrow and complex ones."""
    values = torch.tensor([[1.0, 0.0], [torch.nan, 3.0]])
    quantised = torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), 0.1, 3, torch.quint8)
    channels = torch.quantize_per_channel(
        torch.ones(2, 2), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.qint8
    )
    kinds = [
        values,
        values.T,
        values.bfloat16(),
        values.to(torch.float8_e4m3fn),
        values.to(torch.complex64).conj(),
        values > 0,
        values.to_sparse(),
        values.to_sparse_csr(),
        values.to_sparse_csc(),
        torch.zeros(0, 3),
        torch.tensor(3),
        quantised,
        channels,
    ]
    with torch.inference_mode():
        kinds.append(torch.ones(3))
    told = []
    for tensor in kinds:
        module = nn.Module()
        module.held = tensor
        assert equal(module), tensor
        told.append(digest(module))
    assert all(a != b for i, a in enumerate(told) for b in told[:i])
    module = nn.Module()
    module.held = torch.zeros(2)
    before = digest(module)
    module.held = -torch.zeros(2)
    assert digest(module) != before
    module.held = torch.zeros(2, device="meta")
    assert not equal(module)  # nobody can say what it holds: no check is remembered


def test_other_values_are_told():
    """Numbers of another type, order, aliases, cycles, functions and their closures, classes; what has none is kept."""
    module = nn.Module()
    module.held = None
    state = [0]

    def closure():
        return state

    cycle: list = []
    cycle.append(cycle)
    values = [
        1,
        True,
        1.0,
        np.float64(1.0),
        "1",
        (1,),
        [1],
        {1},
        {1: 2},
        {1: 3},
        cycle,
        closure,
        Columns(1),
        Columns(2),
    ]
    told = []
    for value in [*values, torch.nan, object(), torch.Generator(), Plain, nn.Linear(2, 2)]:
        module.held = value
        assert equal(module), value
        told.append(digest(module))
    assert all(a != b for i, a in enumerate(told) for b in told[:i])
    module = nn.Module()
    module.held = closure
    before = digest(module)
    state[0] = 1
    assert digest(module) != before
    module.held = np.array([object()])
    assert not equal(module)
