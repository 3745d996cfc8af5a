"""What PRO measured, as a list and a dict that are tables as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..notebook.drawings import tradeoff_drawing
from ..notebook.html import summary_html
from ..notebook.tabular import Row, Tabular
from .curves import ErrorCurve
from .descent import TradeoffPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TradeoffPoints(list[TradeoffPoint], Tabular):
    """The points of a trade-off, by falling cost; its table has a row for each, and a column for each group's width."""

    def __repr__(self) -> str:
        if not self:
            return "TradeoffPoints(none)"
        return f"TradeoffPoints({len(self)}, from x{self[0].share:.3f} to x{self[-1].share:.3f} of the cost)"

    def _repr_html_(self) -> str:
        rows = [[f"x{point.share:.3f}", f"{point.cost:g}", f"{point.error:.4g}"] for point in _spread(self)]
        return summary_html([repr(self)], ["share", "cost", "predicted error"], rows)

    def _rows(self) -> list[Row]:
        rows: list[Row] = []
        for point in self:
            widths = {f"width of {name}": width for name, width in point.widths.items()}
            rows.append({"cost": point.cost, "share": point.share, "error": point.error, **widths})
        return rows

    def plot(self) -> Figure:
        """Predicted error over the share of the cost, as a matplotlib figure; ``savefig`` of it writes a file.

        Raises:
            ReapxError: matplotlib is not installed.
        """
        return tradeoff_drawing([(point.share, point.error) for point in self])


class ErrorCurves(dict[str, ErrorCurve], Tabular):
    """Group name -> error curve; its table has a row for each width of each group."""

    def __repr__(self) -> str:
        return f"ErrorCurves({len(self)} groups)"

    def _rows(self) -> list[Row]:
        rows: list[Row] = []
        for name, curve in self.items():
            measured = {count for count, _ in curve.measured}
            for count, error in enumerate(curve.errors):
                kept = len(curve.errors) - 1 - count
                row: Row = {"group": name, "removed": count, "kept": kept}
                rows.append({**row, "error": float(error), "measured": count in measured})
        return rows


def _spread(points: Sequence[TradeoffPoint], shown: int = 8) -> list[TradeoffPoint]:
    """At most ``shown`` points, evenly taken from the first to the last."""
    if len(points) <= shown:
        return list(points)
    return [points[round(k * (len(points) - 1) / (shown - 1))] for k in range(shown)]
