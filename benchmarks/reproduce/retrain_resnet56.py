"""ResNet-56 on CIFAR-10: prune to half of the MACs, retrain for a few epochs, count test accuracy before and after.

    python benchmarks/reproduce/retrain_resnet56.py [--epochs 6] [--budget 0.5] [--lr 0.01] [--batch 128] [--images N]
        [--device auto|cpu|cuda] [--allocation NAME] [--no-distil] [--bf16] [--validate] [--resume] [--quick]
        [--json FILE]

Pruning sees 1000 training images without labels and runs on the CPU; retraining takes CUDA where there is one.
It minimises cross-entropy mixed with the distance to the unpruned network's outputs on the same crops and flips.
The state is saved after each epoch in ``build/retrain/``; ``--resume``, with the same options, goes on after a kill.

The pretrained network fits its training images to about 100 %, so accuracy on them says nothing and is not shown.
Options are to be chosen with ``--validate``, which keeps the last 2000 training images out of retraining, counts
accuracy on those and never looks at the test images. The pretrained network has seen these 2000 too: such a figure
compares two settings and is too high as an accuracy. Without ``--validate`` all training images are used, and the
test images are counted once, at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import models
from recipe import augment, fused, loss_of, rate, rebase
from timing import ROOT, interleaved, write

import reapx

STATE = ROOT / "build" / "retrain"
SEED = 0
CALIBRATION, HELD_OUT, REBASED = 1000, 2000, 2000
MOMENTUM, DECAY = 0.9, 1e-4


@dataclass
class Progress:
    """What the file ``state.json`` holds."""

    settings: dict[str, object]
    macs: tuple[int, int]
    prune_seconds: float
    epoch: int = 0
    epoch_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)


class Retraining:
    """A pruned network, its teacher, its optimiser and how far it is."""

    def __init__(self, options: argparse.Namespace, folder: Path, device: torch.device):
        self.options, self.folder, self.device = options, folder, device
        self.progress, weights = resumed(options, folder) if options.resume else (prune(options, folder), None)
        student = reapx.load(models.CifarResNet(56), folder / "pruned")
        self.student = student.eval().to(device, memory_format=torch.channels_last)
        self.teacher = fused(models.cifar_resnet(56)).to(device, memory_format=torch.channels_last)
        self.named = dict(self.student.named_parameters())
        weighty = [value for value in self.named.values() if value.ndim > 1]
        others = [value for value in self.named.values() if value.ndim <= 1]
        groups = [{"params": weighty, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.SGD(groups, options.lr, momentum=MOMENTUM, nesterov=True)
        if weights is not None:
            self._restore(weights)

    def fit(self, images: Tensor, labels: Tensor, held: tuple[Tensor, Tensor] | None) -> None:
        """All epochs that are left."""
        if self.progress.epoch == 0:
            rebase(self.student, augment(images[:REBASED], torch.Generator().manual_seed(SEED)))
        for epoch in range(self.progress.epoch, self.options.epochs):
            start = time.perf_counter()
            loss = self._epoch(epoch, images, labels)
            seconds = time.perf_counter() - start
            if not math.isfinite(loss):
                raise SystemExit(f"epoch {epoch + 1}: the loss is {loss}; take a smaller --lr")
            self.progress.epoch = epoch + 1
            self.progress.epoch_seconds.append(round(seconds, 2))
            self.progress.losses.append(loss)
            steps = self.steps(len(images))
            rates = [rate(step, self.options.epochs * steps, self.options.lr)
                     for step in (epoch * steps, (epoch + 1) * steps - 1)]  # fmt: skip
            line = f"epoch {epoch + 1}/{self.options.epochs}: {seconds:.1f} s, learning rate {rates[0]:.2g} to "
            line += f"{rates[1]:.2g}, train loss {loss:.4f}"
            if held is not None:
                self.progress.validation.append(self.accuracy(*held))
                line += f", validation accuracy {100 * self.progress.validation[-1]:.2f} %"
            self._save()
            print(line, flush=True)

    def steps(self, available: int) -> int:
        """Batches of an epoch."""
        return -(-min(available, self.options.images or available) // self.options.batch)

    def _epoch(self, epoch: int, images: Tensor, labels: Tensor) -> float:
        generator = torch.Generator().manual_seed(1000 * SEED + epoch + 1)
        chosen = torch.randperm(len(images), generator=generator)[: self.options.images].to(self.device)
        step = epoch * self.steps(len(images))
        steps = self.options.epochs * self.steps(len(images))
        total = torch.zeros((), device=self.device)
        self.student.train()
        for picks in chosen.split(self.options.batch):
            batch = augment(images[picks], generator)
            for group in self.optimiser.param_groups:
                group["lr"] = rate(step, steps, self.options.lr)
            wanted = self.taught(batch) if self.options.distil else None
            with self._precision():
                outputs = self.student(batch)
            loss = loss_of(outputs.float(), labels[picks], wanted)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total += loss.detach() * len(picks)
            step += 1
        self.student.eval()
        return float(total) / len(chosen)

    @torch.no_grad()
    def taught(self, batch: Tensor) -> Tensor:
        """What the unpruned network computes."""
        with self._precision():
            return self.teacher(batch).float()

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16)

    def teacher_seconds(self, images: Tensor) -> float:
        """Median time of the unpruned network on one batch."""
        batch = images[: self.options.batch].contiguous(memory_format=torch.channels_last)
        return interleaved([lambda: self.taught(batch).cpu()], 5)[0]

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Of the network as it is now."""
        return models.accuracy(self.student.eval(), images.to(self.device), labels.to(self.device))

    def _save(self) -> None:
        """Weights and momenta in a file of this epoch's name, then the page that points to it, in one move."""
        tensors = {f"model.{name}": value for name, value in self.student.state_dict().items()}
        for name, value in self.named.items():
            tensors[f"momentum.{name}"] = self.optimiser.state[value]["momentum_buffer"]
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(plain, weights_file(self.folder, self.progress.epoch))
        save_page(self.folder, self.progress)
        weights_file(self.folder, self.progress.epoch - 1).unlink(missing_ok=True)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        state = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        self.student.load_state_dict(state)
        for name, value in self.named.items():
            momentum = torch.empty_like(value).copy_(tensors[f"momentum.{name}"])
            self.optimiser.state[value]["momentum_buffer"] = momentum


