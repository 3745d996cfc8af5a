"""The call of torch.export, and what its errors say to the user."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

from ...errors import CaptureError
from .held_output import held_output
from .user_code import place_of_error

Inputs = Mapping[str, Any] | tuple[Any, ...]
"""Arguments by keyword or by position: tensors, and lists, dicts and constants of them."""

_SHOWING = (
    '; `import logging; logging.basicConfig(); logging.getLogger("reapx").setLevel(logging.DEBUG)` shows what '
    "torch.export printed"
)


def export(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """A model as torch.export's program, with a dynamic first axis of every input.

    Args:
        model: Module in eval mode; not changed.
        inputs: One batch of arguments by position or keyword, whose tensors are (batch, ...).

    Raises:
        CaptureError: torch.export refuses the model.
    """
    positional = inputs if isinstance(inputs, tuple) else ()
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    batch: dict[int, object] = {0: torch.export.Dim.AUTO}

    def two(value: object) -> object:  # sizes 0 and 1 are specialised by torch.export
        if not isinstance(value, Tensor):
            return value
        return value[:2] if len(value) > 1 else torch.cat([value, value])

    def sizes(value: object) -> dict[int, object] | None:
        return batch if isinstance(value, Tensor) else None

    dynamic: dict[str, Any] | tuple[Any, ...] = tree_map(sizes, named)
    if not named:
        each = tree_map(sizes, positional)
        kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
        dynamic = (each,) if kinds and kinds[0] == inspect.Parameter.VAR_POSITIONAL else each
    try:
        with held_output() as held, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(
                model,
                tree_map(two, positional),
                tree_map(two, named),
                dynamic_shapes=dynamic,
                strict=False,
            )
    except Exception as error:  # user code and torch.export may raise anything
        reason = " ".join(str(error).split()).partition(" For more information")[0][:600]
        place, shown = place_of_error(error, model), _SHOWING if held.text() else ""
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__}{f', {place}' if place else ''}: "
            f"{(reason or type(error).__name__).rstrip('.')}. What to do: {_cure(model)}{shown}"
        ) from error


def _cure(model: nn.Module) -> str:
    cure = (
        "make forward() free of branches on tensor values and of .item(), or call reapx on the submodule that holds "
        "the convolutions and linear layers"
    )
    if getattr(getattr(model, "config", None), "use_cache", False):
        return f"set model.config.use_cache = False, since a cache is no tensor; if that is not enough, {cure}"
    return cure
