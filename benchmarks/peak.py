"""What this machine can do at most, measured: the yardstick of the kernels."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict, astuple, dataclass
from functools import cache
from pathlib import Path

from timing import ROOT, Target

SOURCE = Path(__file__).with_name("peak.cpp")


@dataclass(frozen=True)
class Amount:
    """Work that has to be done: GFLOP in float32 and float64 (a multiply-add is two), GB read and written."""

    float32: float = 0.0
    float64: float = 0.0
    copy: float = 0.0


@dataclass(frozen=True)
class Peak(Amount):
    """What the machine does in a second: multiply-adds, a large copy (bytes read plus written), and a large sum
    (bytes read); on a GPU, matrix products on the tensor cores, too.
    """

    read: float = 0.0
    tf32: float = 0.0
    bfloat16: float = 0.0

    def seconds(self, amount: Amount) -> float:
        """The least time that this much work takes."""
        return amount.float32 / self.float32 + amount.float64 / self.float64 + amount.copy / self.copy

    def or_more(self, other: Peak) -> Peak:
        """The larger of two looks: on a shared machine one may come at a bad moment."""
        return Peak(*map(max, astuple(self), astuple(other)))

    def as_dict(self) -> dict[str, float]:
        """What was measured."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items() if value}

    def __str__(self) -> str:
        cores = f"tensor cores {self.tf32:.0f} TF32, {self.bfloat16:.0f} bfloat16; " if self.tf32 else ""
        return (
            f"peak {self.float32:.0f} GFLOP/s float32, {self.float64:.0f} float64; {cores}"
            f"copy {self.copy:.1f} GB/s, read {self.read:.1f}"
        )


def measure(target: Target, quick: bool) -> Peak:
    """By ``peak.cpp``, compiled for this machine, or on a GPU by torch; once on each number of threads if ``quick``.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    if target.cuda:
        import peak_cuda

        return Peak(**peak_cuda.measure(target, quick))
    return (_once if quick else _by_program)(target.threads)


def _by_program(threads: int) -> Peak:
    done = subprocess.run([str(_program()), str(threads)], check=True, capture_output=True, text=True)
    return Peak(**json.loads(done.stdout))


_once = cache(_by_program)


@cache
def _program() -> Path:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("the peak is measured by a small C++ program: install a C++ compiler")
    program = ROOT / "build" / "peak"
    program.parent.mkdir(exist_ok=True)
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-std=c++20", "-pthread"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(program)], check=True)
    return program
