"""How important the channels of a module are: by weights, by gradients on data, or by the user's own measure."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.conv import _ConvTransposeNd

from memplan.errors import AnalysisError, MemplanError, UsageError, did_you_mean
from memplan.methods.pruning import Importance, lost, lowest
from memplan.tracing.fake import one_line
from memplan.tracing.step import forward_of, tensors_in
from memplan.transform.calibration import Batch, batches_of, samples_of

if TYPE_CHECKING:
    from memplan.graph.channels.records import ChannelGroup, Member

__all__ = ["IMPORTANCES", "Importance", "importances", "lost", "lowest"]

#: A measure of one's own: a number from 0 on for each channel of a group.
Measure: TypeAlias = "Callable[[nn.Module, ChannelGroup], Sequence[float]]"

#: From the model's output and a batch's targets to the scalar whose gradients count.
CalibrationLoss: TypeAlias = Callable[[Any, Any], Tensor]

#: The measures by name, each with what it sums over the weights that make a channel.
IMPORTANCES: Final[dict[str, str]] = {
    "l1": "the sum of |w|",
    "l2": "the root of the sum of w^2",
    "bn-scale": "the sum of |scale| over the norms of the group; l1 in a group without a norm",
    "taylor": "the sum of |w * dL/dw|, over all batches",
    "fisher": "the square of the sum of w * dL/dw, over all samples",
    "uniform": "1: of weights that are random none is better, and those of lowest index stay",
}

#: Those that need data.
_BY_GRADIENT: Final = ("taylor", "fisher")

#: For each group by name a number per channel.
_Scores: TypeAlias = dict[str, list[float]]


def importances(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    by: str | Measure = "l1",
    calibration: Any = None,
    *,
    loss: CalibrationLoss | None = None,
) -> Importance:
    """Return each channel's share of its group's importance.

    A channel is made by weights: the slices of them along the axis of their outputs, which is the first axis of
    convolutions and linear layers, the second of transposed convolutions and embeddings. What all these hold counts,
    depthwise weights among them; the slices of weights that take the channel, biases and norms do not, except in a
    group that no weight makes, where all its parameters count. ``taylor`` and ``fisher`` run a copy of the module in
    eval mode, so that no sample changes another's result; the module itself is not touched.

    Args:
        module: with real tensors; for ``uniform`` any.
        groups: of the same module.
        by: one of ``IMPORTANCES``, ``package.module:function``, or a function from the module and a group to a number
            from 0 on per channel.
        calibration: ``(inputs, targets)`` or an iterable of such pairs; inputs are a tensor, a tuple of arguments or a
            dict of named ones.
        loss: from the model's output and the targets to a scalar; by default cross entropy for whole-number targets,
            the mean squared error for others.

    Raises:
        UsageError: ``by`` is not known, or needs data that is not given; a function gives something else than a number
            from 0 on for each channel.
        AnalysisError: the module has no data, or does not have what a group names; it fails on the calibration data; an
            importance is not finite.
    """
    if not isinstance(by, str):
        return _shared(getattr(by, "__name__", type(by).__name__), groups, _by_function(module, groups, by))
    if ":" in by:
        return _shared(by, groups, _by_function(module, groups, _imported(by)))
    if by not in IMPORTANCES:
        hint = did_you_mean(by, IMPORTANCES) or f"; choose from {', '.join(IMPORTANCES)}"
        raise UsageError(f"no importance {by!r}{hint}")
    if by == "uniform":
        return _shared(by, groups, {group.name: [1.0] * group.channels for group in groups})
    if by in _BY_GRADIENT and calibration is None:
        raise UsageError(f"importance {by!r} needs data; give calibration=(inputs, targets) or --calibration FILE")
    parts = _Parts(module, groups)
    if by == "bn-scale":
        return _by_scale(parts, groups)
    if by in _BY_GRADIENT:
        return _shared(by, groups, _by_gradient(module, groups, by, batches_of(calibration), loss))
    return _shared(by, groups, {group.name: _by_size(parts, group, by) for group in groups})


class _Parts:
    """The parameters and buffers of a module by name, and the layers that have them."""

    def __init__(self, module: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        self.kind = type(module).__name__
        self.parameters = dict(module.named_parameters(remove_duplicate=False))
        self.tensors = {**dict(module.named_buffers(remove_duplicate=False)), **self.parameters}
        self.layers = dict(module.named_modules(remove_duplicate=False))
        for member in (member for group in groups for member in group.members):
            self._check(member)

    def _check(self, member: Member) -> None:
        tensor = self.tensors.get(member.tensor)
        if tensor is None:
            raise AnalysisError(f"this {self.kind} has no tensor {member.tensor!r}; give the groups of this model")
        if member.axis >= tensor.dim() or tensor.shape[member.axis] != member.size:
            raise AnalysisError(
                f"{member.tensor!r} of this {self.kind} has the shape {tuple(tensor.shape)}, not {member.size} along "
                f"axis {member.axis}; give the groups of this model"
            )
        if tensor.is_meta or isinstance(tensor, FakeTensor):
            raise AnalysisError(
                f"{member.tensor!r} of this {self.kind} has no data to measure; load weights, or use uniform"
            )

    def makers(self, group: ChannelGroup) -> list[Member]:
        """The members that make a group's channels; all its parameters where none does."""
        floating = [
            member
            for member in group.members
            if member.tensor in self.parameters and self.parameters[member.tensor].is_floating_point()
        ]
        return [member for member in floating if self._makes(member)] or floating

    def _makes(self, member: Member) -> bool:
        return self.parameters[member.tensor].dim() > 1 and member.axis == self._output_axis(member.tensor)

    def _output_axis(self, name: str) -> int:
        layer = self.layers.get(name.rpartition(".")[0])
        second = (
            isinstance(layer, (_ConvTransposeNd, nn.Embedding, nn.EmbeddingBag)) or type(layer).__name__ == "Conv1D"
        )
        return int(second)

    def scales(self, group: ChannelGroup) -> list[Member]:
        """The members that scale a norm's result."""
        return [member for member in group.members if self._is_scale(member.tensor)]

    def _is_scale(self, name: str) -> bool:
        path, _, last = name.rpartition(".")
        norm = any("norm" in base.__name__.lower() for base in type(self.layers.get(path)).__mro__)
        return norm and last == "weight" and self.tensors[name].dim() == 1


