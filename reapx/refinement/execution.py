"""How training runs quickest on this processor: in which precision, and in which layout of memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]

_REPEATS = 3
_CLEARLY = 0.9
"""A way has to take less than this share of the time of the plain one."""


@dataclass(frozen=True)
class Execution:
    """One way to run a network.

    Attributes:
        precision: ``"bfloat16"`` computes products in it, with weights and sums in float32.
        channels_last: Whether images and convolutions lie channels-last in memory.
    """

    precision: Precision = "float32"
    channels_last: bool = False

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def lay_out(self, model: nn.Module) -> nn.Module:
        """The model, whose convolutions now lie in this layout."""
        return model.to(memory_format=self.layout)  # type: ignore[call-overload, no-any-return]

    def inputs(self, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The values in this layout."""
        return tuple(x.to(memory_format=self.layout) if x.dim() == 4 else x for x in values)

    def casting(self, device: torch.device) -> AbstractContextManager[object]:
        """A block whose products are computed in this precision."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


def quickest(
    model: nn.Module,
    call: Callable[[nn.Module, tuple[Tensor, ...]], object],
    inputs: tuple[Tensor, ...],
    precision: Precision | None,
) -> Execution:
    """The way that runs a network quickest, measured on one batch.

    Args:
        model: Runs in eval mode, without gradients; its layout changes.
        call: Calls it.
        inputs: The batch.
        precision: None to measure; a given one is used as it is, channels-last, so that nothing depends on the clock.
    """
    lies_in_planes = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if precision is not None:
        return Execution(precision, lies_in_planes)
    words: tuple[Precision, ...] = ("float32", "bfloat16") if _has_bfloat16(inputs[0].device) else ("float32",)
    ways = [Execution(word, last) for word in words for last in ((False, True) if lies_in_planes else (False,))]
    times = {way: _seconds(model, call, way, inputs) for way in ways}
    plain = times[ways[0]]
    best = min(ways, key=times.__getitem__)
    return best if times[best] < _CLEARLY * plain else ways[0]


@torch.no_grad()
def _seconds(
    model: nn.Module,
    call: Callable[[nn.Module, tuple[Tensor, ...]], object],
    way: Execution,
    inputs: tuple[Tensor, ...],
) -> float:
    way.lay_out(model)
    inputs = way.inputs(inputs)
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        with way.casting(inputs[0].device):
            call(model, inputs)
        if inputs[0].device.type == "cuda":
            torch.cuda.synchronize(inputs[0].device)
        found.append(time.perf_counter() - start)
    return min(found)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 by itself; elsewhere it would be emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
