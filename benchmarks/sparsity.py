"""What watching nodes costs: a record of the monitor and a zero_scan, as shares of a training step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from models import Vgg16Bn
from timing import interleaved, parser, write
from torch import Tensor, nn

import reapx
from reapx import _native
from reapx.report.text import table
from reapx.sparsity.modules import matrices_of


def mlp() -> nn.Module:
    """784-500-300-10."""
    return nn.Sequential(nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 10))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 784-500-300-10, batch 128": (mlp, (128, 784), 200),
    "VGG16-BN at a quarter, batch 128": (lambda: Vgg16Bn(0.25, 2), (128, 3, 32, 32), 15),
    "VGG16-BN, batch 32": (lambda: Vgg16Bn(1.0, 2), (32, 3, 32, 32), 7),
}


def step_of(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """One training step with Adam-L2."""
    optimiser = reapx.adam_l2(model.parameters(), 1e-3, l2=1e-4, fused=True)
    labels = torch.arange(len(images)) % 10

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return step


def main() -> None:
    options = parser(__doc__ or "", "one small network, few rounds").parse_args()
    rows: list[dict[str, object]] = []
    for name, (build, shape, rounds) in list(CASES.items())[: 1 if options.quick else None]:
        torch.manual_seed(0)
        model = build()
        monitor = reapx.NodeMonitor(model)
        weights = [matrix.detach()[0].contiguous() for matrix in matrices_of(model).values()]
        calls = [step_of(model, torch.randn(shape)), monitor.record, lambda own=weights: _native.zero_scan(own)]
        times = interleaved(calls, 2 if options.quick else rounds)
        rows.append({"case": name, **dict(zip(("step", "record", "zero_scan"), times, strict=True))})
    header = ["network", "step, ms", "record, ms", "of a step", "every 100", "zero_scan, ms", "of a step"]
    print(table([_cells(*map(row.__getitem__, ("case", "step", "record", "zero_scan"))) for row in rows], header))
    if options.json or not options.quick:
        write("sparsity", rows, options.json)


def _cells(name: object, step: float, record: float, scan: float) -> list[str]:
    times = [f"{1e3 * step:.2f}", f"{1e3 * record:.3f}", f"{record / step:.2%}", f"{record / step / 100:.4%}"]
    return [str(name), *times, f"{1e3 * scan:.3f}", f"{scan / step:.2%}"]


if __name__ == "__main__":
    main()
