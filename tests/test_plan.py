"""The flow as a whole: kinds of images, spilling to disk, budgets, text, repeatability."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from graphs import coupled, lively, plain
from torch import Tensor, nn

import reapx
from reapx.images import TensorStore


def residual() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    case = coupled.CASES["residual"]
    return lively(case.build()), torch.randn(90, *case.shape)


def weights(result: reapx.Result) -> list[Tensor]:
    return list(result.model.state_dict().values())


def same(left: reapx.Result, right: reapx.Result) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(left), weights(right), strict=True))


def test_images_in_every_form_give_the_same_weights() -> None:
    model, images = residual()
    batches = list(images.split(30))

    def generated() -> Iterator[Tensor]:
        yield from batches

    forms: list[object] = [
        batches,
        generated(),
        [(batch, torch.zeros(30)) for batch in batches],
        [{"x": batch} for batch in batches],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=30),
    ]
    results = [reapx.prune(model, form, budget=reapx.MACs(0.6), streams=True) for form in forms]
    assert all(same(results[0], other) for other in results[1:])


def test_one_tensor_is_cut_into_batches() -> None:
    model, images = residual()
    result = reapx.prune(model, images.repeat(2, 1, 1, 1), budget=reapx.MACs(0.6))
    assert result.gap < 1e-8


@pytest.mark.parametrize("memory", [0, 100_000])
def test_spilling_to_disk_changes_no_bit(memory: int) -> None:
    model, images = residual()
    batches = list(images.split(30))
    kept = reapx.prune(model, iter(batches), budget=reapx.MACs(0.6), streams=True)
    spilled = reapx.prune(model, iter(batches), budget=reapx.MACs(0.6), streams=True, memory=memory)
    assert same(kept, spilled)


def test_threads_change_no_bit_of_selection() -> None:
    model, images = residual()
    removed = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        plan = reapx.plan(model, images, budget=reapx.MACs(0.6), streams=True)
        removed.append([entry.removed.tolist() for entry in plan.groups])
    torch.set_num_threads(threads)
    assert removed[0] == removed[1]


def test_store_keeps_memory_format_and_limit() -> None:
    store = TensorStore(limit=5000)
    values = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last), torch.randn(7)]
    for _ in range(3):
        for key, value in enumerate(values):
            store.put(key, value)
        for key, value in enumerate(values):
            assert torch.equal(store.get(key), value) and store.get(key).stride() == value.stride()
    store.close()


@pytest.mark.parametrize("budget", [reapx.MACs(0.5), reapx.MACs(0.8), reapx.Params(0.5), reapx.Params(900)])
def test_budget_is_met_within_one_step(budget: reapx.budget.Budget) -> None:
    model, images = residual()
    found = reapx.inspect(model, images)
    plan = reapx.plan(model, images, budget=budget, streams=True)
    limit = budget.limit(found.costs.of(budget))
    widths = {entry.group.name: entry.kept for entry in plan.groups}
    assert found.costs.of(budget, widths) <= limit
    cheapest = min(
        found.costs.of(budget, {**widths, name: width + 1})
        for name, width in widths.items()
        if width < found.costs.full[name]
    )
    assert cheapest > limit
    pruned = plan.apply()
    assert sum(p.numel() for p in pruned.model.parameters()) == plan.params[1]


def test_budget_above_the_cost_removes_nothing() -> None:
    model, images = residual()
    result = reapx.prune(model, images, budget=reapx.MACs(1.0))
    with torch.no_grad():
        assert torch.equal(result.model(images), model(images))


def test_macs_count_what_the_layers_do() -> None:
    model, images = residual()
    counted = 0

    def hook(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal counted
        counted += module.weight.numel() * (output[0, 0].numel() if output.dim() == 4 else 1)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(hook)
    with torch.no_grad():
        model(images[:1])
    for module in model.modules():
        module._forward_hooks.clear()
    assert reapx.inspect(model, images).costs.macs() == counted


def test_texts_name_groups_costs_and_reasons() -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6), streams=True)
    result = plan.apply()
    for words in ("a1.0", "stream", "8 -> ", "MACs", "parameters", "output of the model: head (5)"):
        assert words in str(plan)
    assert "pruned equals masked" in str(result) and "head" in str(result)
    assert "4 channel groups" in str(reapx.inspect(model, images))


def test_magnitude_takes_the_smallest_filters() -> None:
    torch.manual_seed(0)
    model = lively(plain.CASES["conv"].build())
    plan = reapx.plan(model, torch.randn(20, 3, 9, 9), budget=reapx.MACs(0.5), selection="magnitude")
    norms = model[0].weight.flatten(1).norm(dim=1)
    removed = plan.groups[0].removed
    assert set(removed.tolist()) == set(norms.argsort()[: len(removed)].tolist())


def test_reap_predicts_the_error_that_the_refit_leaves() -> None:
    """One group, symmetric target: the path's error is the least-squares error after surgery."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 5)).eval()
    images = torch.randn(500, 6)
    plan = reapx.plan(model, images, budget=reapx.MACs(0.5), damping=1e-10)
    result = plan.apply(damping=1e-10)
    with torch.no_grad():
        wanted, got = model(images), result.model(images)
    error = (wanted - got).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert result.fits[-1].error == pytest.approx(plan.groups[0].error, rel=1e-3)
    assert float(error) == pytest.approx(plan.groups[0].error, rel=1e-3)


