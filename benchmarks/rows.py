"""One row of a kernel benchmark: our time, next to what it is measured against, in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peak import Amount, Peak
from tables import table
from timing import Target


@dataclass(frozen=True)
class Row:
    """A measurement.

    Attributes:
        work: What was computed.
        case: On which sizes.
        target: Of both sides.
        seconds: Ours, a median.
        against: The other side.
        against_seconds: Its time; of ``extrapolated`` rows not run in full; None where there is no other side.
        amount: What has to be done for it, whatever either side really does.
        against_gflop: What the other side really does, where that is known.
        error: Of our result, where it was compared with an exact one.
        against_error: Of theirs.
    """

    work: str
    case: str
    target: Target
    seconds: float
    against: str
    against_seconds: float | None
    amount: Amount
    extrapolated: bool = False
    against_gflop: float | None = None
    error: float | None = None
    against_error: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.against_seconds is None else self.against_seconds / self.seconds

    @property
    def tflops(self) -> float:
        """10^12 operations a second, of those that have to be done, in float32 and float64."""
        return 1e-3 * (self.amount.float32 + self.amount.float64) / self.seconds

    def peak_share(self, peak: Peak) -> float:
        """Part of the machine's measured peak that we reach."""
        return peak.seconds(self.amount) / self.seconds

    def as_dict(self, peak: Peak) -> dict[str, object]:
        """What was measured, ratio and share, rounded to what is meant."""
        values: dict[str, object] = {
            "work": self.work,
            "case": self.case,
            **self.target.as_dict(),
            "seconds": self.seconds,
            "against": self.against,
            "against_seconds": self.against_seconds,
            "extrapolated": self.extrapolated,
            "ratio": self.ratio,
            "peak_share": self.peak_share(peak),
            "error": self.error,
            "against_error": self.against_error,
        }
        if self.target.cuda:
            values["tflops"] = self.tflops
            if self.against_gflop is not None and self.against_seconds is not None:
                values["against_tflops"] = 1e-3 * self.against_gflop / self.against_seconds
        found = {key: value for key, value in values.items() if value is not None}
        return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}


def seconds_text(value: float) -> str:
    """A time in the unit that suits it."""
    for limit, unit, factor in ((1e-3, "us", 1e6), (1.0, "ms", 1e3), (600.0, "s", 1.0), (36000.0, "min", 1 / 60)):
        if value < limit:
            return f"{value * factor:.3g} {unit}"
    return f"{value / 3600:.3g} h"


def show(rows: Sequence[Row], peaks: Mapping[str, Peak]) -> str:
    """A table; ``peaks`` by the targets' labels."""
    lines = [_cells(row, peaks[row.target.label]) for row in rows]
    if not any(row.target.cuda for row in rows):
        return table(lines, HEAD)
    more = [[f"{row.tflops:.3g}", "" if row.error is None else f"{row.error:.0e}"] for row in rows]
    head = [*("device" if title == "threads" else title for title in HEAD), "TFLOP/s", "error"]
    return table([line + own for line, own in zip(lines, more, strict=True)], head)


def _cells(row: Row, peak: Peak) -> list[str]:
    theirs = ratio = ""
    if row.against_seconds is not None and row.ratio is not None:
        theirs = ("~" if row.extrapolated else "") + seconds_text(row.against_seconds)
        ratio = f"{row.ratio:,.3g}x" if row.ratio < 1000 else f"{row.ratio:,.0f}x"
    share = f"{100 * row.peak_share(peak):.0f} %"
    return [row.work, row.case, row.target.label, seconds_text(row.seconds), row.against, theirs, ratio, share]


HEAD = ["work", "case", "threads", "reapx", "against", "takes", "ratio", "of peak"]