def weights_file(folder: Path, epoch: int) -> Path:
    """Where the weights and momenta after an epoch are."""
    return folder / f"epoch{epoch}.safetensors"


def save_page(folder: Path, progress: Progress) -> None:
    """Replace ``state.json`` as a whole."""
    page = folder / "state.json.new"
    page.write_text(json.dumps(asdict(progress), indent=1) + "\n")
    os.replace(page, folder / "state.json")


def settings_of(options: argparse.Namespace) -> dict[str, object]:
    """What a run must share with the one it resumes."""
    names = "epochs budget lr batch images allocation distil bf16 validate quick".split()
    return {name: getattr(options, name) for name in names}


def prune(options: argparse.Namespace, folder: Path) -> Progress:
    """Prune the pretrained network into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    model = models.cifar_resnet(56)
    images, _ = models.cifar10("train_1", 100 if options.quick else CALIBRATION)
    more = {} if options.allocation is None else {"allocation": options.allocation}
    start = time.perf_counter()
    result = reapx.prune(model, images, budget=reapx.MACs(options.budget), **more)
    seconds = time.perf_counter() - start
    macs = result.plan.macs
    print(f"pruned: {seconds:.1f} s, MACs x{macs[1] / macs[0]:.3f}", flush=True)
    result.save(folder / "pruned")
    settings = settings_of(options) | {"allocation": result.plan.allocation}
    progress = Progress(settings, (macs[0], macs[1]), round(seconds, 2))
    save_page(folder, progress)
    return progress


def resumed(options: argparse.Namespace, folder: Path) -> tuple[Progress, dict[str, Tensor] | None]:
    """Where a killed run was; a new one if it had not finished pruning."""
    page = folder / "state.json"
    if not page.is_file():
        return prune(options, folder), None
    progress = Progress(**json.loads(page.read_text()))
    wanted = settings_of(options)
    if options.allocation is None:  # the default, whose name the page holds
        wanted["allocation"] = progress.settings["allocation"]
    others = [name for name, value in wanted.items() if progress.settings[name] != value]
    if others:
        raise SystemExit(f"{page} is of a run with another {', '.join(others)}: {progress.settings}")
    weights = load_file(weights_file(folder, progress.epoch)) if progress.epoch else None
    print(f"resumed after epoch {progress.epoch}", flush=True)
    return progress, weights


def data(options: argparse.Namespace) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Images and labels to retrain on, and those held out."""
    images, labels = models.cifar10("train_1", 512 if options.quick else None)
    if options.quick and not options.validate:
        return images, labels, None
    more, their = models.cifar10("train_2")
    if options.quick:
        return images, labels, (more[-200:].clone(), their[-200:])
    cut = len(more) - (HELD_OUT if options.validate else 0)
    held = (more[cut:].clone(), their[cut:]) if options.validate else None
    return torch.cat([images, more[:cut]]), torch.cat([labels, their[:cut]]), held


def run(options: argparse.Namespace) -> dict[str, object]:
    """Prune, retrain, count."""
    device = torch.device(options.device)
    kind = ["validated" if options.validate else "final", *(["quick"] if options.quick else [])]
    job = Retraining(options, STATE / "-".join(kind), device)
    torch.set_flush_denormal(True)
    images, labels, held = data(options)
    images, labels = images.to(device), labels.to(device)
    row: dict[str, object] = {
        "work": "retrain",
        "case": f"resnet56 x{options.budget:g}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    if options.distil:
        row["teacher_batch_ms"] = round(1e3 * job.teacher_seconds(images), 1)
        print(f"teacher: {row['teacher_batch_ms']} ms a batch", flush=True)
    job.fit(images, labels, held)
    part = "validation" if options.validate else "test"
    counted = held or models.cifar10("test", 200 if options.quick else None)
    pruned = reapx.load(models.CifarResNet(56), job.folder / "pruned").eval()
    before = [models.accuracy(model.to(device), *(tensor.to(device) for tensor in counted))
              for model in (models.cifar_resnet(56), pruned)]  # fmt: skip
    found = dict(zip(("base", "pruned", "retrained"), [*before, job.accuracy(*counted)], strict=True))
    print(f"{part} accuracy: " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in found.items()))
    row[f"accuracy {part}"] = found
    return row | {"images counted": len(counted[1]), "images trained on": len(images)} | asdict(job.progress)


def main() -> None:
    """Read the options, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs that stays")
    parser.add_argument("--lr", type=float, default=0.01, help="peak of the learning rate")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, help="training images an epoch, drawn anew for each; default: all")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="of retraining")
    parser.add_argument("--allocation", help="of reapx.plan; default: reapx's own")
    parser.add_argument("--distil", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 where autocast takes it; faster, less exact")
    parser.add_argument("--validate", action="store_true", help="count held-out training images, not test images")
    parser.add_argument("--resume", action="store_true", help="go on after the last epoch that was finished")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it runs, measures nothing")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/; nothing with --quick or --validate")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.images = 1, 512
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if not models.has_data():
        return
    torch.manual_seed(SEED)
    row = run(options)
    if options.json or not (options.quick or options.validate):
        write("retrain_resnet56", [row], options.json)


if __name__ == "__main__":
    main()