def test_progress_bars_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    model, images = residual()
    reapx.prune(model, images, budget=reapx.MACs(0.6), progress=True)
    printed = capsys.readouterr().err
    assert "measuring" in printed and "refitting" in printed


class TwoInputs(nn.Module):
    """Two inputs of the same shape that are not interchangeable."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(6, 12)
        self.last = nn.Linear(24, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"out": self.last(torch.relu(torch.cat([self.first(left), self.second(right) * 2], 1)))}


def test_dict_batches_reach_the_argument_of_their_name() -> None:
    torch.manual_seed(0)
    model = TwoInputs().eval()
    batches = [{"right": torch.randn(50, 6), "left": torch.randn(50, 6) + 1} for _ in range(3)]
    result = reapx.prune(model, batches, budget=reapx.MACs(0.9))
    assert result.gap < 1e-8
    with torch.no_grad():
        wanted, got = model(**batches[0])["out"], result.model(**batches[0])["out"]
    assert float((wanted - got).square().mean()) < 0.05 * float(wanted.var())


def test_plan_of_a_model_that_changed_since_is_refused() -> None:
    model, images = residual()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6))
    plan.apply(inplace=True)
    with pytest.raises(reapx.InputError, match="changed since the plan was made: plan again"):
        plan.apply()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.9))
    with torch.no_grad():
        model.head.bias.add_(1)
    with pytest.raises(reapx.InputError, match=r"head\.bias has changed"):
        plan.apply()


def test_layer_too_wide_to_measure_is_frozen_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reapx.groups.MAX_FEATURES", 100)
    model, images = residual()
    found = reapx.inspect(model, images)
    assert not any("input features" in entry.reason for entry in found.frozen)
    monkeypatch.setattr("reapx.groups.MAX_FEATURES", 80)
    assert any("b2.0 has 90 input features" in e.reason for e in reapx.inspect(model, images).frozen)


def test_few_groups_at_a_time_give_the_same_plan() -> None:
    model, images = residual()
    whole = reapx.plan(model, images, budget=reapx.MACs(0.6), streams=True)
    parts = reapx.plan(model, images, budget=reapx.MACs(0.6), streams=True, memory=60_000)
    for mine, other in zip(whole.groups, parts.groups, strict=True):
        assert torch.equal(mine.removed, other.removed) and mine.error == other.error
