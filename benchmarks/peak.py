"""What this machine can do at most, measured: the yardstick of the kernels."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from timing import ROOT

SOURCE = Path(__file__).with_name("peak.cpp")


@dataclass(frozen=True)
class Amount:
    """Work that has to be done: GFLOP in float32 and float64 (a multiply-add is two), GB read and written."""

    float32: float = 0.0
    float64: float = 0.0
    copy: float = 0.0


@dataclass(frozen=True)
class Peak(Amount):
    """What the machine does in a second: fused multiply-adds, a large copy (bytes read plus written), and a large sum
    (bytes read).
    """

    read: float = 0.0

    def seconds(self, amount: Amount) -> float:
        """The least time that this much work takes."""
        return amount.float32 / self.float32 + amount.float64 / self.float64 + amount.copy / self.copy

    def or_more(self, other: Peak) -> Peak:
        """The larger of two looks: on a shared machine one may come at a bad moment."""
        return Peak(
            max(self.float32, other.float32),
            max(self.float64, other.float64),
            max(self.copy, other.copy),
            max(self.read, other.read),
        )


def measure(threads: int) -> Peak:
    """Run ``peak.cpp``, compiled for this machine.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    done = subprocess.run([str(_program()), str(threads)], check=True, capture_output=True, text=True)
    return Peak(**json.loads(done.stdout))


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
