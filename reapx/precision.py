"""What a GPU is asked for while networks are run, so that it computes what the CPU would, and the same each time."""

from __future__ import annotations

from contextlib import ContextDecorator
from types import TracebackType
from typing import Any

import torch

_NEW = hasattr(torch.backends.cudnn, "conv")
"""Since torch 2.9 a precision is a word; reading the old switches beside it raises."""


def _switches() -> list[tuple[Any, str, object]]:
    """Where each setting is, its name, and the value that is wanted."""
    backends, cudnn = torch.backends, torch.backends.cudnn
    exact: list[tuple[Any, str, object]] = [(cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    if _NEW:
        return [*exact, *((op, "fp32_precision", "ieee") for op in (cudnn.conv, backends.cuda.matmul))]  # type: ignore[attr-defined]
    return [*exact, (cudnn, "allow_tf32", False), (backends.cuda.matmul, "allow_tf32", False)]


class exact(ContextDecorator):
    """Within it, float32 products on a GPU are not rounded to TF32, and algorithms are deterministic.

    TF32 keeps 11 bits of what is multiplied. torch takes it for convolutions unless told otherwise; what least squares
    are fitted to would then be off by 1e-3, and a proof in float32 would fail.
    """

    def __enter__(self) -> None:
        self._found = [(place, name, getattr(place, name)) for place, name, _ in _switches()]
        for place, name, value in _switches():
            setattr(place, name, value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place, name, value in self._found:
            setattr(place, name, value)

    def _recreate_cm(self) -> exact:
        return exact()  # one for each call: they nest