def _by_size(parts: _Parts, group: ChannelGroup, by: str) -> list[float]:
    power = 1 if by == "l1" else 2
    total = _nothing(group)
    for member in parts.makers(group):
        total += _Slots(member).sums(_double(parts.parameters[member.tensor]).abs() ** power)
    return _listed(total if by == "l1" else total.sqrt())


def _by_scale(parts: _Parts, groups: Sequence[ChannelGroup]) -> Importance:
    scores: _Scores = {}
    without_norm = []
    for group in groups:
        scales = parts.scales(group)
        if scales:
            total = _nothing(group)
            for member in scales:
                total += _Slots(member).sums(_double(parts.tensors[member.tensor]).abs())
            scores[group.name] = _listed(total)
        else:
            without_norm.append(group.name)
            scores[group.name] = _by_size(parts, group, "l1")
    return _shared("bn-scale", groups, scores, tuple(without_norm))


def _by_gradient(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    by: str,
    batches: Iterator[Batch],
    loss: CalibrationLoss | None,
) -> _Scores:
    count = 0
    with torch.inference_mode(False), torch.enable_grad():
        copied = _copied(module).requires_grad_(False)
        parts = _Parts(copied, groups)
        uses: dict[str, list[tuple[str, _Slots]]] = {}
        for group in groups:
            for member in parts.makers(group):
                uses.setdefault(member.tensor, []).append((group.name, _Slots(member)))
        weights = {name: parts.parameters[name].requires_grad_(True) for name in uses}
        totals = {group.name: _nothing(group) for group in groups}
        for batch in batches:
            for sample in samples_of(batch) if by == "fisher" else (batch,):
                count += 1
                changes = {group.name: _nothing(group) for group in groups}
                for name, gradient in _gradients(copied, weights, sample, loss):
                    product = _double(weights[name]) * _double(gradient)
                    for group_name, slots in uses[name]:
                        changes[group_name] += slots.sums(product.abs() if by == "taylor" else product)
                for group_name, change in changes.items():
                    totals[group_name] += change if by == "taylor" else change.square()
    if not count:
        raise UsageError("the calibration data has no batch; give at least one (inputs, targets)")
    return {name: _listed(total) for name, total in totals.items()}


