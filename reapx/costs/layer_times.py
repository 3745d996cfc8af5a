"""How long a layer takes on this machine: timed at a grid of widths, interpolated between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..capture.graph import Graph, arguments
from ..capture.layers import Layer
from .budget import AxisSizes

SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Shares of a layer's channels at which it is timed, besides the least width there is."""
REPEATS = 7
"""Times a layer is run at each pair of widths; the median counts."""
POINT_SECONDS = 0.05
"""A pair of widths that has taken so long is not run again."""

Times = npt.NDArray[np.float64]


class LayerTimes:
    """What one layer takes as a function of its weight's first two axis sizes, linear between those measured.

    Args:
        first: Increasing sizes of the weight's first axis.
        second: Increasing sizes of its second axis.
        milliseconds: (first, second): what was measured. Where it falls as a width grows, it is replaced by the
            nearest table that does not.
    """

    def __init__(self, first: Sequence[int], second: Sequence[int], milliseconds: npt.ArrayLike) -> None:
        self._first = np.array([0, *first], dtype=np.float64)
        self._second = np.array([0, *second], dtype=np.float64)
        self._table = np.pad(_non_decreasing(np.asarray(milliseconds, dtype=np.float64)), ((1, 0), (1, 0)))

    def __call__(self, sizes: AxisSizes) -> Any:
        """Milliseconds at these sizes; width 0 takes none. Arrays in, an array out."""
        row, down = _between(self._first, sizes[0])
        column, right = _between(self._second, sizes[1])
        upper = (1 - right) * self._table[row, column] + right * self._table[row, column + 1]
        lower = (1 - right) * self._table[row + 1, column] + right * self._table[row + 1, column + 1]
        return (1 - down) * upper + down * lower


def _non_decreasing(table: Times) -> Times:
    """The table that never falls along either axis and whose largest distance to the given one is least."""
    above, below = table, table
    for axis in (0, 1):
        above = np.maximum.accumulate(above, axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    return (above + below) / 2


def _between(knots: Times, size: Any) -> tuple[Any, Any]:
    """Index of the knot at or before each size, and how far it is to the next one, 0 to 1."""
    size = np.asarray(size, dtype=np.float64)
    index = np.clip(np.searchsorted(knots, size, side="right") - 1, 0, len(knots) - 2)
    return index, (size - knots[index]) / (knots[index + 1] - knots[index])


@dataclass(frozen=True)
class Configuration:
    """All that a layer's time depends on; equal ones are measured once.

    Attributes:
        operator: What is called.
        options: Its other arguments: stride, padding, dilation, groups.
        transposed: Whether the weight's first axis runs along the input channels.
        depthwise: Whether the conv groups become fewer with the channels.
        weight: Shape of the weight.
        images: Size of the input's first axis.
        spatial: Sizes of the input's spatial axes.
        bias: Whether there is one.
        dtype, device: Those of the weight.
    """

    operator: Any
    options: tuple[tuple[str, Any], ...]
    transposed: bool
    depthwise: bool
    weight: tuple[int, ...]
    images: int
    spatial: tuple[int, ...]
    bias: bool
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, graph: Graph, layer: Layer, batch: int) -> Configuration:
        """The configuration of a layer of a captured graph when a batch has so many images."""
        given = arguments(layer.node)
        options = tuple(
            (name, tuple(value) if isinstance(value, list) else value)
            for name, value in given.items()
            if name not in ("input", "weight", "bias")
        )
        shape, weight = graph.shape(layer.input), graph.tensors[layer.weight]
        rows = layer.positions * graph.batch if layer.kind == "linear" else shape[0]
        return cls(
            operator=layer.node.target,
            options=options,
            transposed=layer.kind == "transposed",
            depthwise=layer.depthwise,
            weight=tuple(weight.shape),
            images=max(rows * batch // graph.batch, 1),
            spatial=() if layer.kind == "linear" else shape[2:],
            bias=layer.bias is not None,
            dtype=weight.dtype,
            device=weight.device,
        )

    @property
    def _groups(self) -> int:
        return int(dict(self.options).get("groups", 1))

    def _groups_at(self, first: int) -> int:
        return first * self._groups // self.weight[0] if self.depthwise else self._groups

    def inputs_at(self, first: int, second: int) -> int:
        """Input channels when the weight's first two axes have these sizes."""
        return first if self.transposed else second * self._groups_at(first)

    def grid(self) -> tuple[list[int], list[int]]:
        """Sizes of the weight's first two axes at which the layer is timed."""
        first, second = self.weight[:2]
        if self.depthwise:
            return _widths(first, first // self._groups), [second]
        return _widths(first, self._groups), _widths(second, 1)

    def random(self, *shape: int) -> Tensor:
        """Random values, the same on every run."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator, dtype=self.dtype).to(self.device)

    def call(self, data: Tensor, first: int, second: int) -> Callable[[], object]:
        """The layer with random weights of these sizes, on an input with all of its channels, ready to be run."""
        groups = self._groups_at(first)
        weight = self.random(first, second, *self.weight[2:])
        outputs = second * groups if self.transposed else first
        given = dict(self.options)
        if "groups" in given:
            given["groups"] = groups
        bias = torch.zeros(outputs, dtype=self.dtype, device=self.device) if self.bias else None
        return lambda: self.operator(input=data, weight=weight, bias=bias, **given)


def _widths(size: int, step: int) -> list[int]:
    """``step`` and the shares of a size, in multiples of ``step``."""
    return sorted({step, *(max(round(size * share / step), 1) * step for share in SHARES)})


def settle_allocator() -> None:
    """Bring the C library's allocator to the state that a process with large tensors reaches in the end."""
    # Until glibc has seen a block just below 32 MB freed, it gives memory back to the system after single layers and
    # fetches it again page by page; whether it does is chance, and doubles the time of a layer.
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of one run, from an idle device to an idle device."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return 1e3 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median(times: Sequence[float]) -> float:
    """Median without the first run, which also prepares, unless it is the only one."""
    return float(np.median(times[1:] or times))


def measure_layer(configuration: Configuration) -> LayerTimes:
    """Time a layer at a grid of widths on this machine.

    Returns:
        Medians of repetitions in turns, so that what disturbs the machine for a while disturbs all widths alike.
    """
    first, second = configuration.grid()
    points: dict[int, list[tuple[int, int]]] = {}
    for a in first:
        for b in second:
            points.setdefault(configuration.inputs_at(a, b), []).append((a, b))
    settle_allocator()
    whole = configuration.random(configuration.images, max(points), *configuration.spatial)
    taken: dict[tuple[int, int], list[float]] = {(a, b): [] for a in first for b in second}
    with torch.no_grad():
        for _ in range(1 + REPEATS):
            for inputs, pairs in points.items():
                pairs[:] = [pair for pair in pairs if sum(taken[pair]) < 1e3 * POINT_SECONDS]
                data = whole[:, :inputs].clone(memory_format=torch.contiguous_format) if pairs else whole
                for pair in pairs:
                    taken[pair].append(milliseconds(configuration.call(data, *pair), configuration.device))
    return LayerTimes(first, second, [[median(taken[a, b]) for b in second] for a in first])
