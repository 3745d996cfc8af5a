"""Saving and loading pruned networks: safetensors and JSON, never pickle.

A folder holds a result in two files; ``plan.json`` names the other by its SHA-256. To replace a result, the new weights
are written beside the old ones. Then ``plan.json`` is replaced, which makes the new weights valid, and at last they
replace the old file. If the process is killed at any time, the folder holds the old result or the new one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from ..calibration.files import cure_of, make_folder, remove_parts, sync_folder, undisturbed, whole_file
from ..capture.graph import tensors_of
from ..capture.precision import plain_mode
from ..errors import CheckpointError, InputError
from .cut import Kept
from .fitting import fitted, impossible_value
from .saved_page import Page, page_of, parse, text_of
from .transplant import transplant

PLAN, WEIGHTS = "plan.json", "weights.safetensors"
_NEW_WEIGHTS = f"{WEIGHTS}.new"
_CHUNK = 2**22


def check_target(folder: str | Path, overwrite: bool) -> None:
    """Refuse a path where a result cannot be saved.

    Raises:
        InputError: the path is a file, or a folder with a result that must not be overwritten.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: give a folder")
    found = [name for name in (PLAN, WEIGHTS) if os.path.lexists(target / name)]
    if found and not overwrite:
        raise InputError(
            f"{target} has a {found[0]} already: give another folder, or replace it with overwrite=True (--force)"
        )


def save(folder: str | Path, model: nn.Module, kept: Kept, text: str, *, overwrite: bool = False) -> None:
    """Write a pruned model's cuts and weights into a folder, which is created if it does not exist.

    ``plan.json`` holds, for every cut parameter, the positions that stay on each axis, counted in the first original if
    the network was cut several times. For every layer that a constant replaced, it holds the norm that was folded in.

    Raises:
        InputError: the folder already holds a result, or the model was changed after pruning and could not be loaded.
        CheckpointError: the files cannot be written; an earlier result can still be loaded.
    """
    target = Path(folder)
    check_target(target, overwrite)
    page = page_of(model, kept)
    names = {*model.state_dict(), *page.kept}  # not every buffer that is cut is in the state dict
    found = {name: value for name, value in tensors_of(model).items() if name in names}
    _check_unchanged(model, found, kept)
    tensors = {name: value.detach().cpu().contiguous() for name, value in found.items()}
    data = serialise(_unshared(tensors))
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    described = text_of(page, hashlib.sha256(data).hexdigest(), shapes, text)
    make_folder(target)
    try:
        with undisturbed(target, writing=True):
            check_target(target, overwrite)
            remove_parts(target)
            _settle(target)
            try:
                with whole_file(target / _NEW_WEIGHTS) as part:
                    part.write_bytes(data)
                with whole_file(target / PLAN) as part:
                    part.write_text(described, encoding="utf-8")
            finally:
                _settle(target)
    except OSError as error:
        raise CheckpointError(
            f"{target} cannot be written ({error}): {cure_of(error)}, or give another folder"
        ) from error


def _settle(folder: Path) -> None:
    """Replace the old weights by new ones if ``plan.json`` names the new ones; else delete the new ones."""
    new = folder / _NEW_WEIGHTS
    if not new.is_file():
        return
    if (folder / PLAN).is_file() and _digest(new) == _named(folder):
        os.replace(new, folder / WEIGHTS)
        sync_folder(folder)
    else:
        new.unlink()


def _named(folder: Path) -> str | None:
    try:
        return parse((folder / PLAN).read_bytes()).weights
    except (ValueError, NotImplementedError):
        return None


def _check_unchanged(model: nn.Module, tensors: dict[str, Tensor], kept: Kept) -> None:
    """Refuse a model that could not be loaded again."""
    for name, axes in kept.items():
        for axis, positions in axes.items():
            if name in tensors and tensors[name].shape[axis] != len(positions):
                raise InputError(
                    f"{name} has shape {list(tensors[name].shape)}, but {len(positions)} positions of axis {axis} were "
                    "left when the model was pruned: it was changed since. Save before, or save the later result"
                )
    bad = impossible_value(model, tensors)
    if bad is not None:
        raise InputError(f"{bad}, which reapx.load would refuse: save the model as it was before its training failed")


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory, since safetensors requires that each tensor owns its memory."""
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        result[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


@plain_mode()
def load(model: nn.Module, folder: str | Path) -> nn.Module:
    """Shrink a freshly built model to a saved one and load its weights.

    Args:
        model: The original architecture at its original widths, that of the first original if the saved network was
            pruned several times. It is changed in place once all checks have passed; its parameters remain the same
            objects.
        folder: Folder that ``Result.save`` wrote, in this version or an earlier one.

    Returns:
        The model.

    Raises:
        CheckpointError: a file is missing, damaged, or of another result or model, or holds values that no network can
            have; the model is unchanged.
    """
    page, tensors = _read(Path(folder))
    smaller = fitted(model, page, tensors, str(folder))
    transplant(model, smaller, {*tensors, *page.kept})
    return model


def _read(folder: Path) -> tuple[Page, dict[str, Tensor]]:
    if not (folder / PLAN).is_file():
        raise CheckpointError(f"{folder} has no {PLAN}: give the folder that Result.save wrote")
    with _says_damage(folder / PLAN), undisturbed(folder, writing=False):
        page = parse((folder / PLAN).read_bytes())
        weights = _weights(folder, page)
        with _says_damage(weights):
            return page, load_file(weights)


def _weights(folder: Path, page: Page) -> Path:
    """The file with the weights that belong to a page."""
    names = (WEIGHTS,) if page.weights is None else (WEIGHTS, _NEW_WEIGHTS)
    places = [folder / name for name in names if (folder / name).is_file()]
    if not places:
        raise CheckpointError(f"{folder} has no {WEIGHTS}: give the folder that Result.save wrote")
    if page.weights is None:
        return places[0]
    for place in places:
        if _digest(place) == page.weights:
            return place
    raise CheckpointError(
        f"{folder / WEIGHTS} is damaged or truncated, or belongs to another {PLAN} (its checksum is wrong): save it "
        "again"
    )


@contextmanager
def _says_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        raise CheckpointError(f"{path} has {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): make it readable") from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or truncated ({error}): save it again") from error


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
