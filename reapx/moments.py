"""Moments: the Gram matrices of layers' input patches, streamed over the images.

Memory does not grow with the number of images, and the patch matrix is never built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.fx import Node
from tqdm import tqdm

from . import _native
from .distributed import Processes
from .execution import run
from .finite import not_finite
from .graph import Graph
from .images import Images
from .layers import Layer
from .resume import Checkpoint

_ROUNDING = 16 * torch.finfo(torch.float32).eps
"""Typical relative error of a float32 sum of 256 products, the longest that the kernels form."""


@dataclass
class Moments:
    """Sums over all patches X (rows, features) of one conv group's input, in float64.

    Attributes:
        gram: (features, features) XᵀX.
        total: (features,) column sums of X.
        cross: (outputs, features) YᵀX, or None.
        target_total: (outputs,) column sums of Y, or None.
        target_square: (outputs,) column sums of Y², or None.
        rows: Number of patches.
        noise: What rounding of the float32 products leaves uncertain on the diagonal of ``gram``.
        largest_ridge: Damping beyond this only hides that the matrix says nothing.
    """

    gram: Tensor
    total: Tensor
    rows: int
    cross: Tensor | None = None
    target_total: Tensor | None = None
    target_square: Tensor | None = None
    noise: float = 0.0
    largest_ridge: float = 0.0

    def __post_init__(self) -> None:
        if len(self.gram):
            self.largest_ridge = max(float(self.gram.diagonal().mean()), 1.0)

    def centred(self, intercept: bool) -> Moments:
        """Moments about the mean where an intercept is fitted, else these moments themselves."""
        if not intercept or self.rows == 0:
            return self
        mean = self.total / self.rows
        result = Moments(self.gram - torch.outer(self.total, mean), self.total, self.rows)
        result.largest_ridge = self.largest_ridge
        result.noise = _ROUNDING * float(self.gram.diagonal().mean())
        if self.cross is not None and self.target_total is not None:
            result.cross = self.cross - torch.outer(self.target_total, mean)
            result.target_total = self.target_total
        if self.target_square is not None and self.target_total is not None:
            result.target_square = self.target_square - self.target_total**2 / self.rows
        return result

    def of_columns(self, columns: Tensor) -> Moments:
        """Moments of some of the features, by their rising (count,) int64 indices; these themselves for all."""
        if len(columns) == len(self.gram):
            return self
        gram, cross = self.gram[columns][:, columns], None if self.cross is None else self.cross[:, columns]
        totals = self.target_total, self.target_square
        result = Moments(gram, self.total[columns], self.rows, cross, *totals, noise=self.noise)
        result.largest_ridge = self.largest_ridge
        return result

    def error(self, weight: Tensor) -> float:
        """‖Y - X Wᵀ‖², given W (outputs, features).

        Raises:
            ValueError: there are no targets Y.
        """
        if self.target_square is None or self.cross is None:
            raise ValueError("these moments have no targets")
        fitted = (weight @ self.gram) * weight - 2 * weight * self.cross
        return float(self.target_square.sum() + fitted.sum())

    def ridge(self, damping: float) -> float:
        """Damping as an absolute value: a fraction of the mean diagonal of the Gram matrix.

        Any damping at all is raised to the rounding noise, below which the matrix says nothing.
        """
        if damping == 0 or len(self.gram) == 0:
            return 0.0
        mean = float(self.gram.diagonal().mean())
        return max(damping * mean, self.noise) or damping

    def ridges(self, damping: float) -> Iterator[float]:
        """Ridges to try in turn: ``ridge``, then ten times more each, where rounding left the matrix indefinite."""
        ridge = self.ridge(damping)
        yield ridge
        while 0 < ridge < self.largest_ridge:
            ridge *= 10
            yield ridge


def damp(
    moments: Sequence[Moments], damping: float, attempt: Callable[[list[int], list[float]], list[int]]
) -> list[int]:
    """Raise each one's ridge until its matrix is definite; all that are not yet go into one attempt.

    Args:
        moments: What to damp.
        damping: See :meth:`Moments.ridges`.
        attempt: Given indices of moments and a ridge for each, what pivot failed, or -1.

    Returns:
        For each -1, or the pivot that failed at its largest ridge too.
    """
    ridges = [own.ridges(damping) for own in moments]
    pivots = [0] * len(moments)
    left = list(range(len(moments)))
    while tries := {i: ridge for i in left for ridge in islice(ridges[i], 1)}:
        for i, pivot in zip(tries, attempt(list(tries), list(tries.values())), strict=True):
            pivots[i] = pivot
        left = [i for i in tries if pivots[i] >= 0]
    return pivots


class Accumulator:
    """Adds batches to the moments of one layer, all conv groups at once."""

    def __init__(self, layer: Layer, outputs: int = 0, positions: int | None = None, before: int = 0) -> None:
        """``outputs`` counts targets per conv group; there are none without it. ``positions`` is the number of random
        positions that are looked at in each image; None for all. ``before`` batches are added by other processes.
        """
        groups, features = layer.window.groups, layer.features
        self.layer = layer
        self.positions = positions
        self._before = before
        self.counts = torch.zeros(2, dtype=torch.int64)  # batches and rows
        self.gram = torch.zeros(groups, features, features, dtype=torch.float64)
        self.total = torch.zeros(groups, features, dtype=torch.float64)
        with_target = outputs > 0
        self.cross = _zeros((groups, outputs, features), with_target)
        self.target_total = _zeros((groups * outputs,), with_target)
        self.target_square = _zeros((groups * outputs,), with_target)

    @property
    def rows(self) -> int:
        """Number of patches so far."""
        return int(self.counts[1])

    def sums(self) -> dict[str, Tensor]:
        """All that changes from batch to batch where there is no target: the tensors themselves, not copies."""
        return {"counts": self.counts, "gram": self.gram, "total": self.total}

    def add(self, value: Tensor, shape: tuple[int, ...], target: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            value: The layer's input, as in the graph.
            shape: Shape of the layer's output for this batch.
            target: What the layer should put out, as in the graph, or None.
        """
        layer = self.layer
        patches = layer.patches_of(value)
        rows, columns = (1, 1) if layer.spatial == 0 else (1, shape[2]) if layer.spatial == 1 else shape[2:4]
        positions = self._positions(len(patches), int(rows) * int(columns))
        _native.gram_accumulate(
            patches,
            layer.window,
            (int(rows), int(columns)),
            self.gram,
            self.total,
            target=None if target is None else layer.outputs_of(target),
            cross=self.cross,
            target_total=self.target_total,
            target_square=self.target_square,
            positions=positions,
        )
        count = len(patches) * int(rows) * int(columns) if positions is None else positions.numel()
        self.counts += torch.tensor([1, count])

    def _positions(self, images: int, count: int) -> Tensor | None:
        """(images, positions) int64, drawn without repetition in an image, the same for every run; None for all."""
        if self.positions is None or self.positions >= count:
            return None
        # Seeded for each batch, so that they do not depend on which batches this process has seen.
        random = torch.Generator().manual_seed(self._before + int(self.counts[0]))
        return torch.rand(images, count, generator=random).topk(self.positions, dim=1).indices.contiguous()

    def check_finite(self, batch: int) -> None:
        """Raise where an activation of the last batch was NaN or infinite."""
        sums = [self.total] if self.target_total is None else [self.total, self.target_total]
        if all(bool(torch.isfinite(values).all()) for values in sums):
            return
        bad = (~torch.isfinite(self.total)).nonzero()
        raise not_finite(self.layer, int(bad[0, 1]) // self.layer.taps if len(bad) else None, batch)

    def join(self, processes: Processes) -> None:
        """Make the sums those of all processes, after the last batch."""
        processes.sum(self.counts, self.gram, self.total, self.cross, self.target_total, self.target_square)

    def moments(self) -> list[Moments]:
        """The sums so far, one per conv group."""
        _native.gram_mirror(self.gram)
        groups = len(self.gram)

        def parts(values: Tensor | None) -> list[Tensor | None]:
            return [None] * groups if values is None else list(values.reshape(groups, -1))

        totals, squares = parts(self.target_total), parts(self.target_square)
        cross = [None] * groups if self.cross is None else list(self.cross)
        return [Moments(self.gram[g], self.total[g], self.rows, cross[g], totals[g], squares[g]) for g in range(groups)]


def _zeros(shape: tuple[int, ...], wanted: bool) -> Tensor | None:
    return torch.zeros(shape, dtype=torch.float64) if wanted else None


def measure(
    graph: Graph,
    images: Images,
    layers: list[Layer],
    tensors: Mapping[str, Tensor],
    *,
    positions: int | None = None,
    progress: bool,
    checkpoint: Checkpoint | None = None,
    name: str = "moments",
) -> dict[str, list[Moments]]:
    """Weight name -> moments of each conv group of that layer, from one pass of the original network in each process.

    Layers that read the same patches share their moments. With ``positions``, only so many random positions of each
    feature map are looked at; of vectors and tokens, all. With a ``checkpoint``, sums are stored there under ``name``
    as they grow, and batches that were added before a kill are not run again; the moments are the same to the bit.

    Raises:
        NumericalError: an activation is NaN or infinite; names the layer and the channel.
        CheckpointError: what is stored is damaged, or cannot be written.
    """
    shared: dict[object, Accumulator] = {}
    of_layer: dict[Node, Accumulator] = {}
    for layer in layers:
        key = (layer.input, layer.spatial, layer.window, layer.upsampling, _size(graph, layer))
        if key not in shared:
            shared[key] = Accumulator(layer, positions=positions, before=images.before)
        of_layer[layer.node] = shared[key]
    first = {accumulator.layer.node: accumulator for accumulator in shared.values()}
    last = max((node.meta["order"] for node in first), default=-1)

    def visit(node: Node, values: Mapping[Node, object], value: object) -> None:
        if node in first:
            source = values[first[node].layer.input]
            assert isinstance(source, Tensor) and isinstance(value, Tensor)
            first[node].add(source, tuple(value.shape))

    sums = {f"{a.layer.weight}/{part}": value for a in first.values() for part, value in a.sums().items()}
    with images.processes.together():
        done = 0 if checkpoint is None else checkpoint.restore(name, sums)
        for batch in _bar(done, len(images), "measuring", progress):
            run(graph, images[batch], tensors, visit, last)
            for accumulator in first.values():
                accumulator.check_finite(batch)
            if checkpoint is not None:
                checkpoint.keep_tensors(name, batch + 1, sums, last=batch + 1 == len(images))
    for accumulator in first.values():
        accumulator.join(images.processes)
    found = {accumulator.layer.node: accumulator.moments() for accumulator in first.values()}
    return {layer.weight: found[of_layer[layer.node].layer.node] for layer in layers}


def _size(graph: Graph, layer: Layer) -> tuple[int, ...]:
    shape = graph.shape(layer.node)
    return shape[len(shape) - layer.spatial :]


def _bar(done: int, count: int, text: str, progress: bool) -> tqdm[int]:
    return tqdm(range(done, count), text, total=count, initial=done, unit="batch", leave=False, disable=not progress)
