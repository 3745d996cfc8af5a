"""Files that are complete or absent, folders that one process uses at a time, and cures for failed writes."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from ..errors import InputError

LOCK = ".lock"
_PART = ".part"


def path_of(value: object, name: str = "folder") -> Path:
    """A path that the user gave.

    Raises:
        InputError: it is no path, or an empty one, which would be the current folder.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str) or os.fspath(value) == "":
        raise InputError(f"{name}={value!r}: give a path")
    return Path(value)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new file to write, which replaces ``path`` once the block has ended and the file is on the disk.

    At any time, ``path`` is either the earlier file or the complete new one. The new file has a unique name, so neither
    another process nor a link can redirect what is written.

    Raises:
        OSError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_PART}")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, if its file system supports that."""
    near = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(near)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(near)


def remove_parts(folder: Path) -> None:
    """Delete incomplete files of a killed process; the caller must have claimed the folder."""
    for part in folder.glob(f".*{_PART}"):
        with suppress(OSError):
            part.unlink()


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, if they do not exist.

    Raises:
        InputError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made a folder ({error}): give another one") from error


_claims: dict[tuple[int, int, int], list[int]] = {}
"""Process, device and inode of a folder -> descriptor of its lock, and how many claims this process has on it."""
_claiming = Lock()


def claim(folder: Path) -> Callable[[], None]:
    """Claim a folder for this process, until the returned function is called for each claim or the process ends.

    The lock belongs to the process: forked workers do not hold it, and the process may claim the folder again.

    Raises:
        BlockingIOError: another process has claimed the folder.
        OSError: the folder cannot be written to.
    """
    place = folder.stat()
    key = (os.getpid(), place.st_dev, place.st_ino)

    def release() -> None:
        with _claiming:
            _claims[key][1] -= 1
            if _claims[key][1] == 0:
                os.close(_claims.pop(key)[0])

    with _claiming:
        if key not in _claims:  # a second descriptor would end the lock when it is closed
            _claims[key] = [_locked(folder / LOCK), 0]
        _claims[key][1] += 1
    return release


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            raise BlockingIOError(*error.args) from error
        # Without locks in this file system, two processes still do no harm, since no two write into one file.
    return descriptor


@contextmanager
def undisturbed(folder: Path, *, writing: bool) -> Iterator[None]:
    """Lock a folder for reading, or, to write, against all other readers and writers; waits for the lock.

    Raises:
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX if writing else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


_CURES = {
    "make room": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "make it writable": (errno.EACCES, errno.EPERM, errno.EROFS),
    "something else removed it meanwhile: let nothing else use the folder": (errno.ENOENT, errno.ESTALE),
}


def cure_of(error: Exception) -> str:
    """The cure for a file that could not be written, from an error of the system or of safetensors."""
    number = getattr(error, "errno", None)
    if number is None:
        found = re.search(r"os error (\d+)", str(error))
        number = None if found is None else int(found[1])
    return next((cure for cure, numbers in _CURES.items() if number in numbers), "make sure that the disk works")
