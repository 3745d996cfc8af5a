"""Modes of torch while networks are run: full float32, deterministic algorithms, and none that surround the call."""

from __future__ import annotations

import threading
from contextlib import ContextDecorator, nullcontext
from types import TracebackType
from typing import Any

import torch


class exact(ContextDecorator):
    """Context in which float32 products on a GPU are not rounded to TF32, and cuDNN's algorithms are deterministic.

    TF32 keeps 11 bits of each factor, and torch uses it for convolutions by default. The targets of least squares would
    then be off by 1e-3, and a proof in float32 would fail.

    The settings are those of the whole process: the first context sets them and the last one, in whatever thread, sets
    them back.
    """

    _lock = threading.Lock()
    _contexts = 0
    _settings: _Settings

    def __enter__(self) -> None:
        with exact._lock:
            if exact._contexts == 0:
                exact._settings = _Settings()
            exact._contexts += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with exact._lock:
            exact._contexts -= 1
            if exact._contexts == 0:
                exact._settings.restore()


class _Settings:
    """What is set while networks are run, and what was set before."""

    def __init__(self) -> None:
        backends: Any = torch.backends
        # Since torch 2.9 each operator has a word for its precision, its own or inherited. Before, there are switches.
        settings: list[Any] = [getattr(backends.cudnn, name, None) for name in ("conv", "rnn")] + [backends.cuda.matmul]
        self._words: list[tuple[Any, str]] = [(x, x.fp32_precision) for x in settings if hasattr(x, "fp32_precision")]
        self._found: list[tuple[str, object]] = []
        self._products: str | None = None
        self._switch("deterministic", True)
        self._switch("benchmark", False)
        try:
            self._switch("allow_tf32", False)
            self._products = torch.get_float32_matmul_precision()
            if self._products != "highest":
                torch.set_float32_matmul_precision("highest")
        except RuntimeError:  # the user set words that the switches cannot express
            pass
        for setting, _ in self._words:
            if setting.fp32_precision == "tf32":
                setting.fp32_precision = "ieee"

    def _switch(self, name: str, value: object) -> None:
        cudnn = torch.backends.cudnn
        self._found.append((name, getattr(cudnn, name)))
        setattr(cudnn, name, value)

    def restore(self) -> None:
        """Set back what was found."""
        for name, value in self._found:
            setattr(torch.backends.cudnn, name, value)
        if self._products is not None and self._products != "highest":
            torch.set_float32_matmul_precision(self._products)
        for setting, word in self._words:
            if setting.fp32_precision != word:
                setting.fp32_precision = word


class plain_mode(ContextDecorator):
    """Context in which the caller's autocast and inference mode do not reach.

    Within autocast the same network would give other sums, and within inference mode parameters that cannot be trained.
    Both are modes of a thread.
    """

    _inference: torch.inference_mode | nullcontext[None]

    def __enter__(self) -> None:
        self._autocast = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
        for device in self._autocast:
            torch.set_autocast_enabled(device, False)
        self._inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
        self._inference.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inference.__exit__(kind, error, trace)
        for device in self._autocast:
            torch.set_autocast_enabled(device, True)

    def _recreate_cm(self) -> plain_mode:
        return plain_mode()  # a new context for each call, since calls nest
