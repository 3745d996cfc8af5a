"""Attention heads: found, removed as units, refitted, proved, saved and loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs.transformers import CASES, HEADS, WIDTH, Joint, Torch, Transformer, built
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import reapx

SHARED = ("expand", "gqa", "interleave")
SIZE = WIDTH // HEADS


def heads_of(found: reapx.Inspection) -> list[reapx.Group]:
    return [group for group in found.groups if group.kind == "heads"]


def one_head_less(model: nn.Module, images: Tensor) -> reapx.Plan:
    plan = reapx.plan(model, images, allocation={"*": 1.0})
    return plan.with_removed({group.name: [1] for group in heads_of(plan.inspection)})


@pytest.mark.parametrize("name", CASES)
def test_units_are_heads(name: str) -> None:
    """Each owns its rows of queries, keys and values and its columns of the output projection, and nothing else."""
    found = reapx.inspect(*built(name))
    groups = heads_of(found)
    assert len(groups) == (2 if name == "encoder" else 1)
    for group in groups:
        shared = 2 if name in SHARED else 1
        assert group.size == HEADS // shared
        rows = sum(group.cuts[layer.weight, layer.out_axis].shape[1] for layer in group.producers)
        assert rows == (2 + shared) * SIZE
        (consumer,) = group.consumers
        wanted = torch.arange(WIDTH).reshape(group.size, -1)
        assert torch.equal(torch.from_numpy(consumer.channels), wanted)
    others = [group.size for group in found.groups if group.kind == "inside"]
    assert others == [2 * WIDTH] * len(groups)


@pytest.mark.parametrize("name", CASES)
def test_a_head_leaves(name: str, tmp_path: Path) -> None:
    """Proved, saved, loaded, in place, and captured and pruned once more."""
    model, images = built(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = one_head_less(model, images)
    result = plan.apply()
    assert result.gap < 1e-12
    with torch.no_grad():
        wanted = result.model(images)
        assert result.change < 0.5 and not torch.allclose(wanted, model(images))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    result.save(tmp_path / "pruned")
    fresh = reapx.load(CASES[name]().eval(), tmp_path / "pruned")
    again = reapx.prune(result.model, images, budget=reapx.MACs(0.9), allocation="uniform", streams=False)
    plan.apply(inplace=True)
    with torch.no_grad():
        assert torch.equal(fresh(images), wanted)
        assert torch.equal(model(images), wanted)
    assert again.gap < 1e-12


@pytest.mark.parametrize("name", ["softmax", "expand", "tables"])
def test_macs_are_those_that_torch_counts(name: str) -> None:
    model, images = built(name)
    plan = one_head_less(model, images)
    smaller = plan.apply(reconstruct=False).model
    counts = []
    for network in (model, smaller):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(images[:1])
        counts.append(counter.get_total_flops() // 2)
    if name == "expand":  # the fused kernel of the CPU is not counted
        tokens = 7
        counts = [count + 2 * tokens * tokens * heads * SIZE for count, heads in zip(counts, (4, 2), strict=True)]
    assert list(plan.macs) == counts


@pytest.mark.parametrize("name", ["unbind", "split", "gqa", "torch"])
def test_removed_heads_are_those_whose_absence_is_refitted_best(name: str) -> None:
    """REAP's predicted error of each single head is that of the least-squares fit without it."""
    model, images = built(name)
    found = reapx.inspect(model, images)
    (group,) = heads_of(found)
    moments = reapx.measure(found, [group])
    (own,) = moments[group.consumers[0].layer.weight]
    (consumer,) = reapx.measured_consumers(found, group, moments)
    gram, weight = consumer.moments.gram, consumer.weight
    for unit in range(group.size):
        stays = torch.ones(len(gram), dtype=torch.bool)
        stays[consumer.columns[unit]] = False
        target = weight @ gram
        fitted = torch.linalg.solve(gram[stays][:, stays], target[:, stays].mT).mT
        error = ((weight @ gram) * weight).sum() - (fitted * target[:, stays]).sum()
        path = reapx.find_path(found, group, moments, order=[unit], damping=1e-9)
        assert path.error(1) == pytest.approx(float(error) * consumer.scale, rel=1e-3)
    assert own.rows > 0


def test_all_allocations_and_selections(name: str = "unbind") -> None:
    model, images = built(name)
    for options in ({}, {"allocation": "uniform"}, {"selection": "nu"}, {"selection": "magnitude"}, {"round_to": 2}):
        result = reapx.prune(model, images, budget=reapx.MACs(0.6), **options)  # type: ignore[arg-type]
        assert result.plan.macs[1] <= 0.6 * result.plan.macs[0]
        assert result.gap < 1e-12
    text = str(result.plan)
    assert "heads" in text


