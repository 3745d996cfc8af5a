"""Tensors in memory up to a limit, then on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files.whole_files import cure_of


class TensorStore:
    """Tensors by key; tensors that exceed ``limit`` bytes of memory are written to a temporary folder.

    The first tensors stay in memory and later ones go to disk. This suits callers that read all tensors repeatedly in
    the same order. The folder is deleted together with the store.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._memory: dict[object, Tensor] = {}
        self._files: dict[object, tuple[Path, torch.dtype, torch.Size, bool, torch.device]] = {}
        self._used = 0
        self._count = 0
        self._folder: Path | None = None

    def put(self, key: object, value: Tensor) -> None:
        """Store a tensor in place of an earlier one under the same key."""
        self.drop(key)
        if self._used + value.nbytes <= self.limit:
            self._memory[key] = value
            self._used += value.nbytes
            return
        self._count += 1
        last = value.dim() == 4 and not value.is_contiguous()
        flat = value.permute(0, 2, 3, 1).contiguous() if last else value.contiguous()
        path = self._write(flat.cpu().reshape(-1).view(torch.uint8))
        self._files[key] = (path, value.dtype, flat.shape, last, value.device)

    def _write(self, data: Tensor) -> Path:
        """Put bytes into a new file of the temporary folder, which is made if need be."""
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="reapx-"))
                self._clean = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            path = self._folder / f"{self._count}.bin"
            path.write_bytes(data.numpy().data)
        except OSError as error:
            if self._folder is not None:
                (self._folder / f"{self._count}.bin").unlink(missing_ok=True)
            raise InputError(
                f"what exceeds memory={self.limit:.0f} bytes cannot be written to a temporary folder ({error}): "
                f"{cure_of(error)}, set the environment's TMPDIR to another folder, or raise memory"
            ) from error
        return path

    def get(self, key: object) -> Tensor:
        """The tensor under a key, on the device and in the memory format in which it was stored."""
        if key in self._memory:
            return self._memory[key]
        path, dtype, shape, last, device = self._files[key]
        try:
            data = torch.from_numpy(np.fromfile(path, np.uint8))
        except OSError as error:
            raise InputError(f"{path} is gone ({error}): leave reapx's temporary folder alone") from error
        if len(data) != shape.numel() * dtype.itemsize:
            raise InputError(f"{path} was cut short: leave reapx's temporary folder alone")
        value = data.view(dtype).reshape(shape).to(device)
        return value.permute(0, 3, 1, 2) if last else value

    def drop(self, key: object) -> None:
        """Remove a key and its tensor; unknown keys are ignored."""
        value = self._memory.pop(key, None)
        if value is not None:
            self._used -= value.nbytes
        entry = self._files.pop(key, None)
        if entry is not None:
            entry[0].unlink(missing_ok=True)

    def close(self) -> None:
        """Free all tensors and delete the folder."""
        self._memory.clear()
        self._files.clear()
        self._used = 0
        if self._folder is not None:
            self._clean()
            self._folder = None
