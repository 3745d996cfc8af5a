"""Plans saved in a folder: a JSON file and a safetensors file, never pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as bytes_of
from torch import Tensor

from ..allocation.curves import ErrorCurve
from ..allocation.pro import Tradeoff
from ..calibration.checkpoint import digest_of
from ..capture.graph import Graph
from ..costs.budget import Budget, MACs, Params, Size
from ..costs.latency import Latency
from ..errors import CheckpointError, InputError
from ..files.sealed_folder import SealedFolder
from ..files.whole_files import path_of
from ..groups.channel_groups import Group
from ..selection.methods import selection_name
from .group_plan import GroupPlan, chosen_units
from .plan_state import PlanState
from .settings import PlanSettings

FORMAT = 1
PAGE, TENSORS, KEY = "reapx-plan.json", "reapx-plan.safetensors", "tensors"
FOLDER = SealedFolder(PAGE, TENSORS, KEY, "Plan.save")
BUDGETS: dict[str, type[Budget]] = {kind.__name__: kind for kind in (MACs, Params, Size, Latency)}
_OF_THE_CALL = ("resume", "progress", "on_progress", "distributed")
"""Settings of the call that made the plan; they are not kept."""


class SavedRule:
    """Placeholder for a selection or measure that was a function; a saved plan holds only its name."""

    def __init__(self, name: str, argument: str = "selection") -> None:
        self.__name__, self.argument = name, argument

    def __call__(self, *_: object) -> None:
        raise InputError(f"{self.argument}={self.__name__}: the function itself was not saved: call reapx.plan with it")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SavedRule) and other.__name__ == self.__name__

    def __hash__(self) -> int:
        return hash(self.__name__)


def write_plan(folder: str | Path, page: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a plan into a folder, which is created if it does not exist; the folder is complete at any time.

    Raises:
        InputError: the folder is a file.
        CheckpointError: the folder cannot be written.
    """
    data = bytes_of({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    FOLDER.write(path_of(folder), _plain({"format": FORMAT, **page}), data, overwrite=True)


def read_plan(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON object and the tensors that :func:`write_plan` wrote.

    Raises:
        CheckpointError: a file is missing, damaged, or of another version.
    """
    return FOLDER.read(path_of(folder), _known, load_file)


def _known(page: dict[str, Any]) -> dict[str, Any]:
    if page["format"] != FORMAT:
        raise NotImplementedError(f"format {page['format']}, this version reads {FORMAT}: plan again")
    if KEY not in page:
        raise KeyError(KEY)
    return page


def damaged(path: Path, reason: object) -> CheckpointError:
    """The error for a file that cannot be read."""
    return CheckpointError(f"{path} is damaged or truncated ({reason}): save the plan again")


def page_of(plan: PlanState) -> dict[str, Any]:
    """A plan as a JSON object, without its tensors."""
    return {
        **model_page(plan._graph, plan._found.groups),
        "settings": settings_page(plan.settings),
        "groups": entries_page(plan.groups),
        "chosen": sorted(plan.chosen),
        "seconds": plan.seconds,
        "latency": plan.latency,
        "point": None if plan._point is None else asdict(plan._point),
        "stages": None if plan._tradeoff is None else stages_page(plan._tradeoff),
        "text": str(plan),
    }


def model_page(graph: Graph, groups: Sequence[Group]) -> dict[str, Any]:
    """A description that identifies a model: its tensors, its operators and its channel groups."""
    return {
        "model": digest_of(graph.tensors),
        "operators": graph.digest(),
        "sizes": {group.name: group.size for group in groups},
    }


def check_model_page(page: Mapping[str, Any], graph: Graph, groups: Sequence[Group], folder: str | Path) -> None:
    """Refuse a plan of another model.

    Raises:
        CheckpointError: the models differ; the message says in what.
    """
    own = model_page(graph, groups)
    reasons = {
        "model": "its tensors differ: give the model with the weights that it was planned with",
        "operators": "its operators differ: give the same model, captured by the same version of torch",
        "sizes": "this version of reapx finds other channel groups in it: plan again",
    }
    for name, reason in reasons.items():
        if page.get(name) != own[name]:
            raise CheckpointError(f"{folder} holds a plan of another model: {reason}")


def settings_page(settings: PlanSettings) -> dict[str, Any]:
    """Settings as a JSON object.

    Raises:
        InputError: the budget is of a class that the caller defined.
    """
    own = {each.name: getattr(settings, each.name) for each in fields(settings) if each.name not in _OF_THE_CALL}
    for budget in settings.budgets:
        if BUDGETS.get(type(budget).__name__) is not type(budget):
            raise InputError(f"budget={budget!r} cannot be saved: use one of {', '.join(BUDGETS)}")
    rule = not isinstance(settings.selection, str)
    return {
        **own,
        "budget": [_budget_page(budget) for budget in settings.budgets],
        "selection": [selection_name(settings.selection), rule],
    }


def _budget_page(budget: Budget) -> list[Any]:
    """Name and arguments of a budget; of a function that measures, only its name."""
    amounts = {each.name: getattr(budget, each.name) for each in fields(budget)}
    if amounts.get("measure") is not None:
        amounts["measure"] = getattr(amounts["measure"], "__name__", "measure")
    return [type(budget).__name__, amounts]


def _budgets_of(page: Sequence[Any]) -> list[Budget]:
    """The budgets; plans of earlier versions hold only one, which is not in a list."""
    return [_budget_of(own) for own in ([page] if isinstance(page[0], str) else page)]


def _budget_of(page: Sequence[Any]) -> Budget:
    kind, amounts = page
    if amounts.get("measure") is not None:
        amounts = {**amounts, "measure": SavedRule(amounts["measure"], "measure")}
    return BUDGETS[kind](**amounts)


def settings_of(page: Mapping[str, Any], distributed: bool) -> PlanSettings:
    """The settings in a JSON object; settings of a single call, such as ``progress``, have their defaults."""
    name, rule = page["selection"]
    return PlanSettings(
        **{
            **page,
            "budget": _budgets_of(page["budget"]),
            "selection": SavedRule(name) if rule else name,
            "exclude": tuple(page["exclude"]),
            "bounds": {layer: tuple(ends) for layer, ends in page["bounds"].items()},
            "distributed": distributed,
        }
    )


def entries_page(entries: Sequence[GroupPlan]) -> list[dict[str, Any]]:
    """The plans of all groups as JSON objects."""
    return [
        {
            "group": entry.group.name,
            "kept": entry.kept,
            "error": entry.error,
            "output_error": entry.output_error,
            "removed": entry.removed.tolist(),
        }
        for entry in entries
    ]


def entries_of(page: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> tuple[GroupPlan, ...]:
    """The plans of all groups from JSON objects."""
    entries = []
    for group, own in zip(groups, page, strict=True):
        removed = chosen_units("removed", group, torch.tensor(own["removed"], dtype=torch.int64))
        if group.name != own["group"] or group.size - len(removed) != own["kept"]:
            raise ValueError(f"the entry of {group.name} does not fit it")
        entries.append(GroupPlan(group, own["kept"], _number(own["error"]), removed, _number(own["output_error"])))
    return tuple(entries)


def stages_page(tradeoff: Tradeoff) -> list[dict[str, Any]]:
    """The stages of a trade-off as JSON objects: curves, and the widths and error at which they start."""
    return [
        {
            "widths": stage.widths,
            "error": stage.error,
            "curves": {
                name: {"errors": curve.errors.tolist(), "measured": curve.measured}
                for name, curve in stage.curves.items()
            },
        }
        for stage in tradeoff.stages
    ]


def add_stages(tradeoff: Tradeoff, page: Sequence[Mapping[str, Any]]) -> None:
    """Add stages from JSON objects to a trade-off."""
    for stage in page:
        curves = {
            name: ErrorCurve(
                np.array(own["errors"], dtype=np.float64), tuple((int(n), float(error)) for n, error in own["measured"])
            )
            for name, own in stage["curves"].items()
        }
        tradeoff.add(dict(stage["widths"]), float(stage["error"]), curves)


def _plain(value: Any) -> Any:
    """The value with None in place of NaN, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
