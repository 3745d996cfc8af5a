"""What every benchmark needs: the machine's name, peak memory, medians, results as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, object]:
    """What a figure was measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return {
        "cpu": name,
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "csrc", "reapx")),
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def parser(text: str, quick: str) -> argparse.ArgumentParser:
    """The options of a benchmark on real networks: ``--quick``, whose help is ``quick``, and ``--json``."""
    found = argparse.ArgumentParser(description=text.splitlines()[0])
    found.add_argument("--quick", action="store_true", help=f"{quick}; nothing is written")
    found.add_argument("--json", type=Path)
    return found


class PeakMemory:
    """Context whose ``bytes`` is the process's largest resident size inside it, above that at its start.

    Sampled every 5 ms, so a shorter spike can be missed.
    """

    def __enter__(self) -> PeakMemory:
        self._process = psutil.Process()
        self._start = self._process.memory_info().rss
        self._peak = self._start
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        """Peak so far."""
        return self._peak - self._start


def interleaved(calls: Sequence[Callable[[], object]], rounds: int = 7) -> list[float]:
    """Median seconds of each call, timed in turn so that a drift of the machine hits all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for own, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
    return [median(own) for own in times]


def write(stem: str, rows: list[dict[str, object]], path: Path | None = None, **more: object) -> None:
    """Write rows with the machine, and more, to ``benchmarks/results/<stem>.json``, or to a path."""
    target = RESULTS / f"{stem}.json" if path is None else path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"machine": machine(), **more, "rows": rows}, indent=1) + "\n")
    print(f"wrote {target.relative_to(ROOT) if target.is_relative_to(ROOT) else target}")
