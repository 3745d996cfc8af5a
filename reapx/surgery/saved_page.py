"""The contents of ``plan.json`` of a saved result: which channels stayed, and which weights belong to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .bare_norms import bare_norms
from .cut import Kept, origin_of
from .emptied_layers import Constant, Ending

FORMAT = 2
_READ = (1, FORMAT)

_DAMAGES = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Page:
    """A saved result without its weights.

    Attributes:
        kept: Qualified name of a tensor of the original network -> axis -> positions that stayed.
        endings: What follows the layers without input channels.
        widths: Path -> number of channels of each norm that holds no tensor.
        weights: SHA-256 of the file with the weights; None in format 1, which has no checksums.
    """

    kept: Kept
    endings: dict[str, Ending]
    widths: dict[str, int]
    weights: str | None = None


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
    return Page(found, endings, widths)


def text_of(page: Page, weights: str, shapes: dict[str, list[int]], plan: str) -> str:
    """The text of ``plan.json``."""
    cuts = {
        name: {str(axis): positions.tolist() for axis, positions in axes.items()} for name, axes in page.kept.items()
    }
    constants = {path: {"norm": end.norm, "writable": end.writable} for path, end in page.endings.items()}
    return sealed(
        {
            "format": FORMAT,
            "weights": weights,
            "cuts": cuts,
            "constants": constants,
            "norms": page.widths,
            "shapes": shapes,
            "plan": plan,
        }
    )


def sealed(page: dict[str, Any]) -> str:
    """JSON of a page that ends with a checksum of everything above it."""
    digest = hashlib.sha256(json.dumps(page, indent=1).encode()).hexdigest()
    return json.dumps({**page, "digest": digest}, indent=1) + "\n"


def parse(text: bytes) -> Page:
    """The page from the text of ``plan.json``.

    Raises:
        ValueError: the text is damaged.
        NotImplementedError: its format is unknown; the message names it.
    """
    try:
        page = json.loads(text.decode())
        form = page["format"]
    except _DAMAGES as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if form not in _READ:
        raise NotImplementedError(f"format {form}, this version reads {FORMAT}")
    try:
        if form == FORMAT and sealed({key: value for key, value in page.items() if key != "digest"}) != text.decode():
            raise ValueError("its checksum is wrong")
        return Page(
            {name: _axes(axes) for name, axes in page["cuts"].items()},
            {path: _ending(given) for path, given in page.get("constants", {}).items()},
            {path: _whole(width) for path, width in page.get("norms", {}).items()},
            str(page["weights"]) if form == FORMAT else None,
        )
    except _DAMAGES as error:
        raise ValueError(str(error) or type(error).__name__) from error


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
