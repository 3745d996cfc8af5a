"""Settings: what each argument may be, where it is refused, and that there is one list of them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, get_args

import pytest
import torch
from graphs import coupled, lively
from torch import Tensor, nn

import reapx
from reapx.allocation.output_errors import OUTPUT_ERRORS, OutputError
from reapx.inspection.argument_checks import ALLOCATIONS, CHECKS
from reapx.planning.settings import RECTIFY
from reapx.selection.methods import SELECTIONS, Selection

HALF = reapx.MACs(0.5)
APPLIED = ("reconstruct", "refit", "rectify", "inplace")
"""Arguments of ``Plan.apply`` that ``plan`` does not have."""


def defaults(function: object) -> dict[str, Any]:
    """Keyword argument -> default, () of ``exclude`` and None of ``bounds`` among them."""
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return {each.name: each.default for each in parameters if each.kind == inspect.Parameter.KEYWORD_ONLY}


def residual() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    case = coupled.CASES["residual"]
    return lively(case.build()), torch.randn(90, *case.shape)


def test_plan_prune_apply_and_settings_have_the_same_arguments_and_defaults() -> None:
    planned = defaults(reapx.plan)
    fields = {each.name: each.default for each in dataclasses.fields(reapx.PlanSettings)}
    assert list(planned) == list(fields)
    assert {name: fields[name] for name in fields if name not in ("budget", "bounds")} == {
        name: planned[name] for name in planned if name not in ("budget", "bounds")
    }
    pruned, applied, refined = (defaults(call) for call in (reapx.prune, reapx.Plan.apply, reapx.refine))
    assert pruned == {**planned, **{name: applied[name] for name in APPLIED}, "refine": False}
    own = defaults(reapx.Result.refine)
    assert own == {name: value for name, value in refined.items() if name not in ("memory", "distributed")}
    assert set(applied) == {*APPLIED, "damping", "progress", "on_progress"}
    assert set(CHECKS) == {*planned, *applied, *refined, "refine"}
    assert (planned["damping"], applied["rectify"]) == (None, RECTIFY)


def test_words_that_a_type_checker_knows_are_those_that_are_accepted() -> None:
    assert get_args(Selection) == tuple(SELECTIONS)
    assert get_args(OutputError) == OUTPUT_ERRORS
    assert all(CHECKS["allocation"].accepts(word) for word in ALLOCATIONS)


def test_a_mistyped_name_is_an_error_of_the_function_that_was_called() -> None:
    model, images = residual()
    for function in (reapx.plan, reapx.prune):
        with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) got an unexpected keyword argument 'round'"):
            function(model, images, budget=HALF, round=8)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("budget", 0.5),
        ("allocation", "best"),
        ("allocation", ["pro"]),
        ("selection", "random"),
        ("selection", None),
        ("streams", "no"),
        ("round_to", 8.0),
        ("exclude", 5),
        ("exclude", ["stem", 5]),
        ("bounds", [("stem", (0.5, 1.0))]),
        ("bounds", {3: (0.5, 1.0)}),
        ("points", 0),
        ("rounds", True),
        ("output_error", "l2"),
        ("damping", "a"),
        ("damping", float("nan")),
        ("damping", True),
        ("swaps", -1),
        ("positions", 0),
        ("resume", ""),
        ("resume", 3),
        ("memory", "1GB"),
        ("memory", -1),
        ("progress", "yes"),
        ("distributed", "yes"),
        ("reconstruct", "no"),
        ("refit", "some"),
        ("rectify", 1.5),
        ("inplace", 1),
    ],
)
def test_a_refusal_names_the_argument_the_value_and_the_cure(argument: str, value: object) -> None:
    model, images = residual()
    words = re.escape(f"{argument}={value!r}: ") + "(give|choose)"
    with pytest.raises(reapx.InputError, match=words):
        reapx.prune(model, images, **{"budget": HALF, argument: value})  # type: ignore[arg-type]


def test_apply_and_inspect_refuse_by_the_same_table() -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=HALF, allocation="uniform", selection="magnitude", streams=True)
    for options in ({"damping": "a"}, {"refit": "some"}, {"inplace": "yes"}, {"progress": 2}, {"reconstruct": None}):
        (name,) = options
        with pytest.raises(reapx.InputError, match=f"^{name}="):
            plan.apply(**options)  # type: ignore[arg-type]
    for options in ({"memory": "1GB"}, {"exclude": 7}, {"distributed": 1}):
        (name,) = options
        with pytest.raises(reapx.InputError, match=f"^{name}="):
            reapx.inspect(model, images, **options)  # type: ignore[arg-type]
    with pytest.raises(reapx.InputError, match=r"^model is of type int: give a torch\.nn\.Module"):
        reapx.inspect(3, images)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selection": "magnitude", "swaps": 3}, r"swaps=3 with selection='magnitude'.*need selection='reap'"),
        ({"selection": "magnitude", "allocation": "uniform", "positions": 3}, "positions=3 with .*or allocation='pro'"),
        ({"allocation": "uniform", "points": 5}, "points=5 with allocation='uniform'.*points needs allocation='pro'"),
        ({"allocation": "uniform", "output_error": "kl"}, "output_error='kl' with allocation='uniform'"),
    ],
)
def test_settings_that_do_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(reapx.InputError, match=words):
        reapx.PlanSettings(budget=HALF, **options)


def test_settings_are_frozen_short_and_held_by_the_plan() -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=HALF, exclude="a1", round_to=2, points=1)
    assert repr(plan.settings) == "PlanSettings(budget=MACs(amount=0.5), round_to=2, exclude=('a1',), points=1)"
    result = plan.apply()
    for each in (plan, result, plan.settings):
        text = repr(each)
        assert "\n" not in text and len(text) < 300
        with pytest.raises(dataclasses.FrozenInstanceError):
            each.budget = reapx.MACs(0.7)  # type: ignore[misc,union-attr]
    assert all(len(repr(entry)) < 300 and "\n" not in repr(entry) for entry in plan.groups)
    smaller = plan.at(reapx.MACs(0.45))
    assert (smaller.settings.budget, plan.settings.budget) == (reapx.MACs(0.45), HALF)


def test_modules_may_stand_for_their_names() -> None:
    model, images = residual()
    by_name = reapx.plan(model, images, budget=reapx.MACs(0.8), exclude="a1", bounds={"b1.0": (6, 9)})
    bounds = {model.b1[0]: (6, 9)}
    by_module = reapx.plan(model, images, budget=reapx.MACs(0.8), exclude=[model.a1], bounds=bounds)
    assert by_module.settings == by_name.settings
    assert [e.removed.tolist() for e in by_module.groups] == [e.removed.tolist() for e in by_name.groups]
    names = [group.name for group in reapx.inspect(model, images, exclude=model.a1).groups]
    assert names and "a1.0" not in names
    stranger = residual()[0].a1
    for options in ({"exclude": [stranger]}, {"bounds": {stranger: (0.5, 1.0)}}):
        (name,) = options
        with pytest.raises(reapx.InputError, match=f"^{name}: the Sequential that was given is no module of this"):
            reapx.plan(model, images, budget=HALF, **options)  # type: ignore[arg-type]


def test_processes_compare_what_changes_the_plan_and_nothing_else() -> None:
    def rule(group: reapx.Group, *_: object) -> Tensor:
        return torch.zeros(group.size)

    other = lambda group, *_: torch.zeros(group.size)  # noqa: E731  # another object of the same name
    other.__name__ = "rule"
    shown = [
        reapx.PlanSettings(budget=HALF, selection=each, progress=bars, resume=folder, on_progress=call).shared()
        for each, bars, folder, call in ((rule, True, "here", print), (other, False, "there", None))
    ]
    assert shown[0] == shown[1]
    assert reapx.PlanSettings(budget=HALF, points=3).shared() != reapx.PlanSettings(budget=HALF).shared()
    assert reapx.PlanSettings(budget=HALF, resume="here").shared() != reapx.PlanSettings(budget=HALF).shared()
