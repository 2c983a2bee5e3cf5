"""What a network computes may not depend on how many images it gets, nor change by being computed: no certificate of
one image falls in another batch, or later.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustpatch import PatchThreat
from robustpatch.defenses.bounds import Box, sums_of_products
from robustpatch.defenses.bounds.head import leads, of_ends
from robustpatch.defenses.ibp import IBP, BoundedClassifier
from robustpatch.errors import InvalidInput
from tests.robustpatch.defenses.bounds.nets import Of

ONE = PatchThreat(1, 1)
DARK, BRIGHT = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)


def defended(function, **tensors: torch.Tensor) -> BoundedClassifier:
    """Of one pixel or more, two classes: what the function makes of the network, which has those buffers."""
    network = Of(function)
    for name, tensor in tensors.items():
        network.register_buffer(name, tensor)
    return IBP().wrap(network, num_classes=2).eval()


def scores(gain: torch.Tensor) -> torch.Tensor:
    """Of [batch, 1]: class 1 above 0.2."""
    return torch.cat([0.2 + 0 * gain, gain], dim=1)


HALF = torch.tensor([[0.5]])
TABLE = torch.tensor([0.0] + [0.5] * 9).view(10, 1, 1)
COUNTING = {
    "product": lambda self, x: scores(torch.relu(x.flatten(1) + self.w * len(x) - 1)),
    "row of a table": lambda self, x: scores(torch.relu(x.flatten(1) + self.t[len(x)] - 1)),
    "full": lambda self, x: scores(torch.relu(x.flatten(1) + torch.full((1, 1), len(x)) * 0.5 - 1)),
    "repeated": lambda self, x: scores(torch.cat([x.flatten(1), self.w.repeat(len(x), 1)], 1).sum(1, keepdim=True)),
    "rows": lambda self, x: scores(torch.cat([x.flatten(1), self.t[: len(x), 0]], 1).sum(1, keepdim=True)),
    "columns": lambda self, x: scores(
        torch.ops.aten.slice.Tensor(x.flatten(1).repeat(1, 2), 1, 0, len(x)).sum(1, keepdim=True)
    ),
}


@pytest.mark.parametrize("name", COUNTING)
def test_the_number_of_images_counts_nowhere_but_along_their_axis(name):
    """Not in parameters and constants either: bounds know nothing of the batch in which an image will be predicted."""
    model = defended(COUNTING[name], w=HALF.clone(), t=TABLE.clone())
    with pytest.raises(InvalidInput, match=r"with \w+ of the number of images; compute each image alone"):
        model.certify(DARK, ONE)


def test_the_number_of_images_may_stand_for_their_axis():
    """An expanded token, zeros for each image, and a slice of all images."""
    model = defended(
        lambda self, x: scores(
            torch.cat([x.flatten(1)[: len(x)], self.w.expand(len(x), -1), torch.zeros(len(x), 1)], 1).amin(1, True)
        ),
        w=torch.tensor([[0.1]]),
    )
    assert model.certify(DARK, ONE).certified.tolist() == [True]
    assert model.predict(torch.cat([DARK, BRIGHT, BRIGHT])).tolist() == [0, 0, 0]


def _seen_before(view):
    def function(self, x):
        seen = view(self)
        seen += 0.05
        return scores(x.flatten(1) * self.b.view(1, 1))

    return function


VIEWS = {
    "itself": lambda self: self.b,
    "view": lambda self: self.b.view(1, 1),
    "unsqueezed": lambda self: self.b.unsqueeze(0),
    "sliced": lambda self: self.b[:1],
    "ellipsis": lambda self: self.b[...],
    "split": lambda self: self.b.expand(1, 1).split(1, 0)[0],
    "detached": lambda self: self.b.detach().view(1, 1),
    "data": lambda self: self.b.data.view(1, 1),
    "array": lambda self: self.array,
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_network_may_not_change_its_tensors(name):
    """Through no view of them: each certificate would hold only until the next run of the network."""
    model = defended(_seen_before(VIEWS[name]), b=torch.tensor([0.1]))
    model.network.array = model.network.b.numpy()
    with pytest.raises(InvalidInput, match=r"writes to a parameter, a buffer or a constant"):
        model.certify(DARK, ONE)


def test_values_of_one_axis():
    """A number for each image, stacked to classes."""
    model = defended(lambda self, x: torch.stack([0.5 - x.sum((1, 2, 3)), x.sum((1, 2, 3))], dim=1))
    assert model.certify(DARK, ONE).certified.tolist() == [False]
    model = defended(lambda self, x: torch.stack([3 - x.sum((1, 2, 3)), x.sum((1, 2, 3))], dim=1))
    assert model.certify(DARK, ONE).certified.tolist() == [True]
    assert model.certify(DARK[:0], ONE).certified.tolist() == []


@pytest.fixture
def flushed():
    """Subnormal numbers are taken for 0, and become 0."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


def linear(weight, bias) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return layer


STEEP = nn.Sequential(nn.Flatten(), linear([[2.0], [0.0]], [0.0, 2.0]), nn.Hardtanh(0, 1))


@pytest.mark.parametrize("method", ["predict", "certify", "placement_margins"])
def test_flushed_subnormal_numbers_are_refused(method, flushed):
    """Threads need not agree on them, and bounds do not cover that."""
    model = IBP().wrap(STEEP, num_classes=2).eval()
    with pytest.raises(InvalidInput, match="takes subnormal numbers for 0"):
        getattr(model, method)(DARK, *([] if method == "predict" else [ONE]))


def test_a_tie_stays_one_where_subnormal_numbers_are_flushed(flushed):
    """The margin of ends that meet is negative, and no subnormal number."""
    found = of_ends(Box(torch.zeros(1, 2), torch.zeros(1, 2)), torch.tensor([0]), outward=True)
    assert (found < -torch.finfo(torch.float32).tiny / 2).all()


def test_a_flushed_difference_of_weights_is_covered(flushed):
    """z_0 - z_1 = (w_0 - w_1)·a + b_0 - b_1, whose first product is lost where the weights' difference is flushed."""
    weight, a = torch.tensor([[1.5e-38], [1.2e-38]]), torch.full((1, 1), 1e32)
    found = leads((weight, torch.tensor([0.0, 1e-7])), Box(a, a), torch.tensor([1]), outward=True)
    exact = (weight[1, 0].double() - weight[0, 0].double()) * 1e32 + 1e-7
    assert float(found[0, 0]) < float(exact) < 0


def test_transformed_convolutions_stay_off_for_all_threads():
    """As long as one is within, and are as before once all have left."""
    before = torch.backends.cudnn.enabled, torch._C._get_nnpack_enabled()
    first, second = sums_of_products(), sums_of_products()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (torch.backends.cudnn.enabled, torch._C._get_nnpack_enabled()) == (False, False)
    second.__exit__(None, None, None)
    assert (torch.backends.cudnn.enabled, torch._C._get_nnpack_enabled()) == before
