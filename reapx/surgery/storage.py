"""Saving and loading pruned networks: safetensors and JSON, never pickle."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from ..capture.graph import tensors_of
from ..errors import CheckpointError, InputError
from .cut import Kept, assign
from .emptied_layers import Constant, Ending, after_replacing, shrink

FORMAT = 1
PLAN, WEIGHTS = "plan.json", "weights.safetensors"


def save(folder: str | Path, model: nn.Module, kept: Kept, text: str) -> None:
    """Write a pruned model's cuts and weights into a folder, which is made if need be.

    ``plan.json`` holds for every cut parameter the positions that stay on each axis, and for every layer that a
    constant took the place of the norm that went into it.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: give a folder")
    target.mkdir(parents=True, exist_ok=True)
    cuts = {name: {str(axis): positions.tolist() for axis, positions in axes.items()} for name, axes in kept.items()}
    names = {*model.state_dict(), *kept}  # not every buffer that is cut is in the state dict
    found = {name: value for name, value in tensors_of(model).items() if name in names}
    tensors = {name: value.detach().cpu().contiguous() for name, value in found.items()}
    (target / WEIGHTS).write_bytes(serialise(_unshared(tensors)))
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    constants = {
        path: {"norm": module.norm, "writable": module.writable}
        for path, module in model.named_modules()
        if isinstance(module, Constant) and f"{path}.weight" in kept
    }
    page = {"format": FORMAT, "cuts": cuts, "constants": constants, "shapes": shapes, "plan": text}
    (target / PLAN).write_text(json.dumps(page, indent=1) + "\n")


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors wants every tensor to own its memory."""
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        result[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


def load(model: nn.Module, folder: str | Path) -> nn.Module:
    """Shrink a freshly built model to a saved one and load its weights.

    Args:
        model: The original architecture, at its original widths; changed in place once all checks have passed.
        folder: What ``Result.save`` wrote.

    Returns:
        The model.

    Raises:
        CheckpointError: a file is missing, truncated or of another model; the model is as it was.
    """
    kept, endings, tensors = _read(Path(folder))
    _check(model, kept, endings, tensors, str(folder))
    shrink(model, kept, {}, endings)
    model.load_state_dict(tensors, strict=False)
    for name in set(tensors) - set(model.state_dict()):
        assign(model, name, tensors[name])
    return model


def _read(folder: Path) -> tuple[Kept, dict[str, Ending], dict[str, Tensor]]:
    for name in (PLAN, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}: give the folder that Result.save wrote")
    try:
        page = json.loads((folder / PLAN).read_text())
        found = page["format"]
        kept = {
            str(name): {
                int(axis): torch.tensor([int(k) for k in where], dtype=torch.int64) for axis, where in axes.items()
            }
            for name, axes in page["cuts"].items()
        }
        endings = {
            str(path): Ending(None if given["norm"] is None else str(given["norm"]), bool(given["writable"]))
            for path, given in page.get("constants", {}).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / PLAN} is damaged or truncated ({error}): save it again") from error
    if found != FORMAT:
        raise CheckpointError(f"{folder / PLAN} has format {found}, this version reads {FORMAT}")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged or truncated ({error}): save it again") from error
    return kept, endings, tensors


def _check(model: nn.Module, kept: Kept, endings: dict[str, Ending], tensors: dict[str, Tensor], where: str) -> None:
    shapes = {name: list(value.shape) for name, value in tensors_of(model).items()}
    _refuse(sorted(set(kept) - set(shapes)), [], where)
    for name, axes in kept.items():
        for axis, positions in axes.items():
            rising = bool((positions[1:] > positions[:-1]).all())
            if not (0 <= axis < len(shapes[name]) and rising and _inside(positions, shapes[name][axis])):
                raise CheckpointError(
                    f"{where} does not fit the model: {name} has shape {shapes[name]}, too small for the positions "
                    f"that stay on axis {axis}. Build the model at its original widths"
                )
            shapes[name][axis] = len(positions)
    needed = set(model.state_dict())
    gone, added, strange = after_replacing(model, kept, endings, shapes)
    shapes = {**{name: shape for name, shape in shapes.items() if name not in gone}, **added}
    needed = (needed - gone) | set(added)
    _refuse([*strange, *sorted(set(tensors) - set(shapes))], sorted((needed & set(shapes)) - set(tensors)), where)
    for name, value in tensors.items():
        if shapes[name] != list(value.shape):
            raise CheckpointError(
                f"{where} does not fit the model: {name} would have shape {shapes[name]} after pruning, the file has "
                f"{list(value.shape)}. Build the model at its original widths"
            )


def _inside(positions: Tensor, size: int) -> bool:
    """Whether rising positions lie on an axis; none do where a layer has nothing left, which the file then says."""
    return len(positions) == 0 or (int(positions[0]) >= 0 and int(positions[-1]) < size)


def _refuse(strange: list[str], missing: list[str], where: str) -> None:
    if strange or missing:
        raise CheckpointError(
            f"{where} does not fit the model: it has {strange[:3] or 'nothing'} that the model lacks, and lacks "
            f"{missing[:3] or 'nothing'}. Build the same architecture that was pruned"
        )
