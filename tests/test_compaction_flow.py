"""Dead nodes where layers meet: streams, gates, concatenations, one death after another, operators that hide."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compacting import chain, compacted, gone, kill, left, reasons, weights
from graphs import emptied, lively
from graphs.coupled import Concat, Gate, OptionA, PreActivation, Residual
from torch import Tensor, nn

import reapx
from reapx.surgery.emptied_layers import Constant

IMAGE = (3, 8, 8)


def images(*shape: int) -> Tensor:
    return torch.randn(4, *(shape or IMAGE))


@pytest.mark.parametrize(("shift", "leaves"), [(-0.6, True), (0.6, False)])
def test_mobile_block(shift: float, leaves: bool) -> None:
    """Through a padded depthwise convolution zeros stay zeros; another constant differs at the border."""
    model = chain(
        nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 4, 1),
    )  # fmt: skip
    kill(model[0], 2)
    with torch.no_grad():
        model[1].running_mean[2], model[1].bias[2] = 0.0, shift
        model[4].running_mean[2], model[4].bias[2] = 0.0, 0.7
    done = compacted(model, images(), (3, 14, 5))
    assert gone(done) == ({"0": [2]} if leaves else {})
    if leaves:
        wanted = weights(model, "6.bias") + torch.tensor(0.7).double() * weights(model, "6.weight")[:, 2, 0, 0]
        torch.testing.assert_close(weights(done.model, "6.bias"), wanted, rtol=1e-5, atol=1e-6)
        assert done.model[3].groups == 5


@pytest.mark.parametrize("padded", [False, True])
def test_a_dead_row_of_a_depthwise_convolution(padded: bool) -> None:
    """Its norm hands on a constant, whatever the layer in front computes."""
    model = chain(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=int(padded), groups=6, bias=False),
        nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1),
    )  # fmt: skip
    kill(model[2], 4)
    done = compacted(model, images(), (3, 14, 5))
    assert gone(done) == {"0": [4]}


def silence(block: nn.Module, unit: int, shift: float) -> None:
    """Make a convolution and its norm hand on the norm's bias."""
    kill(block[0], unit)  # type: ignore[index]
    with torch.no_grad():
        block[1].running_mean[unit], block[1].bias[unit] = 0.0, shift  # type: ignore[index]


def test_a_stream_loses_what_every_producer_lost() -> None:
    model = lively(Residual())
    for block in (model.stem, model.a2):
        silence(block, 5, -0.5)
    silence(model.a2, 2, -0.5)
    silence(model.b2, 7, 0.4)
    silence(model.down, 7, 0.3)
    silence(model.b2, 1, 0.4)
    done = compacted(model, images(), (3, 12, 9))
    assert gone(done) == {"stem.0 + a2.0": [5], "b2.0 + down.0": [7]}
    wanted = weights(model, "head.bias") + torch.tensor(0.7).double() * weights(model, "head.weight")[:, 7]
    torch.testing.assert_close(weights(done.model, "head.bias"), wanted, rtol=1e-6, atol=1e-6)


