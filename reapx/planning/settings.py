"""The settings of a plan: one frozen object, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..allocation.output_errors import OUTPUT_ERRORS, OutputError
from ..allocation.pro import POINTS
from ..calibration.progress import OnProgress
from ..costs.budget import Budget
from ..costs.latency import Latency
from ..errors import InputError
from ..inspection.argument_checks import Allocation, check_arguments
from ..selection.lasso import require_lasso
from ..selection.methods import BLIND, SELECTIONS, Selection, SelectionRule, selection_name

PATH_DAMPING = 1e-1
"""Damping of the paths where none is given; that of each layer's refit is then chosen by its held-out error."""

RECTIFY = 2
"""Default number of rectification passes after each fit."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PlanSettings:
    """The arguments of ``reapx.plan``, which explains them; here layers are given by names, not as modules.

    Settings are frozen; ``dataclasses.replace`` makes changed ones.

    Raises:
        InputError: an argument is not allowed by ``CHECKS``, or two arguments exclude each other.
    """

    budget: Budget | Sequence[Budget]
    allocation: Allocation | Mapping[str, float] = "pro"
    selection: Selection | SelectionRule = "reap"
    streams: bool | None = None
    round_to: int = 1
    exclude: tuple[str, ...] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    points: int = POINTS
    rounds: int = 1
    output_error: OutputError = "squared"
    damping: float | None = None
    swaps: int = 0
    positions: int | None = None
    resume: str | Path | None = None
    memory: int | None = None
    progress: bool | None = None
    on_progress: OnProgress | None = None
    distributed: bool = False

    def __post_init__(self) -> None:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        check_arguments(**given)
        if not isinstance(self.budget, Budget):
            object.__setattr__(self, "budget", tuple(self.budget) if len(self.budget) > 1 else self.budget[0])
        self._check_budgets()
        self._check_selection()
        self._check_allocation()

    def __repr__(self) -> str:
        given = [f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if self._differs(each.name)]
        return f"PlanSettings({', '.join(given)})"

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """All budgets; the savings of the first guide PRO first."""
        return (self.budget,) if isinstance(self.budget, Budget) else tuple(self.budget)

    @property
    def latency(self) -> Latency | None:
        """The latency among the budgets."""
        return next((budget for budget in self.budgets if isinstance(budget, Latency)), None)

    @property
    def prunes_streams(self) -> bool:
        """Whether residual streams may lose channels."""
        return self.allocation != "uniform" if self.streams is None else self.streams

    @property
    def path_damping(self) -> float:
        """λ of the paths as a fraction of the mean diagonal of each Gram matrix."""
        return PATH_DAMPING if self.damping is None else self.damping

    @property
    def method(self) -> str:
        """Selection, allocation and budget in words."""
        text = f"{selection_name(self.selection)} selection"
        text += "" if self.swaps == 0 else f", at most {self.swaps} swaps a group"
        text += "" if self.positions is None else f", {self.positions} positions an image"
        if not isinstance(self.allocation, str):
            text += ", widths given by the caller"
        else:
            text += f", {self.allocation} allocation"
        return f"{text}, budget {' and '.join(f'{type(own).__name__}({own.amount})' for own in self.budgets)}"

    def shared(self) -> list[tuple[str, str]]:
        """Names and values, as text, that must be equal in all processes that share the work."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        own["resume"] = self.resume is not None  # each may have its own path to the folder
        own["selection"] = selection_name(self.selection)  # a function's repr differs between processes
        # So does that of a function that measures.
        own["budget"] = [replace(each, measure=None) if isinstance(each, Latency) else each for each in self.budgets]
        del own["progress"], own["on_progress"]
        return [(name, repr(value)) for name, value in own.items()]

    def _differs(self, name: str) -> bool:
        return bool(getattr(self, name) != _DEFAULTS[name])

    def _check_budgets(self) -> None:
        kinds = [type(budget) for budget in self.budgets]
        twice = [kind.__name__ for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]
        if twice:
            raise InputError(f"budget: {twice[0]} is given more than once: give each kind once")

    def _check_selection(self) -> None:
        if self.selection == "lasso":
            require_lasso()
        if self.swaps and self.selection != "reap":
            raise InputError(
                f"swaps={self.swaps} with selection={selection_name(self.selection)!r}, which is not refined: swaps "
                "need selection='reap'"
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
                kind = self.allocation if isinstance(self.allocation, str) else "a dict of widths"
                raise InputError(
                    f"{name}={value!r} with allocation={kind!r}, which measures nothing at the outputs: "
                    f"{name} needs allocation='pro'"
                )


_DEFAULTS: dict[str, Any] = {each.name: {} if each.name == "bounds" else each.default for each in fields(PlanSettings)}
