"""A pruned module computes what the whole one does without the dropped channels, and is the same module otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils import parametrizations, prune, spectral_norm

from memplan.errors import AnalysisError
from memplan.methods.pruning import PrunedAxis, PrunedGroup, pruned_group
from memplan.tracing import fake_model
from memplan.transform.surgery import prune_
from tests.transform.channels import group, kept_of, member

# -- layers ------------------------------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


def loses(*axes: tuple[str, int, int], dropped: tuple[int, ...] = (1, 2)) -> PrunedGroup:
    """A group that drops the same elements of each axis (tensor, axis, size)."""
    return PrunedGroup("it", axes[0][2], dropped, tuple(PrunedAxis(*axis, dropped) for axis in axes))


def both(size: int, dropped: tuple[int, ...] = (1, 2)) -> PrunedGroup:
    return loses(("weight", 0, size), ("bias", 0, size), dropped=dropped)


#: A layer, what it loses, and a layer that is made as what is left.
LAYERS: dict[str, tuple[nn.Module, PrunedGroup, nn.Module]] = {
    "outputs": (conv(4, 6), both(6), conv(4, 4)),
    "inputs": (conv(6, 4), loses(("weight", 1, 6)), conv(4, 4)),
    "depthwise": (conv(6, 6, 6), both(6), conv(4, 4, 4)),
    "depthwise with two outputs each": (conv(6, 12, 6), both(12, (2, 3, 10, 11)), conv(4, 8, 4)),
    # 8 outputs in 4 groups of 2: the second group goes, and with it 3 inputs.
    "a group": (conv(12, 8, 4), both(8, (2, 3)), conv(9, 6, 3)),
    # Of 2 groups of 5 outputs and of 7 inputs, each loses 2.
    "alike in groups": (
        conv(14, 10, 2),
        PrunedGroup(
            "it",
            5,
            (1, 2),
            (
                PrunedAxis("weight", 0, 10, (1, 2, 5, 9)),
                PrunedAxis("bias", 0, 10, (1, 2, 5, 9)),
                PrunedAxis("weight", 1, 7, (0, 3)),
            ),
        ),
        conv(10, 6, 2),
    ),
    "transposed": (nn.ConvTranspose2d(6, 4, 2), loses(("weight", 0, 6)), nn.ConvTranspose2d(4, 4, 2)),
    # 6 inputs in 3 groups of 2: the second group goes, and with it 4 outputs.
    "a transposed group": (
        nn.ConvTranspose2d(6, 12, 2, groups=3),
        PrunedGroup("it", 3, (1,), (PrunedAxis("weight", 0, 6, (2, 3)), PrunedAxis("bias", 0, 12, (4, 5, 6, 7)))),
        nn.ConvTranspose2d(4, 8, 2, groups=2),
    ),
    "batch norm": (
        nn.BatchNorm2d(6),
        loses(*((name, 0, 6) for name in ("weight", "bias", "running_mean", "running_var"))),
        nn.BatchNorm2d(4),
    ),
    "batch norm without scale": (
        nn.BatchNorm1d(6, affine=False),
        loses(("running_mean", 0, 6), ("running_var", 0, 6)),
        nn.BatchNorm1d(4, affine=False),
    ),
    "instance norm": (nn.InstanceNorm2d(6, affine=True), both(6), nn.InstanceNorm2d(4, affine=True)),
    "a group of a group norm": (nn.GroupNorm(3, 6), both(6, (2, 3)), nn.GroupNorm(2, 4)),
    "channels of a group norm": (nn.GroupNorm(2, 6), both(6), nn.GroupNorm(2, 4)),
    "layer norm": (nn.LayerNorm(6), both(6), nn.LayerNorm(4)),
    "RMS norm": (nn.RMSNorm(6), loses(("weight", 0, 6)), nn.RMSNorm(4)),
    "linear": (nn.Linear(5, 6), both(6), nn.Linear(5, 4)),
    "a linear layer's inputs": (nn.Linear(6, 5), loses(("weight", 1, 6)), nn.Linear(4, 5)),
    "bilinear": (nn.Bilinear(3, 6, 2), loses(("weight", 2, 6)), nn.Bilinear(3, 4, 2)),
    "embedding": (nn.Embedding(9, 6), loses(("weight", 1, 6)), nn.Embedding(9, 4)),
    "PReLU": (nn.PReLU(6), loses(("weight", 0, 6)), nn.PReLU(4)),
}


def stated(part: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if not name.startswith("_")}


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_states_the_sizes_that_it_has(case: str) -> None:
    whole, pruned, expected = LAYERS[case]
    part = copy.deepcopy(whole)
    undo = prune_(part, [pruned])
    assert stated(part) == stated(expected)
    assert {name: tensor.shape for name, tensor in part.state_dict().items()} == {
        name: tensor.shape for name, tensor in expected.state_dict().items()
    }
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor, kept_of(whole.state_dict()[name], name, [pruned])), name
    undo()
    assert stated(part) == stated(whole)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in part.state_dict().items())


class OwnConv(nn.Conv2d):
    """A subclass that computes with a size that its class states, as torch-image-models' standardised one does."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.reshape(1, self.out_channels, -1).tanh().reshape_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


