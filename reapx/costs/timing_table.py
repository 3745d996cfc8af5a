"""Tables of layer times that any measuring function makes, and the JSON file in which they are kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..capture.graph import Graph
from ..errors import BudgetError
from .budget import AxisSizes
from .layer_times import Configuration, LayerTimes

SHARES = (1 / 4, 1 / 2, 1)
"""Shares of a layer's channels at which it is timed; fewer than in eager mode, since each point may be an export."""
STEPS = (32, 16, 8, 4, 2)
"""Numbers of channels that a runtime may round up to; the largest that timing shows is taken."""
JUMP = 0.75
"""Share of the time that a step adds from which its first channel counts as a jump; without steps it adds 1 / step."""
VISIBLE = 0.03
"""Share of a layer's time below which what a step adds is noise."""
FORMAT = 1

LayerMeasure = Callable[[nn.Module, tuple[Tensor, ...]], float]


@dataclass(frozen=True)
class LayerTable:
    """Measured milliseconds of one layer, on a grid of sizes of its weight's first two axes.

    Attributes:
        first, second: Ascending sizes of the two axes.
        milliseconds: (first, second) times.
        steps: Numbers of channels, on either axis, that the runtime rounds up to: sizes up to the next multiple take
            equally long.
    """

    first: list[int]
    second: list[int]
    milliseconds: list[list[float]]
    steps: tuple[int, int] = (1, 1)

    def times(self) -> SteppedTimes:
        """The table as a function of sizes."""
        return SteppedTimes(LayerTimes(self.first, self.second, self.milliseconds), self.steps)


@dataclass(frozen=True)
class SteppedTimes:
    """Milliseconds of a layer as a staircase: sizes are rounded up to multiples of ``steps`` before the look-up."""

    times: LayerTimes
    steps: tuple[int, int]

    def __call__(self, sizes: AxisSizes) -> Any:
        """Milliseconds at these sizes; arrays give an array."""
        up = [size if step == 1 else -(-size // step) * step for size, step in zip(sizes[:2], self.steps, strict=True)]
        return self.times([*up, *sizes[2:]])


@dataclass
class TimingTable:
    """Everything that was timed for a network on one device.

    Attributes:
        device: What was timed, in words.
        networks: Key of a network and batch -> its milliseconds.
        layers: Key of a layer's configuration -> its table.
    """

    device: str
    networks: dict[str, float] = field(default_factory=dict)
    layers: dict[str, LayerTable] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write the table as JSON."""
        page = {"format": FORMAT, **asdict(self)}
        Path(path).write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> TimingTable:
        """Read what :meth:`write` wrote.

        Raises:
            BudgetError: the file is missing, damaged or of another format.
        """
        try:
            page = json.loads(Path(path).read_text(encoding="utf-8"))
            if page["format"] != FORMAT:
                raise ValueError(f"format {page['format']}, this version reads {FORMAT}")
            layers = {
                key: LayerTable(own["first"], own["second"], own["milliseconds"], tuple(own["steps"]))
                for key, own in page["layers"].items()
            }
            for table in layers.values():
                table.times()  # refuses grids that do not fit their times
            networks = {key: float(value) for key, value in page["networks"].items()}
            return cls(str(page["device"]), networks, layers)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BudgetError(
                f"table={str(path)!r} cannot be read ({error!r}): give a file that reapx.time_layers wrote"
            ) from error


class TimedLayer(nn.Module):
    """One layer by itself, with random weights, as a module that a measuring function can run or export."""

    def __init__(self, configuration: Configuration, first: int, second: int) -> None:
        super().__init__()
        weight, bias, self.options = configuration.parts(first, second)
        self.operator = configuration.operator
        self.flip = configuration.flips
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        weight = self.weight.t() if self.flip else self.weight
        result: Tensor = self.operator(input=x, weight=weight, bias=self.bias, **self.options)
        return result


def time_layer(configuration: Configuration, measure: LayerMeasure) -> LayerTable:
    """Time a layer by itself at a grid of widths, after the runtime's steps were found on both axes."""
    taken: dict[tuple[int, int], float] = {}

    def at(first: int, second: int) -> float:
        if (first, second) not in taken:
            shape = (configuration.images, configuration.inputs_at(first, second), *configuration.spatial)
            layer = TimedLayer(configuration, first, second).eval()
            taken[first, second] = float(measure(layer, (configuration.random(*shape),)))
        return taken[first, second]

    units, full = configuration.units(), configuration.weight[:2]
    steps = (
        _step(full[0], lambda size: at(size, full[1])) if units[0] == 1 else 1,
        _step(full[1], lambda size: at(full[0], size)) if units[1] == 1 else 1,
    )
    first, second = (_knots(size, unit, step) for size, unit, step in zip(full, units, steps, strict=True))
    return LayerTable(first, second, [[at(a, b) for b in second] for a in first], steps)


def _step(size: int, at: Callable[[int], float]) -> int:
    """The number of channels that times are rounded up to, 1 where none is seen.

    Just above a power of two, the time jumps and then stays the same for a whole step.

    Example: at 8, 9, 10, 12, 16 channels a layer takes 1, 2, 2, 2, 2 ms: the step is 8.
    """
    base = 2 ** int(math.log2(size // 2)) if size >= 4 else 0
    for step in (step for step in STEPS if step <= base):
        grown = at(base + step) - at(base)
        if grown >= VISIBLE * at(base) and at(base + 1) - at(base) >= JUMP * grown:
            return step
    return 1


def _knots(size: int, unit: int, step: int) -> list[int]:
    """Sizes of the grid: the smallest, shares of the full size rounded up to a step, and the full size."""
    if unit == 0:
        return [size]
    if step == 1:
        return sorted({unit, *(-(-round(size * share) // unit) * unit for share in SHARES)})
    return sorted({step, *(-(-round(size * share) // step) * step for share in SHARES)})


def network_key(graph: Graph, batch: int) -> str:
    """Key of a network's milliseconds in a table: its operators, the shapes of its tensors, and the batch."""
    shapes = sorted((name, tuple(tensor.shape)) for name, tensor in graph.tensors.items())
    return f"{hashlib.sha256(f'{graph.digest()} {shapes}'.encode()).hexdigest()[:16]} batch {batch}"
