"""Saving and loading pruned networks: safetensors and JSON, never pickle."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from .errors import CheckpointError, InputError
from .graph import tensors_of
from .surgery import Kept, assign, cut

FORMAT = 1
PLAN, WEIGHTS = "plan.json", "weights.safetensors"


def save(folder: str | Path, model: nn.Module, kept: Kept, text: str) -> None:
    """Write a pruned model's cuts and weights into a folder, which is made if need be.

    ``plan.json`` holds for every cut parameter its original size and the positions that stay on each axis.
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
    page = {"format": FORMAT, "cuts": cuts, "shapes": shapes, "plan": text}
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
    page, tensors = _read(Path(folder))
    state = tensors_of(model)
    kept: Kept = {
        name: {int(axis): torch.tensor(where, dtype=torch.int64) for axis, where in axes.items()}
        for name, axes in page["cuts"].items()
    }
    _check(state, set(model.state_dict()), kept, tensors, str(folder))
    cut(model, kept)
    model.load_state_dict(tensors, strict=False)
    for name in set(tensors) - set(model.state_dict()):
        assign(model, name, tensors[name])
    return model


def _read(folder: Path) -> tuple[dict[str, dict[str, dict[str, list[int]]]], dict[str, Tensor]]:
    for name in (PLAN, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}: give the folder that Result.save wrote")
    try:
        page = json.loads((folder / PLAN).read_text())
        found = page["format"]
        cuts = {
            str(name): {str(int(axis)): [int(k) for k in where] for axis, where in axes.items()}
            for name, axes in page["cuts"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / PLAN} is damaged or truncated ({error}): save it again") from error
    if found != FORMAT:
        raise CheckpointError(f"{folder / PLAN} has format {found}, this version reads {FORMAT}")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged or truncated ({error}): save it again") from error
    return {"cuts": cuts}, tensors


def _check(state: dict[str, Tensor], needed: set[str], kept: Kept, tensors: dict[str, Tensor], where: str) -> None:
    strange = sorted(set(kept) - set(state)) + sorted(set(tensors) - set(state))
    missing = sorted((needed & set(state)) - set(tensors))
    if strange or missing:
        raise CheckpointError(
            f"{where} does not fit the model: it has {strange[:3] or 'nothing'} that the model lacks, and lacks "
            f"{missing[:3] or 'nothing'}. Build the same architecture that was pruned"
        )
    for name, value in tensors.items():
        shape = list(state[name].shape)
        for axis, positions in kept.get(name, {}).items():
            inside = axis < len(shape) and len(positions) and int(positions.min()) >= 0
            rising = bool((positions[1:] > positions[:-1]).all())
            if not inside or not rising or int(positions.max()) >= shape[axis]:
                raise CheckpointError(
                    f"{where} does not fit the model: {name} has shape {shape}, too small for the positions that "
                    f"stay on axis {axis}. Build the model at its original widths"
                )
            shape[axis] = len(positions)
        if shape != list(value.shape):
            raise CheckpointError(
                f"{where} does not fit the model: {name} would have shape {shape} after pruning, the file has "
                f"{list(value.shape)}. Build the model at its original widths"
            )
