"""ResNet-56 on CIFAR-10: prune to half of the MACs, retrain for a few epochs, count test accuracy before and after.

    python benchmarks/reproduce/retrain_resnet56.py [--epochs 6] [--budget 0.5] [--lr 0.01] [--batch 128] [--images N]
        [--device cpu|cuda] [--minutes N] [--allocation NAME] [--no-distil] [--bf16] [--validate] [--resume]
        [--quick] [--json FILE]

Pruning sees 1000 training images without labels. Retraining minimises cross-entropy mixed with the distance to the
unpruned network's outputs on the same crops and flips. The state is saved after each epoch in ``build/retrain/``;
``--resume``, with the same options, goes on after a kill or when ``--minutes`` were over.

The pretrained network fits its training images to about 100 %, so accuracy on them says nothing and is not shown.
Options are to be chosen with ``--validate``, which keeps the last 2000 training images out of retraining, counts
accuracy on those and never looks at the test images. The pretrained network has seen these 2000 too: such a figure
compares two settings and is too high as an accuracy. Without ``--validate`` all training images are used, and the
test images are counted once, at the end.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import models
from recipe import fused
from timing import ROOT, Deadline, Target
from training import (
    CALIBRATION,
    Progress,
    Recipe,
    Training,
    data,
    execute,
    kind_of,
    resumed,
    training_options,
)

import reapx

STATE = ROOT / "build" / "retrain"


def settings_of(options: argparse.Namespace) -> dict[str, object]:
    """What a run must share with the one it resumes."""
    names = "epochs budget lr batch images allocation distil bf16 validate quick".split()
    return {name: getattr(options, name) for name in names}


def prune(options: argparse.Namespace, folder: Path, target: Target) -> Progress:
    """Prune the pretrained network into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    model = models.cifar_resnet(56).to(target.device)
    images = models.cifar10("train_1", 100 if options.quick else CALIBRATION)[0].to(target.device)
    more = {} if options.allocation is None else {"allocation": options.allocation}
    start = target.now()
    result = reapx.prune(model, images, budget=reapx.MACs(options.budget), **more)
    seconds = target.now() - start
    macs = result.plan.macs
    print(f"pruned: {seconds:.1f} s, MACs x{macs[1] / macs[0]:.3f}", flush=True)
    result.save(folder / "pruned")
    settings = settings_of(options) | {"allocation": result.plan.settings.allocation}
    progress = Progress(settings, (macs[0], macs[1]), round(seconds, 2))
    progress.save(folder)
    return progress


def begun(options: argparse.Namespace, folder: Path, target: Target) -> Progress:
    """Where a killed run was, if asked for; a new one if it had not finished pruning."""
    wanted = settings_of(options)
    if options.allocation is None:  # the default, whose name only the page holds
        del wanted["allocation"]
    return (resumed(folder, wanted) if options.resume else None) or prune(options, folder, target)


def run(options: argparse.Namespace, target: Target, deadline: Deadline) -> dict[str, object] | None:
    """Prune, retrain, count."""
    device, folder = target.device, STATE / kind_of(options)
    progress = begun(options, folder, target)
    student = reapx.load(models.CifarResNet(56), folder / "pruned")
    teacher = fused(models.cifar_resnet(56)) if options.distil else None
    recipe = Recipe(options.epochs, options.lr, options.batch, options.images, options.bf16)
    job = Training(student, teacher, recipe, progress, folder, target)
    torch.set_flush_denormal(True)
    images, labels, held = data(options.validate, options.quick)
    images, labels = images.to(device), labels.to(device)
    row: dict[str, object] = {
        "work": "retrain",
        "case": f"resnet56 x{options.budget:g}",
        "device": target.name,
    }
    if options.distil:
        row["teacher_batch_ms"] = round(1e3 * job.teacher_seconds(images), 1)
        print(f"teacher: {row['teacher_batch_ms']} ms a batch", flush=True)
    if not job.fit(images, labels, held, deadline):
        return None
    part = "validation" if options.validate else "test"
    counted = held or models.cifar10("test", 200 if options.quick else None)
    pruned = reapx.load(models.CifarResNet(56), folder / "pruned").eval()
    before = [models.accuracy(model.to(device), *(tensor.to(device) for tensor in counted))
              for model in (models.cifar_resnet(56), pruned)]  # fmt: skip
    found = dict(zip(("base", "pruned", "retrained"), [*before, job.accuracy(*counted)], strict=True))
    print(f"{part} accuracy: " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in found.items()))
    row[f"accuracy {part}"] = found
    return row | {"images counted": len(counted[1]), "images trained on": len(images)} | asdict(job.progress)


def main() -> None:
    """Read the options, run, write."""
    parser = training_options(__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs that stays")
    parser.add_argument("--lr", type=float, default=0.01, help="peak of the learning rate")
    parser.add_argument("--images", type=int, help="training images an epoch, drawn anew for each; default: all")
    parser.add_argument("--allocation", help="of reapx.plan; default: reapx's own")
    parser.add_argument("--distil", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.images = 1, 512
    execute(options, "retrain_resnet56", run)


if __name__ == "__main__":
    main()
