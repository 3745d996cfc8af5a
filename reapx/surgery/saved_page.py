"""The contents of ``plan.json`` of a saved result: which channels stayed, and which weights belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .cut import Kept, origin_of
from .emptied_layers import Constant, Ending
from .module_numbers import bare_norms, numbers_of

FORMAT = 3
_READ = (1, 2, FORMAT)
KEY = "weights"
"""Entry of the page with the SHA-256 of the weights; format 1 has no checksums."""


@dataclass(frozen=True)
class Page:
    """A saved result without its weights.

    Attributes:
        kept: Qualified name of a tensor of the original network -> axis -> positions that stayed.
        endings: What follows the layers without input channels.
        widths: Path -> number of channels of each norm that holds no tensor.
        numbers: Path -> attribute -> value of each number that counts what left, such as ``num_heads``; from format 3.
    """

    kept: Kept
    endings: dict[str, Ending]
    widths: dict[str, int]
    numbers: dict[str, dict[str, int]]


def page_of(model: nn.Module, kept: Kept) -> Page:
    """The page of a smaller network, with positions counted in the first original, even after several cuts.

    Args:
        model: The smaller network.
        kept: Positions of each tensor that stayed in the last cut, for modules that do not record their origin.
    """
    found: Kept = {name: dict(axes) for name, axes in kept.items()}
    endings: dict[str, Ending] = {}
    constants: dict[str, Constant] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, Constant):
            constants[path] = module
        else:
            found.update({f"{prefix}{leaf}": dict(axes) for leaf, axes in origin_of(module).items()})
    for path, module in constants.items():
        above = path.removesuffix(module.path)  # the path of the part that was cut, in a larger network
        outputs = origin_of(module)["bias"][0]
        found.pop(f"{path}.bias", None)
        for name, axis in module.sources.items():
            found[above + name] = {axis: outputs}
            if name == f"{module.path}.weight":
                found[above + name][1 - axis] = torch.empty(0, dtype=torch.int64)
        endings[path] = Ending(None if module.norm is None else above + module.norm, module.writable)
    widths = {path: norm.num_features for path, norm in bare_norms(model).items()}
    return Page(found, endings, widths, numbers_of(model))


def as_json(page: Page, shapes: dict[str, list[int]], plan: str) -> dict[str, Any]:
    """What ``plan.json`` says, but for its checksums.

    Args:
        page: What stayed.
        shapes: Qualified name -> shape of each saved tensor, for readers.
        plan: The plan in words, for readers.
    """
    cuts = {
        name: {str(axis): positions.tolist() for axis, positions in axes.items()} for name, axes in page.kept.items()
    }
    constants = {path: {"norm": end.norm, "writable": end.writable} for path, end in page.endings.items()}
    more = {"shapes": shapes, "plan": plan}
    return {
        "format": FORMAT,
        KEY: "",
        "cuts": cuts,
        "constants": constants,
        "norms": page.widths,
        "numbers": page.numbers,
        **more,
    }


def parse(page: dict[str, Any]) -> Page:
    """The page that a JSON object says; what a damaged one raises is among ``DAMAGES``.

    Raises:
        NotImplementedError: its format is unknown; says which.
    """
    form = page["format"]
    if form not in _READ:
        raise NotImplementedError(f"format {form}, this version reads {FORMAT}")
    if form > 1 and KEY not in page:
        raise KeyError(KEY)
    return Page(
        {name: _axes(axes) for name, axes in page["cuts"].items()},
        {path: _ending(given) for path, given in page.get("constants", {}).items()},
        {path: _whole(width) for path, width in page.get("norms", {}).items()},
        {path: {name: _whole(k) for name, k in own.items()} for path, own in page.get("numbers", {}).items()},
    )


def _axes(given: dict[str, list[object]]) -> dict[int, torch.Tensor]:
    return {int(axis): torch.tensor([_whole(k) for k in where], dtype=torch.int64) for axis, where in given.items()}


def _ending(given: dict[str, object]) -> Ending:
    norm, writable = given["norm"], given["writable"]
    if not (norm is None or isinstance(norm, str)) or not isinstance(writable, bool):
        raise TypeError(f"{given} says nothing about a constant")
    return Ending(norm, writable)


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a whole number")
    return value
