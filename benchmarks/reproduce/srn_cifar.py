"""Table VI.2 of the second report: test errors of a CIFAR-10 ResNet, serialised, pruned again, and from scratch.

    python benchmarks/reproduce/srn_cifar.py [--depth 20|32] [--stages srn pruned resnet naive] [--epochs 6]
        [--retrain 5] [--naive-epochs N] [--lr 0.005] [--resnet-lr 0.01] [--naive-lr 0.1] [--teacher resnet56|none]
        [--batch 128] [--images N] [--bf16] [--device cpu|cuda] [--minutes N] [--validate] [--resume] [--quick]
        [--json FILE]

Each column is a stage, trained on crops and flips. The pretrained network fits its training images so well that their
labels have nothing left to teach in a few epochs; so all stages alike minimise cross-entropy mixed with the distance to
the outputs of the pretrained ResNet-56, which the report does not do. ``--teacher none`` leaves that out.

- ``srn``: the pretrained ResNet serialised, norms put back at the same function, trained on for ``--epochs``.
- ``pruned``: that SRN pruned to the ResNet's MACs (PRO & REAP on 1000 training images without labels), counted as it
  is and after ``--retrain`` epochs.
- ``resnet``: the pretrained ResNet, as it is and trained on as the SRN is. Without this control a gain from more
  training would pass for a gain of the SRN. It bears a higher rate: in the SRN, shortcuts are weights too, and a rate
  of 0.02 wrecks what it starts from within 16 steps (counted on training images).
- ``naive``: the SRN's layers at random, trained for ``--naive-epochs`` in all, by default ``--epochs``: the SRN has the
  pretraining's epochs on top.

Every stage saves its state in ``build/srn/`` after each epoch. ``--resume``, with the same options, goes on after a
kill, or when ``--minutes`` were over, and leaves finished stages alone; ``--stages`` does some of them, and ``pruned``
reads the state of ``srn``.
Options are to be chosen with ``--validate``: the last 2000 training images are held out and counted in place of the
test images. The pretrained network has seen these 2000, so such figures compare settings and are no accuracies.
Without it the test images are counted at the end, for every stage that is finished with the same options.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import models
from recipe import fused
from tables import table
from timing import ROOT, Deadline, Target
from training import (
    CALIBRATION,
    SEED,
    Progress,
    Recipe,
    Training,
    data,
    execute,
    kind_of,
    progress_in,
    resumed,
    state_of,
    training_options,
    weights_file,
)

import reapx

STATE = ROOT / "build" / "srn"
STAGES = ("srn", "pruned", "resnet", "naive")
SEEDS = {
    20: {"resnet": 8.46, "srn": 7.19, "naive": 7.76, "pruned": 8.17},
    32: {"resnet": 7.40, "srn": 6.32, "naive": 8.66, "pruned": 7.12},
    56: {"resnet": 6.63, "srn": 5.62, "naive": 11.52, "pruned": 6.57},
}
"""Test errors of the report in per cent."""


class Study:
    """One depth: its stages' networks, settings and states."""

    def __init__(self, options: argparse.Namespace, target: Target):
        self.options, self.target, self.device = options, target, target.device
        self.root = STATE / f"resnet{options.depth}-{kind_of(options)}"
        self.calibration, _ = models.cifar10("train_1", 100 if options.quick else CALIBRATION)
        serial = reapx.serialize(models.cifar_resnet(options.depth), self.calibration, norms=True)
        self._serial, self.macs = serial.model, serial.macs

    def settings(self, stage: str) -> dict[str, Any]:
        """What a stage must share with the one it resumes."""
        names = "depth batch images teacher bf16 validate quick".split()
        common = {name: getattr(self.options, name) for name in names}
        if stage == "pruned":
            return common | {"epochs": self.options.retrain, "lr": self.options.lr, "srn": self.settings("srn")}
        lr = {"naive": self.options.naive_lr, "resnet": self.options.resnet_lr}.get(stage, self.options.lr)
        epochs = (self.options.naive_epochs if stage == "naive" else None) or self.options.epochs
        return common | {"epochs": epochs, "lr": lr}

    def architecture(self) -> nn.Module:
        """A fresh SRN at the pretrained ResNet's function."""
        return deepcopy(self._serial)

    def start(self, stage: str) -> nn.Module:
        """A stage's network before its training."""
        if stage == "resnet":
            return models.cifar_resnet(self.options.depth)
        if stage == "pruned":
            return reapx.load(self.architecture(), self.root / stage / "pruned").eval()
        return at_random(self.architecture()) if stage == "naive" else self.architecture()

    def finished(self, stage: str) -> Progress | None:
        """A stage's state if it is complete and of these options."""
        progress = progress_in(self.root / stage)
        done = progress is not None and progress.epoch == progress.settings["epochs"]
        return progress if done and progress.settings == self.settings(stage) else None

    def end(self, stage: str) -> nn.Module:
        """The network of a finished stage."""
        progress, model = self.finished(stage), self.start(stage)
        if progress is None:
            raise SystemExit(f"stage {stage} is not finished with these options: name it in --stages too")
        if progress.epoch:
            model.load_state_dict(state_of(load_file(weights_file(self.root / stage, progress.epoch))))
        return model.eval()

    def begun(self, stage: str) -> Progress:
        """Where a killed stage was, if asked for; a new one if it had not begun."""
        folder = self.root / stage
        progress = resumed(folder, self.settings(stage)) if self.options.resume else None
        if progress is not None:
            return progress
        source = self.end("srn") if stage == "pruned" else None
        for old in {folder, self.root / "pruned"} if stage == "srn" else {folder}:
            shutil.rmtree(old, ignore_errors=True)
        folder.mkdir(parents=True)
        before, macs, seconds = self.macs[0], self.macs[0 if stage == "resnet" else 1], 0.0
        if source is not None:
            source, calibration = source.to(self.device), self.calibration.to(self.device)
            start = self.target.now()
            result = reapx.prune(source, calibration, budget=reapx.MACs(before))
            seconds, macs = self.target.now() - start, result.plan.macs[1]
            result.save(folder / "pruned")
            print(f"{seconds:.1f} s, {result.plan.macs[0] / 1e6:.2f} -> {macs / 1e6:.2f} M MACs", flush=True)
        progress = Progress(self.settings(stage), (before, macs), round(seconds, 2))
        progress.save(folder)
        return progress

    def train(
        self, stage: str, training: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor] | None, deadline: Deadline
    ) -> bool:
        """All epochs of a stage that are left; whether it is finished."""
        print(f"-- {stage}", flush=True)
        progress = self.begun(stage)
        if self.finished(stage):
            return True
        epochs, lr = progress.settings["epochs"], progress.settings["lr"]
        recipe = Recipe(epochs, lr, self.options.batch, bf16=self.options.bf16)
        teacher = fused(models.cifar_resnet(56)) if self.options.teacher == "resnet56" else None
        job = Training(self.start(stage), teacher, recipe, progress, self.root / stage, self.target)
        return job.fit(*training, held, deadline, rebased=stage != "naive")

    def count(self, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
        """A row for the pretrained ResNet and each finished stage, the pruned SRN before and after retraining."""
        images, labels = images.to(self.device), labels.to(self.device)

        def row(name: str, model: nn.Module, macs: int, seeds: str | None, **more: object) -> dict[str, Any]:
            share = models.accuracy(model.to(self.device), images, labels)
            error = SEEDS[self.options.depth].get(seeds) if seeds else None
            return {"name": name, "accuracy": share, "macs": macs, "seeds' error %": error, **more}

        rows = [row("resnet", self.start("resnet"), self.macs[0], "resnet")]
        for stage in STAGES:
            progress = self.finished(stage)
            if progress is None:
                print(f"{stage}: not finished with these options, not counted")
                continue
            macs = progress.macs[1]
            if stage == "pruned":
                rows.append(row("pruned, not retrained", self.start(stage), macs, None))
            name, seeds = {"resnet": ("resnet-tuned", None)}.get(stage, (stage, stage))
            rows.append(row(name, self.end(stage), macs, seeds, progress=asdict(progress)))
        return rows


def at_random(model: nn.Module) -> nn.Module:
    """The same layers with Kaiming's random weights and norms that have seen nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
    return model


def show(rows: list[dict[str, Any]], depth: int) -> str:
    """The rows as a table."""
    names = {"resnet": f"ResNet-{depth}, pretrained", "resnet-tuned": f"ResNet-{depth}, trained on",
             "srn": f"SRN-{depth}, trained on", "naive": f"SRN-{depth}, from scratch",
             "pruned, not retrained": f"SRN-{depth} pruned", "pruned": f"SRN-{depth} pruned, retrained"}  # fmt: skip
    lines = []
    for row in rows:
        progress, seeds = row.get("progress"), row["seeds' error %"]
        epochs = str(progress["epoch"]) if progress else "0"
        seconds = f"{median(progress['epoch_seconds']):.0f}" if progress and progress["epoch"] else ""
        cells = [f"{100 * (1 - row['accuracy']):.2f}", f"{row['macs'] / 1e6:.2f}", epochs, seconds]
        lines.append([names[row["name"]], *cells, "" if seeds is None else f"{seeds:.2f}"])
    return table(lines, ["", "error %", "MACs M", "epochs", "s/epoch", "seeds' error %"])


def run(options: argparse.Namespace, target: Target, deadline: Deadline) -> dict[str, Any] | None:
    """Train the stages, count, show."""
    torch.set_flush_denormal(True)
    study = Study(options, target)
    images, labels, held = data(options.validate, options.quick)
    training = tuple(tensor[: options.images].to(study.device) for tensor in (images, labels))
    for stage in (stage for stage in STAGES if stage in options.stages):
        if not study.train(stage, training, held, deadline):
            return None
    counted = held or models.cifar10("test", 200 if options.quick else None)
    rows = study.count(*counted)
    print(show(rows, options.depth))
    part = "validation" if options.validate else "test"
    counts = {"images trained on": len(training[1]), "images counted": len(counted[1])}
    return {
        "work": "table VI.2",
        "depth": options.depth,
        "device": target.name,
        "part": part,
        **counts,
        "columns": rows,
    }


def main() -> None:
    """Read the options, run, write."""
    parser = training_options(__doc__)
    parser.add_argument("--depth", type=int, default=20, choices=sorted(SEEDS))
    parser.add_argument("--stages", nargs="*", default=STAGES, choices=STAGES, metavar="STAGE", help="default: all")
    parser.add_argument("--epochs", type=int, default=6, help="of the SRN, the ResNet and the SRN from scratch")
    parser.add_argument("--naive-epochs", type=int, help="of the SRN from scratch alone")
    parser.add_argument("--retrain", type=int, default=5, help="epochs of the pruned SRN")
    parser.add_argument("--lr", type=float, default=0.005, help="peak of the learning rate of the SRN, pruned or not")
    parser.add_argument("--resnet-lr", type=float, default=0.01, help="the same, of the ResNet")
    parser.add_argument("--naive-lr", type=float, default=0.1, help="the same, from scratch")
    parser.add_argument("--teacher", default="resnet56", choices=["resnet56", "none"], help="what all stages imitate")
    parser.add_argument("--images", type=int, help="train on the first N images; default: all")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.naive_epochs, options.retrain, options.images = 1, None, 1, 512
    execute(options, "srn_cifar", run)


if __name__ == "__main__":
    main()
