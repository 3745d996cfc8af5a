"""Real networks on real data, where it lies beside the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import reapx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))


@pytest.mark.usefixtures("shared_data")
def test_path_equals_the_naive_loop_on_a_real_layer() -> None:
    """Delete each candidate, refit in float64, keep the best: ResNet-20's layer1.1, 16 channels of 3x3."""
    import halve

    row = halve.naive_check("layer1.1.conv1", images=100)
    assert row["same order"]
    assert row["largest error difference"] < 1e-8


@pytest.mark.usefixtures("shared_data")
def test_resnet20_at_three_quarters_keeps_its_accuracy() -> None:
    """No labels, no retraining, 300 images: a few points at most (the base has 91.7 %)."""
    import models

    model, (images, _) = models.cifar_resnet(20), models.cifar10("train_1", 300)
    result = reapx.prune(model, images, budget=reapx.MACs(0.75))
    tests, labels = models.cifar10("test", 1000)
    assert result.plan.macs[1] <= 0.75 * result.plan.macs[0]
    assert result.gap < 1e-8
    assert models.accuracy(result.model, tests, labels) > models.accuracy(model, tests, labels) - 0.04


@pytest.mark.usefixtures("shared_data")
@pytest.mark.parametrize("name", ["squeezenet", "mnist_cnn", "cifar_vgg16bn"])
def test_pruned_equals_masked(name: str) -> None:
    import models

    model = getattr(models, name)()
    shape = {"squeezenet": (3, 67, 67), "mnist_cnn": (1, 28, 28), "cifar_vgg16bn": (3, 32, 32)}[name]
    images = torch.randn(20, *shape, generator=torch.Generator().manual_seed(0))
    result = reapx.prune(
        model, images, budget=reapx.MACs(0.6), allocation="uniform", selection="magnitude", reconstruct=False
    )
    assert result.gap < 1e-8
