"""What this machine can do at most, measured: the yardstick of the kernels."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from timing import ROOT

SOURCE = Path(__file__).with_name("peak.cpp")


@dataclass(frozen=True)
class Peak:
    """Fused multiply-adds in GFLOP/s (two operations each) and a large copy in GB/s (read plus written)."""

    float32: float
    float64: float
    copy: float


def measure(threads: int) -> Peak:
    """Compile ``peak.cpp`` for this machine and run it.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("the peak is measured by a small C++ program: install a C++ compiler")
    program = ROOT / "build" / "peak"
    program.parent.mkdir(exist_ok=True)
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-std=c++20", "-pthread"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(program)], check=True)
    done = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True)
    return Peak(**json.loads(done.stdout))
