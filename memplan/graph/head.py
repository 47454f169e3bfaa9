"""What trains with the top blocks: the head, the layers above a block, and the parameters they use."""

from __future__ import annotations

from collections.abc import Collection

from memplan.graph.flow import Flow
from memplan.graph.records import Block, Layer, Op, Parameter, Storage


def head_layers(
    layers: tuple[Layer, ...],
    ops: tuple[Op, ...],
    storages: tuple[Storage, ...],
    parameters: tuple[Parameter, ...],
    blocks: tuple[Block, ...],
) -> tuple[int, ...]:
    """Return the layers of the head: for each output, the module that holds the last weighted layers before it.

    A weight has two axes or more. The module is the outermost one that contains neither a block nor the first weighted
    layer, so that a classifier of two linear layers is one head, and a convolution between the last block and the
    classifier is not part of it. A network that ends in a block has no head.
    """
    flow = Flow(layers, ops, storages, parameters)
    paths = {block.path for block in blocks}
    heads = flow.head(layer.index for layer in layers if layer.path in paths)
    return tuple(
        layer.index for layer in layers if layer.index in heads or not heads.isdisjoint(flow.chains[layer.index])
    )


def layers_in_block(block: Block, layers: tuple[Layer, ...]) -> tuple[int, ...]:
    """Return the layers of a block: its module and all modules inside.

    >>> block = Block(0, "features.1", "Residual", 4, 9)
    >>> layers_in_block(block, (Layer(0, "", "Net", False), Layer(1, "features.1", "Residual", False),
    ...                         Layer(2, "features.1.conv", "Conv2d", False), Layer(3, "features.10", "Linear", False)))
    (1, 2)
    """
    inside = f"{block.path}."
    return tuple(layer.index for layer in layers if layer.path == block.path or layer.path.startswith(inside))


def end_of_module(path: str, layers: tuple[Layer, ...], ops: tuple[Op, ...]) -> int:
    """Return the index of the forward op that follows the last one of the module at ``path``, or of one inside it."""
    inside = f"{path}."
    return 1 + max(op.index for op in ops if op.phase == "forward" and f"{layers[op.layer].path}.".startswith(inside))


def layers_above(
    count: int, blocks: tuple[Block, ...], ops: tuple[Op, ...], parameters: tuple[Parameter, ...]
) -> tuple[int, ...]:
    """Return the layers that run from the start of the ``count`` top blocks on; none for 0.

    A layer with parameters of its own belongs there when one of these is used there: a model whose class token enters
    at the bottom and which flattens at the top is not above its blocks.
    """
    top = blocks[max(len(blocks) - count, 0) :]
    if not top:
        return ()
    start = top[0].first_op
    owners = {parameter.layer for parameter in parameters}
    ran = {op.layer for op in ops if op.phase == "forward" and op.index >= start}
    used = {parameters[index].layer for index in parameters_used(ops, parameters, start=start)}
    return tuple(sorted(used | ran - owners))


def parameters_used(
    ops: tuple[Op, ...],
    parameters: tuple[Parameter, ...],
    *,
    start: int = 0,
    layers: Collection[int] | None = None,
) -> tuple[int, ...]:
    """Return the indices of the parameters that forward ops read from op ``start`` on, in ``layers`` or anywhere.

    A tied parameter is one of each layer that uses it, not only of the one whose name it bears.
    """
    read = {
        view.storage
        for op in ops
        if op.phase == "forward" and op.index >= start and (layers is None or op.layer in layers)
        for view in op.inputs
    }
    return tuple(index for index, parameter in enumerate(parameters) if parameter.storage in read)