class OwnNorm(nn.Module):
    """A norm of no class of torch.nn, which computes with the size that it states."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.normalized_shape = (channels,)
        self.weight = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight)


@pytest.mark.parametrize(
    ("part", "x", "pruned", "shape"),
    [
        (OwnConv(3, 6, 1), torch.rand(2, 3, 5, 5), both(6), (2, 4, 5, 5)),
        (OwnNorm(6), torch.rand(2, 4), loses(("weight", 0, 6)), (2, 4)),
    ],
    ids=["a subclass", "a class of its own"],
)
def test_other_classes_that_compute_with_stated_sizes_run(
    part: nn.Module, x: Tensor, pruned: PrunedGroup, shape: tuple[int, ...]
) -> None:
    prune_(part, [pruned])
    assert part(x).shape == shape


def test_a_size_of_another_meaning_stays() -> None:
    part = nn.Linear(3, 6)
    part.num_features = 7  # type: ignore[assignment]
    plain = nn.Module()
    plain.weight, plain.num_features = nn.Parameter(torch.rand(6)), 7
    prune_(part, [both(6)])
    prune_(plain, [loses(("weight", 0, 6))])
    assert (part.num_features, part.out_features, plain.num_features) == (7, 4, 7)


# -- tensors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda size: nn.Conv2d(5, size, 3),
        lambda size: nn.Conv2d(5, size, 1),
        lambda size: nn.Conv2d(size, size, 3, groups=size),
        lambda size: nn.Conv3d(5, size, 3),
    ],
    ids=["3x3", "1x1", "depthwise", "3d"],
)
def test_the_memory_format_stays(make: Callable[[int], nn.Module], last: bool) -> None:
    """The layout is that of a layer that PyTorch makes and moves so."""

    def moved(part: nn.Module) -> Any:
        form = torch.channels_last_3d if isinstance(part, nn.Conv3d) else torch.channels_last
        return part.to(memory_format=form) if last else part

    part = moved(make(6))
    prune_(part, [both(6)])
    assert part.weight.stride() == moved(make(4)).weight.stride()


class Tagged(nn.Parameter):
    """A parameter of a class of its own."""


def test_tensors_stay_what_they_were() -> None:
    part: Any = nn.Linear(3, 6, dtype=torch.bfloat16)
    part.weight.requires_grad_(False)
    part.weight.note = "kept"
    part.bias = Tagged(part.bias)
    part.register_buffer("scratch", torch.arange(6), persistent=False)
    part.weight.grad, part.bias.grad = torch.ones_like(part.weight), torch.ones_like(part.bias)
    prune_(part, [both(6), replace(loses(("scratch", 0, 6)), name="other")])
    assert [*part.state_dict()] == ["weight", "bias"]
    assert (part.weight.dtype, part.weight.requires_grad, part.weight.note) == (torch.bfloat16, False, "kept")
    assert (type(part.weight), type(part.bias), part.bias.requires_grad) == (nn.Parameter, Tagged, True)
    assert part.weight.grad is None
    assert part.bias.grad is None
    assert part.scratch.tolist() == [0, 3, 4, 5]
    assert part.bias.is_leaf


def test_the_undo_gives_back_the_same_tensors_with_their_gradients() -> None:
    part = nn.Linear(3, 6)
    part.weight.grad = torch.ones(6, 3)
    weight, grad = part.weight, part.weight.grad
    undo = prune_(part, [both(6)])
    assert part.weight is not weight
    undo()
    assert part.weight is weight
    assert part.weight.grad is grad


class Tied(nn.Module):
    """A table whose rows are tokens, and a head of the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.table(tokens))
        return y


