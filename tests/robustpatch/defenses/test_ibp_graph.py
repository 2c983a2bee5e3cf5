"""However a network's computation is brought about, what certifies and what predicts are one: no certificate falls."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from robustpatch import PatchThreat
from robustpatch.defenses.ibp import IBP, BoundedClassifier
from robustpatch.errors import InvalidInput
from tests import toys
from tests.robustpatch.defenses.bounds.nets import CHANNELS, LAYERS, SIZE, Of, chain

ONE = PatchThreat(1, 1)


def defended(network: nn.Module, classes: int = 2) -> BoundedClassifier:
    return IBP().wrap(network, num_classes=classes).eval()


@torch.no_grad()
def linear(weight, bias) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.copy_(torch.tensor(weight))
    layer.bias.copy_(torch.tensor(bias))
    return layer


def steep() -> nn.Sequential:
    """Of one pixel a: class 0 as long as a < 0.9; so nothing is certified but where pixels are scaled down."""
    return nn.Sequential(nn.Flatten(), linear([[1.0]], [0.0]), linear([[0.0], [1.0]], [0.9, 0.0]))


def flat() -> nn.Sequential:
    """Of one pixel a: class 0 as long as a < 1.1: certified, if nothing scales it up."""
    return nn.Sequential(nn.Flatten(), linear([[1.0]], [0.0]), linear([[0.0], [1.0]], [1.1, 0.0]))


DARK, BRIGHT = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)


def sound(model: BoundedClassifier, x: torch.Tensor = DARK, attacked: torch.Tensor = BRIGHT) -> bool | None:
    """Whether it certifies, None if it refuses; a certificate must stand against that image."""
    try:
        certified = bool(model.certify(x, ONE).certified[0])
    except InvalidInput:
        return None
    if certified:
        assert int(model.predict(attacked)) == int(model.predict(x))
    return certified


def test_the_toys_are_certified_only_where_they_should():
    assert sound(defended(flat())) is True
    assert sound(defended(steep())) is False
    assert int(defended(steep()).predict(BRIGHT)) == 1


def test_a_child_named_sequential_is_no_more_than_a_child():
    """What follows it counts: a rectifier lifts both classes to 0."""
    inner = nn.Sequential(nn.Flatten(), linear([[-1.0], [-1.0]], [0.5, 0.7]))
    model = defended(nn.Sequential(OrderedDict(sequential=inner, act=nn.ReLU())))
    assert [int(model.predict(x)) for x in (DARK, BRIGHT)] == [1, 0]
    assert sound(model) is False
    flagged = Of(lambda _, x: x)
    flagged.sequential = True
    assert sound(defended(nn.Sequential(flagged, *flat()))) is True


class Twice(nn.Sequential):
    def __iter__(self):
        return iter([*self._modules.values()] * 2)


class Called(nn.Sequential):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return grad


def _replaced(layer: nn.Module, name: str, own) -> nn.Module:
    setattr(layer, name, own)
    return layer


def _hooked(network: nn.Sequential) -> nn.Sequential:
    network[1].register_forward_hook(lambda *a: 2 * a[-1])
    return network


def _parametrized() -> nn.Module:
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    network = flat()
    nn.utils.parametrize.register_parametrization(network[1], "weight", Double())
    return network


DOUBLED = {
    "iter": lambda: nn.Sequential(nn.Flatten(), Twice(linear([[2**0.5]], [0.0])), *flat()[1:]),
    "call": lambda: nn.Sequential(Called(*flat()[:2]), flat()[2]),
    "forward": lambda: (lambda net: _replaced(nn.Sequential(*net), "forward", lambda x: net(2 * x)))(flat()),
    "forward of a layer": lambda: nn.Sequential(
        _replaced(nn.Flatten(), "forward", lambda x: 2 * x.flatten(1)), *flat()[1:]
    ),
    "subclass": lambda: nn.Sequential(nn.Flatten(), _replaced(flat()[1], "__class__", Doubling), flat()[2]),
    "hook": lambda: _hooked(flat()),
    "gradient of its own": lambda: Of(lambda self, x: self.net(DoubledBack.apply(x)), net=flat()),
    "parametrization": _parametrized,
    "alias": lambda: Of(lambda self, x: self.net(x + x.detach()), net=flat()),
    "compiled": lambda: torch.compile(Of(lambda self, x: self.net(2 * x), net=flat()), backend="eager"),
    "view of a weight": lambda: Of(lambda self, x: self.net(x * self.net[1].weight.view(1, 1, 1, 1) * 2), net=flat()),
    "data": lambda: Of(lambda self, x: self.net(x.data * 2), net=flat()),
    "in place": lambda: Of(lambda self, x: self.net(x.mul_(2)), net=flat()),
    "function mode": lambda: Of(_in_mode, net=flat()),
    "functional call": lambda: Of(_functional, net=flat()),
    "checkpoint": lambda: Of(
        lambda self, x: torch.utils.checkpoint.checkpoint(self.net, 2 * x, use_reentrant=False), net=flat()
    ),
}  # fmt: skip


class Doubler(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return 2 * out if func is torch.Tensor.flatten else out


class DispatchDoubler(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return 2 * out if func is torch.ops.aten.addmm.default else out


def _in_mode(self, x):
    with Doubler():
        return self.net(x)


def _functional(self, x):
    doubled = {"1.weight": 2 * self.net[1].weight}
    return torch.func.functional_call(self.net, doubled, (x,))


@pytest.mark.parametrize("way", DOUBLED)
def test_pixels_doubled_in_whatever_way_are_doubled_in_the_bounds(way):
    """Each way brings class 1 about where the pixel is bright: the certificate of the plain network would be false."""
    network = DOUBLED[way]()
    model, x = defended(network.eval()), BRIGHT.clone()
    assert sound(model) is False
    assert torch.allclose(model(x), network(x.clone()))
    assert torch.equal(x, BRIGHT)


def test_hooks_on_all_modules_are_in_the_graph_while_they_are_there():
    network = flat()
    model = defended(network)
    assert sound(model) is True
    hook = register_module_forward_hook(lambda module, _, out: 2 * out if module is network[1] else None)
    try:
        assert int(model.predict(BRIGHT)) == 1
        assert sound(model) is False
    finally:
        hook.remove()
    assert sound(model) is True


def test_what_is_around_the_classifier_is_neither_in_the_graph_nor_predicted():
    """Hooks on it, its `forward` replaced, modes of torch, a dispatch mode."""
    model = defended(flat())
    model.register_forward_pre_hook(lambda _, a: (10 * a[0],))
    model.register_forward_hook(lambda *a: -a[-1])
    assert sound(model) is True
    other = _replaced(defended(flat()), "forward", lambda x: flat()(10 * x))
    assert sound(other) is True
    for mode in (Doubler(), DispatchDoubler()):
        model = defended(flat())
        with mode:
            assert int(model.predict(BRIGHT)) == 0
            certified = sound(model)
        assert certified in (True, None)
        assert sound(model) is True


class Negated(torch.Tensor):
    """Images that are added up as their negatives."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        return -out if func is F.linear else out


