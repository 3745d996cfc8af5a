"""What watching nodes costs, as shares of a training step; and the zero nodes of pretrained networks.

The latter were trained by others with momentum SGD and without a thought of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import torch
import torch.nn.functional as F
from tables import table
from timing import Target, interleaved, parser, write
from torch import Tensor, nn

import reapx
from reapx import _native

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 784-500-300-10, batch 128": (models.mnist_mlp, (128, 784), 200),
    "VGG16-BN at a quarter, batch 128": (lambda: models.Vgg16Bn(0.25, 2), (128, 3, 32, 32), 15),
    "VGG16-BN, batch 32": (lambda: models.Vgg16Bn(1.0, 2), (32, 3, 32, 32), 7),
}


def pretrained() -> dict[str, tuple[Callable[[], nn.Module], Tensor]]:
    """Networks that others trained, and a few of their images."""
    cifar = models.cifar10("train_1", 16)[0]
    found = {f"ResNet-{depth}": (lambda depth=depth: models.cifar_resnet(depth), cifar) for depth in (20, 32, 56)}
    found["VGG16-BN"] = (models.cifar_vgg16bn, models.cifar10("train_1", 16, models.VGG_NORM)[0])
    found["SqueezeNet"] = (models.squeezenet, models.imagenet_sample()[0][:8])
    found["MNIST CNN"] = (models.mnist_cnn, models.mnist("train", 16)[0])
    return found


def dead(name: str, model: nn.Module, images: Tensor, target: Target) -> dict[str, object]:
    """What compaction takes from one of them."""
    model, images = model.to(target.device), images.to(target.device)
    start = target.now()
    nodes = reapx.zero_nodes(model, images)
    found = target.now()
    result = nodes.remove()
    removed = target.now()
    return {
        "network": name,
        "nodes": sum(entry.group.size for entry in nodes.groups),
        "removed": sum(len(entry.removed) for entry in nodes.groups),
        "params": nodes.params,
        "macs": nodes.macs,
        "gap": result.gap,
        "find_seconds": found - start,
        "remove_seconds": removed - found,
    }


def step_of(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """One training step with Adam-L2."""
    optimiser = reapx.adam_l2(model.parameters(), 1e-3, l2=1e-4, fused=True)
    labels = torch.arange(len(images), device=images.device) % 10

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return step


def main() -> None:
    options = parser(__doc__ or "", "one small network, few rounds").parse_args()
    target = Target.of(options.device)
    rows: list[dict[str, object]] = []
    for name, (build, shape, rounds) in list(CASES.items())[: 1 if options.quick else None]:
        torch.manual_seed(0)
        model = build().to(target.device)
        monitor = reapx.NodeMonitor(model)
        weights = [
            layer.weight.detach().flatten(1) for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
        ]
        images = torch.randn(shape, device=target.device)
        calls = [step_of(model, images), monitor.record, lambda own=weights: _native.zero_scan(own)]
        times = interleaved(calls, 2 if options.quick else rounds, target)
        rows.append({"case": name, **dict(zip(("step", "record", "zero_scan"), times, strict=True))})
    header = ["network", "step, ms", "record, ms", "of a step", "every 100", "zero_scan, ms", "of a step"]
    print(table([_cells(*map(row.__getitem__, ("case", "step", "record", "zero_scan"))) for row in rows], header))
    wanted = list(pretrained().items()) if models.has_data() else []
    others = [dead(name, build(), images, target) for name, (build, images) in wanted[: 1 if options.quick else None]]
    titles = ["network", "nodes", "zero", "parameters", "MACs", "outputs differ", "find, s", "remove, s"]
    print(table([_line(row) for row in others], titles))
    if options.json or not options.quick:
        write("sparsity", rows, options.json, target, pretrained=others)


def _line(row: dict[str, Any]) -> list[str]:
    shares = [f"x{after / before:.4f}" for before, after in (row["params"], row["macs"])]
    seconds = [f"{row[name]:.1f}" for name in ("find_seconds", "remove_seconds")]
    return [row["network"], str(row["nodes"]), str(row["removed"]), *shares, f"{row['gap']:.0e}", *seconds]


def _cells(name: object, step: float, record: float, scan: float) -> list[str]:
    times = [f"{1e3 * step:.2f}", f"{1e3 * record:.3f}", f"{record / step:.2%}", f"{record / step / 100:.4%}"]
    return [str(name), *times, f"{1e3 * scan:.3f}", f"{scan / step:.2%}"]


if __name__ == "__main__":
    main()
