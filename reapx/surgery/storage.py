"""Saving and loading pruned networks: safetensors and JSON, never pickle."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from ..capture.graph import tensors_of
from ..capture.precision import plain_mode
from ..errors import InputError
from ..files.sealed_folder import SealedFolder
from ..files.whole_files import path_of
from .cut import Kept
from .fitting import fitted, impossible_value
from .saved_page import KEY, as_json, page_of, parse
from .transplant import transplant

FOLDER = SealedFolder("plan.json", "weights.safetensors", KEY, "Result.save")


def check_target(folder: str | Path, overwrite: bool) -> None:
    """Refuse a path where a result cannot be saved.

    Raises:
        InputError: the path is a file, or a folder with a result that must not be overwritten.
    """
    FOLDER.check_target(path_of(folder), overwrite)


def save(folder: str | Path, model: nn.Module, kept: Kept, text: str, *, overwrite: bool = False) -> None:
    """Write a pruned model's cuts and weights into a folder, which is created if it does not exist.

    ``plan.json`` holds, for every cut parameter, the positions that stay on each axis, counted in the first original if
    the network was cut several times. For every layer that a constant replaced, it holds the norm that was folded in.

    Raises:
        InputError: the folder already holds a result, or the model was changed after pruning and could not be loaded.
        CheckpointError: the files cannot be written; an earlier result can still be loaded.
    """
    target = path_of(folder)
    check_target(target, overwrite)
    page = page_of(model, kept)
    names = {*model.state_dict(), *page.kept}  # not every buffer that is cut is in the state dict
    found = {name: value for name, value in tensors_of(model).items() if name in names}
    _check_unchanged(model, found, kept)
    tensors = {name: value.detach().cpu().contiguous() for name, value in found.items()}
    data = serialise(_unshared(tensors))
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    FOLDER.write(target, as_json(page, shapes, text), data, overwrite=overwrite)


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
        InputError: ``model`` is no module, or ``folder`` no path.
        CheckpointError: a file is missing, damaged, or of another result or model, or holds values that no network can
            have; the model is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is of type {type(model).__name__}: give reapx.load a freshly built torch.nn.Module")
    page, tensors = FOLDER.read(path_of(folder), parse, load_file)
    smaller = fitted(model, page, tensors, str(folder))
    transplant(model, smaller, {*tensors, *page.kept})
    return model
