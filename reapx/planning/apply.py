"""Removal: channels leave a copy of the network, what stays is refitted, and the copy is proved."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..calibration.images import Images
from ..calibration.processes import Processes
from ..capture.graph import Graph, capture
from ..groups.channel_groups import Group
from ..reconstruction.sweep import LayerRefit, reconstruct
from ..selection.paths.path import Path
from ..selection.paths.weight_changes import cut_tensors
from ..surgery.bare_norms import input_widths, set_widths
from ..surgery.cut import Kept, cut, kept_positions, narrow, within
from ..surgery.emptied_layers import Endings, find_endings, shrink, shrunk_exactly
from ..surgery.optimizer_state import Original
from ..surgery.proof import masked_tensors, prove
from ..surgery.transplant import shadow, transplant
from .group_plan import GroupPlan


@dataclass(frozen=True)
class Removal:
    """Channels that were removed from a copy of a network.

    Attributes:
        model: The smaller copy.
        kept: Qualified parameter name -> axis -> positions that stayed.
        updates: Qualified name -> refitted parameter of the smaller network.
        fits: Each refitted layer's error.
        gap: Largest difference from the masked original, a share of the largest output.
        endings: What follows the layers that read nothing any more.
        widths: Path -> channels of each norm that no tensor tells the width of.
        original: The network's parameters before, for their optimizers.
    """

    model: nn.Module
    kept: Kept
    updates: dict[str, Tensor]
    fits: list[LayerRefit]
    gap: float
    endings: Endings
    widths: dict[str, int]
    original: Original

    def repeat(self, model: nn.Module) -> None:
        """Do the same to the network itself, in place: as a whole, or not at all where it is interrupted."""
        smaller = shadow(model)
        shrink(smaller, self.kept, self.updates, self.endings)
        set_widths(smaller, self.widths)
        transplant(model, smaller, {*self.kept, *self.updates})


def remove(
    model: nn.Module,
    graph: Graph,
    groups: list[Group],
    removed: Mapping[str, Tensor],
    images: Images,
    *,
    refit: str | None,
    damping: float,
    rectify: int,
    progress: bool,
    changed: Mapping[str, Tensor],
) -> Removal:
    """Remove units from a copy of a network, refit it, and prove that it equals the masked original.

    Args:
        model: The network; it stays as it is.
        graph: The same network, captured.
        groups: Coupled channels.
        removed: Group name -> units that leave.
        images: Calibration images.
        refit: ``"all"``, ``"consumers"``, or None for no refits.
        damping: Pull towards the old weights, a fraction of the mean diagonal of each Gram matrix.
        rectify: Passes after each fit that leave out what a ReLU drops.
        progress: Whether to show a progress bar.
        changed: Qualified name -> full tensor of the network, zero where removed units are read, which takes the place
            of the network's own where nothing is refitted.

    Raises:
        NumericalError, CaptureError, ProofError: as they say.
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
        captured = capture(draft, images.as_inputs(2))
        found, fits = reconstruct(
            graph,
            captured,
            wider,
            images,
            damping=damping,
            refit=refit,
            rectify=rectify,
            progress=progress,
            lasting=lasting,
        )
        updates = {name: narrow(value, lasting.get(name, {})) for name, value in found.items()}
    pruned = copy.deepcopy(model)
    shrink(pruned, kept, updates, endings)
    widths = input_widths(pruned, images)
    set_widths(pruned, widths)
    original = Original.of(model)
    masked = masked_tensors(graph, groups, kept, updates)
    if not endings:
        return Removal(pruned, kept, updates, fits, prove(pruned, graph, masked, images), endings, widths, original)
    gap = prove(shrunk_exactly(model, kept, updates, endings), graph, masked, images)
    prove(pruned, graph, masked, images, rounded=True)
    return Removal(pruned, kept, updates, fits, gap, endings, widths, original)


def _but_one(groups: list[Group], removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Units to remove so that every group keeps one.

    The network then runs the same operators as the original, which the refits need; layers are refitted without it.
    """
    sizes = {group.name: group.size for group in groups}
    return {name: units[:-1] if len(units) == sizes[name] else units for name, units in removed.items()}


def own_tensors(
    graph: Graph, paths: Sequence[Path], entries: Sequence[GroupPlan], processes: Processes
) -> dict[str, Tensor]:
    """What selection itself makes of the network's tensors, at the entries' widths, without least squares."""
    pairs = zip(paths, entries, strict=True)
    own = [(path.own_changes, len(entry.removed)) for path, entry in pairs if path.own_changes is not None]
    made = cut_tensors(graph.tensors, [changes.changes([count])[0] for changes, count in own], own)
    return {name: processes.share(value) for name, value in made.items()}
