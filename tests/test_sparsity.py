"""Adam with L2 and group penalties, against PyTorch and against loops over rows and columns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import reapx
from reapx.sparsity.training.modules import matrices_of

F64 = torch.float64
EPS = torch.finfo(torch.float32).eps


class Mixed(nn.Module):
    """A layer of each kind; only its weights matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.grouped = nn.Conv2d(6, 8, (3, 1), groups=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 6, 2, groups=2)
        self.line = nn.Conv1d(6, 4, 5)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 5)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def rows_and_columns(layer: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Each output's incoming and each input's outgoing weights in float64, by loops over single kernels."""
    weight = layer.weight.double()
    groups = getattr(layer, "groups", 1)
    transposed = isinstance(layer, nn.ConvTranspose2d)
    ins = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    outs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    rows: list[list[Tensor]] = [[] for _ in range(outs)]
    columns: list[list[Tensor]] = [[] for _ in range(ins)]
    for out in range(outs):
        for source in range(ins):
            if out // (outs // groups) == source // (ins // groups):
                kernel = weight[source, out % (outs // groups)] if transposed else weight[out, source % (ins // groups)]
                rows[out].append(kernel.flatten())
                columns[source].append(kernel.flatten())
    return [torch.cat(row) for row in rows], [torch.cat(column) for column in columns]


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {path: layer for path, layer in model.named_modules() if hasattr(layer, "weight") and layer.weight.dim() > 1}


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.9), "eps": 1e-6}, {"foreach": True}, {"fused": True}])
def test_adam_l2_is_adam_with_its_weight_decay(options: dict[str, object]) -> None:
    ours = mlp()
    theirs = copy.deepcopy(ours)
    optimiser = reapx.adam_l2(ours.parameters(), lr=0.02, l2=0.03, **options)
    train(ours, optimiser, 12)
    train(theirs, torch.optim.Adam(theirs.parameters(), lr=0.02, weight_decay=0.03, **options), 12)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert {name: optimiser.defaults[name] for name in options} == options


def test_adam_l2_groups_have_strengths_of_their_own() -> None:
    model = mlp()
    groups = [{"params": model[0].parameters(), "l2": 0.5, "lr": 0.1}, {"params": model[2].parameters()}]
    optimiser = reapx.adam_l2(groups, lr=1e-2, l2=1e-3)
    assert [(g["weight_decay"], g["lr"]) for g in optimiser.param_groups] == [(0.5, 0.1), (1e-3, 1e-2)]
    assert all("l2" not in group for group in optimiser.param_groups)
    assert "weight_decay" not in groups[0], "the caller's dictionary is not touched"


def test_adam_l2_takes_names_and_tensors() -> None:
    model = mlp()
    optimiser = reapx.adam_l2(model.named_parameters(), lr=torch.tensor(0.01))
    assert optimiser.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(reapx.adam_l2(iter(list(model.parameters())[:3])).param_groups[0]["params"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": 0.1}, r"weight_decay=0\.1: the penalty is called l2"),
        ({"weight_decay": 0}, "called l2"),
        ({"decoupled_weight_decay": True}, "AdamW"),
        ({"amsgrad": True}, "amsgrad=True.*largest gradient"),
        ({"lr": 0}, "lr=0: give a number above 0"),
        ({"lr": -1e-3}, "above 0"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"lr": True}, "lr=True"),
        ({"lr": math.inf}, "lr=inf"),
        ({"l2": -1e-4}, r"l2=-0\.0001: give a number from 0"),
        ({"l2": math.nan}, "l2=nan"),
        ({"l2": None}, "l2=None"),
    ],
)
def test_adam_l2_refuses(options: dict[str, object], message: str) -> None:
    model = mlp()
    with pytest.raises(reapx.InputError, match=message):
        reapx.adam_l2(model.parameters(), **options)
    with pytest.raises(reapx.InputError, match=message):
        reapx.adam_l2([{"params": model.parameters(), **options}])


def test_adam_l2_refuses_what_holds_no_parameters() -> None:
    with pytest.raises(reapx.InputError, match=r"no parameters.*model\.parameters\(\)"):
        reapx.adam_l2([])
    with pytest.raises(reapx.InputError, match="one tensor"):
        reapx.adam_l2(nn.Parameter(torch.ones(3)))


def test_group_lasso_is_the_sum_of_norms() -> None:
    model = Mixed()
    parts = [rows_and_columns(layer) for layer in layers_of(model).values()]
    rows = sum(row.norm() for own, _ in parts for row in own)
    columns = sum(column.norm() for _, own in parts for column in own)
    tolerance = {"rtol": 300 * EPS, "atol": 0.0}  # sums of fewer than 300 positive terms
    for filters, channels in ((0.3, 0.7), (0.3, 0.0), (0.0, 0.7)):
        found = reapx.group_lasso(model, filters=filters, channels=channels)
        torch.testing.assert_close(found.double(), filters * rows + channels * columns, **tolerance)


@pytest.mark.parametrize("lasso", [False, True])
def test_group_sparse_is_the_sum_of_weighted_norms(lasso: bool) -> None:
    model = Mixed()
    expected = torch.zeros((), dtype=F64)
    for layer in layers_of(model).values():
        for column in rows_and_columns(layer)[1]:
            expected += math.sqrt(column.numel()) * column.norm() + lasso * column.abs().sum()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            expected += (1 + lasso) * parameter.double().abs().sum()
    found = reapx.group_sparse(model, 0.2, lasso=lasso)
    torch.testing.assert_close(found.double(), 0.2 * expected, rtol=1000 * EPS, atol=0.0)


PENALTIES: list[Callable[[nn.Module], Tensor]] = [
    lambda model: reapx.group_lasso(model, filters=1.0, channels=1.0),
    lambda model: reapx.group_sparse(model, 1.0, lasso=True),
]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_have_gradients_also_at_zero(penalty: Callable[[nn.Module], Tensor]) -> None:
    layer = nn.Linear(3, 4, bias=False)
    with torch.no_grad():
        layer.weight[1] = 0
        layer.weight[:, 2] = 0
    penalty(layer).backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad[1, 2] == 0
    assert (layer.weight.grad[0, :2].sign() == layer.weight[0, :2].sign()).all()


def test_penalties_of_no_strength_are_zero_and_others_are_refused() -> None:
    model = mlp()
    assert reapx.group_lasso(model).item() == 0
    for wrong in (-1.0, math.nan, math.inf, "1", True):
        with pytest.raises(reapx.InputError, match=r"filters=.*from 0"):
            reapx.group_lasso(model, filters=wrong)
        with pytest.raises(reapx.InputError, match="channels="):
            reapx.group_lasso(model, channels=wrong)
        with pytest.raises(reapx.InputError, match="strength="):
            reapx.group_sparse(model, wrong)
    for penalty in (*PENALTIES, reapx.NodeMonitor):
        with pytest.raises(reapx.InputError, match="ReLU has no convolution"):
            penalty(nn.ReLU())


def test_layers_that_share_a_weight_appear_once_and_parametrised_ones_all() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert list(matrices_of(tied)) == ["0"]
    normed = nn.Sequential(*(weight_norm(nn.Linear(4, 4)) for _ in range(4)))
    assert list(matrices_of(normed)) == ["0", "1", "2", "3"]
