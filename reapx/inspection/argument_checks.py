"""The allowed values of all arguments of the public functions, in one table, with the cure for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from ..allocation.output_errors import OUTPUT_ERRORS
from ..costs.budget import Budget
from ..errors import InputError
from ..selection.methods import SELECTIONS

Allocation = Literal["pro", "uniform"]
"""Methods that choose the number of channels that each group keeps."""

RefitLayers = Literal["all", "consumers"]
"""Choices of the layers that are refitted."""

Layers = str | nn.Module | Sequence[str | nn.Module]
"""Layers, given by names, by patterns (``"layer3.*"``), or as modules of the model."""

Ends = tuple[float, float]
Bounds = Mapping[str, Ends] | Mapping[nn.Module, Ends] | Mapping[str | nn.Module, Ends]
"""Layers -> (fewest, most) of their output channels that stay."""

GivenWidths = Mapping[str, float] | Mapping[nn.Module, float] | Mapping[str | nn.Module, float]
"""Layers -> widths: whole numbers of output channels, or shares of them."""

ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)
REFIT_LAYERS: tuple[RefitLayers, ...] = get_args(RefitLayers)

MOST_POINTS = 10_000
"""More widths of a group than it has channels are measured at each of them: more points than this say nothing."""


@dataclass(frozen=True)
class Check:
    """The check of one argument.

    Attributes:
        accepts: Whether a value is allowed.
        cure: What to give instead, for the error message.
    """

    accepts: Callable[[object], bool]
    cure: str

    def or_else(self, accepts: Callable[[object], bool], cure: str) -> Check:
        """The same check, which also accepts something else."""
        return Check(lambda value: self.accepts(value) or accepts(value), f"{self.cure}, or {cure}")

    def or_none(self, meaning: str) -> Check:
        """The same check, which also accepts None."""
        return self.or_else(lambda value: value is None, f"None for {meaning}")


def is_whole(value: object) -> bool:
    """Whether a value is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_layer(value: object) -> bool:
    return isinstance(value, str | nn.Module)


def _whole(least: int, most: float = math.inf) -> Check:
    limit = "" if most == math.inf else f" to {most:,}"
    return Check(lambda value: is_whole(value) and least <= value <= most, f"give a whole number from {least}{limit}")  # type: ignore[operator]


def _one_of(words: Iterable[str]) -> Check:
    known = tuple(words)
    return Check(lambda value: isinstance(value, str) and value in known, f"choose one of {', '.join(known)}")


def _are_layers(value: object) -> bool:
    return _is_layer(value) or (isinstance(value, Sequence) and all(map(_is_layer, value)))


def _is_folder(value: object) -> bool:
    return isinstance(value, str | Path) and str(value) != ""


SWITCH = Check(lambda value: isinstance(value, bool), "give True or False")

_POSITIVE = Check(lambda value: _is_number(value) and value > 0, "give a number above 0")  # type: ignore[operator]

CHECKS: Mapping[str, Check] = {
    "budget": Check(
        lambda value: isinstance(value, Budget), "give reapx.MACs(0.5), reapx.Params(0.5) or reapx.Latency(0.5)"
    ).or_else(
        lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(x, Budget) for x in value),
        "a list of budgets of different kinds",
    ),
    "allocation": _one_of(ALLOCATIONS).or_else(
        lambda value: isinstance(value, Mapping) and len(value) > 0 and all(map(_is_layer, value)),
        "a dict of widths such as {'layer3.*': 0.5}",
    ),
    "selection": _one_of(SELECTIONS).or_else(callable, "a function (group, moments, weights) -> scores or order"),
    "streams": SWITCH.or_none("the allocation's default"),
    "round_to": _whole(1),
    "exclude": Check(_are_layers, "give layer names, patterns such as 'layer3.*', or modules of the model"),
    "bounds": Check(
        lambda value: isinstance(value, Mapping) and all(map(_is_layer, value)),
        "give a dict from layer names, patterns or modules, such as {'layer3.*': (0.25, 1.0)}",
    ),
    "points": _whole(1, MOST_POINTS),
    "rounds": _whole(1),
    "output_error": _one_of(OUTPUT_ERRORS),
    "damping": Check(lambda value: _is_number(value) and value >= 0, "give a number from 0, such as 1e-3").or_none(  # type: ignore[operator]
        "a choice by held-out error"
    ),
    "swaps": _whole(0),
    "positions": _whole(1).or_none("all"),
    "resume": Check(_is_folder, "give the path of a folder").or_none("no folder"),
    "memory": _whole(0).or_none("a default that fits the device"),
    "progress": SWITCH.or_none("bars where the terminal shows them"),
    "on_progress": Check(callable, "give a function (step, done, total)").or_none("none"),
    "distributed": SWITCH,
    "reconstruct": SWITCH,
    "refit": _one_of(REFIT_LAYERS),
    "rectify": _whole(0),
    "inplace": SWITCH,
    "refine": SWITCH,
    "steps": _whole(1).or_none("a default"),
    "minutes": _POSITIVE.or_none("a number of steps"),
    "learning_rate": _POSITIVE,
    "batch": _whole(1),
    "augment": Check(callable, "give a function from a batch of images to variants of them").or_none(
        "shifts and flips"
    ),
    "precision": _one_of(("float32", "bfloat16")).or_none("what is quicker"),
    "seed": _whole(0),
}
"""Name of an argument -> its check, for every function that takes it."""


def check_arguments(**given: object) -> None:
    """Refuse arguments whose values are not allowed.

    Raises:
        InputError: a value is not allowed; the message names the argument, the value and the cure.
    """
    for name, value in given.items():
        if not CHECKS[name].accepts(value):
            raise InputError(f"{name}={_shown(value)}: {CHECKS[name].cure}")


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
