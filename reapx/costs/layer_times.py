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
"""Shares of a layer's channels at which it is timed, besides the smallest possible width."""
REPEATS = 7
"""Number of timed runs of a layer at each pair of widths; the median counts."""
POINT_SECONDS = 0.05
"""Seconds after which a pair of widths is not run again."""

Times = npt.NDArray[np.float64]


class LayerTimes:
    """Milliseconds of one layer as a bilinear function of the sizes of its weight's first two axes.

    Args:
        first: Ascending sizes of the weight's first axis.
        second: Ascending sizes of the weight's second axis.
        milliseconds: (first, second) measured times. A table that decreases along an axis is replaced by the nearest
            table that does not.
    """

    def __init__(self, first: Sequence[int], second: Sequence[int], milliseconds: npt.ArrayLike) -> None:
        self._first = np.array([0, *first], dtype=np.float64)
        self._second = np.array([0, *second], dtype=np.float64)
        self._table = np.pad(_non_decreasing(np.asarray(milliseconds, dtype=np.float64)), ((1, 0), (1, 0)))

    def __call__(self, sizes: AxisSizes) -> Any:
        """Milliseconds at these sizes, 0 at size 0; arrays give an array."""
        row, down = _between(self._first, sizes[0])
        column, right = _between(self._second, sizes[1])
        upper = (1 - right) * self._table[row, column] + right * self._table[row, column + 1]
        lower = (1 - right) * self._table[row + 1, column] + right * self._table[row + 1, column + 1]
        return (1 - down) * upper + down * lower


def _non_decreasing(table: Times) -> Times:
    """The table that decreases along no axis and has the smallest maximum distance to the given one."""
    above, below = table, table
    for axis in (0, 1):
        above = np.maximum.accumulate(above, axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    return (above + below) / 2


def _between(knots: Times, size: Any) -> tuple[Any, Any]:
    """Index of the knot at or before each size, and the size's relative position (0 to 1) between it and the next."""
    size = np.asarray(size, dtype=np.float64)
    index = np.clip(np.searchsorted(knots, size, side="right") - 1, 0, len(knots) - 2)
    return index, (size - knots[index]) / (knots[index + 1] - knots[index])


@dataclass(frozen=True)
class Configuration:
    """Everything that a layer's time depends on; layers with equal configurations are measured once.

    Attributes:
        operator: The operator to call.
        options: Its arguments besides input, weight and bias: stride, padding, dilation, groups.
        transposed: Whether the weight's first axis runs along the input channels.
        depthwise: Whether the number of conv groups shrinks with the number of channels.
        weight: Shape of the weight.
        images: Size of the input's first axis.
        spatial: Sizes of the input's spatial axes.
        bias: Whether the layer has a bias.
        dtype, device: Of the weight.
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
        """The configuration of a layer of a captured graph at a batch size."""
        given = arguments(layer.node)
        options = tuple(
            (name, tuple(value) if isinstance(value, list) else value)
            for name, value in given.items()
            if name not in ("input", "weight", "bias")
        )
        shape, weight = graph.shape(layer.input), graph.tensors[layer.weight]
        rows = layer.positions * graph.batch if layer.spatial == 0 else shape[0]
        return cls(
            operator=layer.node.target,
            options=options,
            transposed=layer.in_axis == 0,
            depthwise=layer.depthwise,
            weight=tuple(weight.shape),
            images=max(rows * batch // graph.batch, 1),
            spatial=() if layer.spatial == 0 else shape[2:],
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
        """A tensor of random values, the same on every run."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator, dtype=self.dtype).to(self.device)

    def call(self, data: Tensor, first: int, second: int) -> Callable[[], object]:
        """A function that runs the layer once, with random weights of these sizes.

        Args:
            data: Input with as many channels as ``inputs_at`` says.
            first: Size of the weight's first axis.
            second: Size of its second axis.
        """
        weight, bias, options = self.parts(first, second)
        if self.flips:
            weight = weight.t()
        return lambda: self.operator(input=data, weight=weight, bias=bias, **options)

    @property
    def flips(self) -> bool:
        """Whether the operator takes the weight transposed: a linear layer whose weight is (inputs, outputs)."""
        return self.transposed and not self.spatial

    def parts(self, first: int, second: int) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Weight with these sizes, bias and options of the operator; weights are random."""
        groups = self._groups_at(first)
        weight = self.random(first, second, *self.weight[2:])
        outputs = second * groups if self.transposed else first
        options = dict(self.options)
        if "groups" in options:
            options["groups"] = groups
        bias = torch.zeros(outputs, dtype=self.dtype, device=self.device) if self.bias else None
        return weight, bias, options

    def units(self) -> tuple[int, int]:
        """Numbers of channels by which the weight's first two axes can change; 0 for an axis that cannot."""
        first = self.weight[0]
        return (first // self._groups, 0) if self.depthwise else (self._groups, 1)

    @property
    def key(self) -> str:
        """All of it as text, for a table in a file."""
        options = ", ".join(f"{name}={value}" for name, value in self.options)
        kind = "depthwise " if self.depthwise else "transposed " if self.transposed else ""
        return (
            f"{kind}{self.operator} weight {list(self.weight)} input {[self.images, *self.spatial]} "
            f"bias {self.bias} {self.dtype} {options}"
        )


def _widths(size: int, step: int) -> list[int]:
    """The widths at which a layer is timed: ``step``, and the ``SHARES`` of a size, in multiples of ``step``."""
    return sorted({step, *(max(round(size * share / step), 1) * step for share in SHARES)})


def settle_allocator() -> None:
    """Bring the C library's allocator into the state that it reaches in a long-running process with large tensors."""
    # Before glibc has freed a block just below 32 MB, it may return memory to the system after each layer and fetch it
    # again page by page, which doubles the layer's time. Whether it does so depends on chance.
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one run, from an idle device to an idle device."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return 1e3 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median(times: Sequence[float]) -> float:
    """Median without the first run, which includes preparations, unless it is the only run."""
    return float(np.median(times[1:] or times))


def measure_layer(configuration: Configuration) -> LayerTimes:
    """Time a layer at a grid of widths on this machine.

    Returns:
        Median times. All widths are run in turn, so that a disturbance of the machine affects all of them alike.
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