def test_heads_can_be_excluded_and_bounded() -> None:
    model, images = built("unbind")
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6), exclude=[model.attention])
    assert [entry.group.name for entry in plan.groups] == ["up"]
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6), bounds={"attention.qkv": (0.75, 1.0)})
    assert plan.groups[0].kept >= 3


def test_an_attention_block_may_leave_as_a_whole() -> None:
    model, images = built("unbind")
    found = reapx.inspect(model, images)
    assert found.droppable == {"attention.qkv", "up"}
    plan = reapx.plan(model, images, allocation={"*": 1.0}).with_removed({"attention.qkv": range(HEADS)})
    result = plan.apply()
    assert result.gap < 1e-12 and result.model.attention.num_heads == 0


class Numbers(Joint):
    """The width is written down as a number."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_numbers_written_down_freeze_the_heads() -> None:
    torch.manual_seed(0)
    found = reapx.inspect(Transformer(Numbers()).eval(), torch.randn(8, 7, 8))
    assert not heads_of(found)
    (reason,) = (entry.reason for entry in found.frozen if entry.layer == "attention.qkv")
    assert "fewer of these channels: attention (Numbers) at `q, k, v = self.qkv(x)" in reason


def test_a_network_with_other_numbers_is_refused(tmp_path: Path) -> None:
    model, images = built("unbind")
    one_head_less(model, images).apply().save(tmp_path / "pruned")
    other: Any = CASES["unbind"]().eval()
    other.attention.num_heads = 2
    state = copy.deepcopy(other.state_dict())
    with pytest.raises(reapx.CheckpointError, match=r"attention.num_heads"):
        reapx.load(other, tmp_path / "pruned")
    assert other.attention.num_heads == 2
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_plain_attention_is_pytorchs(batch_first: bool, weights: bool) -> None:
    """With masks of all kinds, single sequences and other keys and values, in train mode as well."""
    from reapx.capture.exporting.plain_attention import become_plain

    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first).double()
    plain = copy.deepcopy(module)
    become_plain(plain)
    x, y = torch.randn(3, 7, WIDTH).double(), torch.randn(3, 9, WIDTH).double()
    if not batch_first:
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    causal = torch.ones(7, 7).triu(1).bool()
    padding = torch.arange(7).expand(3, 7) >= torch.tensor([[7], [5], [3]])
    calls: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        ((x, x, x), {}),
        ((x, y, y), {}),
        ((x, x, x), {"attn_mask": causal, "key_padding_mask": padding}),
        ((x, x, x), {"attn_mask": torch.randn(3 * HEADS, 7, 7).double(), "average_attn_weights": False}),
        ((x, x, x), {"attn_mask": causal, "is_causal": True}),
    ]
    single = x[0] if batch_first else x[:, 0]
    calls.append(((single, single, single), {}))
    for training in (True, False):
        for inputs, options in calls:
            wanted = module.train(training)(*inputs, need_weights=weights, **options)
            found = plain.train(training)(*inputs, need_weights=weights, **options)
            for ours, theirs in zip(found, wanted, strict=True):
                assert (ours is None) == (theirs is None)
                if theirs is not None:
                    torch.testing.assert_close(ours, theirs)
    with pytest.raises(RuntimeError, match="is_causal"):
        plain(x, x, x, is_causal=True)


def test_the_users_attention_stays_pytorchs() -> None:
    model, images = built("encoder")
    result = reapx.prune(model, images, budget=reapx.MACs(0.7))
    assert type(model.encoder.layers[0].self_attn) is nn.MultiheadAttention
    assert isinstance(result.model.encoder.layers[0].self_attn, nn.MultiheadAttention)
    with torch.no_grad():  # where PyTorch's own layer takes a fused kernel, which would fail on fewer heads
        alone = result.model(images)
    torch.testing.assert_close(alone, result.model(images).detach())
    fast = model(images)  # the fused kernel, which a pruned layer does not take
    assert torch.allclose(result.model.train()(images).detach().mean(), fast.mean(), atol=1.0)


def test_attention_of_two_inputs_stays_whole() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attend(x, x.flip(1), x.flip(1), need_weights=False)[0]

    torch.manual_seed(0)
    found = reapx.inspect(Transformer(Cross()).eval(), torch.randn(8, 7, 8))
    assert not heads_of(found)
    assert "attention.attend" in {entry.layer for entry in found.frozen}
    assert isinstance(Torch().attend, nn.MultiheadAttention)
