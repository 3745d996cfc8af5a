"""Zero nodes: the nodes of a trained network that compute nothing any more, and the network without them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...capture.precision import plain_mode
from ...errors import InputError, ProofError
from ...groups.channel_groups import Group
from ...inspection.argument_checks import check_arguments
from ...inspection.inspection import Inspection
from ...inspection.model_checks import check_model
from ...removal.remove import remove
from ...report.node_figures import write_histogram
from ...surgery import storage
from ...surgery.cut import Kept, narrow
from ...surgery.emptied_layers import shrunk_exactly
from ...surgery.optimizer_state import Original
from ...surgery.proof import Proof, difference, difference_elsewhere
from ...text import frozen_text, saving, table
from .folding import Tensors

TOLERANCE = 1e-5
"""Default for the largest allowed difference from the model's outputs, as a share of the largest output."""
CHECKED = 32
"""Largest number of images, of the first batch, on which outputs are compared."""


@dataclass(frozen=True)
class GroupNodes:
    """The nodes of one channel group.

    Attributes:
        group: The channel group.
        zero: Number of units whose incoming weights all count as zero.
        removed: (count,) int64 units that can leave without changing the network's function.
        constant: Number of these units that output a nonzero constant, which is folded into the consumers.
        staying: Dead unit that stays nevertheless -> why.
    """

    group: Group
    zero: int
    removed: Tensor
    constant: int
    staying: dict[int, str]


@dataclass(frozen=True)
class ZeroNodes:
    """The nodes of a network that compute nothing any more; ``print`` it, ``plot`` it, or ``remove`` them.

    Attributes:
        groups: One entry for each channel group.
        macs: Multiply-accumulates per image, before and after the removal.
        params: Parameters, before and after; the constant that a whole removed branch leaves is counted approximately.
        sizes: Layer -> (outputs,) float32, largest magnitude of each node's incoming weights, times the scale of the
            batch norm behind it.
        limits: Layer -> the size up to which a node counts as zero.
        shape: Shape of the random images with which the network was analysed; None for images of the user.
    """

    groups: list[GroupNodes]
    macs: tuple[int, int]
    params: tuple[int, int]
    sizes: dict[str, Tensor]
    limits: dict[str, float]
    shape: tuple[int, ...] | None
    _model: nn.Module = field(repr=False)
    _found: Inspection = field(repr=False)
    _changed: Tensors = field(repr=False)

    def __str__(self) -> str:
        total = sum(entry.group.size for entry in self.groups)
        gone = sum(len(entry.removed) for entry in self.groups)
        rows = [
            [x.group.name, str(x.group.size), str(x.zero), str(len(x.removed)), str(x.constant), str(len(x.staying))]
            for x in self.groups
        ]
        lines = [
            f"{gone} of {total} nodes can leave: {saving('parameters', self.params)}, {saving('MACs', self.macs)}",
            "",
            table(rows, ["group", "nodes", "zero weights", "can leave", "of them constant", "dead, but stay"]),
        ]
        if self.shape is not None:
            lines.insert(1, f"looked at with random images of shape {self.shape}, at whose size MACs are counted")
        lines += [""] * any(entry.staying for entry in self.groups) + self.reasons()
        return "\n".join([*lines, *frozen_text(self._found.frozen)])

    def reasons(self) -> list[str]:
        """A line for each group and each reason why dead nodes stay."""
        found: dict[tuple[str, str], int] = {}
        for entry in self.groups:
            for reason in entry.staying.values():
                found[entry.group.name, reason] = found.get((entry.group.name, reason), 0) + 1
        return [f"{name}: {count} dead, but stays: {reason}" for (name, reason), count in found.items()]

    def plot(self, path: str | Path) -> Path:
        """Write a histogram of each layer's finite node sizes, with the limit.

        Args:
            path: File to write, ``.png``, ``.svg`` or ``.pdf``; its folder is created if it does not exist.

        Returns:
            The path.

        Raises:
            InputError: the path has another suffix.
            ReapxError: matplotlib is not installed.
        """
        write_histogram(path, {name: size[size.isfinite()] for name, size in self.sizes.items()}, self.limits)
        return Path(path)

    @plain_mode()
    def remove(self, *, tolerance: float = TOLERANCE, inplace: bool = False) -> Compacted:
        """Remove the nodes, and prove that the network still computes the same outputs.

        Args:
            tolerance: Largest difference from the model's outputs, as a share of the largest output, before folded
                constants are rounded to the model's dtype.
            inplace: Whether to change the given model instead of a copy, as a whole or not at all. Its parameters stay
                the objects they are; ``reapx.carry_state`` cuts the state of their optimizer.

        Returns:
            The smaller network.

        Raises:
            InputError: the model has changed since ``zero_nodes``, is in train mode, or ``tolerance`` is not a number
                from 0.
            ProofError: the smaller network differs by more than ``tolerance``; the model is unchanged.
        """
        if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or not tolerance >= 0:
            raise InputError(f"tolerance={tolerance!r}: give a number from 0; math.inf takes any difference")
        check_arguments(inplace=inplace)
        check_model(self._model)
        graph, images = self._found._graph, self._found._images
        changed = graph.changed(self._model)
        if changed is not None:
            raise InputError(f"{changed} has changed since the nodes were found: call reapx.zero_nodes again")
        removal = remove(
            self._model,
            self._found,
            {entry.group.name: entry.removed for entry in self.groups},
            refit=None,
            damping=0.0,
            rectify=0,
            changed=self._changed,
        )
        updates = {name: narrow(value, removal.kept.get(name, {})) for name, value in self._changed.items()}
        exact = shrunk_exactly(self._model, removal.kept, updates, removal.endings, removal.numbers)
        proof = Proof(*difference(exact, graph, graph.tensors, images, CHECKED), (images.shape,))
        elsewhere = difference_elsewhere(exact, self._model, graph.tensors, images)
        proof = proof if elsewhere is None else proof + elsewhere
        if not proof.gap <= tolerance:
            raise ProofError(
                f"without the nodes that count as zero, outputs differ by {proof.gap:.1e} of the largest {proof} (at "
                f"most {tolerance:.1e} is allowed). Your model is unchanged. The largest of those nodes: "
                f"{self._largest()}. Exclude that layer, lower the threshold (relative=..., absolute=...; plot() shows "
                "the sizes), or take the difference with tolerance=math.inf"
            )
        gap, _ = difference(removal.model, graph, graph.tensors, images, CHECKED)
        params = tuple(sum(value.numel() for value in x.parameters()) for x in (self._model, removal.model))
        small = self._model if inplace else removal.model
        proof = replace(proof, gap=gap)
        result = Compacted(small, self, (params[0], params[1]), proof, removal.kept, removal.original)
        if inplace:  # last, so that whatever fails or interrupts leaves the model as it was
            removal.repeat(self._model)
        return result

    def _largest(self) -> str:
        """The removed node with the largest size relative to its layer's largest, as text."""
        found = [(0.0, "none is above zero")]
        for entry in self.groups:
            for layer in entry.group.producers:
                size = self.sizes[layer.name]
                rows = torch.from_numpy(entry.group.cuts[layer.weight, layer.out_axis])[entry.removed].flatten()
                if len(rows) and float(size.max()) > 0:
                    share, row = (size[rows] / size.max()).max(0)
                    node = f"{layer.name}, channel {int(rows[row])}"
                    found.append((float(share), f"{node}, {float(share):.1e} of its layer's largest"))
        return max(found)[1]


