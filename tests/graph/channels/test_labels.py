"""Labels go through views as the elements of a tensor do: held to NumPy's own views of an array of numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from memplan.graph.channels.labels import (
    Factor,
    Label,
    by_axis,
    indexed,
    permuted,
    reshaped,
    with_axis,
    without_axes,
)


def spelled_out(label: Label, shape: tuple[int, ...]) -> np.ndarray:
    """The number of every element; the label has one factor."""
    ((axes, ids),) = label
    return np.broadcast_to(ids.reshape([size if axis in axes else 1 for axis, size in enumerate(shape)]), shape)


def channels(shape: tuple[int, ...], axis: int) -> tuple[Label, np.ndarray]:
    label: Label = (Factor((axis,), np.arange(1, shape[axis] + 1)),)
    return label, spelled_out(label, shape)


def test_a_channel_shuffle() -> None:
    label, whole = channels((2, 6, 3, 3), 1)
    label = reshaped(label, (2, 6, 3, 3), (2, 2, 3, 3, 3))
    label = permuted(label, (0, 2, 1, 3, 4))
    label = reshaped(label, (2, 3, 2, 3, 3), (2, 6, 3, 3))
    assert by_axis(label)[1].tolist() == [1, 4, 2, 5, 3, 6]
    real = whole.reshape(2, 2, 3, 3, 3).transpose(0, 2, 1, 3, 4).reshape(2, 6, 3, 3)
    assert (spelled_out(label, (2, 6, 3, 3)) == real).all()


def test_a_flatten_repeats_each_channel_for_its_positions() -> None:
    label, _ = channels((2, 3, 2, 2), 1)
    flat = by_axis(reshaped(label, (2, 3, 2, 2), (2, 12)))
    assert flat[1].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]


def test_a_packed_projection_comes_apart() -> None:
    label, _ = channels((2, 5, 12), 2)  # three times two heads of two
    heads = reshaped(label, (2, 5, 12), (2, 5, 3, 2, 2))
    value = without_axes(indexed(heads, 2, slice(2, 3)), [])
    assert value[0].axes == (3, 4)
    assert value[0].ids.tolist() == [[9, 10], [11, 12]]


def test_a_batch_that_is_merged_with_the_channels_comes_apart_again() -> None:
    label, _ = channels((4, 6, 5), 1)
    merged = reshaped(label, (4, 6, 5), (24, 5))
    assert by_axis(merged)[0].tolist() == [1, 2, 3, 4, 5, 6] * 4
    apart = reshaped(merged, (24, 5), (4, 6, 5))
    assert by_axis(apart)[1].tolist() == [1, 2, 3, 4, 5, 6]
    assert list(by_axis(apart)) == [1]


@pytest.mark.parametrize("seed", range(60))
def test_any_chain_of_views(seed: int) -> None:
    rng = random.Random(seed)
    shape: tuple[int, ...] = tuple(rng.choice((1, 2, 3, 4)) for _ in range(rng.randint(2, 4)))
    axis = rng.randrange(len(shape))
    shape = (*shape[:axis], 12, *shape[axis + 1 :])
    label, real = channels(shape, axis)
    for _ in range(6):
        step = rng.choice(("reshape", "permute", "slice", "unsqueeze"))
        if step == "reshape":
            new = _other_shape(rng, real.size)
            label, real = reshaped(label, real.shape, new), real.reshape(new)
        elif step == "permute":
            order = rng.sample(range(real.ndim), real.ndim)
            label, real = permuted(label, order), real.transpose(order)
        elif step == "slice":
            place = rng.randrange(real.ndim)
            start = rng.randrange(real.shape[place])
            cut = slice(start, None, rng.choice((1, 2)))
            label, real = indexed(label, place, cut), real[(slice(None),) * place + (cut,)]
        else:
            place = rng.randrange(real.ndim + 1)
            label, real = with_axis(label, place), np.expand_dims(real, place)
        if not label:  # one channel is left, along no axis
            break
        assert (spelled_out(label, real.shape) == real).all()


def _other_shape(rng: random.Random, size: int) -> tuple[int, ...]:
    shape: list[int] = []
    while size > 1 and len(shape) < 4:
        factor = rng.choice([n for n in range(1, size + 1) if size % n == 0])
        shape.append(factor)
        size //= factor
    return (*shape, size)
