"""Drop channels from a module: smaller parameters and buffers, and layers that state the new sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from memplan.errors import AnalysisError, did_you_mean
from memplan.methods.pruning import PrunedGroup, pruning_faults
from memplan.tracing.fake import one_line

#: Sizes that a layer states, by attribute.
Sizes: TypeAlias = dict[str, Any]

#: Layers whose forward computes with sizes that no single axis of their parameters shows.
_CODED: Final = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def prune_(module: nn.Module, pruned: Sequence[PrunedGroup]) -> Callable[[], None]:
    """Drop what ``pruned`` says from the parameters and buffers of ``module``, in place, and return the undo.

    The new tensors have the data type, device, memory format, class and attributes of the old; parameters that were
    tied stay tied, and none has a gradient or hooks. Layers of torch.nn and classes made from them state their new
    sizes. The undo puts the old tensors back, which live as long as it does.

    Args:
        module: with real, meta or fake tensors.
        pruned: from :func:`memplan.methods.pruning.pruned_group`.

    Raises:
        AnalysisError: the module does not have a tensor, axis or size that is named, or is left with sizes that do not
            fit each other; a layer computes its weight from others. The module is then as it was.
    """
    for fault in pruning_faults(pruned):
        raise AnalysisError(f"these channels cannot be pruned: {fault}; make another plan")
    cuts = _cuts(module, pruned)
    writes: list[tuple[dict[str, Any], str, Any]] = []
    for path, part in module.named_modules():
        own = {name: tensor for name, tensor in _own_tensors(part) if id(tensor) in cuts}
        if own:
            _check_plain(part, path)
            sizes = _sizes(part, path, {name: cuts[id(tensor)] for name, tensor in own.items()})
            for name, tensor in own.items():
                registry = part._parameters if name in part._parameters else part._buffers
                writes.append((registry, name, cuts[id(tensor)].new))
            writes.extend((part.__dict__, name, size) for name, size in sizes.items() if name in part.__dict__)
    before = [(home, name, home[name]) for home, name, _ in writes]
    _write(writes)
    return lambda: _write(before)


def _write(values: Sequence[tuple[dict[str, Any], str, Any]]) -> None:
    for home, name, value in values:
        home[name] = value


@dataclass(frozen=True, slots=True)
class _Cut:
    """A tensor without what is dropped of it, and the indices dropped along its axes."""

    new: Tensor
    dropped: Mapping[int, frozenset[int]]


def _cuts(module: nn.Module, pruned: Sequence[PrunedGroup]) -> dict[int, _Cut]:
    """Return what becomes of each tensor that loses elements, by its identity."""
    kind = type(module).__name__
    named: dict[str, Tensor] = {
        **dict(module.named_buffers(remove_duplicate=False)),
        **dict(module.named_parameters(remove_duplicate=False)),
    }
    dropped: dict[int, dict[int, set[int]]] = {}
    tensors: dict[int, tuple[str, Tensor]] = {}
    for axis in (axis for group in pruned for axis in group.axes):
        tensor = named.get(axis.tensor)
        if tensor is None:
            hint = did_you_mean(axis.tensor, named)
            raise AnalysisError(f"this {kind} has no tensor {axis.tensor!r} to prune{hint}; make another plan")
        if nn.parameter.is_lazy(tensor):
            raise AnalysisError(f"{axis.tensor!r} of this {kind} has no shape yet; run the model once before pruning")
        if axis.axis >= tensor.dim() or tensor.shape[axis.axis] != axis.size:
            raise AnalysisError(
                f"{axis.tensor!r} of this {kind} has the shape {'x'.join(map(str, tensor.shape)) or '()'}, not "
                f"{axis.size} along axis {axis.axis}; make another plan"
            )
        tensors.setdefault(id(tensor), (axis.tensor, tensor))
        dropped.setdefault(id(tensor), {}).setdefault(axis.axis, set()).update(axis.dropped)
    return {
        key: _cut(*tensors[key], {axis: frozenset(indices) for axis, indices in axes.items()})
        for key, axes in dropped.items()
    }


def _cut(name: str, tensor: Tensor, dropped: Mapping[int, frozenset[int]]) -> _Cut:
    try:
        return _Cut(_without(tensor, dropped), dropped)
    except Exception as error:
        raise AnalysisError(f"{name!r} cannot be pruned: {one_line(error)}; make a plan that leaves it") from error


def _without(tensor: Tensor, dropped: Mapping[int, frozenset[int]]) -> Tensor:
    """Return ``tensor`` without the elements ``dropped``, and otherwise like it."""
    with tensor.fake_mode if isinstance(tensor, FakeTensor) else nullcontext(), torch.no_grad():
        kept = tensor.detach()
        for axis, indices in dropped.items():
            left = [index for index in range(tensor.shape[axis]) if index not in indices]
            kept = kept.index_select(axis, torch.tensor(left, device=tensor.device))
        # Axes from the outermost in memory to the innermost: channels_last and transposed weights stay what they are.
        strides, shape = tensor.stride(), tensor.shape
        order = sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], -shape[axis]))
        dense = kept.permute(order).clone(memory_format=torch.contiguous_format)
        kept = dense.permute(sorted(range(tensor.dim()), key=order.__getitem__))
    if not isinstance(tensor, nn.Parameter):
        new = kept.requires_grad_(tensor.requires_grad)
    elif isinstance(tensor, FakeTensor):
        new = nn.Parameter(kept, requires_grad=tensor.requires_grad)
    else:
        new = Tensor._make_subclass(type(tensor), kept, tensor.requires_grad)
    for attribute, value in vars(tensor).items():
        new.__dict__.setdefault(attribute, value)
    return new


def _own_tensors(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from part.named_parameters(recurse=False, remove_duplicate=False)
    yield from part.named_buffers(recurse=False, remove_duplicate=False)


def _check_plain(part: nn.Module, path: str) -> None:
    """Raise where the tensors of a layer are not simply what it computes with.

    Raises:
        AnalysisError: they are not.
    """
    reason = None
    if isinstance(part, torch.jit.ScriptModule):
        reason = "is compiled by TorchScript; prune the module that it was made from"
    elif isinstance(part, parametrize.ParametrizationList) or parametrize.is_parametrized(part):
        reason = "is parametrized; remove that with torch.nn.utils.parametrize.remove_parametrizations first"
    elif any(_from_utils(hook) for hook in part._forward_pre_hooks.values()):
        reason = "computes its weight in a hook of torch.nn.utils; remove that first"
    elif isinstance(part, _CODED):
        reason = "splits its weights by sizes of its own; make a plan that leaves its channels"
    if reason is not None:
        raise AnalysisError(f"layer {path!r} ({type(part).__name__}) cannot be pruned: it {reason}")


def _from_utils(hook: object) -> bool:
    """Whether a hook is one of torch's weight norms, spectral norms or pruning masks."""
    return any(base.__module__.startswith("torch.nn.utils.") for base in type(hook).__mro__)