@pytest.mark.parametrize("name", ["table.weight", "head.weight"])
def test_tied_parameters_stay_tied_under_whichever_name_they_are_pruned(name: str) -> None:
    model, tokens = Tied().double(), torch.arange(4)
    whole = copy.deepcopy(model)
    prune_(model, [loses((name, 1, 6))])
    assert model.head.weight is model.table.weight
    assert (model.table.embedding_dim, model.head.in_features, model.head.out_features) == (4, 4, 9)
    with torch.no_grad():
        whole.table.weight[:, [1, 2]] = 0
    assert torch.allclose(model(tokens), whole(tokens), rtol=1e-12)


def test_groups_that_share_an_axis_each_take_their_elements() -> None:
    """The inputs of a linear layer behind a concatenation."""
    part = nn.Linear(6, 2)
    first, second = group("a", member("weight", 1, 6, channels=3)), group("b", member("weight", 1, 6, offset=3))
    assert second.channels == 6
    second = group("b", replace(second.members[0], positions=second.members[0].positions[:3]))
    whole = part.weight.detach().clone()
    prune_(part, [pruned_group(first, (0,)), pruned_group(second, (2, 1))])
    assert torch.equal(part.weight, whole[:, [1, 2, 3]])
    assert part.in_features == 3


def test_fake_and_meta_modules_are_pruned() -> None:
    fake = fake_model(conv(3, 6), (torch.rand(1, 3, 4, 4),)).module
    fake.bias.requires_grad_(False)
    prune_(fake, [both(6)])
    assert isinstance(fake.weight, FakeTensor)
    assert isinstance(fake.weight, nn.Parameter)
    assert (fake.weight.requires_grad, fake.bias.requires_grad) == (True, False)
    assert (tuple(fake.weight.shape), fake.out_channels) == ((4, 3, 3, 3), 4)
    meta = nn.Linear(3, 6, device="meta")
    prune_(meta, [both(6)])
    assert (meta.weight.is_meta, tuple(meta.weight.shape), meta.out_features) == (True, (4, 3), 4)
    with FakeTensorMode():
        made = nn.Linear(3, 6)
        prune_(made, [both(6)])
        assert made(torch.rand(2, 3)).shape == (2, 4)


# -- what cannot be done -----------------------------------------------------------------------------------------------


def lstm() -> tuple[nn.Module, PrunedGroup]:
    return nn.LSTM(3, 4), loses(("weight_ih_l0", 1, 3))


def hooked(change: Callable[[nn.Module], Any], *axes: tuple[str, int, int]) -> tuple[nn.Module, PrunedGroup]:
    part = nn.Linear(3, 6)
    change(part)
    return nn.Sequential(part), loses(*axes)


