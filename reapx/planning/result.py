"""The result of applying a plan: the smaller network, its errors and its proof."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..reconstruction.sweep import LayerRefit
from ..surgery import storage
from ..surgery.cut import Kept
from ..surgery.proof import Proof
from ..text import latency_text, share, table

if TYPE_CHECKING:
    from .plan import Plan


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A pruned network.

    Attributes:
        model: The smaller module.
        plan: The plan that was applied.
        fits: Errors of each refitted layer before and after, as shares of its target's variance.
        proof: Largest difference between the module and the masked original with the same refitted weights, in which
            dtype, and on images of which sizes. It proves that surgery was exact.
        change: Mean squared difference of the outputs from the original network's on the first images, as a share of
            the variance of the original's outputs.
        seconds: Seconds that ``Plan.apply`` took.
        kept: Qualified parameter name -> axis -> positions that stayed.
        latency: Milliseconds per batch: (before, predicted, measured after); None unless the budget is a latency.
    """

    model: nn.Module
    plan: Plan
    fits: tuple[LayerRefit, ...]
    proof: Proof
    change: float
    seconds: float
    kept: Kept
    latency: tuple[float, float, float] | None = None

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
        lines = [
            f"Pruned: {self.plan.savings}",
            f"outputs differ from the original's by {share(self.change)} of their variance; "
            f"pruned equals masked to {self.gap:.0e} {self.proof}; {self.seconds:.1f} s",
            *latency_text(self.plan.budget, self.latency),
        ]
        if self.fits:
            rows = [[fit.layer, share(fit.before), share(fit.error)] for fit in self.fits]
            lines += ["", table(rows, ["refitted layer", "error before its refit", "after"])]
        return "\n".join(lines)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``plan.json`` and ``weights.safetensors`` into a folder; read them with ``reapx.load``.

        If it is interrupted, the folder holds the earlier result or this one, and both files have checksums. If the
        network was cut several times, all cuts are saved, and the first original loads them.

        Args:
            folder: Folder to write into; it is created if it does not exist.
            overwrite: Whether to replace a result in the folder.

        Raises:
            InputError: the folder already holds a result, or the model was changed so that it could not be loaded.
            CheckpointError: the folder cannot be written to.
        """
        storage.save(folder, self.model, self.kept, str(self.plan), overwrite=overwrite)
