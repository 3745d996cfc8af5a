"""What reapx refuses, in words that name the value and the cure; the model stays bit for bit what it was."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import reapx


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.two(torch.relu(self.norm(self.one(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net() -> Iterator[nn.Module]:
    """A network that must not change during the test."""
    torch.manual_seed(0)
    model = Net().eval()
    before = copy.deepcopy(model.state_dict())
    yield model
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


HALF = reapx.MACs(0.5)
IMAGES = torch.randn(20, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("images", [torch.empty(0, 3, 6, 6), [], iter(())])
def test_no_images(net: nn.Module, images: object) -> None:
    with pytest.raises(reapx.InputError, match="no images"):
        reapx.plan(net, images, budget=HALF)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.randn(4, 5, 6, 6), r"does not run on images of shape \(5, 6, 6\)"),
        ([IMAGES, torch.randn(4, 3, 8, 8)], r"batch 1 have shape \(3, 8, 8\) and those of batch 0 \(3, 6, 6\)"),
        (torch.zeros(4, 3, 6, 6, dtype=torch.uint8), r"dtype torch.uint8.*images.float\(\) / 255"),
        (IMAGES.double(), "does not run on images .* torch.float64"),
        (IMAGES.index_fill(0, torch.tensor([3]), float("nan")), "NaN or Inf"),
        (IMAGES.to("meta"), r"on meta, the model is on cpu.*images.to\(device\)"),
        ([IMAGES, IMAGES.double()], "batch 1 have dtype torch.float64 and those of batch 0 torch.float32"),
        (["a.png"], "batch 0 is a str"),
        (torch.randn(7), "the first axis counts images"),
        (42, "images is a int"),
    ],
)
def test_images(net: nn.Module, images: object, words: str) -> None:
    with pytest.raises(reapx.InputError, match=words):
        reapx.plan(net, images, budget=HALF)


def test_model_on_another_device_has_no_kernels(net: nn.Module) -> None:
    moved = copy.deepcopy(net).to("meta")
    with pytest.raises(reapx.BackendError, match="move the model and the images to the CPU"):
        reapx.plan(moved, IMAGES.to("meta"), budget=HALF)


def test_model_on_two_devices(net: nn.Module) -> None:
    model = copy.deepcopy(net)
    model.head.to("meta")
    with pytest.raises(reapx.InputError, match="several devices"):
        reapx.plan(model, IMAGES, budget=HALF)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_not_finite_activation_names_layer_and_channel(net: nn.Module, poison: float) -> None:
    model = copy.deepcopy(net)
    with torch.no_grad():
        model.norm.bias[5] = poison
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(reapx.NumericalError, match="at layer two, input channel 5"):
        reapx.plan(model, IMAGES, budget=HALF)
    assert all(torch.equal(a.nan_to_num(), before[k].nan_to_num()) for k, a in model.state_dict().items())


def test_few_rows_is_a_warning_that_says_how_many_images_would_do(net: nn.Module) -> None:
    with pytest.warns(
        reapx.CalibrationWarning, match="1 images that are fitted .* two .36 rows, 72 features.* images in all would do"
    ):
        result = reapx.prune(net, IMAGES[:2], budget=HALF)
    assert result.gap < 1e-8


def test_dead_and_duplicate_channels_leave_first_and_cost_nothing(net: nn.Module) -> None:
    model = copy.deepcopy(net)
    with torch.no_grad():
        model.norm.weight[2], model.norm.bias[2] = 0.0, -1.0  # dead behind the ReLU
        for tensor in (model.one.weight, model.norm.weight, model.norm.bias):
            tensor[6] = tensor[1]
        for tensor in (model.norm.running_mean, model.norm.running_var):
            tensor[6] = tensor[1]
        model.two.weight[:, 6] *= -3
    plan = reapx.plan(model, IMAGES, budget=reapx.MACs(0.7), exclude=["two"])
    removed = plan.groups[0].removed.tolist()
    assert {2, 6} <= set(removed)
    gentle = reapx.plan(model, IMAGES, budget=reapx.MACs(0.8), exclude=["two"], damping=1e-2)
    assert gentle.groups[0].removed.tolist() == [2, 6]
    assert gentle.groups[0].error < 1e-4
    with torch.no_grad():
        torch.testing.assert_close(gentle.apply(damping=1e-8).model(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-3)


def test_singular_without_damping_names_layer_and_channel(net: nn.Module) -> None:
    model = copy.deepcopy(net)
    with torch.no_grad():
        model.norm.weight[2], model.norm.bias[2] = 0.0, -1.0
    with pytest.raises(reapx.NumericalError, match=r"one: .* singular at channel 2 .*damping=0\.0: raise it"):
        reapx.plan(model, IMAGES, budget=HALF, damping=0.0)


def test_train_mode(net: nn.Module) -> None:
    net.norm.train()
    with pytest.raises(reapx.InputError, match=r"train mode \(norm\): call model.eval\(\)"):
        reapx.plan(net, IMAGES, budget=HALF)
    net.eval()


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class FixedBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(2, 4)


def test_capture_refusals_say_why_and_what_to_do() -> None:
    with pytest.raises(reapx.CaptureError, match=r"cannot capture Branching, `return .* if x.sum\(\) > 0 .*What to do"):
        reapx.plan(Branching().eval(), IMAGES, budget=HALF)
    with pytest.raises(reapx.CaptureError, match=r"fixes the batch size at 2|cannot capture FixedBatch"):
        reapx.plan(FixedBatch().eval(), IMAGES, budget=HALF)


def test_budget_that_cannot_be_reached_says_the_smallest(net: nn.Module) -> None:
    with pytest.raises(reapx.BudgetError, match=r"smallest that can be reached is ([\d,]+) ") as caught:
        reapx.plan(net, IMAGES, budget=reapx.MACs(0.001))
    found = re.search(r"reached is ([\d,]+) ", str(caught.value))
    assert found is not None
    smallest = int(found[1].replace(",", ""))
    plan = reapx.plan(net, IMAGES, budget=reapx.MACs(smallest))
    assert plan.macs[1] == smallest


@pytest.mark.parametrize("amount", [0, -0.5, float("nan"), float("inf"), "half"])
def test_budget_values(amount: object) -> None:
    with pytest.raises(reapx.BudgetError, match="give a fraction between 0 and 1"):
        reapx.MACs(amount)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0.5},
        {"allocation": "best"},
        {"selection": "random"},
        {"round_to": 0},
        {"swaps": -1},
        {"swaps": 1.5},
        {"swaps": True},
        {"positions": 0},
        {"selection": "magnitude", "swaps": 3},
        {"selection": "magnitude", "allocation": "uniform", "positions": 3},
        {"damping": -1.0},
        {"refit": "some"},
    ],
)
def test_arguments(net: nn.Module, options: dict[str, object]) -> None:
    with pytest.raises(reapx.InputError, match=re.escape(f"{next(iter(options))}=")):
        reapx.prune(net, IMAGES, **{"budget": HALF, **options})  # type: ignore[arg-type]


def test_nothing_to_prune() -> None:
    with pytest.raises(reapx.InputError, match="no channel of this model can be removed: 0: it is an output"):
        reapx.plan(nn.Sequential(nn.Linear(3, 4)).eval(), torch.randn(8, 3), budget=HALF)
    with pytest.raises(reapx.InputError, match="no parameters"):
        reapx.plan(nn.ReLU().eval(), torch.randn(8, 3), budget=HALF)


class Tied(nn.Module):
    """Two layers, one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.free = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.free(torch.relu(self.two(torch.relu(self.one(x)))))))


def test_tied_parameters_are_frozen_and_said() -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    plan = reapx.plan(model, torch.randn(50, 6), budget=reapx.MACs(0.9))
    assert [entry.group.name for entry in plan.groups] == ["free"]
    assert any("share the parameter" in entry.reason for entry in plan.frozen)
    pruned = plan.apply().model
    assert torch.equal(pruned.one.weight, model.one.weight) and torch.equal(pruned.two.weight, model.one.weight)


def test_failure_during_apply_in_place_leaves_the_model(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = reapx.plan(net, IMAGES, budget=HALF)
    with torch.no_grad():
        saved = net.two.weight.clone()
        net.two.weight[0, 0] = float("nan")
        with pytest.raises(reapx.ReapxError):
            plan.apply(inplace=True)
        net.two.weight.copy_(saved)
