"""Apply a plan: the smaller network, how good it is, and its refinement."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..calibration.progress import OnProgress, Progress
from ..calibration.sample import split
from ..capture.graph import Graph
from ..capture.precision import plain_mode
from ..costs.latency import measure_milliseconds
from ..errors import InputError
from ..inspection.argument_checks import RefitLayers
from ..notebook.html import summary_html
from ..reconstruction.layer_refit import LayerRefit
from ..refinement.augmentation import Augment
from ..refinement.execution import Precision
from ..refinement.refine import BATCH, HELD_OUT, RATE, Refinement, Settings, parts_of, run
from ..removal.remove import remove
from ..selection.paths.path import Path
from ..selection.paths.weight_changes import cut_tensors
from ..surgery import storage
from ..surgery.cut import Kept
from ..surgery.optimizer_state import Original
from ..surgery.proof import Proof, output_change
from ..text import change_advice, damping_text, latency_text, share, table
from .group_plan import GroupPlan
from .plan_state import PlanState

if TYPE_CHECKING:
    from .plan import Plan


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A pruned network.

    Attributes:
        model: The smaller module.
        plan: The plan that was applied.
        fits: Errors of each refitted layer on held-out images, before and after, as shares of its target's variance.
            They are those of a fit without these images; the weights that stay are fitted to all images, with the same
            dampings.
        proof: Largest difference between the module and the masked original with the same refitted weights, in which
            dtype, and on images of which sizes. It proves that surgery was exact.
        change: Mean squared difference of the outputs from the original network's on held-out images, as a share of
            the variance of the original's outputs; of the network that was fitted without these images.
        seconds: Seconds that ``Plan.apply`` took.
        kept: Qualified parameter name -> axis -> positions that stayed.
        original: The parameters of the network that was pruned, for ``reapx.carry_state``.
        latency: Milliseconds per batch: (before, predicted, measured after); None unless a budget is a latency that
            can be measured: one with neither a table nor a function that a saved plan does not hold.
        refinement: How the network was trained to follow the original; None if it was not. ``fits`` and ``proof`` are
            those before it.
    """

    model: nn.Module
    plan: Plan
    fits: tuple[LayerRefit, ...]
    proof: Proof
    change: float
    seconds: float
    kept: Kept
    original: Original
    latency: tuple[float, float, float] | None
    _judged: nn.Module
    refinement: Refinement | None = None

    @property
    def gap(self) -> float:
        """The proof's largest difference, as a share of the largest output."""
        return self.proof.gap

    def __repr__(self) -> str:
        return (
            f"Result({self.plan.savings}; outputs differ by {share(self.change)} of their variance; pruned equals "
            f"masked to {self.gap:.0e})"
        )

    def __str__(self) -> str:
        lines = self._lines()
        if self.fits:
            header, rows = self._columns()
            lines += ["", table(rows, header)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return summary_html(self._lines(), *self._columns())

    def _lines(self) -> list[str]:
        return [
            f"Pruned: {self.plan.savings}",
            f"outputs differ from the original's by {share(self.change)} of their variance on held-out images; "
            f"pruned equals masked to {self.gap:.0e} {self.proof}; {self.seconds:.1f} s",
            *latency_text(self.plan.settings.latency, self.latency),
            *([] if self.refinement is None else [str(self.refinement)]),
            *change_advice(self.change, self.plan.images[1]),
        ]

    def _columns(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table of refitted layers."""
        rows = [[fit.layer, share(fit.before), share(fit.error), damping_text(fit.damping)] for fit in self.fits]
        return ["refitted layer", "held-out error before its refit", "after", "damping"], rows

    @plain_mode()
    def refine(
        self,
        images: object | None = None,
        *,
        steps: int | None = None,
        minutes: float | None = None,
        learning_rate: float = RATE,
        batch: int = BATCH,
        augment: Augment | None = None,
        precision: Precision | None = None,
        seed: int = 0,
        resume: str | FilePath | None = None,
        progress: bool | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Train the pruned network to follow the original, without labels; see ``reapx.refine``.

        Args:
            images: More images, of which one in twelve judges; by default those of the plan, of which a third of those
                judge that judged the plan.
            steps, minutes, learning_rate, batch, augment, precision, seed, resume, progress, on_progress: As for
                ``reapx.refine``.

        Returns:
            A result with the refined network, its ``refinement``, and the new ``change``. If training brought the
            network no closer to the original on held-out images, it is the network of this result.

        Raises:
            InputError: an argument is not allowed, or the plan was applied in place, so that the original is gone.
            NumericalError: the loss is NaN or infinite.
            CheckpointError: a file in ``resume`` is damaged or cannot be written.
        """
        settings = Settings(
            steps, minutes, learning_rate, batch, augment, precision, seed, resume, progress, on_progress
        )
        original = self.plan._model
        if original is self.model:
            raise InputError(
                "the plan was applied in place, so the original is gone: call reapx.refine(result.model, original, "
                "images) with a copy of it"
            )
        if images is None:
            found = run(self._judged, original, split(self.plan._images, HELD_OUT), settings)
        else:
            every = self.plan._images
            parts = parts_of(self.model, original, images, every.memory, every.processes)
            found = run(self.model, original, parts, settings)
        if found.after >= found.before:
            return replace(self, refinement=found)
        return replace(self, model=found.model, change=found.after, refinement=found, _judged=found.model)

    def save(self, folder: str | FilePath, *, overwrite: bool = False) -> None:
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
        storage.save(folder, self.model, self.kept, str(self.plan), overwrite=overwrite)


def carry_out(
    plan: Plan,
    *,
    refit: RefitLayers | None,
    damping: float | None,
    rectify: int,
    inplace: bool,
    progress: Progress,
) -> Result:
    """Apply a plan whose arguments were checked; ``refit`` is None for no refit."""
    start = time.perf_counter()
    model, graph, images = plan._model, plan._graph, plan._images
    changed: Mapping[str, Tensor] = {}
    if refit is None:
        made = own_tensors(graph, plan._paths, plan.groups) if plan._stored is None else plan._stored.own
        changed = {name: images.processes.share(value) for name, value in made.items()}
    inspection = plan._found
    found = remove(
        model,
        inspection,
        {entry.group.name: entry.removed for entry in plan.groups},
        refit=refit,
        damping=damping,
        rectify=rectify,
        progress=progress,
        changed=changed,
    )
    latency = _measured_latency(plan, found.model)
    judged = found.model
    if found.refits.judged is not found.refits.updates:  # fitted without the images that judge
        judged = copy.deepcopy(model)
        found.shrink(judged, found.refits.judged)
    change = output_change(judged, graph, inspection._parts[1])
    pruned = found.model
    if inplace:
        found.repeat(model)
        pruned = model
    seconds = time.perf_counter() - start
    fits = found.refits.fits
    return Result(pruned, plan, fits, found.proof, change, seconds, found.kept, found.original, latency, judged)


def _measured_latency(plan: PlanState, pruned: nn.Module) -> tuple[float, float, float] | None:
    """Milliseconds (before, predicted, after), timed in turn since the machine's speed drifts."""
    latency = plan.settings.latency
    if plan.latency is None or latency is None or latency.table is not None or plan.forgot_measure:
        return None
    models, images = [plan._model, pruned], plan._images
    before, after = images.processes.first(lambda: measure_milliseconds(models, images, latency))
    return before, plan.latency[1] * before / plan.latency[0], after


def own_tensors(graph: Graph, paths: Sequence[Path], entries: Sequence[GroupPlan]) -> dict[str, Tensor]:
    """The tensors that the selection method itself changes, without least squares, at the entries' widths."""
    pairs = zip(paths, entries, strict=True)
    own = [(path.own_changes, len(entry.removed)) for path, entry in pairs if path.own_changes is not None]
    return cut_tensors(graph.tensors, [changes.changes([count])[0] for changes, count in own], own)