def test_images_of_a_type_of_their_own_are_plain_to_it():
    model = defended(flat())
    assert torch.equal(model(BRIGHT.as_subclass(Negated)), model(BRIGHT))
    assert sound(model, DARK.as_subclass(Negated), BRIGHT.as_subclass(Negated)) is True


def test_what_changes_unseen_is_refused_until_recorded_anew(monkeypatch):
    """A function of a module replaced after the first certificate, and a global number."""
    network, factor = Of(lambda self, x: self.net(F.relu(x) * factor[0]), net=flat()).eval(), [1.0]
    for change in (lambda: monkeypatch.setattr(F, "relu", lambda x: 2 * x), lambda: factor.__setitem__(0, 2.0)):
        model = defended(network)
        assert sound(model, BRIGHT / 2, BRIGHT) is True
        change()
        assert int(model.predict(BRIGHT)) == 0  # the graph's, as certified
        with pytest.raises(InvalidInput, match=r"something else than when it was recorded.*call retrace\(\)"):
            model.certify(BRIGHT / 2, ONE)
        model.retrace()
        assert int(model.predict(BRIGHT)) == 1
        assert sound(model, BRIGHT / 2, BRIGHT) is False
        monkeypatch.undo()


def test_values_changed_after_a_certificate_are_those_that_count():
    model = defended(flat())
    assert sound(model) is True
    model.network[1].weight.data = torch.full((1, 1), 2.0)
    assert int(model.predict(BRIGHT)) == 1
    assert sound(model) is False
    model.network[1] = linear([[1.0]], [0.0]).eval()
    assert sound(model) is True
    model.network[1].forward = lambda x: 2 * x
    assert sound(model) is False


