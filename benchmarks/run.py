"""The kernels, each next to what it is measured against, in one run.

    python benchmarks/run.py gram|path|selection|solve|pairs|zeros|growth ... [--quick] [--threads N ...]
        [--device cpu|cuda] [--json FILE]

Every benchmark checks its results, then times; the machine's measured peak is printed with it. With ``--device cuda``
problems lie on the GPU, what they are compared with is torch on the same GPU without TF32, and times are CUDA's events.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import replace
from pathlib import Path

import growth
import peak
import torch
from rows import Row, show
from threadpoolctl import threadpool_limits
from timing import RESULTS, Target, add_device, write

WORKS = ["gram", "path", "selection", "solve", "pairs", "zeros", "growth"]


def main() -> None:
    """Run one benchmark, or one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", choices=WORKS, nargs="+", metavar="WORK", help=", ".join(WORKS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and all cores")
    add_device(parser)
    parser.add_argument("--json", type=Path, help="of one; default: benchmarks/results/WORK.json, none with --quick")
    arguments = parser.parse_args()
    if arguments.json is not None and len(arguments.works) > 1:
        parser.error(f"--json takes the results of one benchmark, not of {' '.join(arguments.works)}")
    targets = _targets(arguments)
    wanted = arguments.json is not None or not arguments.quick
    for work in arguments.works:
        if work == "growth":
            _growth(targets, arguments.quick, arguments.json, wanted)
        else:
            _compare(work, targets, arguments.quick, arguments.json, wanted)


def _targets(arguments: argparse.Namespace) -> list[Target]:
    """The GPU, or the CPU once with each number of threads."""
    here = Target.of(arguments.device)
    counts = arguments.threads or sorted({1, torch.get_num_threads()})
    return [here] if here.cuda else [replace(here, threads=threads) for threads in counts]


def _compare(work: str, targets: list[Target], quick: bool, path: Path | None, wanted: bool) -> None:
    module = importlib.import_module(work)
    found: list[Row] = []
    peaks: dict[str, peak.Peak] = {}
    for target in targets:
        _begin(target)
        before = peak.measure(target, quick)
        with threadpool_limits(target.threads or None):  # of the BLAS that numpy and scipy bring
            found += module.rows(target, quick)
        limit = peaks[target.label] = before.or_more(peak.measure(target, quick))
        print(f"{target.name if target.cuda else f'{target.threads} threads'}: {limit}")
    print(show(found, peaks))
    if wanted:
        rows = [row.as_dict(peaks[row.target.label]) for row in found]
        write(work, rows, path, targets[0], peaks={label: limit.as_dict() for label, limit in peaks.items()})


def _begin(target: Target) -> None:
    if not target.cuda:
        torch.set_num_threads(target.threads)
    torch.manual_seed(0)


def _growth(targets: list[Target], quick: bool, path: Path | None, wanted: bool) -> None:
    found = []
    for target in targets:
        _begin(target)
        found += growth.measure(target, quick)
    print(growth.show(found))
    if wanted:
        write("growth", [series.as_dict() for series in found], path, targets[0])
        picture = RESULTS / f"growth{'_cuda' if targets[0].cuda else ''}.png"
        growth.plot(found, picture if path is None else path.with_suffix(".png"))


if __name__ == "__main__":
    main()
