"""Every micro network: the groups found, and pruned == masked after surgery and refit."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from graphs import Case, computed, coupled, lively, plain, recurrent, volumes
from torch import nn

import reapx

ALL = {**plain.CASES, **coupled.CASES, **computed.CASES, **volumes.CASES, **recurrent.CASES}


def built(case: Case) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = lively(case.build())
    return model, torch.randn(80, *case.shape)


def planned(case: Case, **options: object) -> tuple[nn.Module, torch.Tensor, reapx.Plan]:
    model, images = built(case)
    options = {"budget": reapx.MACs(case.budget), "streams": True, **options}
    return model, images, reapx.plan(model, images, **options)  # type: ignore[arg-type]


@functools.cache
def shared(name: str) -> tuple[nn.Module, torch.Tensor, reapx.Plan]:
    """A network, images and its plan for tests that leave all of them as they are."""
    return planned(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_groups_and_frozen_axes(name: str) -> None:
    case = ALL[name]
    _, _, plan = shared(name)
    assert {entry.group.name: entry.group.size for entry in plan.groups} == case.groups
    assert any(case.frozen in entry.reason for entry in plan.frozen), plan.frozen


@pytest.mark.parametrize("name", ALL)
def test_pruned_equals_masked_and_original_is_untouched(name: str) -> None:
    model, images, plan = shared(name)
    before = copy.deepcopy(model.state_dict())
    result = plan.apply()
    assert result.gap < 1e-8
    assert plan.macs[1] <= ALL[name].budget * plan.macs[0]
    assert sum(p.numel() for p in result.model.parameters()) == plan.params[1] < plan.params[0]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        outputs = result.model(images[:3])
    for value in outputs if isinstance(outputs, tuple) else (outputs,):
        assert bool(torch.isfinite(value).all())


@pytest.mark.parametrize("name", computed.STREAMLESS)
def test_what_is_computed_from_parameters_is_no_branch(name: str) -> None:
    model, images = built(ALL[name])
    found = reapx.inspect(model, images)
    assert not any(group.residual_stream for group in found.groups) and not found.droppable
    reapx.plan(model, images, budget=reapx.MACs(0.7), streams=False)


@pytest.mark.parametrize("name", ["residual", "concat", "split", "grouped", "group_norm"])
def test_reconstruction_brings_outputs_closer(name: str) -> None:
    model, images, plan = planned(ALL[name], allocation="uniform")
    with torch.no_grad():
        wanted = model(images)
        plain_error = (plan.apply(reconstruct=False).model(images) - wanted).square().sum()
        error = (plan.apply().model(images) - wanted).square().sum()
    assert error < 0.5 * plain_error


@pytest.mark.parametrize("name", ["token_norm", "shared_norm", "class_token"])
def test_refit_reports_the_error_that_the_layer_really_has(name: str) -> None:
    """Norms and biases that a refit may not move: its outputs are still closer than without it."""
    model, images, plan = shared(name)
    with torch.no_grad():
        wanted = model(images)
        error, without = (
            (plan.apply(reconstruct=refit).model(images) - wanted).square().sum() for refit in (True, False)
        )
    assert error < without


@pytest.mark.parametrize("name", ["residual", "concat", "transposed", "grouped", "conv1d", "prelu"])
def test_nothing_removed_and_refitted_is_the_same_function(name: str) -> None:
    """Where all channels stay, least squares finds the weights that were there."""
    model, images, plan = planned(ALL[name])
    result = plan.with_removed({entry.group.name: [] for entry in plan.groups}).apply()
    with torch.no_grad():
        torch.testing.assert_close(result.model(images), model(images), rtol=1e-4, atol=1e-4)


def test_in_place_gives_the_same_module_object_and_weights() -> None:
    model, _, plan = planned(ALL["residual"])
    copied = plan.apply()
    result = plan.apply(inplace=True)
    assert result.model is model
    for mine, other in zip(model.state_dict().values(), copied.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    assert model.a1[0].out_channels == model.a1[0].weight.shape[0] < 6
    assert model.a1[1].num_features == model.a1[0].out_channels


def test_streams_stay_whole_unless_asked() -> None:
    _, _, plan = planned(ALL["residual"], streams=False, budget=reapx.MACs(0.8))
    kept = {entry.group.name: entry.kept for entry in plan.groups}
    assert kept["stem.0 + a2.0"] == 8 and kept["b2.0 + down.0"] == 12
    assert kept["a1.0"] < 6 or kept["b1.0"] < 10


def test_exclude_freezes_by_pattern() -> None:
    _, _, plan = planned(ALL["residual"], exclude=["a?.0"], budget=reapx.MACs(0.8))
    assert {entry.group.name for entry in plan.groups} == {"b1.0", "b2.0 + down.0"}
    with pytest.raises(reapx.InputError, match="'nothing' matches no layer"):
        planned(ALL["residual"], exclude=["nothing"])


def test_widths_are_multiples() -> None:
    _, _, plan = planned(ALL["tokens"], round_to=4)
    assert [entry.kept for entry in plan.groups] == [4]


def test_depthwise_groups_shrink_with_the_channels() -> None:
    _, _, plan = planned(ALL["depthwise"])
    layer = plan.apply().model[2]
    assert layer.groups == layer.in_channels == layer.out_channels == len(layer.weight) < 8
