"""Apply a plan: cut channels out of a copy of the network, refit the copy, and prove it."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..calibration.images import Images
from ..calibration.progress import SILENT, Progress, timed
from ..calibration.sample import split
from ..capture.graph import Graph, capture
from ..costs.latency import Latency, measure_milliseconds
from ..groups.channel_groups import Group
from ..inspection.argument_checks import RefitLayers
from ..moments.few_rows import warn_few_rows
from ..reconstruction.layer_refit import LayerRefit
from ..reconstruction.sweep import reconstruct
from ..selection.paths.path import Path
from ..selection.paths.weight_changes import cut_tensors
from ..surgery.bare_norms import input_widths, set_widths
from ..surgery.cut import Kept, cut, kept_positions, narrow, within
from ..surgery.emptied_layers import Endings, find_endings, shrink, shrunk_exactly
from ..surgery.optimizer_state import Original
from ..surgery.proof import Proof, masked_tensors, output_change, prove
from ..surgery.transplant import shadow, transplant
from .group_plan import GroupPlan
from .plan_state import PlanState


@dataclass(frozen=True)
class Removal:
    """Channels that were removed from a copy of a network.

    Attributes:
        model: The smaller copy.
        kept: Qualified parameter name -> axis -> positions that stayed.
        updates: Qualified name -> refitted parameter of the smaller network.
        fits: Errors of each refitted layer.
        proof: Largest difference from the masked original, and on what it was found.
        endings: What follows the layers without input channels.
        widths: Path -> number of channels of each norm that holds no tensor.
        original: The network's parameters before, for their optimizers.
    """

    model: nn.Module
    kept: Kept
    updates: dict[str, Tensor]
    fits: list[LayerRefit]
    proof: Proof
    endings: Endings
    widths: dict[str, int]
    original: Original

    def repeat(self, model: nn.Module) -> None:
        """Make the same removal in the network itself, in place; an interruption undoes it."""
        smaller = shadow(model)
        shrink(smaller, self.kept, self.updates, self.endings)
        set_widths(smaller, self.widths)
        transplant(model, smaller, {*self.kept, *self.updates})


def remove(
    model: nn.Module,
    graph: Graph,
    groups: Sequence[Group],
    removed: Mapping[str, Tensor],
    images: Images,
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
        graph: The same network, captured.
        groups: Channel groups.
        removed: Group name -> units that leave.
        images: Calibration images.
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
    kept = kept_positions(groups, removed, graph.tensors)
    endings = find_endings(graph, groups, kept)
    updates: dict[str, Tensor] = {}
    if refit is None:
        updates = {
            name: narrow(value, kept.get(name, {})).to(graph.tensors[name].dtype) for name, value in changed.items()
        }
    fits: list[LayerRefit] = []
    if refit is not None and kept:
        wider = kept_positions(groups, _but_one(groups, removed), graph.tensors)
        lasting = within(kept, wider)
        draft = copy.deepcopy(model)
        cut(draft, wider)
        fitted, judged = split(images)
        captured = capture(draft, images.as_inputs(2))
        found, fits = reconstruct(
            graph,
            captured,
            wider,
            fitted,
            judged,
            damping=damping,
            refit=refit,
            rectify=rectify,
            progress=progress,
            lasting=lasting,
        )
        updates = {name: narrow(value, lasting.get(name, {})) for name, value in found.items()}
        known = {consumer.layer.name for group in groups for consumer in group.consumers}  # of which the plan warned
        warn_few_rows([(x.layer, x.rows, x.features) for x in fits if x.layer not in known], fitted, stacklevel=5)
    pruned = copy.deepcopy(model)
    shrink(pruned, kept, updates, endings)
    widths = input_widths(pruned, images)
    set_widths(pruned, widths)
    original = Original.of(model)
    masked = masked_tensors(graph, groups, kept, updates)
    with timed("proving"):
        exact = shrunk_exactly(model, kept, updates, endings) if endings else pruned
        proof = prove(exact, graph, masked, images, model=model)
        if endings:
            prove(pruned, graph, masked, images, rounded=True)
    return Removal(pruned, kept, updates, fits, proof, endings, widths, original)


def _but_one(groups: Sequence[Group], removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The units to remove, except for one unit of each group that would leave as a whole.

    With this unit, the network runs the same operators as the original, which the sweep needs. Layers are refitted
    without it.
    """
    sizes = {group.name: group.size for group in groups}
    return {name: units[:-1] if len(units) == sizes[name] else units for name, units in removed.items()}


@dataclass(frozen=True)
class Applied:
    """What applying a plan gives; see ``Result``, which has the same attributes."""

    model: nn.Module
    fits: tuple[LayerRefit, ...]
    proof: Proof
    change: float
    seconds: float
    kept: Kept
    original: Original
    latency: tuple[float, float, float] | None


def carry_out(
    plan: PlanState,
    *,
    refit: RefitLayers | None,
    damping: float | None,
    rectify: int,
    inplace: bool,
    progress: Progress,
) -> Applied:
    """Apply a plan whose arguments were checked; ``refit`` is None for no refit."""
    start = time.perf_counter()
    model, graph, images = plan._model, plan._graph, plan._images
    changed: Mapping[str, Tensor] = {}
    if refit is None:
        made = own_tensors(graph, plan._paths, plan.groups) if plan._stored is None else plan._stored.own
        changed = {name: images.processes.share(value) for name, value in made.items()}
    found = remove(
        model,
        graph,
        [entry.group for entry in plan.groups],
        {entry.group.name: entry.removed for entry in plan.groups},
        images,
        refit=refit,
        damping=damping,
        rectify=rectify,
        progress=progress,
        changed=changed,
    )
    latency = _measured_latency(plan, found.model)
    change = output_change(found.model, graph, split(images)[1])
    pruned = found.model
    if inplace:
        found.repeat(model)
        pruned = model
    seconds = time.perf_counter() - start
    return Applied(pruned, tuple(found.fits), found.proof, change, seconds, found.kept, found.original, latency)


def _measured_latency(plan: PlanState, pruned: nn.Module) -> tuple[float, float, float] | None:
    """Milliseconds (before, predicted, after), timed in turn since the machine's speed drifts."""
    if plan.latency is None or not isinstance(plan.budget, Latency):
        return None
    models, images, batch = [plan._model, pruned], plan._images, plan.budget.batch
    before, after = images.processes.first(lambda: measure_milliseconds(models, images, batch))
    return before, plan.latency[1] * before / plan.latency[0], after


def own_tensors(graph: Graph, paths: Sequence[Path], entries: Sequence[GroupPlan]) -> dict[str, Tensor]:
    """The tensors that the selection method itself changes, without least squares, at the entries' widths."""
    pairs = zip(paths, entries, strict=True)
    own = [(path.own_changes, len(entry.removed)) for path, entry in pairs if path.own_changes is not None]
    return cut_tensors(graph.tensors, [changes.changes([count])[0] for changes, count in own], own)
