"""What a plan holds, and what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..allocation.descent import TradeoffPoint
from ..allocation.measured_tables import ErrorCurves, TradeoffPoints
from ..allocation.pro import Tradeoff
from ..calibration.images import Images
from ..calibration.sample import split_counts, split_text
from ..capture.graph import Graph
from ..costs.budget import Budget
from ..errors import InputError
from ..groups.channel_groups import Frozen
from ..inspection.inspection import Inspection
from ..notebook.drawings import widths_drawing
from ..notebook.html import summary_html
from ..notebook.tabular import Row, Tabular
from ..selection.paths.path import Path
from ..surgery.cut import Kept, kept_positions
from ..text import frozen_text, latency_text, listed, predicted_advice, saving
from .group_plan import GroupPlan, columns_of, table_of
from .settings import PlanSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Stored:
    """The parts of a loaded plan that cannot be computed again.

    Attributes:
        own: Qualified name -> tensor that the selection method itself changes; see ``own_tensors``.
        latency: Milliseconds, (before, predicted after); None unless the budget is a latency.
    """

    own: Mapping[str, Tensor]
    latency: tuple[float, float] | None


@dataclass(frozen=True, eq=False, repr=False)
class PlanState(Tabular):
    """What a plan holds and shows.

    Attributes:
        settings: The settings with which ``reapx.plan`` was called.
        groups: One entry for each prunable group.
        frozen: Channels that cannot be removed, and why.
        macs, params: MACs per image and parameters, each (before, after).
        seconds: Seconds that planning took.
        chosen: Names of the groups whose units the caller chose; see ``Plan.with_removed``.
    """

    settings: PlanSettings
    groups: tuple[GroupPlan, ...]
    frozen: tuple[Frozen, ...]
    macs: tuple[int, int]
    params: tuple[int, int]
    seconds: float
    _model: nn.Module
    _found: Inspection
    _paths: Sequence[Path]
    _tradeoff: Tradeoff | None = None
    _point: TradeoffPoint | None = None
    chosen: frozenset[str] = frozenset()
    _stored: Stored | None = None
    _timed: tuple[float, float] | None = None

    def __repr__(self) -> str:
        cut = sum(len(entry.removed) > 0 for entry in self.groups)
        method = shorten(self.settings.method, 120)
        return f"Plan({self.savings}; {cut} of {len(self.groups)} groups lose channels; {method})"

    def __str__(self) -> str:
        lines = [
            f"Plan: {self.savings}",
            f"{self.method}, {self.seconds:.1f} s",
            *latency_text(self.settings.latency, self.latency),
            split_text(self._images),
            "",
            table_of(self.groups, None if self._tradeoff is None else self._tradeoff.measure),
        ]
        if any(entry.group.residual_stream for entry in self.groups) and not self.settings.prunes_streams:
            lines.append("Residual streams stay whole unless streams=True.")
        if self._point is not None and self.output_measure == "squared":
            lines += predicted_advice(self._point.error)
        return "\n".join([*lines, *frozen_text(self.frozen)])

    def _repr_html_(self) -> str:
        measure = None if self._tradeoff is None else self._tradeoff.measure
        lines = [f"Plan: {self.savings}", self.method, *latency_text(self.settings.latency, self.latency)]
        return summary_html(lines, *columns_of(self.groups, measure), end="\n".join(frozen_text(self.frozen)))

    def _rows(self) -> list[Row]:
        return [
            {
                "group": entry.group.name,
                "kind": entry.group.kind,
                "before": entry.channels[0],
                "after": entry.channels[1],
                "consumers": len(entry.group.consumer_names),
                "error": entry.error,
                "output_error": entry.output_error,
            }
            for entry in self.groups
        ]

    def plot(self) -> Figure:
        """Channels of each group before and after, as a matplotlib figure; ``savefig`` of it writes a file.

        Raises:
            ReapxError: matplotlib is not installed.
        """
        return widths_drawing([(entry.group.name, *entry.channels) for entry in self.groups])

    @property
    def inspection(self) -> Inspection:
        """What was found in the model before anything was planned."""
        return self._found

    @property
    def budget(self) -> Budget:
        """The budget of the plan; of several, the first."""
        return self.settings.budgets[0]

    @property
    def method(self) -> str:
        """Selection, allocation and budget in words."""
        chosen = f", units of {listed(sorted(self.chosen), 3)} chosen by the caller" if self.chosen else ""
        return self.settings.method + chosen

    @property
    def savings(self) -> str:
        """MACs and parameters before and after, in words."""
        return f"{saving('MACs', self.macs)}, {saving('parameters', self.params)}"

    @property
    def images(self) -> tuple[int, int]:
        """Numbers of images that were fitted, and that were held out to judge."""
        return split_counts(self._images.count)

    def kept(self) -> Kept:
        """Qualified parameter name -> axis -> positions that stay."""
        removed = {entry.group.name: entry.removed for entry in self.groups}
        return kept_positions([entry.group for entry in self.groups], removed, self._graph.tensors)

    @property
    def latency(self) -> tuple[float, float] | None:
        """Milliseconds per batch: (before, after); None unless a budget is a latency.

        They were measured with a network of the plan's widths; predicted where the budget has a table, or the caller
        chose units.
        """
        own = self.settings.latency
        if own is None:
            return None
        if self._stored is not None:
            return self._stored.latency
        if self._timed is not None:
            return self._timed
        widths = {entry.group.name: entry.kept for entry in self.groups}
        kind, costs = type(own), self._found.costs
        return float(costs.of(kind)), float(costs.of(kind, widths))

    @property
    def forgot_measure(self) -> bool:
        """Whether the latency was measured by a function, and the plan was loaded, so that only its name is known."""
        own = self.settings.latency
        return self._stored is not None and own is not None and own.measure is not None

    @property
    def output_measure(self) -> str:
        """Measure of the errors at the network's outputs: ``"squared"`` or ``"kl"``."""
        return "squared" if self._tradeoff is None else self._tradeoff.measure

    @property
    def _graph(self) -> Graph:
        return self._found._graph

    @property
    def _images(self) -> Images:
        return self._found._images

    @property
    def output_error(self) -> float:
        """Sum of the errors at the network's outputs with each group pruned alone; NaN if they were not measured.

        It ranks plans. The pruned network's own error is smaller, since ``Plan.apply`` repairs much of it.
        """
        return float("nan") if self._point is None else self._point.error

    def curves(self) -> ErrorCurves:
        """A dict: group name -> error curve at the network's outputs with this group alone pruned.

        Raises:
            InputError: the plan's allocation is not ``"pro"``, so no errors were measured.
        """
        return ErrorCurves(self._measured().curves)

    def tradeoff(self) -> TradeoffPoints:
        """The trade-off between cost and predicted error, from the full network down to the smallest one.

        It follows from the measured curves without a further measurement; ``Plan.at`` makes a plan at any budget.

        Returns:
            A list of points with cost, predicted error and widths, by falling cost.

        Raises:
            InputError: the plan's allocation is not ``"pro"``, so no errors were measured.
        """
        return TradeoffPoints(self._measured().points(type(self.budget)))

    def _measured(self) -> Tradeoff:
        if self._tradeoff is None and self.settings.allocation == "pro":
            raise InputError("a loaded plan has no trade-off of milliseconds: call reapx.plan, which measures them")
        if self._tradeoff is None:
            raise InputError(
                f"allocation={self.settings.allocation!r} measures no errors at the outputs: plan with 'pro'"
            )
        return self._tradeoff
