"""What applying a plan gives: the smaller network, its errors and its proof."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..reconstruction.sweep import LayerRefit
from ..surgery import storage
from ..surgery.cut import Kept
from ..surgery.optimizer_state import Original
from ..text import latency_text, share, table

if TYPE_CHECKING:
    from .plan import Plan


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A pruned network.

    Attributes:
        model: The smaller module.
        plan: What was planned.
        fits: Each refitted layer's error before and after, as shares of its target's variance.
        gap: Largest difference between the module and the masked original with the same refitted weights, a share
            of the largest output: the proof that surgery was exact.
        change: How far the outputs are from the original network's on the first images: mean squared difference over
            the variance of the original's outputs.
        seconds: Time that apply took.
        kept: Qualified parameter name -> axis -> positions that stayed.
        original: The parameters of the network that was pruned, for ``reapx.carry_state``.
        latency: Milliseconds of a batch: (before, predicted, measured after); None unless the budget is a latency.
    """

    model: nn.Module
    plan: Plan
    fits: tuple[LayerRefit, ...]
    gap: float
    change: float
    seconds: float
    kept: Kept
    original: Original
    latency: tuple[float, float, float] | None = None

    def __repr__(self) -> str:
        return (
            f"Result({self.plan.savings}; outputs differ by {share(self.change)} of their variance; pruned equals "
            f"masked to {self.gap:.0e})"
        )

    def __str__(self) -> str:
        lines = [
            f"Pruned: {self.plan.savings}",
            f"outputs differ from the original's by {share(self.change)} of their variance; "
            f"pruned equals masked to {self.gap:.0e}; {self.seconds:.1f} s",
            *latency_text(self.plan.budget, self.latency),
        ]
        if self.fits:
            rows = [[fit.layer, share(fit.before), share(fit.error)] for fit in self.fits]
            lines += ["", table(rows, ["refitted layer", "error before its refit", "after"])]
        return "\n".join(lines)

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
        storage.save(folder, self.model, self.kept, str(self.plan), overwrite=overwrite)
