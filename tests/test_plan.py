"""The flow as a whole: kinds of images, spilling to disk, budgets, text, repeatability."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import pytest
import torch
from graphs import coupled, lively, plain
from judging import judged_network, moved
from torch import Tensor, nn

import reapx
from reapx.calibration.store import TensorStore
from reapx.capture.execution import last_reads
from reapx.surgery.proof import difference, prove

ROUNDING = 1e-12
"""Of sums of some 1e3 float64 terms, as a share."""


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


def test_swaps_are_never_worse() -> None:
    """Predicted errors fall or stay, and the number of channels that leave stays."""
    model, images = residual()
    greedy = reapx.plan(model, images, budget=reapx.MACs(0.5), streams=True)
    refined = reapx.plan(model, images, budget=reapx.MACs(0.5), streams=True, swaps=10)
    for before, after in zip(greedy.groups, refined.groups, strict=True):
        assert after.kept == before.kept
        assert after.error <= before.error * (1 + ROUNDING)
    assert "reap selection, at most 10 swaps a group" in str(refined)
    assert refined.apply().gap < 1e-8


def test_random_positions_are_the_same_on_every_run() -> None:
    model, images = residual()
    plans = [reapx.plan(model, images, budget=reapx.MACs(0.6), positions=n) for n in (9, 9, 10**6, None)]
    errors = [[entry.error for entry in plan.groups] for plan in plans]
    assert errors[0] == errors[1]
    assert errors[2] == errors[3] != errors[0]
    assert "9 positions an image" in str(plans[0])


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
def test_budget_is_met_within_one_step(budget: reapx.costs.budget.Budget) -> None:
    model, images = residual()
    found = reapx.inspect(model, images)
    plan = reapx.plan(model, images, budget=budget, streams=True)
    limit = budget.limit(found.costs.of(type(budget)))
    widths = {entry.group.name: entry.kept for entry in plan.groups}
    assert found.costs.of(type(budget), widths) <= limit
    cheapest = min(
        found.costs.of(type(budget), {**widths, name: width + 1})
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
    held_out = (torch.arange(500) + 1) % 4 == 0
    errors = [moved(model, judged_network(plan, 1e-10), part) for part in (images[~held_out], images[held_out])]
    assert errors[0] == pytest.approx(plan.groups[0].error, rel=1e-3)
    assert errors[1] == pytest.approx(result.fits[-1].error, rel=1e-3)


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
    monkeypatch.setattr("reapx.groups.channel_groups.MAX_FEATURES", 100)
    model, images = residual()
    found = reapx.inspect(model, images)
    assert not any("input features" in entry.reason for entry in found.frozen)
    monkeypatch.setattr("reapx.groups.channel_groups.MAX_FEATURES", 80)
    assert any("b2.0 has 90 input features" in e.reason for e in reapx.inspect(model, images).frozen)


def test_few_groups_at_a_time_give_the_same_plan() -> None:
    model, images = residual()
    whole = reapx.plan(model, images, budget=reapx.MACs(0.6), streams=True)
    parts = reapx.plan(model, images, budget=reapx.MACs(0.6), streams=True, memory=60_000)
    for mine, other in zip(whole.groups, parts.groups, strict=True):
        assert torch.equal(mine.removed, other.removed) and mine.error == other.error


def test_a_loader_that_reuses_its_memory_gives_every_batch() -> None:
    model, images = residual()
    buffer = torch.empty(30, *images.shape[1:])

    def reused() -> Iterator[Tensor]:
        for batch in images.split(30):
            yield buffer.copy_(batch)

    assert same(
        reapx.prune(model, reused(), budget=reapx.MACs(0.6)),
        reapx.prune(model, list(images.split(30)), budget=reapx.MACs(0.6)),
    )


class WritesToItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5)
        return self.last(torch.relu(self.one(x)))


def test_images_stay_as_they_are_even_if_forward_writes_to_them() -> None:
    images = torch.randn(50, 6)
    before = images.clone()
    result = reapx.prune(WritesToItsInput().eval(), images, budget=reapx.MACs(0.6))
    assert torch.equal(images, before) and result.gap < 1e-8


def test_proof_is_not_fooled_by_nan() -> None:
    model, images = residual()
    found = reapx.inspect(model, images)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.head.weight.fill_(float("nan"))
    gap, _ = difference(broken, found._graph, found._graph.tensors, found._images)
    assert gap == float("inf")
    with pytest.raises(reapx.ProofError, match="differs from the masked original by inf"):
        prove(broken, found._graph, found._graph.tensors, found._images)


def test_activations_far_from_zero_are_damped_more_not_refused() -> None:
    """Float32 products leave the centred Gram matrix indefinite where the mean is all there is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
        model[0].bias.uniform_(5, 10)
    result = reapx.prune(model, torch.randn(30, 3, 12, 12), budget=reapx.MACs(0.5))
    assert result.gap < 1e-8 and all(entry.error >= 0 for entry in result.plan.groups)


def test_activations_are_freed_after_their_last_reader() -> None:
    """A long chain before the only pruned layer: few values live at once."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(12):
        layers += [nn.Conv2d(4, 4, 1), nn.Tanh()]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *layers, nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    graph = reapx.inspect(model, torch.randn(4, 3, 5, 5))._graph
    spent = last_reads(graph.nodes, {graph.nodes[-1]})
    assert sum(len(values) for values in spent.values()) == len(graph.nodes) - 1
    assert all(len(values) == 1 for node, values in spent.items() if node is not graph.nodes[0])


def test_round_to_counts_channels_not_units() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 4, 1)).eval()
    plan = reapx.plan(model, torch.randn(40, 3, 6, 6), budget=reapx.MACs(0.6), round_to=8)
    assert {entry.group.per_unit for entry in plan.groups} == {8}
    assert any(entry.kept < entry.group.size for entry in plan.groups)
    assert "32 -> " in str(plan)


def test_smallest_cost_that_a_refusal_names_is_reachable() -> None:
    model, images = residual()
    with pytest.raises(
        reapx.BudgetError, match=r"streams=True \(then down to ([\d,]+)\), or lower round_to=4"
    ) as caught:
        reapx.plan(model, images, budget=reapx.MACs(0.05), round_to=4, streams=False)
    found = re.search(r"down to ([\d,]+)", str(caught.value))
    assert found is not None
    least = int(found[1].replace(",", ""))
    plan = reapx.plan(model, images, budget=reapx.MACs(least), round_to=4, streams=True)
    assert plan.macs[1] == least
    with pytest.raises(reapx.BudgetError, match="amounts above 1 are absolute"):
        reapx.plan(model, images, budget=reapx.MACs(50))


def test_exclude_takes_blocks_depthwise_layers_and_one_string() -> None:
    torch.manual_seed(0)
    model = lively(plain.CASES["depthwise"].build())
    with pytest.raises(reapx.InputError, match="excluded by the caller"):
        reapx.plan(model, torch.randn(40, 3, 6, 6), budget=reapx.MACs(0.7), exclude="2")
    model, images = residual()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.95), exclude="a1")
    assert [entry.group.name for entry in plan.groups] == ["stem.0 + a2.0", "b1.0", "b2.0 + down.0"]


def test_result_says_how_far_the_outputs_moved() -> None:
    model, images = residual()
    result = reapx.prune(model, images, budget=reapx.MACs(0.8))
    change = moved(model, judged_network(result.plan), images[3::4])  # those that no fit has seen
    assert result.change == pytest.approx(change, rel=1e-3)
