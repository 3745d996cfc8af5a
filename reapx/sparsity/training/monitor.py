"""Sizes of each node's incoming weights over training; they show which nodes vanish, and when."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import InputError
from ...report.node_figures import NodeCurves, write_curves
from ...text import listed, table
from .modules import matrices_of

THRESHOLD = 1e-8
"""Share of the largest squared norm in a layer up to which a node counts as dead."""


class NodeMonitor:
    """Squared norms of the incoming weights of each node of each convolution and linear layer, over training.

    A record reads the weights once and never waits for a GPU: records move to the CPU only when they are read. The
    nodes are the outputs of a layer, over all conv groups; biases do not count.

    With an optimiser, the monitor records by itself until it is closed. Without one, call :meth:`record` after each
    step or epoch.

    Attributes:
        steps: For each record, the number of the optimiser's steps since the monitor began; without an optimiser, the
            number of the call of :meth:`record`, from 1.
        layers: Names of the layers.

    Args:
        model: The network in training; it is not changed.
        optimizer: Optimiser after whose steps the monitor records, or None.
        every: Number of steps between two records; unused without an optimiser.

    Raises:
        InputError: ``every`` is not a whole number from 1, or the model has no convolution and no linear layer.

    Source: A. Yaguchi et al., "Adam Induces Implicit Weight Sparsity in Rectifier Neural Networks", ICMLA 2018,
    Figure 2.

    Examples:
        >>> layer = nn.Linear(4, 3)
        >>> _ = nn.init.constant_(layer.weight, 1.0)
        >>> monitor = NodeMonitor(layer)
        >>> monitor.record()
        >>> monitor.squared_norms("")  # the layer is the whole model, so that it has no name
        tensor([[4., 4., 4.]])
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None, *, every: int = 100) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise InputError(f"every={every!r}: give a whole number of steps from 1")
        self._model, self._every, self._count = model, every, 0
        self._sizes = _sizes(matrices_of(model))
        self._read = {layer: torch.empty(0, size) for layer, size in self._sizes.items()}
        self._new: dict[str, list[Tensor]] = {layer: [] for layer in self._sizes}
        self._counted = optimizer is not None
        self._hook = None if optimizer is None else optimizer.register_step_post_hook(self._stepped)
        self.steps: list[int] = []

    def __enter__(self) -> NodeMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop recording after the optimiser's steps; the records stay."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _stepped(self, optimizer: Optimizer, args: tuple[Any, ...], options: dict[Any, Any]) -> None:
        self._count += 1
        if self._count % self._every == 0:
            self._record()

    def record(self) -> None:
        """Add a record of the weights as they are.

        Raises:
            InputError: the model's layers or their sizes have changed since the monitor began.
        """
        self._count += not self._counted
        self._record()

    @torch.no_grad()
    def _record(self) -> None:
        matrices = matrices_of(self._model)
        now = _sizes(matrices)
        if now != self._sizes:
            raise InputError(f"{_difference(self._sizes, now)}: close this monitor and make a new NodeMonitor(model)")
        for layer, matrix in matrices.items():
            self._new[layer].append(_squared_norms(matrix))
        self.steps.append(self._count)

    @property
    def layers(self) -> list[str]:
        return list(self._sizes)

    def squared_norms(self, layer: str) -> Tensor:
        """‖W[n, :]‖² of each node n at each record.

        Args:
            layer: One of :attr:`layers`.

        Returns:
            (records, nodes) float32 on the CPU.

        Raises:
            InputError: no layer has this name, or there is no record yet.
        """
        if layer not in self._sizes:
            close = difflib.get_close_matches(str(layer), self.layers, n=5, cutoff=0.5)
            which = f"did you mean {', '.join(close)}?" if close else f"there are {listed(self.layers)}"
            raise InputError(f"layer={layer!r} names no convolution or linear layer; {which}")
        if not self.steps:
            raise InputError(self._nothing())
        return self._moved(layer).clone()

    def alive(self, threshold: float = THRESHOLD) -> dict[str, list[int]]:
        """Number of nodes of each layer that are alive: ‖W[n, :]‖² > threshold · max over m of ‖W[m, :]‖².

        Args:
            threshold: Share of the layer's largest squared norm in the same record; from 0, below 1.

        Returns:
            Layer -> one count for each record. Nodes whose norm is NaN count as alive.

        Raises:
            InputError: the threshold is not a number from 0 and below 1, or there is no record yet.
        """
        _check_threshold(threshold)
        if not self.steps:
            raise InputError(self._nothing())
        return {layer: _alive(self._moved(layer), threshold).sum(1).tolist() for layer in self._sizes}

    def __str__(self) -> str:
        if not self.steps:
            return self._nothing()
        ends = [0] if len(self.steps) == 1 else [0, -1]
        rows = [
            [layer or type(self._model).__name__, str(self._sizes[layer]), *(str(counts[end]) for end in ends)]
            for layer, counts in self.alive().items()
        ]
        word = "step" if self._counted else "record"
        return table(rows, ["layer", "nodes", *(f"left at {word} {self.steps[end]}" for end in ends)])

    def plot(self, path: str | Path, layer: str | None = None, *, threshold: float = THRESHOLD) -> Path:
        """Draw each node's squared norm over training, on a logarithmic axis; dead nodes have a colour of their own.

        Args:
            path: File to write, ``.png``, ``.svg`` or ``.pdf``; its folder is created if it does not exist.
            layer: The only layer to draw; by default there is a panel for each layer of more than one node.
            threshold: As in :meth:`alive`; it is applied to the last record.

        Returns:
            The path.

        Raises:
            InputError: the path has another suffix, no layer has this name, the threshold is not a number from 0 and
                below 1, or there is no record yet.
            ReapxError: matplotlib is not installed.
        """
        _check_threshold(threshold)
        several = [name for name, size in self._sizes.items() if size > 1] or self.layers
        norms = {name: self.squared_norms(name) for name in (several if layer is None else [layer])}
        alive = {name: _alive(values[-1:], threshold)[0] for name, values in norms.items()}
        unit = "optimiser steps" if self._counted else "records"
        return write_curves(NodeCurves(self.steps, unit, norms, alive, threshold), path)

    def _moved(self, layer: str) -> Tensor:
        """All records of a layer on the CPU; new ones are stacked before they move, to wait for the device once."""
        new = self._new[layer]
        if new:
            device = new[-1].device
            joined = torch.stack([norms.to(device) for norms in new]).cpu()
            self._read[layer] = torch.cat([self._read[layer], joined])
            new.clear()
        return self._read[layer]

    def _nothing(self) -> str:
        when = f"at step {self._every} of the optimizer, or " if self._hook is not None else ""
        return f"nothing is recorded yet: that happens {when}whenever you call monitor.record()"


def _sizes(matrices: Mapping[str, Tensor]) -> dict[str, int]:
    return {layer: matrix.shape[0] * matrix.shape[1] for layer, matrix in matrices.items()}


def _squared_norms(matrix: Tensor) -> Tensor:
    """(nodes,) float32 squared norms on the weights' device; half precision is summed in float32."""
    # PyTorch cannot sum float64 into a smaller dtype, so the norms are rounded afterwards.
    wide = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=(2, 3), dtype=wide)
    return norms.flatten().square().float()


def _alive(norms: Tensor, threshold: float) -> Tensor:
    """(records, nodes) bool: whether a node is alive; NaN counts as alive."""
    return ~(norms <= threshold * norms.amax(1, keepdim=True))


def _check_threshold(threshold: float) -> None:
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not number or not math.isfinite(threshold) or not 0 <= threshold < 1:
        raise InputError(f"threshold={threshold!r}: give a share of the largest squared norm, from 0 and below 1")


def _difference(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    for layer, size in before.items():
        if layer not in now:
            return f"the model has no layer {layer} any more"
        if now[layer] != size:
            return f"{layer} has {now[layer]} nodes, but had {size} when the monitor began"
    return f"the model has a new layer {next(layer for layer in now if layer not in before)}"
