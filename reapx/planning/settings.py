"""The settings of a plan: one frozen object, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..allocation.output_errors import OUTPUT_ERRORS, OutputError
from ..allocation.pro import POINTS
from ..costs.budget import Budget
from ..errors import InputError
from ..inspection.argument_checks import Allocation, check_arguments
from ..selection.lasso import require_lasso
from ..selection.methods import BLIND, SELECTIONS, Selection

DAMPING = 1e-2
"""Default pull towards the old weights, as a fraction of the mean diagonal of each Gram matrix."""

RECTIFY = 2
"""Default number of rectification passes after each fit."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PlanSettings:
    """The arguments of ``reapx.plan``, where each is explained; layers are named here, not modules.

    They cannot be changed; ``dataclasses.replace`` makes others.

    Raises:
        InputError: an argument is outside its choices (``CHECKS`` has them all), or two do not go together.
    """

    budget: Budget
    allocation: Allocation = "pro"
    selection: Selection = "reap"
    streams: bool | None = None
    round_to: int = 1
    exclude: tuple[str, ...] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    points: int = POINTS
    rounds: int = 1
    output_error: OutputError = "squared"
    damping: float = DAMPING
    swaps: int = 0
    positions: int | None = None
    resume: str | Path | None = None
    memory: int | None = None
    progress: bool | None = None
    distributed: bool = False

    def __post_init__(self) -> None:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        check_arguments(**given)
        self._check_selection()
        self._check_allocation()

    def __repr__(self) -> str:
        given = [f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if self._differs(each.name)]
        return f"PlanSettings({', '.join(given)})"

    @property
    def prunes_streams(self) -> bool:
        """Whether residual streams lose channels too."""
        return self.allocation == "pro" if self.streams is None else self.streams

    @property
    def method(self) -> str:
        """How channels are chosen, and within what budget, in words."""
        text = f"{self.selection} selection"
        text += "" if self.swaps == 0 else f", at most {self.swaps} swaps a group"
        text += "" if self.positions is None else f", {self.positions} positions an image"
        return f"{text}, {self.allocation} allocation, budget {type(self.budget).__name__}({self.budget.amount})"

    def shared(self) -> list[tuple[str, str]]:
        """Names and values, as text, that must be equal in all processes that share the work."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        own["resume"] = self.resume is not None  # each may have its own path to the folder
        del own["progress"]
        return [(name, repr(value)) for name, value in own.items()]

    def _differs(self, name: str) -> bool:
        return name == "budget" or getattr(self, name) != getattr(_DEFAULTS, name)

    def _check_selection(self) -> None:
        if self.selection == "lasso":
            require_lasso()
        if self.swaps and self.selection != "reap":
            raise InputError(
                f"swaps={self.swaps} with selection={self.selection!r}, which is not refined: swaps need "
                "selection='reap'"
            )
        if self.positions is not None and self.selection in BLIND and self.allocation != "pro":
            others = " or ".join(repr(name) for name in SELECTIONS if name not in BLIND)
            raise InputError(
                f"positions={self.positions} with selection={self.selection!r}, which measures nothing: positions "
                f"need selection={others}, or allocation='pro'"
            )

    def _check_allocation(self) -> None:
        measuring = {"points": POINTS, "rounds": 1, "output_error": OUTPUT_ERRORS[0]}
        for name, default in measuring.items():
            value = getattr(self, name)
            if self.allocation != "pro" and value != default:
                raise InputError(
                    f"{name}={value!r} with allocation={self.allocation!r}, which measures nothing at the outputs: "
                    f"{name} needs allocation='pro'"
                )


_DEFAULTS = PlanSettings(budget=Budget(1.0))