def _gradients(
    module: nn.Module, weights: Mapping[str, Tensor], batch: Batch, loss: CalibrationLoss | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the gradient of the loss on one batch by each of the weights on which it depends."""
    if not weights:
        return
    device = next(iter(weights.values())).device
    inputs, targets = batch.on(device)
    args, kwargs = forward_of(inputs)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            output = module(*args, **kwargs)
            value = _default_loss(output, targets) if loss is None else loss(output, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UsageError("the calibration's loss gives no scalar tensor; reduce it, for example with .mean()")
        if not value.requires_grad:
            raise AnalysisError("the loss on the calibration data depends on no weight; give another loss")
        gradients = torch.autograd.grad(value, [*weights.values()], allow_unused=True)
    except MemplanError:
        raise
    except Exception as error:
        raise AnalysisError(
            f"the model fails on the calibration data: {one_line(error)}; check its shapes, types and targets"
        ) from error
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            yield name, gradient


def _default_loss(output: Any, targets: Any) -> Tensor:
    """Cross entropy where the targets are classes, the mean squared error where they are numbers."""
    predicted = getattr(output, "logits", None)
    if not isinstance(predicted, Tensor):
        predicted = next((tensor for tensor in tensors_in(output) if tensor.is_floating_point()), None)
    if predicted is None or not isinstance(targets, Tensor):
        raise UsageError(
            f"the default loss takes a tensor from the model and a tensor of targets, not {type(output).__name__} and "
            f"{type(targets).__name__}; give loss=..., a function of output and targets"
        )
    if targets.is_floating_point():
        if predicted.shape != targets.shape:
            raise UsageError(
                f"the calibration's targets have the shape {tuple(targets.shape)} and the outputs "
                f"{tuple(predicted.shape)}; give targets of the outputs' shape, or whole numbers for classes"
            )
        return F.mse_loss(predicted, targets.to(predicted.dtype))
    if predicted.dim() > 2 and predicted.shape[:-1] == targets.shape:
        predicted = predicted.movedim(-1, 1)
    return F.cross_entropy(predicted, targets.long())


def _by_function(module: nn.Module, groups: Sequence[ChannelGroup], function: Measure) -> _Scores:
    name = getattr(function, "__name__", type(function).__name__)
    scores: _Scores = {}
    for group in groups:
        try:
            values = [float(value) for value in function(module, group)]
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"importance {name} gives no numbers for group {group.name!r}: {one_line(error)}; "
                "return a sequence of floats"
            ) from error
        if len(values) != group.channels:
            raise UsageError(
                f"importance {name} gives {len(values)} numbers for the {group.channels} channels of group "
                f"{group.name!r}; return one for each"
            )
        if any(value < 0 for value in values):
            raise UsageError(
                f"importance {name} gives {min(values)} for a channel of group {group.name!r}; return numbers from 0 on"
            )
        scores[group.name] = values
    return scores


def _imported(name: str) -> Measure:
    home, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(home), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"no importance {name!r}: {error}; name an importable function") from error
    if not callable(found):
        raise UsageError(f"importance {name!r} is a {type(found).__name__}, not a function; name a function")
    return found  # type: ignore[no-any-return]


def _shared(by: str, groups: Sequence[ChannelGroup], scores: _Scores, without_norm: tuple[str, ...] = ()) -> Importance:
    """Return the importances as shares of their groups' totals."""
    shares = {}
    for group in groups:
        values = scores[group.name]
        for channel, value in enumerate(values):
            if not math.isfinite(value):
                raise AnalysisError(
                    f"channel {channel} of group {group.name!r} has the importance {value} by {by}; check the weights "
                    "and the data for numbers that are not finite"
                )
        # Divided by the largest first, so that the sum is finite.
        largest = max(values)
        parts = [value / largest if largest else 1.0 for value in values]
        total = math.fsum(parts)
        shares[group.name] = tuple(part / total for part in parts)
    return Importance(by, shares, without_norm)


class _Slots:
    """Where the elements of each channel are along an axis, as indices to add up by."""

    def __init__(self, member: Member) -> None:
        self._axis = member.axis
        self._count = len(member.positions)
        sizes = torch.tensor([len(positions) for positions in member.positions])
        self._channels = torch.arange(self._count).repeat_interleave(sizes)
        self._elements = torch.tensor([element for positions in member.positions for element in positions])

    def sums(self, values: Tensor) -> Tensor:
        """Return for each channel the sum of ``values``, shaped like the member's tensor, over its elements."""
        along = values.movedim(self._axis, 0).flatten(1).sum(1) if values.dim() > 1 else values
        return along.new_zeros(self._count).index_add_(0, self._channels, along[self._elements])


def _nothing(group: ChannelGroup) -> Tensor:
    return torch.zeros(group.channels, dtype=torch.float64)


def _listed(values: Tensor) -> list[float]:
    return [float(value) for value in values]


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module).eval()
    except Exception as error:
        raise AnalysisError(
            f"cannot copy the model: {one_line(error)}; remove what cannot be deep-copied from its attributes"
        ) from error
