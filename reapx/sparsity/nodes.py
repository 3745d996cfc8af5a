"""Zero nodes: finding those of a trained network that compute nothing any more, and removing them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import storage
from ..checks import check_model
from ..errors import CompactionWarning, InputError, ProofError
from ..groups import Group
from ..inspection import MEMORY, Inspection, examine
from ..proof import difference
from ..removal import remove
from ..report.nodes import write_histogram
from ..report.text import frozen_text, saving, table
from ..surgery import Kept
from .elimination import eliminate
from .example import example_of
from .folding import Tensors
from .sizes import dead_rows

RELATIVE = 1e-4
"""Default share of a layer's largest weight up to which weights count as zero."""
TOLERANCE = 1e-5
"""Default largest difference from the model's outputs, as a share of the largest output; for parameters of less than
single precision twice what rounds them."""


@dataclass(frozen=True)
class GroupNodes:
    """The nodes of one channel group.

    Attributes:
        group: The coupled channels.
        zero: Units all of whose incoming weights count as zero.
        removed: (count,) units that can leave without a change of the network's function.
        constant: How many of those hand on a constant that is not zero and goes into what reads it.
        kept: Units that compute nothing, and stay all the same -> why.
    """

    group: Group
    zero: int
    removed: Tensor
    constant: int
    kept: dict[int, str]


@dataclass(frozen=True)
class ZeroNodes:
    """The nodes of a network that compute nothing any more; ``print`` it, ``plot`` it, or ``remove`` them.

    Attributes:
        groups: One entry per group of coupled channels.
        macs: Multiply-accumulates per image, before and after their removal.
        params: Parameters, before and after.
        sizes: Layer -> (outputs,) float32, largest magnitude of each node's incoming weights, times the scale of the
            batch norm behind it.
        limits: Layer -> the size up to which a node counts as zero.
    """

    groups: list[GroupNodes]
    macs: tuple[int, int]
    params: tuple[int, int]
    sizes: dict[str, Tensor]
    limits: dict[str, float]
    _model: nn.Module = field(repr=False)
    _found: Inspection = field(repr=False)
    _changed: Tensors = field(repr=False)

    def __str__(self) -> str:
        total = sum(entry.group.size for entry in self.groups)
        gone = sum(len(entry.removed) for entry in self.groups)
        rows = [
            [x.group.name, str(x.group.size), str(x.zero), str(len(x.removed)), str(x.constant), str(len(x.kept))]
            for x in self.groups
        ]
        lines = [
            f"{gone} of {total} nodes can leave: {saving('parameters', self.params)}, {saving('MACs', self.macs)}",
            "",
            table(rows, ["group", "nodes", "zero weights", "can leave", "of them constant", "dead, but stay"]),
        ]
        lines += [""] * any(entry.kept for entry in self.groups) + self._reasons()
        return "\n".join([*lines, *frozen_text(self._found.frozen)])

    def _reasons(self) -> list[str]:
        found: dict[tuple[str, str], int] = {}
        for entry in self.groups:
            for reason in entry.kept.values():
                found[entry.group.name, reason] = found.get((entry.group.name, reason), 0) + 1
        return [f"{name}: {count} dead, but stays: {reason}" for (name, reason), count in found.items()]

    def plot(self, path: str | Path) -> None:
        """Write a histogram of each layer's node sizes, with the limit; .png, .svg or .pdf.

        Raises:
            InputError: another ending.
            ReapxError: matplotlib is not installed.
        """
        write_histogram(path, self.sizes, self.limits)

    def remove(self, *, tolerance: float | None = None, inplace: bool = False) -> Compacted:
        """Remove them, and prove that the network computes what it did.

        Args:
            tolerance: Largest difference from the model's outputs, as a share of the largest; by default 1e-5, for
                parameters of half precision twice what rounds them.
            inplace: Change the user's model instead of a copy; its parameters are new objects.

        Raises:
            InputError: the model has changed since.
            ProofError: the smaller network differs by more than ``tolerance``; the model is as it was.
        """
        tolerance = _tolerance(self._model) if tolerance is None else tolerance
        if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or not tolerance >= 0:
            raise InputError(f"tolerance={tolerance!r}: give a number from 0; math.inf takes any difference")
        check_model(self._model)
        graph, images = self._found._graph, self._found._images
        changed = graph.changed(self._model)
        if changed is not None:
            raise InputError(f"{changed} has changed since the nodes were looked at: call reapx.zero_nodes again")
        removal = remove(
            self._model,
            graph,
            [entry.group for entry in self.groups],
            {entry.group.name: entry.removed for entry in self.groups},
            images,
            refit=None,
            damping=0.0,
            rectify=0,
            progress=False,
            changed=self._changed,
        )
        gap, _ = difference(removal.model, graph, graph.tensors, images)
        if not gap <= tolerance:
            raise ProofError(
                f"without the nodes that count as zero, outputs differ by {gap:.1e} of the largest (at most "
                f"{tolerance:.0e} was asked for). Your model is unchanged. Lower the threshold (relative=..., "
                "absolute=...; plot() shows the sizes), or take the difference with tolerance=math.inf"
            )
        if inplace:
            removal.repeat(self._model)
        return Compacted(self._model if inplace else removal.model, self, gap, removal.kept)


