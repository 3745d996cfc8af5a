"""Moments of layers' inputs, accumulated batch by batch over the images of all processes.

Memory does not grow with the number of images, and the patch matrix is never built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.fx import Node

from .. import _native
from ..calibration.checkpoint import Checkpoint
from ..calibration.images import Images
from ..calibration.processes import Processes
from ..calibration.progress import SILENT, Progress
from ..capture.execution import run
from ..capture.graph import Graph
from ..capture.layers import Layer, calls_of
from ..errors import NumericalError
from .finite_check import not_finite
from .moments import Moments


class Accumulator:
    """Accumulates the moments of one layer's input, batch by batch, for all conv groups at once."""

    def __init__(
        self,
        layer: Layer,
        outputs: int = 0,
        positions: int | None = None,
        before: int = 0,
        calls: int = 1,
        *,
        device: torch.device,
    ) -> None:
        """Start with zero moments.

        Args:
            layer: The layer.
            outputs: Number of targets per conv group; 0 for moments without a target.
            positions: Number of random positions that are used in each image; None for all.
            before: Number of batches in processes of lower rank, which seeds the positions.
            calls: Number of times that the layer is called, and ``add`` therefore, for each batch.
            device: Device of the batches.
        """
        groups, features = layer.window.groups, layer.features
        self.layer = layer
        self.positions = positions
        self._before = before * calls
        self.counts = torch.zeros(2, dtype=torch.int64)  # calls of all batches, and rows
        self.gram = torch.zeros(groups, features, features, dtype=torch.float64, device=device)
        self.total = torch.zeros(groups, features, dtype=torch.float64, device=device)
        with_target = outputs > 0
        self.cross = _zeros((groups, outputs, features), with_target, device)
        self.target_total = _zeros((groups * outputs,), with_target, device)
        self.target_square = _zeros((groups * outputs,), with_target, device)

    @property
    def rows(self) -> int:
        """Number of accumulated patches."""
        return int(self.counts[1])

    def accumulated(self) -> dict[str, Tensor]:
        """Name -> accumulated tensor (not a copy) of moments without a target, for checkpoints."""
        return {"counts": self.counts, "gram": self.gram, "total": self.total}

    def add(
        self, value: Tensor, shape: tuple[int, ...], target: Tensor | None = None, call: Layer | None = None
    ) -> None:
        """Add one batch.

        Args:
            value: The layer's input, with the axes of its node in the graph.
            shape: Shape of the layer's output for this batch.
            target: The layer's target, with the axes of its output in the graph; None for moments without a target.
            call: Which of the layer's calls reads this input; None for a layer with one call.
        """
        layer = self.layer if call is None else call
        patches = layer.patches_of(value)
        rows, columns = layer.plane(shape)
        positions = self._positions(len(patches), rows * columns)
        _native.gram_accumulate(
            patches,
            layer.window,
            (rows, columns),
            self.gram,
            self.total,
            target=None if target is None else layer.outputs_of(target),
            cross=self.cross,
            target_total=self.target_total,
            target_square=self.target_square,
            positions=positions,
        )
        count = len(patches) * rows * columns if positions is None else positions.numel()
        self.counts += torch.tensor([1, count])

    def _positions(self, images: int, count: int) -> Tensor | None:
        """(images, positions) int64 random positions, distinct in an image and equal in every run; None for all."""
        if self.positions is None or self.positions >= count:
            return None
        # The seed is the index of the call in all processes, so a resumed run draws the same positions.
        random = torch.Generator().manual_seed(self._before + int(self.counts[0]))
        drawn = torch.rand(images, count, generator=random).topk(self.positions, dim=1).indices
        return drawn.contiguous().to(self.gram.device)

    def is_finite(self) -> Tensor:
        """() bool on the device: whether all activations so far were finite."""
        finite = torch.isfinite(self.total).all()
        return finite if self.target_total is None else finite & torch.isfinite(self.target_total).all()

    def not_finite(self, batch: int) -> NumericalError:
        """The error to raise where an activation of this batch is NaN or infinite."""
        bad = (~torch.isfinite(self.total)).nonzero()
        return not_finite(self.layer, int(bad[0, 1]) // self.layer.taps if len(bad) else None, batch)

    def join(self, processes: Processes) -> None:
        """Add up the moments of all processes, after the last batch."""
        processes.sum(self.counts, self.gram, self.total, self.cross, self.target_total, self.target_square)

    def mirror(self) -> None:
        """Fill in the half of the Gram matrices that is not added to."""
        _native.gram_mirror(self.gram)

    def moments(self) -> list[Moments]:
        """The sums so far, one per conv group."""
        self.mirror()
        groups = len(self.gram)

        def parts(values: Tensor | None) -> list[Tensor | None]:
            return [None] * groups if values is None else list(values.reshape(groups, -1))

        totals, squares = parts(self.target_total), parts(self.target_square)
        cross = [None] * groups if self.cross is None else list(self.cross)
        return [Moments(self.gram[g], self.total[g], self.rows, cross[g], totals[g], squares[g]) for g in range(groups)]


def check_finite(accumulators: Iterable[Accumulator], batch: int) -> None:
    """Raise NumericalError if an activation of this batch is NaN or infinite; waits for a GPU once."""
    found = [(accumulator, accumulator.is_finite()) for accumulator in accumulators]
    if found and not bool(torch.stack([finite for _, finite in found]).all()):
        raise next(accumulator.not_finite(batch) for accumulator, finite in found if not finite)


def _zeros(shape: tuple[int, ...], wanted: bool, device: torch.device) -> Tensor | None:
    return torch.zeros(shape, dtype=torch.float64, device=device) if wanted else None


def measure(
    graph: Graph,
    images: Images,
    layers: list[Layer],
    tensors: Mapping[str, Tensor],
    *,
    positions: int | None = None,
    progress: Progress = SILENT,
    checkpoint: Checkpoint | None = None,
    name: str = "moments",
) -> dict[str, list[Moments]]:
    """Measure the moments of layers' inputs in one pass over the images of each process.

    Layers that read the same patches share their moments. Those of a layer that is called several times are sums over
    its calls.

    Args:
        graph: The captured network.
        images: Calibration images.
        layers: Layers to measure, one of the calls of each.
        tensors: Qualified name -> parameter with which the network is run.
        positions: Number of random positions that are used in each feature map; None for all. Vectors and tokens use
            all positions.
        progress: Whether to show a progress bar.
        checkpoint: Where the moments are stored while they accumulate. A call that was interrupted continues behind
            the last stored batch, and gives the same bits.
        name: Name under which they are stored.

    Returns:
        Weight name -> moments of each conv group of that layer.

    Raises:
        NumericalError: an activation is NaN or infinite; the message names the layer and the channel.
        CheckpointError: a stored file is damaged or cannot be written.
    """
    shared: dict[object, Accumulator] = {}
    of_weight: dict[str, Accumulator] = {}
    read_at: dict[Node, list[tuple[Accumulator, Layer]]] = {}
    for layer in layers:
        calls = calls_of(graph, layer)
        key = tuple((x.input, x.spatial, x.window, x.depth, x.upsampling, _size(graph, x)) for x in calls)
        if key not in shared:
            shared[key] = Accumulator(
                layer, positions=positions, before=images.before, calls=len(calls), device=images.device
            )
            for call in calls:
                read_at.setdefault(call.node, []).append((shared[key], call))
        of_weight[layer.weight] = shared[key]
    last = max((node.meta["order"] for node in read_at), default=-1)

    def visit(node: Node, values: Mapping[Node, object], value: object) -> None:
        for accumulator, call in read_at.get(node, ()):
            source = values[call.input]
            assert isinstance(source, Tensor) and isinstance(value, Tensor)
            accumulator.add(source, tuple(value.shape), call=call)

    sums = list(shared.values())
    accumulated = {f"{a.layer.weight}/{part}": value for a in sums for part, value in a.accumulated().items()}
    with images.processes.together():
        done = 0 if checkpoint is None else checkpoint.restore(name, accumulated)
        for batch in progress.over(range(done, len(images)), "measuring", done=done):
            run(graph, images[batch], tensors, visit, last)
            check_finite(sums, batch)
            if checkpoint is not None:
                checkpoint.keep_tensors(name, batch + 1, accumulated, last=batch + 1 == len(images))
    for accumulator in sums:
        accumulator.join(images.processes)
    found = {id(accumulator): accumulator.moments() for accumulator in sums}
    return {weight: found[id(accumulator)] for weight, accumulator in of_weight.items()}


def _size(graph: Graph, layer: Layer) -> tuple[int, ...]:
    shape = graph.shape(layer.node)
    return shape[len(shape) - layer.spatial :]
