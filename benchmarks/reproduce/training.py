"""Training that survives a kill: SGD whose state is on disk after every epoch, and the images it reads."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import models
import torch
from recipe import augment, loss_of, rate, rebase
from safetensors.torch import load_file, save_file
from timing import Deadline, Target, add_training, interleaved, write
from torch import Tensor, nn

SEED = 0
CALIBRATION, HELD_OUT, REBASED = 1000, 2000, 2000
MOMENTUM, DECAY = 0.9, 1e-4
EPOCH_MARGIN = 1.3
"""By how much an epoch may take longer than those before it."""
PAGE = "state.json"


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

    def save(self, folder: Path) -> None:
        """Replace ``state.json`` as a whole."""
        page = folder / f"{PAGE}.new"
        page.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(page, folder / PAGE)


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train."""

    epochs: int
    lr: float
    batch: int = 128
    images: int | None = None
    """Drawn anew for each epoch; default: all."""
    bf16: bool = False


class Training:
    """A network, its teacher if it has one, its optimiser and how far it is."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        recipe: Recipe,
        progress: Progress,
        folder: Path,
        target: Target,
    ):
        self.recipe, self.progress, self.folder, self.target = recipe, progress, folder, target
        self.device = device = target.device
        torch.backends.cudnn.benchmark = target.cuda
        self.student = student.eval().to(device, memory_format=torch.channels_last)
        self.teacher = None if teacher is None else teacher.to(device, memory_format=torch.channels_last)
        self.named = dict(self.student.named_parameters())
        weighty = [value for value in self.named.values() if value.ndim > 1]
        others = [value for value in self.named.values() if value.ndim <= 1]
        groups = [{"params": weighty, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.SGD(groups, recipe.lr, momentum=MOMENTUM, nesterov=True)
        if progress.epoch:
            self._restore(load_file(weights_file(folder, progress.epoch)))

    def fit(
        self,
        images: Tensor,
        labels: Tensor,
        held: tuple[Tensor, Tensor] | None,
        deadline: Deadline,
        rebased: bool = True,
    ) -> bool:
        """All epochs that are left; before the first, the norms take the statistics of what they now read.

        Returns:
            Whether all are done: none is begun that would not end before the deadline.
        """
        if self.progress.epoch == 0 and rebased:
            rebase(self.student, augment(images[:REBASED], self._generator(SEED)))
        for epoch in range(self.progress.epoch, self.recipe.epochs):
            if not deadline.allows(EPOCH_MARGIN * max(self.progress.epoch_seconds[-2:], default=0.0)):
                print(f"time is up after epoch {epoch}: --resume goes on", flush=True)
                return False
            start = time.perf_counter()
            loss = self._epoch(epoch, images, labels)
            seconds = time.perf_counter() - start
            if not math.isfinite(loss):
                raise SystemExit(f"epoch {epoch + 1}: the loss is {loss}; take a smaller --lr")
            self.progress.epoch = epoch + 1
            self.progress.epoch_seconds.append(round(seconds, 2))
            self.progress.losses.append(loss)
            steps = self.steps(len(images))
            rates = [rate(step, self.recipe.epochs * steps, self.recipe.lr)
                     for step in (epoch * steps, (epoch + 1) * steps - 1)]  # fmt: skip
            line = f"epoch {epoch + 1}/{self.recipe.epochs}: {seconds:.1f} s, learning rate {rates[0]:.2g} to "
            line += f"{rates[1]:.2g}, train loss {loss:.4f}"
            if held is not None:
                self.progress.validation.append(self.accuracy(*held))
                line += f", validation accuracy {100 * self.progress.validation[-1]:.2f} %"
            self._save()
            print(line, flush=True)
        return True

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def steps(self, available: int) -> int:
        """Batches of an epoch."""
        return -(-min(available, self.recipe.images or available) // self.recipe.batch)

    def _epoch(self, epoch: int, images: Tensor, labels: Tensor) -> float:
        generator = self._generator(1000 * SEED + epoch + 1)
        chosen = torch.randperm(len(images), generator=generator, device=self.device)[: self.recipe.images]
        step = epoch * self.steps(len(images))
        steps = self.recipe.epochs * self.steps(len(images))
        total = torch.zeros((), device=self.device)
        self.student.train()
        for picks in chosen.split(self.recipe.batch):
            batch = augment(images[picks], generator)
            for group in self.optimiser.param_groups:
                group["lr"] = rate(step, steps, self.recipe.lr)
            wanted = None if self.teacher is None else self._taught(self.teacher, batch)
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
    def _taught(self, teacher: nn.Module, batch: Tensor) -> Tensor:
        with self._precision():
            return teacher(batch).float()

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16)

    def teacher_seconds(self, images: Tensor) -> float:
        """Median time of the teacher on one batch."""
        assert self.teacher is not None
        teacher, batch = self.teacher, images[: self.recipe.batch].contiguous(memory_format=torch.channels_last)
        return interleaved([lambda: self._taught(teacher, batch)], 5, self.target)[0]

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
        self.progress.save(self.folder)
        weights_file(self.folder, self.progress.epoch - 1).unlink(missing_ok=True)

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.student.load_state_dict(state_of(tensors))
        for name, value in self.named.items():
            momentum = torch.empty_like(value).copy_(tensors[f"momentum.{name}"])
            self.optimiser.state[value]["momentum_buffer"] = momentum


def weights_file(folder: Path, epoch: int) -> Path:
    """Where the weights and momenta after an epoch are."""
    return folder / f"epoch{epoch}.safetensors"


def state_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own part of such a file."""
    return {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}


