"""Channel table: which positions of which tensor axes must leave together.

Every position of every tracked axis carries an integer, its *channel*. Operators that act per channel pass the integers
on. Operators that combine two tensors join their channels (union-find). In the end, each set of joined channels holds
the positions, over all parameters, that can only be removed together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

Channels = npt.NDArray[np.int64]
Layout = list[Channels | None]
"""For each axis of a tensor the channels of its positions; None for an axis from which nothing can be removed."""


class ChannelTable:
    """All channels of one network: which are joined, and which are frozen and why.

    Attributes:
        line: The user's line that is being analysed, with which reasons end; None where there is none.
    """

    def __init__(self) -> None:
        self.line: str | None = None
        self._parent: Channels = np.empty(0, np.int64)
        self._size = 0
        self._frozen: list[tuple[Channels, str]] = []
        self._residual_streams: list[Channels] = []

    def __len__(self) -> int:
        return self._size

    def fresh(self, count: int) -> Channels:
        """``count`` new channels, joined with no other."""
        start, self._size = self._size, self._size + count
        if self._size > len(self._parent):
            grown = np.arange(max(2 * len(self._parent), self._size, 1024))
            grown[:start] = self._parent[:start]
            self._parent = grown
        return np.arange(start, self._size)

    def find(self, channels: Channels) -> Channels:
        """The representative of the set of joined channels to which each channel belongs."""
        root = self._parent[channels]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                return root
            root = above

    def join(self, first: Channels, second: Channels) -> None:
        """Join two arrays of channels position by position: both channels at a position then leave together."""
        while True:
            a, b = self.find(first), self.find(second)
            apart = a != b
            if not apart.any():
                return
            low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
            np.minimum.at(self._parent, high, low)

    def freeze(self, channels: Channels, reason: str) -> None:
        """Forbid the removal of these channels; ``reason`` is shown to the user."""
        self._frozen.append((channels.reshape(-1), reason if self.line is None else f"{reason}: {self.line}"))

    def freeze_layout(self, layout: Layout, reason: str, axes: Iterable[int] | None = None) -> None:
        """Freeze the channels along some axes of a layout; along all axes without ``axes``."""
        for axis in range(len(layout)) if axes is None else axes:
            channels = layout[axis]
            if channels is not None:
                self.freeze(channels, reason)

    def mark_residual_stream(self, channels: Channels) -> None:
        """Mark channels as those of a residual stream."""
        self._residual_streams.append(channels.reshape(-1))

    def frozen_reasons(self) -> dict[int, str]:
        """Representative of each frozen set of joined channels -> the first reason why it is frozen."""
        reasons: dict[int, str] = {}
        for channels, reason in self._frozen:
            for root in np.unique(self.find(channels)).tolist():
                reasons.setdefault(root, reason)
        return reasons

    def residual_stream_roots(self) -> set[int]:
        """Representatives of the sets of joined channels that lie on a residual stream."""
        return {root for c in self._residual_streams for root in np.unique(self.find(c)).tolist()}


def broadcast(
    table: ChannelTable,
    operands: Sequence[tuple[Layout, tuple[int, ...]]],
    shape: tuple[int, ...],
    reason: str,
) -> Layout:
    """Layout of an elementwise result: the operands' channels are joined axis by axis.

    An axis that some operands track and others do not (a model input, a literal) is frozen.

    Args:
        table: The channel table.
        operands: (layout, shape) of each operand.
        shape: Shape of the result.
        reason: Why such an axis is frozen.
    """
    result: Layout = [None] * len(shape)
    for axis in range(len(shape)):
        met: list[Channels | None] = []
        for layout, own in operands:
            position = axis - len(shape) + len(own)
            if position >= 0 and own[position] == shape[axis] and shape[axis] > 1:
                met.append(layout[position])
        tracked = [channels for channels in met if channels is not None]
        if not tracked:
            continue
        result[axis] = tracked[0]
        for other in tracked[1:]:
            table.join(tracked[0], other)
        if len(tracked) < len(met):
            table.freeze(tracked[0], reason)
    return result


def reshape_runs(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Pairs of shortest runs of axes, of the old and of the new shape, that hold the same elements."""
    blocks, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        first, second = 1, 1
        if i < len(old):
            first, i = old[i], i + 1
        if j < len(new):
            second, j = new[j], j + 1
        while first != second:
            if first < second:
                first, i = first * old[i], i + 1
            else:
                second, j = second * new[j], j + 1
        blocks.append((range(start_i, i), range(start_j, j)))
    return blocks


def reshape(
    table: ChannelTable,
    layout: Layout,
    old: tuple[int, ...],
    new: tuple[int, ...],
    heads: Collection[int] = (),
) -> Layout:
    """Layout after a reshape from ``old`` to ``new``.

    Channels whose axes merge into one axis keep their exact positions. Where one axis is split, the longest new axis
    keeps the channels, and channels along the other new axes are joined; an axis in ``heads`` goes before the longest.
    """
    result: Layout = [None] * len(new)
    if 0 in old:
        return result
    for source, target in reshape_runs(old, new):
        tracked = [axis for axis in source if layout[axis] is not None]
        if not tracked:
            continue
        spread = _spread(table, layout, old, source, tracked)
        sizes = [new[axis] for axis in target]
        if len(source) > 1 and source.start == 0:
            table.freeze(spread, "a reshape merges the channels with the batch axis")
            continue
        if not sizes:
            continue
        keep = max(range(len(sizes)), key=lambda k: (target[k] in heads, sizes[k]))
        grid = np.moveaxis(spread.reshape(sizes), keep, 0).reshape(sizes[keep], -1)
        for column in range(1, grid.shape[1]):
            table.join(grid[:, 0], grid[:, column])
        result[target[keep]] = grid[:, 0].copy()
    return result


def _spread(
    table: ChannelTable,
    layout: Layout,
    old: tuple[int, ...],
    source: range,
    tracked: list[int],
) -> Channels:
    """The channel of every element of a run of axes, flattened."""
    spread = repeated(layout, tracked[0], source, old)
    for axis in tracked[1:]:  # of two merged axes, no removal leaves a product of two axes
        values = repeated(layout, axis, source, old)
        table.freeze(values, "two channel axes are merged by a reshape")
        table.join(spread, values)
    return spread


def repeated(layout: Layout, axis: int, run: range, shape: tuple[int, ...]) -> Channels:
    """The channels of one tracked axis for every element of a run of axes, flattened."""
    channels, sizes = layout[axis], [shape[k] for k in run]
    assert channels is not None
    view = [len(channels) if k == axis else 1 for k in run]
    return np.broadcast_to(channels.reshape(view), sizes).reshape(-1)
