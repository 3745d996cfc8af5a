"""What a GPU can do at most, measured by what torch's libraries reach: the counterpart of ``peak.cpp``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timing import Target
from torch import Tensor

SIDE, ELEMENTS = 8192, 1 << 29
"""Of the matrices, and of the vectors of float32 that are copied and read."""
ROUNDS = 5


def measure(target: Target, quick: bool) -> dict[str, float]:
    """The attributes of a ``Peak``, the best of a few rounds each; TF32 is on for its own figure only."""
    side, elements = (64, 1 << 10) if quick else (SIDE, ELEMENTS)

    def product(dtype: torch.dtype) -> float:
        left, right = (torch.randn(side, side, device=target.device).to(dtype) for _ in range(2))
        out = torch.empty(side, side, dtype=dtype, device=target.device)
        return 2e-9 * side**3 / _best(target, lambda: torch.mm(left, right, out=out))

    float32, float64, bfloat16 = (product(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16))
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        tf32 = product(torch.float32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    copy, read = _bandwidth(target, torch.randn(elements, device=target.device))
    return {"float32": float32, "float64": float64, "copy": copy, "read": read, "tf32": tf32, "bfloat16": bfloat16}


def _bandwidth(target: Target, values: Tensor) -> tuple[float, float]:
    """GB/s of a copy (bytes read plus written) and of the fastest reduction there is (bytes read)."""
    other = torch.empty_like(values)
    size = 4e-9 * len(values)
    reductions = (values.sum, values.amax, lambda: torch.dot(values, values))
    return 2 * size / _best(target, lambda: other.copy_(values)), max(size / _best(target, call) for call in reductions)


def _best(target: Target, call: Callable[[], object]) -> float:
    count = target.warm_up(call)
    return min(target.seconds(call, count) for _ in range(ROUNDS))