@dataclass(frozen=True)
class Compacted:
    """A network without its zero nodes.

    Attributes:
        model: The smaller module.
        nodes: What was found in the original.
        gap: Largest difference from the original's outputs, as a share of the largest.
        kept: Qualified parameter name -> axis -> positions that stayed.
    """

    model: nn.Module
    nodes: ZeroNodes
    gap: float
    kept: Kept

    def __str__(self) -> str:
        saved = f"{saving('parameters', self.nodes.params)}, {saving('MACs', self.nodes.macs)}"
        return f"Compacted: {saved}; same outputs up to {self.gap:.1e} of the largest"

    def save(self, folder: str | Path) -> None:
        """Write ``plan.json`` and ``weights.safetensors`` into a folder; read them with ``reapx.load``."""
        storage.save(folder, self.model, self.kept, str(self.nodes))


def zero_nodes(
    model: nn.Module,
    images: object = None,
    *,
    relative: float = RELATIVE,
    absolute: float = 0.0,
    exclude: Sequence[str] = (),
    memory: int = MEMORY,
) -> ZeroNodes:
    """Find the nodes of a network that compute nothing any more, however they died; nothing is touched.

    A node (a neuron, or an output channel of a convolution) can leave if all its incoming weights are zero, so that it
    hands on a constant; if a batch norm behind it scales by zero; if nobody reads it; or if it reads, or is read by,
    nothing but such nodes. A channel of a residual stream has to be dead in every layer that adds to it. Constants go
    into the biases of what reads them, or into the running mean of the norm behind. Where a convolution pads with
    zeros they are none at the border, so one of those nodes stays and stands for all others of its group.

    Args:
        model: Module in eval mode.
        images: As for ``reapx.plan``, a few are enough; by default random ones of the first shape that the model takes.
        relative: Share of a layer's largest node up to which the weights of a node count as zero; the same for all
            weights that read a node. A node's size is its largest weight's magnitude, times the scale of the batch
            norm behind it.
        absolute: Size up to which they count as zero in any layer.
        exclude: Layer names or patterns (``"layer3.*"``) whose output channels stay.
        memory: Bytes of memory for images before they go to disk.

    Raises:
        InputError: a threshold is no number from 0, the images cannot be used, or the model is in train mode.
        CaptureError: torch.export refuses the model.
        BackendError: there are no kernels for the model's device.

    Source: A. Yaguchi et al., "Adam Induces Implicit Weight Sparsity in Rectifier Neural Networks", ICMLA 2018.
    """
    for name, value in (("relative", relative), ("absolute", absolute)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise InputError(f"{name}={value!r}: give a number from 0, such as 1e-4")
    check_model(model)
    images = example_of(model) if images is None else images
    found = examine(model, images, exclude=exclude, memory=memory, max_features=math.inf)
    done = eliminate(found._graph, found._channels, found.droppable, relative, absolute)
    layers = found._channels.layers
    rows = {x.weight: dead_rows(*own) for x, own in zip(layers, zip(done.sizes, done.limits, strict=True), strict=True)}
    groups = [
        GroupNodes(x, _zero(x, rows), done.removed[x.name], done.constant[x.name], done.kept[x.name])
        for x in found.groups
    ]
    widths = {entry.group.name: entry.group.size - len(entry.removed) for entry in groups}
    names = [layer.name for layer in layers]
    return ZeroNodes(
        groups,
        (found.costs.macs(), found.costs.macs(widths)),
        (found.costs.params(), found.costs.params(widths)),
        {name: own.incoming for name, own in zip(names, done.sizes, strict=True)},
        {name: limit.incoming for name, limit in zip(names, done.limits, strict=True)},
        model,
        found,
        done.changed,
    )


def _tolerance(model: nn.Module) -> float:
    """What rounding folded constants may change."""
    kinds = {value.dtype for value in model.parameters() if value.is_floating_point()}
    coarse = [torch.finfo(kind).eps for kind in kinds if torch.finfo(kind).bits < 32]
    return max([TOLERANCE, *(2 * eps for eps in coarse)])


def _zero(group: Group, rows: dict[str, Tensor]) -> int:
    """Units whose incoming weights count as zero in every layer that produces them."""
    zero = [rows[x.weight][torch.from_numpy(group.cuts[x.weight, x.out_axis])].all(1) for x in group.producers]
    return int(torch.stack(zero).all(0).sum())


def compact(
    model: nn.Module,
    images: object = None,
    *,
    relative: float = RELATIVE,
    absolute: float = 0.0,
    exclude: Sequence[str] = (),
    tolerance: float | None = None,
    inplace: bool = False,
) -> nn.Module:
    """A smaller module with the same function: ``zero_nodes``, and their removal in one call.

    ``reapx.zero_nodes(model).remove()`` does the same and can tell more: what left, what stays and why; and it can
    save.

    Args:
        model: Module in eval mode; left as it is unless ``inplace``.
        images, relative, absolute, exclude: As for ``reapx.zero_nodes``.
        tolerance, inplace: As for ``ZeroNodes.remove``.

    Returns:
        The smaller module.

    Raises:
        InputError, CaptureError, BackendError: as ``reapx.zero_nodes``.
        ProofError: the smaller network differs by more than ``tolerance``; the model is as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
        >>> _ = nn.init.zeros_(model[0].weight[1].detach())  # node 1 is dead
        >>> compact(model)
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    nodes = zero_nodes(model, images, relative=relative, absolute=absolute, exclude=exclude)
    reasons = nodes._reasons()
    if reasons:
        warnings.warn("; ".join(reasons), CompactionWarning, stacklevel=2)
    return nodes.remove(tolerance=tolerance, inplace=inplace).model
