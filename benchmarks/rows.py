"""One row of a kernel benchmark: our time, next to what it is measured against, in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from peak import Amount, Peak


@dataclass(frozen=True)
class Row:
    """A measurement.

    Attributes:
        work: What was computed.
        case: On which sizes.
        threads: Of both sides.
        seconds: Ours, a median.
        against: The other side.
        against_seconds: Its time; of ``extrapolated`` rows not run in full.
        amount: What has to be done for it.
    """

    work: str
    case: str
    threads: int
    seconds: float
    against: str
    against_seconds: float
    amount: Amount
    extrapolated: bool = False

    @property
    def ratio(self) -> float:
        return self.against_seconds / self.seconds

    def peak_share(self, peak: Peak) -> float:
        """Part of the machine's measured peak that we reach."""
        return peak.seconds(self.amount) / self.seconds

    def as_dict(self, peak: Peak) -> dict[str, object]:
        """Fields, ratio and share, rounded to what is meant."""
        values = asdict(self) | {"ratio": self.ratio, "peak_share": self.peak_share(peak)}
        del values["amount"]
        return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}


def seconds_text(value: float) -> str:
    """A time in the unit that suits it."""
    for limit, unit, factor in ((1e-3, "us", 1e6), (1.0, "ms", 1e3), (600.0, "s", 1.0), (36000.0, "min", 1 / 60)):
        if value < limit:
            return f"{value * factor:.3g} {unit}"
    return f"{value / 3600:.3g} h"


def lines_of(rows: Sequence[Row], peaks: Mapping[int, Peak]) -> list[list[str]]:
    """Cells of a table; ``peaks`` by the number of threads."""
    return [
        [
            row.work,
            row.case,
            str(row.threads),
            seconds_text(row.seconds),
            row.against,
            ("~" if row.extrapolated else "") + seconds_text(row.against_seconds),
            f"{row.ratio:,.3g}x" if row.ratio < 1000 else f"{row.ratio:,.0f}x",
            f"{100 * row.peak_share(peaks[row.threads]):.0f} %",
        ]
        for row in rows
    ]


HEAD = ["work", "case", "threads", "reapx", "against", "takes", "ratio", "of peak"]