#: Module, what it should lose, and the line.
REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, PrunedGroup]], str]] = {
    "no such tensor": (
        lambda: (nn.Linear(3, 6), loses(("wieght", 0, 6))),
        "this Linear has no tensor 'wieght' to prune; did you mean 'weight'?; make another plan",
    ),
    "no such axis": (
        lambda: (nn.Linear(3, 6), loses(("bias", 1, 6))),
        "'bias' of this Linear has the shape 6, not 6 along axis 1; make another plan",
    ),
    "another size": (
        lambda: (nn.Linear(3, 6), loses(("weight", 0, 8))),
        "'weight' of this Linear has the shape 6x3, not 8 along axis 0; make another plan",
    ),
    "half a layer": (
        lambda: (nn.Linear(3, 6), loses(("weight", 0, 6))),
        "layer '' (Linear) cannot be pruned so: 6 of its bias are left and 4 of its channels; make another plan",
    ),
    "uneven groups": (
        lambda: (conv(6, 6, 2), both(6, (0,))),
        "layer '' (Conv2d) cannot be pruned so: its 2 groups would keep from 2 to 3 channels; make another plan",
    ),
    "no groups of a group norm": (
        lambda: (nn.GroupNorm(3, 6), both(6, (1, 2))),
        "layer '' (GroupNorm) cannot be pruned so: 4 channels do not make 3 groups; make another plan",
    ),
    "an index beyond": (
        lambda: (nn.Linear(3, 6), both(6, (1, 6))),
        "these channels cannot be pruned: group 'it' drops the index 6 of 6; make another plan",
    ),
    "everything": (
        lambda: (nn.Linear(3, 2), both(2, (0, 1))),
        "these channels cannot be pruned: nothing is left of group 'it'; make another plan",
    ),
    "a parametrized layer": (
        lambda: hooked(parametrizations.weight_norm, ("0.bias", 0, 6)),
        "layer '0' (ParametrizedLinear) cannot be pruned: it is parametrized; remove that with "
        "torch.nn.utils.parametrize.remove_parametrizations first",
    ),
    "a parametrization": (
        lambda: hooked(parametrizations.weight_norm, ("0.parametrizations.weight.original1", 0, 6)),
        "layer '0.parametrizations.weight' (ParametrizationList) cannot be pruned: it is parametrized; remove that "
        "with torch.nn.utils.parametrize.remove_parametrizations first",
    ),
    "a weight from a hook": (
        lambda: hooked(spectral_norm, ("0.weight_orig", 0, 6)),
        "layer '0' (Linear) cannot be pruned: it computes its weight in a hook of torch.nn.utils; remove that first",
    ),
    "a masked weight": (
        lambda: hooked(lambda part: prune.l1_unstructured(part, "weight", 0.5), ("0.weight_mask", 0, 6)),
        "layer '0' (Linear) cannot be pruned: it computes its weight in a hook of torch.nn.utils; remove that first",
    ),
    "a recurrent layer": (
        lstm,
        "layer '' (LSTM) cannot be pruned: it splits its weights by sizes of its own; "
        "make a plan that leaves its channels",
    ),
    "attention of torch.nn": (
        lambda: (nn.MultiheadAttention(8, 2), loses(("in_proj_weight", 1, 8))),
        "layer '' (MultiheadAttention) cannot be pruned: it splits its weights by sizes of its own; "
        "make a plan that leaves its channels",
    ),
    "a layer without shapes": (
        lambda: (nn.LazyLinear(6), loses(("weight", 0, 6))),
        "'weight' of this LazyLinear has no shape yet; run the model once before pruning",
    ),
    "a script": (
        lambda: (torch.jit.script(nn.Linear(3, 6)), both(6)),
        "layer '' (RecursiveScriptModule) cannot be pruned: it is compiled by TorchScript; "
        "prune the module that it was made from",
    ),
}


@pytest.mark.filterwarnings("ignore:.*(spectral_norm|torch.jit.script).*")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pruned_is_told_in_one_line_and_nothing_is_changed(case: str) -> None:
    make, line = REFUSED[case]
    part, pruned = make()
    # A layer that could be pruned comes first.
    model = nn.Sequential(nn.Linear(3, 6), part)
    first = replace(
        both(6), name="first", axes=(PrunedAxis("0.weight", 0, 6, (1, 2)), PrunedAxis("0.bias", 0, 6, (1, 2)))
    )
    inner = replace(pruned, axes=tuple(replace(axis, tensor=f"1.{axis.tensor}") for axis in pruned.axes))
    tensors = {name: id(tensor) for name, tensor in model.named_parameters()}
    with pytest.raises(AnalysisError) as info:
        prune_(model, [first, inner])
    assert "\n" not in str(info.value)
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == tensors
    assert model[0].out_features == 6
    with pytest.raises(AnalysisError) as info:
        prune_(part, [pruned])
    assert str(info.value) == line
