"""What every benchmark needs: where it works, how time and memory are taken there, medians, results as JSON."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Target:
    """Where a benchmark works.

    Attributes:
        threads: Of both sides on the CPU; a GPU has none.
    """

    device: torch.device
    threads: int = 0

    @classmethod
    def of(cls, name: str) -> Target:
        """The CPU or a GPU, whose float32 products are then float32: TF32 is off."""
        if name == "cpu":
            return cls(torch.device("cpu"), torch.get_num_threads())
        if not torch.cuda.is_available():
            raise SystemExit(f"--device {name}: torch {torch.__version__} finds no GPU")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.ones(1, device=name).sum().item()  # starts CUDA, which no figure is to pay for
        return cls(torch.device(name, torch.cuda.current_device()))

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """For a row: the GPU's, or "cpu"."""
        return torch.cuda.get_device_name(self.device) if self.cuda else "cpu"

    @property
    def label(self) -> str:
        """What tells apart the targets of one run."""
        return "cuda" if self.cuda else str(self.threads)

    def as_dict(self) -> dict[str, object]:
        """For a row of a kernel benchmark."""
        return {"device": "cuda"} if self.cuda else {"threads": self.threads}

    def now(self) -> float:
        """Seconds on a clock that is read when all work is done."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, call: Callable[[], object], count: int = 1) -> float:
        """Of one call, out of ``count`` in a row. On a GPU by events, between which the host may run ahead."""
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(count):
                call()
            return (time.perf_counter() - start) / count
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        for _ in range(count):
            call()
        end_event.record()
        end_event.synchronize()
        return 1e-3 * start_event.elapsed_time(end_event) / count

    def warm_up(self, call: Callable[[], object]) -> int:
        """Call once or twice; how many calls a measurement takes, so that launches do not rule that of a GPU."""
        if self.seconds(call) > LONG or not self.cuda:
            return 1
        return max(1, min(MOST_CALLS, math.ceil(SPAN / max(self.seconds(call), 1e-9))))


HOST = Target(torch.device("cpu"))
SPAN, MOST_CALLS, LONG = 2e-3, 50, 0.2
"""Seconds that a measurement on a GPU takes; the calls it may take for that; seconds of a first call above which a
measurement is one call.
"""


def machine(target: Target = HOST) -> dict[str, object]:
    """What a figure was measured on. Where there is no repository, REAPX_COMMIT says the commit."""
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
        **(_gpu(target) if target.cuda else {}),
        "commit": _printed("git", "rev-parse", "--short", "HEAD") or os.environ.get("REAPX_COMMIT", ""),
        "dirty": bool(_printed("git", "status", "--porcelain", "--", "csrc", "reapx")),
    }


def _gpu(target: Target) -> dict[str, object]:
    properties = torch.cuda.get_device_properties(target.device)
    return {
        "gpu": target.name,
        "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
        "driver": _printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
    }


def _printed(*words: str) -> str:
    """What a program prints; nothing where it fails or is missing."""
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def parser(text: str, quick: str) -> argparse.ArgumentParser:
    """The options of a benchmark on real networks: ``--quick``, whose help is ``quick``, ``--device``, ``--json``."""
    found = argparse.ArgumentParser(description=text.splitlines()[0])
    found.add_argument("--quick", action="store_true", help=f"{quick}; nothing is written")
    add_device(found)
    found.add_argument("--json", type=Path)
    return found


def add_device(found: argparse.ArgumentParser) -> None:
    """The option ``--device``, for :meth:`Target.of`."""
    found.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="results of cuda are kept apart")


class Deadline:
    """When a command has to be over, where one that is cut off would lose its work."""

    def __init__(self, minutes: float | None) -> None:
        self._end = math.inf if minutes is None else time.perf_counter() + 60 * minutes

    def allows(self, seconds: float) -> bool:
        """Whether so much more work ends in time."""
        return time.perf_counter() + seconds < self._end


def add_training(found: argparse.ArgumentParser) -> None:
    """The options ``--device`` and ``--minutes`` of a long training."""
    add_device(found)
    found.add_argument("--minutes", type=float, help="end in so many, state saved, with what is left to be done later")


def peak_memory(target: Target) -> PeakMemory | DeviceMemory:
    """What watches the memory that a benchmark's tensors are in."""
    return DeviceMemory(target) if target.cuda else PeakMemory()


class DeviceMemory:
    """Context whose ``bytes`` is the most that torch's tensors take on a GPU inside it, above that at its start.

    The kernels' own scratch is not in it.
    """

    def __init__(self, target: Target) -> None:
        self._device = target.device

    def __enter__(self) -> DeviceMemory:
        torch.cuda.reset_peak_memory_stats(self._device)
        self._start = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = torch.cuda.max_memory_allocated(self._device) - self._start


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


def interleaved(calls: Sequence[Callable[[], object]], rounds: int = 7, target: Target = HOST) -> list[float]:
    """Median seconds of each call, timed in turn so that a drift of the machine hits all alike."""
    times: list[list[float]] = [[] for _ in calls]
    counts = [target.warm_up(call) for call in calls]
    for _ in range(rounds):
        for own, call, count in zip(times, calls, counts, strict=True):
            own.append(target.seconds(call, count))
    return [median(own) for own in times]


def known_rows(path: Path) -> list[dict[str, object]]:
    """Rows that an earlier run has written."""
    rows: list[dict[str, object]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    return rows


def write(
    stem: str, rows: list[dict[str, object]], path: Path | None = None, target: Target = HOST, **more: object
) -> None:
    """Write rows with the machine, and more, to a path, or to ``benchmarks/results/<stem>.json``, <stem>_cuda.json."""
    found = RESULTS / f"{stem}{'_cuda' if target.cuda else ''}.json" if path is None else path
    found.parent.mkdir(parents=True, exist_ok=True)
    found.write_text(json.dumps({"machine": machine(target), **more, "rows": rows}, indent=1) + "\n")
    print(f"wrote {found.relative_to(ROOT) if found.is_relative_to(ROOT) else found}")
