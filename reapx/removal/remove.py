"""Cut channels out of a copy of a network, refit the copy, and prove it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..calibration.progress import SILENT, Progress, timed
from ..capture.exporting.shadows import shadow
from ..capture.graph import capture
from ..groups.channel_groups import Group
from ..inspection.inspection import Inspection
from ..moments.few_rows import warn_few_rows
from ..reconstruction.reconstruct import Refits, reconstruct
from ..reconstruction.sweep import Sweep
from ..surgery.cut import Kept, cut, kept_positions, narrow, within
from ..surgery.emptied_layers import Endings, find_endings, shrink, shrunk_exactly
from ..surgery.module_numbers import Numbers, input_widths, numbers_after, set_numbers, set_widths
from ..surgery.optimizer_state import Original
from ..surgery.proof import Proof, masked_tensors, prove
from ..surgery.transplant import transplant


@dataclass(frozen=True)
class Removal:
    """Channels that were removed from a copy of a network.

    Attributes:
        model: The smaller copy.
        kept: Qualified parameter name -> axis -> positions that stayed.
        refits: What least squares changed.
        proof: Largest difference from the masked original, and on what it was found.
        endings: What follows the layers without input channels.
        widths: Path -> number of channels of each norm that holds no tensor.
        numbers: Numbers of modules that count what left.
        original: The network's parameters before, for their optimizers.
    """

    model: nn.Module
    kept: Kept
    refits: Refits
    proof: Proof
    endings: Endings
    widths: dict[str, int]
    numbers: Numbers
    original: Original

    def shrink(self, model: nn.Module, updates: Mapping[str, Tensor]) -> None:
        """Make the same removal in the original architecture, in place, with the given refitted weights."""
        shrink(model, self.kept, updates, self.endings, self.numbers)
        set_widths(model, self.widths)

    def repeat(self, model: nn.Module) -> None:
        """Make the same removal in the network itself, in place; an interruption undoes it."""
        smaller = shadow(model)
        self.shrink(smaller, self.refits.updates)
        transplant(model, smaller, {*self.kept, *self.refits.updates})


def remove(
    model: nn.Module,
    found: Inspection,
    removed: Mapping[str, Tensor],
    *,
    refit: str | None,
    damping: float | None,
    rectify: int,
    progress: Progress = SILENT,
    changed: Mapping[str, Tensor],
) -> Removal:
    """Remove units from a copy of a network, refit it, and prove that it equals the masked original.

    Args:
        model: The network; it is not changed.
        found: What is known of it: its graph, its groups and the images.
        removed: Group name -> units that leave.
        refit: ``"all"``, ``"consumers"``, or None for no refit.
        damping: Pull towards the old weights, a fraction of the mean diagonal of each Gram matrix; None to choose it
            for each layer by its held-out error.
        rectify: Number of rectification passes after each fit.
        progress: Where the progress is shown.
        changed: Qualified name -> tensor of full size, zero where removed units are read. It replaces the network's own
            tensor where ``refit`` is None.

    Raises:
        NumericalError: an activation is NaN or infinite, or a least-squares system is singular at this damping.
        CaptureError: torch.export refuses the smaller network, or it runs other operators.
        ProofError: the smaller network does not compute what the masked original computes.
    """
    graph, groups, images = found._graph, found.groups, found._images
    kept = kept_positions(groups, removed, graph.tensors)
    endings = find_endings(graph, groups, kept)
    if refit is None:
        updates = {
            name: narrow(value, kept.get(name, {})).to(graph.tensors[name].dtype) for name, value in changed.items()
        }
        refits = Refits(updates, updates, ())
    elif not kept:
        refits = Refits({}, {}, ())
    else:
        first = _but_one(groups, removed)
        wider = kept_positions(groups, first, graph.tensors)
        lasting = within(kept, wider)
        draft = copy.deepcopy(model)
        cut(draft, wider)
        set_numbers(draft, numbers_after(model, groups, first))
        captured = capture(draft, images.as_inputs(2))
        refits = reconstruct(
            Sweep(graph, captured, wider, lasting, refit, rectify, progress), images, found._parts, damping
        ).narrowed(lasting)
        known = {consumer.layer.name for group in groups for consumer in group.consumers}  # of which the plan warned
        rows = [(fit.layer, fit.rows, fit.features) for fit in refits.fits if fit.layer not in known]
        warn_few_rows(rows, found._parts[0], stacklevel=5)
    pruned = copy.deepcopy(model)
    numbers = numbers_after(model, groups, removed)
    shrink(pruned, kept, refits.updates, endings, numbers)
    widths = input_widths(pruned, images)
    set_widths(pruned, widths)
    original = Original.of(model)
    masked = masked_tensors(graph, groups, kept, refits.updates)
    with timed("proving"):
        exact = shrunk_exactly(model, kept, refits.updates, endings, numbers) if endings else pruned
        proof = prove(exact, graph, masked, images, model=model)
        if endings:
            prove(pruned, graph, masked, images, rounded=True)
    return Removal(pruned, kept, refits, proof, endings, widths, numbers, original)


def _but_one(groups: Sequence[Group], removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The units to remove, except for one unit of each group that would leave as a whole.

    With this unit, the network runs the same operators as the original, which the sweep needs. Layers are refitted
    without it.
    """
    sizes = {group.name: group.size for group in groups}
    return {name: units[:-1] if len(units) == sizes[name] else units for name, units in removed.items()}
