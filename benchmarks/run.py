"""The kernels, each next to what it is measured against, in one run.

    python benchmarks/run.py gram|path|selection|solve|pairs|zeros|growth [--quick] [--threads N ...] [--json FILE]

Every benchmark checks its results, then times; the machine's measured peak is printed with it.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import asdict
from pathlib import Path

import growth
import peak
import torch
from rows import HEAD, Row, lines_of
from threadpoolctl import threadpool_limits
from timing import write

from reapx.report.text import table

WORKS = ["gram", "path", "selection", "solve", "pairs", "zeros", "growth"]


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and all cores")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/WORK.json; nothing with --quick")
    arguments = parser.parse_args()
    threads = arguments.threads or sorted({1, torch.get_num_threads()})
    wanted = arguments.json is not None or not arguments.quick
    if arguments.work == "growth":
        _growth(threads, arguments.quick, arguments.json, wanted)
    else:
        _compare(arguments.work, threads, arguments.quick, arguments.json, wanted)


def _compare(work: str, counts: list[int], quick: bool, path: Path | None, wanted: bool) -> None:
    module = importlib.import_module(work)
    found: list[Row] = []
    peaks: dict[int, peak.Peak] = {}
    for threads in counts:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        before = peak.measure(threads)
        with threadpool_limits(threads):  # of the BLAS that numpy and scipy bring
            found += module.rows(threads, quick)
        limit = peaks[threads] = before.or_more(peak.measure(threads))
        print(
            f"{threads} thread{'s' * (threads > 1)}: peak {limit.float32:.0f} GFLOP/s float32, "
            f"{limit.float64:.0f} float64; copy {limit.copy:.1f} GB/s, read {limit.read:.1f}"
        )
    print(table(lines_of(found, peaks), HEAD))
    if wanted:
        rows = [row.as_dict(peaks[row.threads]) for row in found]
        write(work, rows, path, peaks={str(threads): asdict(limit) for threads, limit in peaks.items()})


def _growth(counts: list[int], quick: bool, path: Path | None, wanted: bool) -> None:
    found = []
    for threads in counts:
        torch.set_num_threads(threads)
        found += growth.measure(threads, quick)
    print(growth.show(found))
    if wanted:
        write("growth", [series.as_dict() for series in found], path)
        growth.plot(found, None if path is None else path.with_suffix(".png"))


if __name__ == "__main__":
    main()