class _Part:
    """A layer whose own tensors are cut."""

    def __init__(self, module: nn.Module, path: str, cuts: Mapping[str, _Cut]) -> None:
        self.module: Any = module
        self.path = path
        self.cuts = cuts
        self._tensors = dict(_own_tensors(module))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape that a tensor of the layer gets, ``None`` where the layer has none of this name."""
        tensor = self.cuts[name].new if name in self.cuts else self._tensors.get(name)
        return None if tensor is None else tuple(tensor.shape)

    def dropped(self, name: str, axis: int) -> frozenset[int]:
        return self.cuts[name].dropped.get(axis, frozenset()) if name in self.cuts else frozenset()

    def old_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def agree(self, size: int, **tensors: int) -> int:
        """Return ``size``, which the named axes of the layer's tensors must have too.

        Raises:
            AnalysisError: one of them has not.
        """
        for name, axis in tensors.items():
            shape = self.shape(name)
            if shape is not None and shape[axis] != size:
                raise self.error(f"{shape[axis]} of its {name} are left and {size} of its channels")
        return size

    def error(self, what: str) -> AnalysisError:
        kind = type(self.module).__name__
        return AnalysisError(f"layer {self.path!r} ({kind}) cannot be pruned so: {what}; make another plan")

    def left_per_group(self, name: str, groups: int) -> list[int]:
        """Return, for each group that keeps anything of the first axis, how much it keeps."""
        size = self.old_shape(name)[0]
        left = [size // groups] * groups
        for index in self.dropped(name, 0):
            left[index * groups // size] -= 1
        return [count for count in left if count]


def _convolution(part: _Part) -> Sizes:
    """The first axis is grouped: outputs of a convolution, inputs of a transposed one. The second is one group's."""
    shape = part.shape("weight")
    assert shape is not None
    left = part.left_per_group("weight", part.module.groups)
    if len(set(left)) != 1:
        raise part.error(f"its {part.module.groups} groups would keep from {min(left)} to {max(left)} channels")
    whole, within = shape[0], shape[1] * len(left)
    inputs, outputs = (whole, within) if part.module.transposed else (within, whole)
    return {"in_channels": inputs, "out_channels": part.agree(outputs, bias=0), "groups": len(left)}


