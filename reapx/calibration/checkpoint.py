"""Checkpoints: accumulated tensors and measured values, stored while they are measured, so that a call can resume."""

from __future__ import annotations

import hashlib
import json
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..files.whole_files import claim, cure_of, make_folder, remove_parts, whole_file
from .images import Images

INTERVAL = 10.0
"""Seconds between two stores of an incomplete result."""

FORMAT = 1
KEY = "key"
_DIGESTS = {"model": "the model's tensors differ", "images": "the images differ"}


class Checkpoint:
    """A folder of results from which the same call resumes after it was interrupted; for one process at a time.

    A file is complete or absent: it is written beside its final path, then moved over the earlier version.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, object], interval: float = INTERVAL) -> None:
        """Open a folder; it is created if it does not exist.

        Args:
            folder: Folder of the results.
            key: JSON values that must be equal for stored results to be reused; see :func:`fingerprint`.
            interval: Seconds between two stores of an incomplete result.

        Raises:
            InputError: the folder's results were measured with another key, or the path cannot be made a folder.
            CheckpointError: the folder's key file is damaged or cannot be written.
        """
        self.folder = Path(folder)
        self.interval = interval
        self._next = time.monotonic() + interval
        own: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **key}))
        self._digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
        make_folder(self.folder)
        self._claim()
        found = self._read_page(KEY, own=False)
        if found is None:
            self._write_page(KEY, own)
        elif found != own:
            names = [
                name for name in {**own, **found} if name not in own or name not in found or own[name] != found[name]
            ]
            raise InputError(
                f"{self.folder} cannot be resumed: {'; '.join(_difference(name, own, found) for name in names)}. "
                "Give another folder, or delete this one to start anew"
            )

    def tensors(self, name: str) -> tuple[int, dict[str, Tensor]]:
        """The number of finished batches and the tensors stored under a name; (0, {}) if nothing is stored.

        Raises:
            CheckpointError: the file is damaged, or was stored with another key.
        """
        path = self._path(name, "safetensors")
        if not path.exists():
            return 0, {}
        try:
            with safe_open(path, "pt") as file:
                head = file.metadata()
                found = {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118  # not a dict
            batches, digest, check = int(head["batches"]), head["key"], int(head["check"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        if check != _check(batches, found):
            raise _damaged(path, "its checksum is wrong")
        self._own(path, digest)
        return batches, found

    def keep_tensors(self, name: str, batches: int, tensors: Mapping[str, Tensor], last: bool) -> None:
        """Store tensors under a name in place of earlier ones, if the interval has passed or they are complete.

        Args:
            name: File name without suffix.
            batches: Number of batches that the tensors are accumulated over.
            tensors: Contiguous tensors that share no memory.
            last: Whether they are complete; complete tensors are stored at once.

        Raises:
            CheckpointError: the file cannot be written.
        """
        if self._due(last):
            near = {key: value.cpu() for key, value in tensors.items()}
            head = {"batches": str(batches), "key": self._digest, "check": str(_check(batches, near))}
            self._write(self._path(name, "safetensors"), lambda part: save_file(near, part, head))

    def restore(self, name: str, tensors: Mapping[str, Tensor]) -> int:
        """Copy the stored tensors into ``tensors``, if names, shapes and dtypes are the same.

        Args:
            name: File name without suffix.
            tensors: Overwritten in place.

        Returns:
            Number of finished batches; 0 where nothing fits, and ``tensors`` is then unchanged.

        Raises:
            CheckpointError: the file is damaged, or was stored with another key.
        """
        batches, found = self.tensors(name)
        if {part: (value.shape, value.dtype) for part, value in found.items()} != {
            part: (value.shape, value.dtype) for part, value in tensors.items()
        }:
            return 0
        for part, value in tensors.items():
            value.copy_(found[part])
        return batches

    def values(self, name: str) -> dict[str, Any] | None:
        """The JSON object stored under a name; None if nothing is stored.

        Raises:
            CheckpointError: the file is damaged, or was stored with another key.
        """
        return self._read_page(name)

    def keep_values(self, name: str, page: Mapping[str, object], last: bool) -> None:
        """Store a JSON object under a name; ``last`` is as for :meth:`keep_tensors`.

        Raises:
            CheckpointError: the file cannot be written.
            ValueError: the name is that of the checkpoint's key file.
        """
        if name == KEY:
            raise ValueError(f"{KEY!r} is the name of the checkpoint's own page")
        if self._due(last):
            self._write_page(name, page)

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name}.{ending}"

    def _read_page(self, name: str, own: bool = True) -> dict[str, Any] | None:
        """A stored JSON object, or None; ``own`` says whether it must have been stored with this checkpoint's key."""
        path = self._path(name, "json")
        if not path.exists():
            return None
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            page: dict[str, Any] = dict(stored["page"])
            digest, check = stored["key"], stored["check"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(path, error) from error
        if check != zlib.crc32(json.dumps(page).encode()):
            raise _damaged(path, "its checksum is wrong")
        if own:
            self._own(path, digest)
        return page

    def _write_page(self, name: str, page: Mapping[str, object]) -> None:
        plain = json.loads(json.dumps(page))  # the checksum is taken over the values as JSON reads them back
        stored = {"key": self._digest, "check": zlib.crc32(json.dumps(plain).encode()), "page": plain}
        text = json.dumps(stored, indent=1) + "\n"
        self._write(self._path(name, "json"), lambda part: part.write_text(text, encoding="utf-8"))

    def _own(self, path: Path, digest: str) -> None:
        if digest != self._digest:
            raise CheckpointError(f"{path} was stored by another call: delete it to measure it anew")

    def _due(self, last: bool) -> bool:
        return last or time.monotonic() >= self._next

    def _claim(self) -> None:
        """Take the folder for this process, as long as this object lives, and clear what a kill left half written."""
        try:
            weakref.finalize(self, claim(self.folder))
        except BlockingIOError as error:
            raise InputError(
                f"{self.folder} is in use by another process: wait for it, or give each process a folder of its own"
            ) from error
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        remove_parts(self.folder)

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        """Let ``write`` make a file, which takes the place of ``path`` once it is on the disk."""
        start = time.monotonic()
        try:
            with whole_file(path) as part:
                write(part)
        except (SafetensorError, OSError) as error:
            raise _unwritable(path, error) from error
        end = time.monotonic()
        # Where a store takes long, the next one waits in proportion, so that most of the time goes into measuring.
        self._next = end + self.interval * max(1.0, end - start)


def fingerprint(graph_tensors: Mapping[str, Tensor], images: Images) -> dict[str, str]:
    """SHA-256 of a network's tensors, in the order of their names, and of all images.

    Args:
        graph_tensors: ``Graph.tensors``. The network's operators do not enter the digest.
        images: Calibration images of all processes. Names, shapes, dtypes, values and the division into batches enter
            the digest.

    Returns:
        ``{"model": digest, "images": digest}``, entries for a :class:`Checkpoint`'s key.
    """
    data = hashlib.sha256(images.layout.key().encode())
    for batch in images:
        for part in _bytes({str(index): value for index, value in enumerate(batch)}):
            data.update(part)
    found = images.processes.gather(data.hexdigest())
    whole = found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()
    return {"model": digest_of(graph_tensors), "images": whole}


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors, including their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for part in _bytes(tensors):
        digest.update(part)
    return digest.hexdigest()


def _bytes(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """For each tensor, in the order of their names: name, dtype and shape, then the values."""
    for name in sorted(tensors):
        value = tensors[name].detach()
        yield f"{name} {value.dtype} {tuple(value.shape)}\n".encode()
        yield value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _check(batches: int, tensors: Mapping[str, Tensor]) -> int:
    check = zlib.crc32(str(batches).encode())
    for part in _bytes(tensors):
        check = zlib.crc32(part, check)
    return check


def _difference(name: str, own: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if name in _DIGESTS:
        return f"{_DIGESTS[name]} from those that it was measured on"
    return f"{name} is {own.get(name)!r}, it was measured with {found.get(name)!r}"


def _unwritable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be written ({error}): {cure_of(error)}, or give another folder")


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or truncated ({reason}): delete it to measure it anew")