def test_identity_and_preactivation_read_two_constants_of_one_node() -> None:
    """The stream itself goes into the last bias, and what its norm makes of it stays at the padded border."""
    model = lively(PreActivation())
    for layer, bias in ((model.stem, 0.4), (model.two, 0.2)):
        kill(layer, 3, bias)
    with torch.no_grad():
        model.norm.running_mean[3], model.norm.bias[3], model.norm.weight[3] = 0.9, 0.0, 1.0  # ReLU(0.4 - 0.9) is zero
    done = compacted(model, images(), (3, 5, 7))
    assert gone(done) == {"stem + two": [3]}
    wanted = weights(model, "last.bias") + torch.tensor(0.6).double() * weights(model, "last.weight")[:, 3, 0, 0]
    torch.testing.assert_close(weights(done.model, "last.bias"), wanted, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        model.norm.running_mean[3] = 0.0
    assert not left(compacted(model, images(), (3, 5, 7)))


def test_option_a_counts_positions_on_both_sides() -> None:
    """Unit 1 of the stream is channel 1 of the stem and channel 3 of what it is padded to."""
    model = lively(OptionA())
    silence(model.stem, 1, -0.5)
    silence(model.b2, 3, 0.6)
    done = compacted(model, images(), (3, 12, 10))
    assert gone(done) == {"stem.0 + b2.0": [1]}
    wanted = weights(model, "head.bias") + torch.tensor(0.6).double() * weights(model, "head.weight")[:, 3]
    torch.testing.assert_close(weights(done.model, "head.bias"), wanted, rtol=1e-6, atol=1e-6)


def test_concatenation_counts_columns_from_where_a_branch_begins() -> None:
    model = lively(Concat())
    kill(model.small, 4, 0.5)
    kill(model.large, 2, -0.5)
    done = compacted(model, images(3, 6, 6), (3, 9, 8))
    assert gone(done) == {"small": [4], "large": [2]}
    wanted = weights(model, "mix.bias") + 0.5 * weights(model, "mix.weight")[:, 4, 0, 0]
    torch.testing.assert_close(weights(done.model, "mix.bias"), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("bias", "gate", "leaves"), [(-0.5, None, True), (0.5, None, False), (0.5, 0.3, True)])
def test_a_gate_on_a_constant(bias: float, gate: float | None, leaves: bool) -> None:
    """Zero is zero behind any gate, another constant is none unless its gate is one."""
    model = lively(Gate())
    kill(model.one, 6, bias)
    if gate is not None:
        kill(model.up, 6, gate)
    done = compacted(model, images(), (3, 12, 11))
    assert gone(done) == ({"one + up": [6]} if leaves else {})
    if gate is not None:
        value = bias * torch.tensor(gate).double().sigmoid()
        wanted = weights(model, "last.bias") + value * weights(model, "last.weight")[:, 6, 0, 0]
        torch.testing.assert_close(weights(done.model, "last.bias"), wanted, rtol=1e-6, atol=1e-6)


def test_a_node_that_only_dead_nodes_read() -> None:
    model = chain(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[2].weight[[0, 2, 3], 1] = 0  # node 1 of the first layer is read by node 1 of the second alone,
        model[4].weight[[0, 1, 3], 1] = 0  # and that by node 2 of the third,
        model[6].weight[:, 2] = 0  # which nobody reads
    done = compacted(model, images(5))
    assert gone(done) == {"0": [1], "2": [1], "4": [2]}
    assert all(entry.constant == 0 for entry in done.nodes.groups)


def test_a_node_that_reads_only_dead_nodes_hands_their_constants_on() -> None:
    model = chain(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 3))
    kill(model[0], 0, 0.8)
    kill(model[0], 3, -0.2)
    with torch.no_grad():
        model[2].weight[2, [1, 2]] = 0
    done = compacted(model, images(5))
    assert gone(done) == {"0": [0, 3], "2": [2]}
    value = (0.8 * weights(model, "2.weight")[2, 0] + weights(model, "2.bias")[2]).sigmoid()
    wanted = weights(model, "4.bias") + value * weights(model, "4.weight")[:, 2]
    torch.testing.assert_close(weights(done.model, "4.bias"), wanted, rtol=1e-6, atol=1e-6)


def test_a_carrier_carries_what_dies_later() -> None:
    """In the second round, a node dies whose only live input left in the first; the carrier takes it as well."""
    model = chain(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1))
    kill(model[0], 1, 0.5)
    kill(model[2], 0, 0.2)
    kill(model[2], 3, 0.6)
    with torch.no_grad():
        model[2].weight[4, [0, 2, 3]] = 0  # node 4 reads the constant alone,
        model[2].weight[4, 1], model[2].bias[4] = 4.0, 0.1  # and hands on 2.1, more than the others
    done = compacted(model, images(), (3, 5, 6))
    assert gone(done) == {"0": [1], "2": [0, 3]} and list(done.nodes.groups[1].staying) == [4]
    own = weights(model, "4.weight")
    wanted = own[:, 4] + 0.2 / 2.1 * own[:, 0] + 0.6 / 2.1 * own[:, 3]
    torch.testing.assert_close(weights(done.model, "4.weight")[:, 2], wanted, rtol=1e-5, atol=1e-6)


class TwoReaders(nn.Module):
    """Two padded layers, each behind a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norms = nn.Conv2d(3, 5, 1), nn.ModuleList(nn.BatchNorm2d(5) for _ in range(2))
        self.readers = nn.ModuleList(nn.Conv2d(5, 4, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        values = [reader(F.relu(norm(x))) for norm, reader in zip(self.norms, self.readers, strict=True)]
        return values[0] + values[1]


@pytest.mark.parametrize("also", [0, 1])
def test_a_carrier_must_be_known_to_every_reader(also: int) -> None:
    """Nodes 0 and 1 are constant for one reader each, and vary for the other, which ignores them."""
    model = lively(TwoReaders())
    with torch.no_grad():
        for unit in (0, 1):
            model.norms[unit].weight[unit], model.norms[unit].bias[unit] = 0.0, 0.9
            model.readers[1 - unit].weight[:, unit] = 0
    if also:  # a node that is constant for both can stand for them
        kill(model.one, 3, 3.0)
        for norm in model.norms:
            with torch.no_grad():
                norm.running_mean[3] = 0.0
    done = compacted(model, images(), (3, 5, 6))
    assert gone(done) == ({"one": [0, 1]} if also else {})


def test_a_layer_of_dead_nodes_keeps_one_and_says_so() -> None:
    model = chain(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    for unit in range(4):
        kill(model[2], unit, 0.1 * unit)
    done = compacted(model, images(5))
    assert left(done) == {"0": 3, "2": 3} and reasons(done).count("it is the last of its group") == 2
    x = images(5)
    assert torch.equal(done.model(x)[0], done.model(x)[1])


@pytest.mark.parametrize("name", emptied.CASES)
def test_a_branch_of_dead_nodes_becomes_a_constant(name: str, tmp_path: object) -> None:
    model, x = emptied.built(name)
    droppable = emptied.CASES[name].droppable
    for path in droppable:
        layer = model.get_submodule(path)
        for unit in range(layer.weight.shape[0]):
            kill(layer, unit, None if layer.bias is None else 0.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.zero_()
    done = compacted(model, x)
    assert {entry.group.name for entry in done.nodes.groups if len(entry.removed) == entry.group.size} == droppable
    assert any(isinstance(module, Constant) for module in done.model.modules())
    done.save(tmp_path)  # type: ignore[arg-type]
    fresh = emptied.CASES[name].build().eval()
    assert torch.equal(reapx.load(fresh, tmp_path)(x), done.model(x))  # type: ignore[arg-type]