@dataclass(frozen=True)
class Compacted:
    """A network without its zero nodes.

    Attributes:
        model: The smaller module.
        nodes: The zero nodes of the original.
        params: Number of parameters, before and after.
        proof: Largest difference from the original's outputs, as a share of the largest, on the given images; and in
            which dtype and on images of which sizes the removal was proved.
        kept: Qualified parameter name -> axis -> positions that stayed.
        original: The parameters of the network with its zero nodes, for ``reapx.carry_state``.
    """

    model: nn.Module
    nodes: ZeroNodes
    params: tuple[int, int]
    proof: Proof
    kept: Kept
    original: Original = field(repr=False)

    @property
    def gap(self) -> float:
        """The proof's largest difference, a share of the largest output."""
        return self.proof.gap

    def __str__(self) -> str:
        saved = f"{saving('parameters', self.params)}, {saving('MACs', self.nodes.macs)}"
        return f"Compacted: {saved}; same outputs up to {self.gap:.1e} of the largest, {self.proof}"

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``plan.json`` and ``weights.safetensors`` into a folder; read them with ``reapx.load``.

        Whatever interrupts it, the folder holds the earlier result or this one, and both files carry checksums. Of a
        network that was cut before, such as a pruned one that is pruned again, all cuts are saved: the first original
        loads them.

        Args:
            folder: Made if need be.
            overwrite: Whether a result that the folder holds is replaced.

        Raises:
            InputError: the folder holds a result, or the model was changed so that it could not be loaded.
            CheckpointError: the folder cannot be written to.
        """
        storage.save(folder, self.model, self.kept, str(self.nodes), overwrite=overwrite)