def progress_in(folder: Path) -> Progress | None:
    """What the folder's page says, if it has one."""
    page = folder / PAGE
    return Progress(**json.loads(page.read_text())) if page.is_file() else None


def resumed(folder: Path, wanted: Mapping[str, object]) -> Progress | None:
    """Where a killed run with these settings was; None if it had not begun to train."""
    progress = progress_in(folder)
    if progress is None:
        return None
    others = [name for name, value in wanted.items() if progress.settings.get(name) != value]
    if others:
        raise SystemExit(f"{folder / PAGE} is of a run with another {', '.join(others)}: {progress.settings}")
    print(f"resumed after epoch {progress.epoch}", flush=True)
    return progress


def data(validate: bool, quick: bool) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Images and labels to train on, and those held out."""
    images, labels = models.cifar10("train_1", 512 if quick else None)
    if quick and not validate:
        return images, labels, None
    more, their = models.cifar10("train_2")
    if quick:
        return images, labels, (more[-200:].clone(), their[-200:])
    cut = len(more) - (HELD_OUT if validate else 0)
    held = (more[cut:].clone(), their[cut:]) if validate else None
    return torch.cat([images, more[:cut]]), torch.cat([labels, their[:cut]]), held


def training_options(text: str) -> argparse.ArgumentParser:
    """The options that every training run has."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    add_training(parser)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 where autocast takes it; faster, less exact")
    parser.add_argument("--validate", action="store_true", help="count held-out training images, not test images")
    parser.add_argument("--resume", action="store_true", help="go on after the last epoch that was finished")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it runs, measures nothing")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/; nothing with --quick or --validate")
    return parser


Run = Callable[[argparse.Namespace, Target, Deadline], dict[str, object] | None]


def kind_of(options: argparse.Namespace) -> str:
    """What tells apart the folders of runs that must not go on with each other's state."""
    kind = ["validated" if options.validate else "final", *(["quick"] if options.quick else [])]
    return "-".join([*kind, *(["cuda"] if options.device == "cuda" else [])])


def execute(options: argparse.Namespace, stem: str, run: Run) -> None:
    """Run where there is data, and write the result, unless it is of a tiny run or counts no test images.

    It goes to ``--json`` in any case. There is none if time was up before the end.
    """
    deadline = Deadline(options.minutes)
    if not models.has_data():
        return
    torch.manual_seed(SEED)
    target = Target.of(options.device)
    row = run(options, target, deadline)
    if row is not None and (options.json or not (options.quick or options.validate)):
        write(stem, [row], options.json, target)