def _linear(part: _Part) -> Sizes:
    shape = part.shape("weight")
    assert shape is not None
    return {"out_features": part.agree(shape[0], bias=0), "in_features": shape[1]}


def _bilinear(part: _Part) -> Sizes:
    shape = part.shape("weight")
    assert shape is not None
    return {"out_features": part.agree(shape[0], bias=0), "in1_features": shape[1], "in2_features": shape[2]}


def _embedding(part: _Part) -> Sizes:
    shape = part.shape("weight")
    assert shape is not None
    return {"num_embeddings": shape[0], "embedding_dim": shape[1]}


def _norm(part: _Part) -> Sizes:
    """Batch and instance norms, and all others that state ``num_features``."""
    tensors = ("weight", "bias", "running_mean", "running_var")
    name, channels = next((name, shape[0]) for name in tensors if (shape := part.shape(name)))
    if part.module.num_features != part.old_shape(name)[0]:
        return {}
    return {"num_features": part.agree(channels, weight=0, bias=0, running_mean=0, running_var=0)}


def _group_norm(part: _Part) -> Sizes:
    """Groups that lose all their channels go; as long as the others keep alike, each normalises over its own."""
    shape = part.shape("weight")
    assert shape is not None
    left = part.left_per_group("weight", part.module.num_groups)
    groups = len(left) if len(set(left)) == 1 else part.module.num_groups
    if shape[0] % groups:
        raise part.error(f"{shape[0]} channels do not make {groups} groups")
    return {"num_channels": part.agree(shape[0], bias=0), "num_groups": groups}


def _layer_norm(part: _Part) -> Sizes:
    """Layer and RMS norms, and all others that state ``normalized_shape``."""
    shape, bias = part.shape("weight"), part.shape("bias")
    if shape is None or tuple(part.module.normalized_shape) != part.old_shape("weight"):
        return {}
    if bias is not None and bias != shape:
        raise part.error(f"its weight would be {shape} and its bias {bias}")
    return {"normalized_shape": shape}


def _prelu(part: _Part) -> Sizes:
    shape = part.shape("weight")
    assert shape is not None
    return {"num_parameters": shape[0]}


def _conv1d_of_transformers(part: _Part) -> Sizes:
    """``transformers.pytorch_utils.Conv1D``: a linear layer with its weight the other way round."""
    shape = part.shape("weight")
    assert shape is not None
    return {"nx": shape[0], "nf": part.agree(shape[1], bias=0)}


#: What layers state of their tensors' sizes, by the class that states it.
_BY_CLASS: Final[tuple[tuple[type[nn.Module], Callable[[_Part], Sizes]], ...]] = (
    (_ConvNd, _convolution),
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.GroupNorm, _group_norm),
    (nn.PReLU, _prelu),
)

#: The same for layers of other classes, by an attribute that they have; libraries write norms of their own.
_BY_ATTRIBUTE: Final[tuple[tuple[str, Callable[[_Part], Sizes]], ...]] = (
    ("normalized_shape", _layer_norm),
    ("num_features", _norm),
    ("nx", _conv1d_of_transformers),
)


def _sizes(part: nn.Module, path: str, cuts: Mapping[str, _Cut]) -> Sizes:
    """Return the sizes that a layer states, as they are after its tensors are cut."""
    layer = _Part(part, path, cuts)
    if layer.shape("weight") is not None:
        for kind, rule in _BY_CLASS:
            if isinstance(part, kind):
                return rule(layer)
    for attribute, rule in _BY_ATTRIBUTE:
        if attribute in part.__dict__ and any(name in cuts for name in ("weight", "bias", "running_mean")):
            return rule(layer)
    return {}