def test_the_type_of_the_default_does_not_matter():
    model = defended(Of(lambda self, x: self.net(x * torch.ones(1)), net=flat()))
    assert sound(model) is True
    torch.set_default_dtype(torch.float64)
    try:
        assert int(model.predict(BRIGHT)) == 0
        assert sound(model) is None  # the network itself fails by now
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_certificate_does_not_hold_in_less_than_float32_and_nothing_predicts_so():
    model = defended(nn.Sequential(nn.Flatten(), linear([[0.999], [0.0]], [0.0, 1.0])))
    assert sound(model) is True
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for call in (lambda: model.predict(BRIGHT), lambda: model(BRIGHT), lambda: model.certify(BRIGHT, ONE)):
            with pytest.raises(InvalidInput, match="less than float32"):
                call()
    finally:
        torch.set_float32_matmul_precision(before)


def test_copies_pickles_and_moves_keep_what_is_certified():
    model = defended(flat())
    assert sound(model) is True
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model).to("cpu"),
        model.double(),
    ):
        assert sound(other) is True
    alone = copy.deepcopy(model)
    alone.network[1].weight.data.fill_(2.0)
    assert sound(alone) is False
    assert sound(model) is True


def test_gradients_of_the_graph_are_those_of_the_network():
    network = toys.seeded(lambda: chain(["convolution", "norm", "residual", "maximum"], 3))
    model = IBP().wrap(network, num_classes=3).eval()
    x, grads = toys.images(2, CHANNELS, SIZE), []
    for function in (model, network):
        own = x.clone().requires_grad_()
        function(own).square().sum().backward()
        grads.append([own.grad, *[parameter.grad.clone() for parameter in network.parameters()]])
        network.zero_grad()
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*grads, strict=True))


TWISTS = {
    "none": lambda layer, scale: None,
    "hook": lambda layer, scale: layer.register_forward_hook(lambda *a: a[-1] * scale),
    "hook before": lambda layer, scale: layer.register_forward_pre_hook(lambda _, a: (a[0].flip(-1) * scale,)),
    "forward": lambda layer, scale: setattr(layer, "forward", lambda x: x.roll(1, -1) - scale * F.relu(x)),
    "huge": lambda layer, scale: [own.data.mul_(1e30 * scale) for own in layer.parameters()],
    "tiny": lambda layer, scale: [own.data.mul_(1e-30 * scale) for own in layer.parameters()],
}


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(LAYERS)), max_size=3),
    twists=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(sorted(TWISTS)), st.floats(-3, 3)), max_size=2),
    seed=st.integers(0, 10**6),
    lead=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_no_certificate_of_a_random_network_falls(names, twists, seed, lead):
    """Random layers and what may be done to them, weights that overflow among it; patches of random and extreme
    contents, and those that climb. Some are certified: the outputs lead by a bias."""
    network = chain(names, seed)
    for place, twist, scale in twists:
        TWISTS[twist](network[place % len(network)], scale)
    network[-1].bias.data[seed % 3] += lead
    x = toys.images(3, CHANNELS, SIZE, seed=seed)
    model = IBP().wrap(network, num_classes=3).eval()
    try:
        certificate = model.certify(x, PatchThreat(2, 3))
    except InvalidInput:
        return
    chance = torch.Generator().manual_seed(seed)
    for i in certificate.certified.nonzero()[:, 0].tolist():
        row, column = (
            int(torch.randint(SIZE[axis] - side + 1, (), generator=chance)) for axis, side in ((0, 2), (1, 3))
        )
        mask = torch.zeros(SIZE, dtype=torch.bool)
        mask[row : row + 2, column : column + 3] = True
        content = torch.rand(24, CHANNELS, *SIZE, generator=chance)
        content[::2] = content[::2].round()
        attacked = torch.where(mask, content, x[i])
        assert bool((model.predict(attacked) == certificate.prediction[i]).all())
        assert bool(
            (
                model.predict(_climbed(model, attacked, mask, int(certificate.prediction[i])))
                == certificate.prediction[i]
            ).all()
        )


def _climbed(model, x, mask, c):
    """Steps along the sign of the gradient of the best rival's lead."""
    for step in (0.5, 0.25, 0.1):
        with torch.enable_grad():
            own = x.clone().requires_grad_()
            out = model(own)
            rival = out.scatter(1, torch.full((len(out), 1), c), -torch.inf).amax(dim=1)
            (grad,) = torch.autograd.grad((rival - out[:, c]).sum(), own)
        x = torch.where(mask, (x + step * grad.nan_to_num().sign()).clamp(0, 1), x)
    return x
