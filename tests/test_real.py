"""Real networks on real data, where it lies beside the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import reapx
from reapx.layers import tail_of
from reapx.moments import measure
from reapx.selection.path import Reader
from reapx.selection.reap import reap_path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))


@pytest.mark.usefixtures("shared_data")
def test_path_equals_the_naive_loop_on_a_real_layer() -> None:
    """Delete each candidate, refit in float64, keep the best; ResNet-20's layer1.1.conv2, 16 channels, 3x3."""
    import models

    images, _ = models.cifar10("train_1", 100)
    found = reapx.inspect(models.cifar_resnet(20), images)
    group = next(group for group in found.groups if group.name == "layer1.1.conv1")
    (consumer,) = group.consumers
    assert tail_of(found._graph, consumer.layer).norm is not None
    tensors = found._graph.tensors
    ((moments,),) = measure(found._graph, found._images, [consumer.layer], tensors, progress=False).values()
    centred = moments.centred(True)
    (weight,) = consumer.layer.matrix(tensors[consumer.layer.weight])
    reader = Reader(weight, consumer.columns(), centred)
    damping = 1e-8
    path = reap_path("layer1.1.conv1", [reader], 15, damping)
    order, errors = naive(reader, centred.gram, centred.ridge(damping))
    assert path.order.tolist() == order
    torch.testing.assert_close(path.errors, torch.tensor(errors, dtype=torch.float64), rtol=1e-6, atol=1e-12)


def naive(reader: Reader, gram: torch.Tensor, ridge: float) -> tuple[list[int], list[float]]:
    """Greedy elimination by brute force: ‖X(W - W₀)‖² + λ‖W - W₀‖² minimised anew for every candidate."""
    damped = gram + ridge * torch.eye(len(gram), dtype=gram.dtype)
    cross = reader.weight @ damped
    signal = ((reader.weight @ gram) * reader.weight).sum()
    alive, order, errors, last = list(range(len(reader.columns))), [], [], 0.0
    while len(alive) > 1:
        costs = {}
        for candidate in alive:
            keep = reader.columns[[unit for unit in alive if unit != candidate]].flatten()
            solved = torch.linalg.solve(damped[keep][:, keep], cross[:, keep].T)
            costs[candidate] = float(((cross * reader.weight).sum() - (cross[:, keep] * solved.T).sum()) / signal)
        best = min(costs, key=lambda unit: costs[unit])
        alive.remove(best)
        order.append(best)
        errors.append(costs[best] - last)
        last = costs[best]
    return order, errors


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
    result = reapx.prune(model, images, budget=reapx.MACs(0.6), selection="magnitude", reconstruct=False)
    assert result.gap < 1e-8
