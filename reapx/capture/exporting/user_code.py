"""The line of the user's code, or else the module, that an operator or an error comes from, for messages."""

from __future__ import annotations

import linecache
import re
import traceback
from functools import cache
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from torch.fx import Node

_TORCH, _OURS = (f"{Path(file).parent.resolve()}/" for file in (torch.__file__, Path(__file__).parents[1]))
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)\n +(.+)')
_LONGEST = 100
"""Largest number of characters of a line that a message shows."""


def line_of_node(node: Node) -> str | None:
    """The user's line whose call an operator is; None for operators inside of PyTorch's own modules."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    if not frames or not _by_user(frames[-1][0]):
        return None
    file, number, _, code = frames[-1]
    return _shown(file, int(number), code)


def place_of_error(error: BaseException, model: nn.Module) -> str | None:
    """Where in a model an error was raised: the module, and the user's line if forward() is the user's; else None.

    Args:
        error: An error that forward() raised, or one that was raised from such an error.
        model: The model that ran, or one of which it was a copy.
    """
    frames = [(frame, number, _owner(frame)) for frame, number in traceback.walk_tb(first_cause(error).__traceback__)]
    owners = [owner for _, _, owner in frames if owner is not None]
    if not owners:
        return None
    root = next((owner for owner in owners if owner is model), owners[0])
    names = {id(module): name for name, module in root.named_modules()}
    module = next((f"{names[id(x)]} ({type(x).__name__})" for x in reversed(owners) if names.get(id(x))), None)
    line = None
    for frame, number, _ in frames[[owner for _, _, owner in frames].index(owners[0]) :]:
        file = frame.f_code.co_filename
        if _by_user(file):
            line = _shown(file, number, linecache.getline(file, number))
    return " at ".join(part for part in (module, line) if part) or None


def first_cause(error: BaseException) -> BaseException:
    """The error from which an error was raised in the first place; the error itself where there is none."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _owner(frame: FrameType) -> nn.Module | None:
    """The module of which a frame runs a method; functions of reapx have a model as their first argument, too."""
    if str(Path(frame.f_code.co_filename).resolve()).startswith(_OURS):
        return None
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    owner = frame.f_locals.get(names[0]) if names else None
    return owner if isinstance(owner, nn.Module) else None


@cache
def _by_user(file: str) -> bool:
    resolved = str(Path(file).resolve())
    return not resolved.startswith((_TORCH, _OURS)) and not file.startswith("<")


def _shown(file: str, number: int, code: str) -> str:
    code = " ".join(code.split())
    shown = code if len(code) <= _LONGEST else f"{code[:_LONGEST]}..."
    return f"`{shown}` ({Path(file).name}:{number})"
