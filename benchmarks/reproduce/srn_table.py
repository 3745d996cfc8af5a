"""Table VI.2 of the second report, without training: what serialising CIFAR ResNets costs, and whether it is exact.

    python benchmarks/reproduce/srn_table.py [--quick] [--device cpu|cuda] [--json FILE]

Three forms of each network: the ResNet as it comes, with its norms folded into its convolutions, and serialised (SRN),
which folds them too. Gaps are the largest differences of the outputs over the largest output, on 100 test images, in
float64 and float32. Our milliseconds are medians of a whole batch, the forms timed in turn; the report's are of another
machine and fall with the batch, so they are of a fixed number of images: only ratios within a column compare.
There is no pretrained ResNet-44: its weights are random, so its accuracy is not counted. The report's errors are those
of an SRN that was trained on; ours computes what the ResNet does. ``srn_cifar.py`` trains it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import models
from recipe import fused
from tables import table
from timing import Target, interleaved, parser, write

import reapx

DEPTHS = (20, 32, 44, 56)
BATCHES = (1, 4, 16)
ROUNDS = 31
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}
SEEDS = {  # error %, MACs in millions, milliseconds at each batch size; of the ResNet, then of the SRN
    20: ((8.46, 40.5, 191.1, 55.0, 23.5), (7.19, 80.6, 173.7, 50.9, 25.3)),
    32: ((7.40, 68.8, 268.7, 73.2, 29.2), (6.32, 137.2, 247.0, 67.9, 36.5)),
    44: ((7.18, 97.1, 347.6, 91.0, 36.6), (6.03, 193.9, 321.8, 85.1, 46.6)),
    56: ((6.63, 125.4, 432.6, 111.9, 44.9), (5.62, 250.5, 397.9, 102.2, 56.9)),
}


def resnet(depth: int) -> nn.Module:
    """The pretrained network; a random one with every norm doing something where there is none."""
    if depth != 44:
        return models.cifar_resnet(depth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.CifarResNet(depth).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.4, 0.8)
                nn.init.normal_(module.bias, 0, 0.2)
                nn.init.normal_(module.running_mean, 0, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def gap(model: nn.Module, serial: nn.Module, images: Tensor) -> float:
    """Largest difference between the ResNet's and the SRN's outputs, over the largest output."""
    wanted, found = (models.outputs_of(network, images) for network in (model, serial))
    ratio = float((found - wanted).abs().max() / wanted.abs().max())
    assert ratio < TOLERANCE[images.dtype], f"serialised is another network: gap {ratio} in {images.dtype}"
    return ratio


@torch.no_grad()
def milliseconds(forms: Sequence[nn.Module], images: Tensor, rounds: int, target: Target) -> list[float]:
    """Median time of one batch, for each form."""
    times = interleaved([lambda m=m: m(images) for m in forms], rounds, target)
    return [round(1e3 * seconds, 3) for seconds in times]


def measure(depth: int, test: tuple[Tensor, Tensor], rounds: int, target: Target) -> dict[str, Any]:
    """All that is known of one depth."""
    images, labels = test
    base = resnet(depth).to(target.device)
    few = images[:100]
    serial = reapx.serialize(base, few)
    exact = deepcopy(base).double()
    forms = {"resnet": base, "folded": fused(deepcopy(base)), "srn": serial.model}
    for form in forms.values():
        form.requires_grad_(False)
    macs = [count / 1e6 for count in serial.macs]
    for ours, (_, theirs, *_) in zip(macs, SEEDS[depth], strict=True):
        assert abs(ours - theirs) < 0.1, f"depth {depth}: {ours} M multiply-accumulates, the report says {theirs} M"
    own = list(forms.values())
    times = {str(batch): milliseconds(own, images[:batch].contiguous(), rounds, target) for batch in BATCHES}
    row = {
        "work": "table VI.2",
        "depth": depth,
        "macs": serial.macs,
        "params": serial.params,
        "gap float64": gap(exact, reapx.serialize(exact, few.double()).model, few.double()),
        "gap float32": gap(base, serial.model, few),
        "accuracy": None if depth == 44 else {name: models.accuracy(form, *test) for name, form in forms.items()},
        "images counted": len(labels),
        "milliseconds": {name: {batch: each[k] for batch, each in times.items()} for k, name in enumerate(forms)},
        "seeds": dict(zip(("resnet", "srn"), SEEDS[depth], strict=True)),
    }
    print(row, flush=True)
    return row


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table, the report's own below each."""
    lines = []
    for row in rows:
        depth = row["depth"]
        titles = (f"ResNet-{depth}", f"ResNet-{depth}, norms folded", f"SRN-{depth}")
        for title, place, name in zip(titles, (0, 0, 1), ("resnet", "folded", "srn"), strict=True):
            gaps = [f"{row[f'gap float{bits}']:.1e}" if name == "srn" else "" for bits in (64, 32)]
            error = "" if row["accuracy"] is None else f"{100 * (1 - row['accuracy'][name]):.2f}"
            macs, params = row["macs"][place] / 1e6, row["params"][place] / 1e6
            times = [f"{value:.2f}" for value in row["milliseconds"][name].values()]
            # Folding moves parameters; only the ResNet as it comes and the SRN are counted.
            counted = "" if name == "folded" else f"{params:.3f}"
            lines.append([title, error, f"{macs:.2f}", counted, *gaps, *times])
        for name, (error, macs, *times) in zip((f"ResNet-{depth}", f"SRN-{depth}"), SEEDS[depth], strict=True):
            lines.append([f"seeds: {name}", f"{error:.2f}", f"{macs:.1f}", "", "", "", *map(str, times)])
    head = ["", "error %", "MACs M", "params M", "gap float64", "float32", *(f"ms, batch {b}" for b in BATCHES)]
    return table(lines, head)


def main() -> None:
    """All depths."""
    arguments = parser(__doc__, "ResNet-20, few images")
    options = arguments.parse_args()
    if not models.has_data():
        return
    target = Target.of(options.device)
    images, labels = models.cifar10("test", 200 if options.quick else None)
    test = (images.to(target.device), labels.to(target.device))
    rounds, depths = (3, DEPTHS[:1]) if options.quick else (ROUNDS, DEPTHS)
    rows = [measure(depth, test, rounds, target) for depth in depths]
    print(show(rows))
    if not options.quick or options.json:
        write("srn_table", rows, options.json, target)


if __name__ == "__main__":
    main()
