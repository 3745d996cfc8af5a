"""The kernels as tests call them, on every back end there is.

``CORES`` has the CPU's instruction sets; "emulated" and "emulated-backward", the CUDA kernels on an emulated device
with both orders of threads, where the module ``reapx_emulated`` is built (``tests/emulated/``); "cuda", where
REAPX_TEST_DEVICES names it. For the last one a call copies its tensors to the GPU, and its results back.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reapx import _native
from reapx._native.boundary import BACK_ENDS, BackEnd

DEVICES = [n.strip() for n in os.environ.get("REAPX_TEST_DEVICES", "cpu").split(",") if n.strip()]
EMULATED = ["emulated", "emulated-backward"] if importlib.util.find_spec("reapx_emulated") else []
CORES = [*_native.cores(), *EMULATED, *(["cuda"] if "cuda" in DEVICES else [])]


def emulated(stream: int) -> BackEnd:
    """The CUDA kernels compiled for the CPU; the stream says in which order the emulated threads run."""
    return BackEnd(
        name="emulated CUDA",
        module="reapx_emulated",
        where=lambda device, core: (0, stream),
        cure="'make emulated' builds it",
    )


BACK_ENDS["cpu", "emulated"] = emulated(0)  # the first thread begins
BACK_ENDS["cpu", "emulated-backward"] = emulated(1)  # the last thread begins


def _moved(value: Any, device: str, moved: dict[int, tuple[Tensor, Tensor]]) -> Any:
    if isinstance(value, Tensor):
        return moved.setdefault(id(value), (value, value.detach().to(device)))[1]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _moved(getattr(value, f.name), device, moved) for f in fields(value)})
    if isinstance(value, dict):
        return {key: _moved(item, device, moved) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device, moved) for item in value)
    return value


def _everywhere(kernel: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(kernel)
    def call(*arguments: Any, core: str = "", **options: Any) -> Any:
        if core != "cuda":
            return kernel(*arguments, core=core, **options)
        moved: dict[int, tuple[Tensor, Tensor]] = {}
        result = kernel(*_moved(arguments, core, moved), **_moved(options, core, moved))
        with torch.no_grad():
            for own, copy in moved.values():
                own.copy_(copy)
        return _moved(result, "cpu", {})

    return call


gram_accumulate = _everywhere(_native.gram_accumulate)
gram_mirror = _everywhere(_native.gram_mirror)
basis_compute = _everywhere(_native.basis_compute)
path_eliminate = _everywhere(_native.path_eliminate)
path_weights = _everywhere(_native.path_weights)
batch_solve = _everywhere(_native.batch_solve)
pair_scan = _everywhere(_native.pair_scan)
zero_scan = _everywhere(_native.zero_scan)
