"""What a GPU is asked for while networks are run, so that it computes what the CPU would, and the same each time."""

from __future__ import annotations

from contextlib import ContextDecorator
from types import TracebackType
from typing import Any

import torch


class exact(ContextDecorator):
    """Within it, float32 products on a GPU are not rounded to TF32, and algorithms are deterministic.

    TF32 keeps 11 bits of what is multiplied. torch takes it for convolutions unless told otherwise; what least squares
    are fitted to would then be off by 1e-3, and a proof in float32 would fail.
    """

    def __enter__(self) -> None:
        backends: Any = torch.backends
        # Since torch 2.9, a word for each operator, its own or inherited; before it, only switches.
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
        except RuntimeError:  # the user chose by words: beside some, the switches cannot be read
            pass
        for setting, _ in self._words:
            if setting.fp32_precision == "tf32":
                setting.fp32_precision = "ieee"

    def _switch(self, name: str, value: object) -> None:
        cudnn = torch.backends.cudnn
        self._found.append((name, getattr(cudnn, name)))
        setattr(cudnn, name, value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, value in self._found:
            setattr(torch.backends.cudnn, name, value)
        if self._products is not None and self._products != "highest":
            torch.set_float32_matmul_precision(self._products)
        for setting, word in self._words:
            if setting.fp32_precision != word:
                setting.fp32_precision = word

    def _recreate_cm(self) -> exact:
        return exact()  # one for each call: they nest
