"""The benchmarks' trainings: one that is stopped and goes on ends in the same weights as one that is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "reproduce")]
import sparse_training  # noqa: E402
import training  # noqa: E402
from recipe import augment  # noqa: E402
from timing import HOST, Deadline  # noqa: E402

EPOCHS = 3


class After(Deadline):
    """Allows so many epochs."""

    def __init__(self, epochs: int) -> None:
        self._left = epochs

    def allows(self, seconds: float) -> bool:
        self._left -= 1
        return self._left >= 0


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 10),
    )  # fmt: skip


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(300, 3, 8, 8), torch.randint(10, (300,))


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left.parameters(), right.parameters(), strict=True))


@pytest.mark.parametrize("method", ["adam_l2", "sgd", "group lasso"])
def test_a_sparse_training_goes_on(method: str, images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    run, recipe = sparse_training.Run(method, 1e-4, 0), sparse_training.Recipe(EPOCHS, 1e-3, 64)
    whole, first, second = (sparse_training.Training(run, network, recipe, HOST) for _ in range(3))
    state = tmp_path / "run.pt"
    assert whole.fit(*images, augment, tmp_path / "none.pt", Deadline(None))
    assert not first.fit(*images, augment, state, After(2))
    assert second.fit(*images, augment, state, Deadline(None))
    assert same(whole.model, second.model)
    assert not same(first.model, second.model)
    assert whole.losses == second.losses


def test_a_state_of_another_recipe_is_refused(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    run, recipe = sparse_training.Run("adam", 0.0, 0), sparse_training.Recipe(EPOCHS, 1e-3, 64)
    state = tmp_path / "run.pt"
    sparse_training.Training(run, network, recipe, HOST).fit(*images, None, state, After(1))
    other = sparse_training.Recipe(EPOCHS, 2e-3, 64)
    with pytest.raises(SystemExit, match="another recipe"):
        sparse_training.Training(run, network, other, HOST).fit(*images, None, state, Deadline(None))


def test_a_retraining_goes_on(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    recipe = training.Recipe(EPOCHS, 1e-2, 64)

    def job(folder: Path) -> training.Training:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        progress = training.progress_in(folder) or training.Progress({}, (1, 1), 0.0)
        return training.Training(network(), None, recipe, progress, folder, HOST)

    whole, first = job(tmp_path / "whole"), job(tmp_path / "parts")
    assert whole.fit(*images, None, Deadline(None))
    assert not first.fit(*images, None, After(2))
    second = job(tmp_path / "parts")
    assert second.progress.epoch == 2
    assert second.fit(*images, None, Deadline(None))
    assert same(whole.student, second.student)


def test_a_deadline() -> None:
    assert Deadline(None).allows(1e9)
    assert Deadline(1).allows(50)
    assert not Deadline(1).allows(61)
