"""Folders with a page of JSON and a file of tensors, which are saved as a whole and checked to the bit.

The page names the file of tensors by its SHA-256 and closes with a checksum of its own. To replace what a folder holds,
the new tensors are written beside the old ones. Then the page is replaced, which makes the new ones count, and last
they take the place of the old ones. Whenever it is killed, the folder holds what it held, or what it was to hold.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from ..errors import CheckpointError, InputError
from .whole_files import cure_of, make_folder, remove_parts, sync_folder, undisturbed, whole_file

Parsed = TypeVar("Parsed")

DAMAGES = (ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError, ValueError)
"""What reading a damaged page may raise."""

_CHUNK = 2**22
_CHECKSUM = "digest"


@dataclass(frozen=True)
class SealedFolder:
    """The names in such a folder.

    Attributes:
        page: File of JSON.
        tensors: File of tensors.
        key: Entry of the page with the SHA-256 of that file; a page without it, of an earlier format, takes any file.
        writer: What saves such folders, for errors.
    """

    page: str
    tensors: str
    key: str
    writer: str

    def check_target(self, folder: Path, overwrite: bool) -> None:
        """Refuse a place where nothing can be saved.

        Raises:
            InputError: it is a file, or holds something that is not to be overwritten.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: give a folder")
        found = [name for name in (self.page, self.tensors) if os.path.lexists(folder / name)]
        if found and not overwrite:
            raise InputError(
                f"{folder} has a {found[0]} already: give another folder, or replace it with overwrite=True (--force)"
            )

    def write(self, folder: Path, page: Mapping[str, Any], tensors: bytes, *, overwrite: bool) -> None:
        """Save a page and tensors in a folder, which is made if need be.

        Raises:
            InputError: see :meth:`check_target`; or the folder cannot be made.
            CheckpointError: the files cannot be written; what the folder held can still be loaded.
        """
        self.check_target(folder, overwrite)
        text = sealed({**page, self.key: hashlib.sha256(tensors).hexdigest()})
        make_folder(folder)
        try:
            with undisturbed(folder, writing=True):
                self.check_target(folder, overwrite)
                remove_parts(folder)
                self._settle(folder)
                try:
                    with whole_file(self._new(folder)) as part:
                        part.write_bytes(tensors)
                    with whole_file(folder / self.page) as part:
                        part.write_text(text, encoding="utf-8")
                finally:
                    self._settle(folder)
        except OSError as error:
            raise CheckpointError(
                f"{folder} cannot be written ({error}): {cure_of(error)}, or give another folder"
            ) from error

    def read(
        self, folder: Path, parse: Callable[[dict[str, Any]], Parsed], load: Callable[[Path], Mapping[str, Any]]
    ) -> tuple[Parsed, dict[str, Any]]:
        """What ``parse`` makes of the page, and ``load`` of the file of tensors.

        Args:
            folder: What :meth:`write` wrote.
            parse: Gets the page; NotImplementedError says that its format is unknown, what else it raises that it is
                damaged. It may look at ``"format"`` first, and then call :func:`check_sealed`.
            load: Gets the path of the tensors.

        Raises:
            CheckpointError: a file is missing, damaged, or of another folder.
        """
        if not (folder / self.page).is_file():
            raise CheckpointError(f"{folder} has no {self.page}: give the folder that {self.writer} wrote")
        with _says_damage(folder / self.page), undisturbed(folder, writing=False):
            text = (folder / self.page).read_bytes().decode()
            page = json.loads(text)
            found = parse(page)
            body = {key: value for key, value in page.items() if key != _CHECKSUM}
            if {self.key, _CHECKSUM} & page.keys() and sealed(body) != text:
                raise ValueError("its checksum is wrong")
            place = self._tensors_of(folder, page.get(self.key))
            with _says_damage(place):
                return found, dict(load(place))

    def _new(self, folder: Path) -> Path:
        return folder / f"{self.tensors}.new"

    def _settle(self, folder: Path) -> None:
        """Let new tensors take the place of the old ones if the page names them; else they go."""
        new = self._new(folder)
        if not new.is_file():
            return
        if (folder / self.page).is_file() and _digest(new) == self._named(folder):
            os.replace(new, folder / self.tensors)
            sync_folder(folder)
        else:
            new.unlink()

    def _named(self, folder: Path) -> object:
        try:
            return json.loads((folder / self.page).read_bytes()).get(self.key)
        except DAMAGES:
            return None

    def _tensors_of(self, folder: Path, digest: object) -> Path:
        """The file of tensors that goes with a page."""
        places = [place for place in (folder / self.tensors, self._new(folder)) if place.is_file()]
        if digest is None:
            places = [place for place in places if place.name == self.tensors]
        if not places:
            raise CheckpointError(f"{folder} has no {self.tensors}: give the folder that {self.writer} wrote")
        for place in places:
            if digest is None or _digest(place) == digest:
                return place
        raise CheckpointError(
            f"{folder / self.tensors} is damaged or truncated, or belongs to another {self.page} (its checksum is "
            "wrong): save it again"
        )


def sealed(page: Mapping[str, Any]) -> str:
    """JSON of a page, closed by a checksum of all that stands above it."""
    digest = hashlib.sha256(json.dumps(page, indent=1).encode()).hexdigest()
    return json.dumps({**page, _CHECKSUM: digest}, indent=1) + "\n"


@contextmanager
def _says_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        raise CheckpointError(f"{path} has {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): make it readable") from error
    except (SafetensorError, *DAMAGES) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path} is damaged or truncated ({reason}): save it again") from error


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
