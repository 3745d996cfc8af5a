"""Networks trained until some of their nodes vanish: which runs there are, training one, and what lies on disk.

A run is a method, its strength and a seed. Its weights are kept in a folder, so that a killed script goes on with the
next run, several processes can share the runs by seed, and whatever is measured afterwards needs no new training.
A run whose time was up goes on after its last epoch.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import models
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timing import Deadline, Target, add_training
from torch import Tensor, nn

import reapx

Augment = Callable[[Tensor, torch.Generator], Tensor]

PENALTIES: dict[str, Callable[[nn.Module, float], Tensor]] = {
    "group lasso": lambda model, strength: reapx.group_lasso(model, filters=strength, channels=strength),
    "group sparse": lambda model, strength: reapx.group_sparse(model, strength),
}
"""Trained with Adam as well, without L2."""

EPOCH_MARGIN = 1.3
"""By how much an epoch may take longer than those before it."""
METHODS = ("adam", "adam_l2", "adamw", "sgd", *PENALTIES)
MOMENTUM = 0.9


@dataclass(frozen=True)
class Run:
    """One training: a method, its strength (0 for plain Adam), a seed."""

    method: str
    strength: float
    seed: int

    @property
    def name(self) -> str:
        """As its files are called."""
        return f"{self.method.replace(' ', '_')}_{self.strength:g}_{self.seed}"


def runs_of(strengths: Mapping[str, Sequence[float]], options: argparse.Namespace) -> list[Run]:
    """The runs that were asked for, seed by seed."""
    grids = {method: grid for method, grid in strengths.items() if method in options.methods}
    return [
        Run(method, strength, seed) for seed in options.seeds for method, grid in grids.items() for strength in grid
    ]


@dataclass(frozen=True)
class Recipe:
    """How all runs of one table train.

    Attributes:
        lr: Adam's learning rate at the start; it cools down to zero along a cosine.
        sgd_lr: That of momentum SGD.
    """

    epochs: int
    lr: float
    batch: int
    sgd_lr: float = 0.1
    bf16: bool = False


def optimiser_of(run: Run, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """What trains a run."""
    parameters = model.parameters()
    if run.method == "sgd":
        return torch.optim.SGD(parameters, recipe.sgd_lr, momentum=MOMENTUM, weight_decay=run.strength)
    if run.method == "adamw":
        return torch.optim.AdamW(parameters, recipe.lr, weight_decay=run.strength, fused=True)
    if run.method == "adam_l2":
        return reapx.adam_l2(parameters, recipe.lr, l2=run.strength, fused=True)
    return torch.optim.Adam(parameters, recipe.lr, fused=True)


class Training:
    """One run: its network, its optimiser and how far it is."""

    def __init__(self, run: Run, build: Callable[[], nn.Module], recipe: Recipe, target: Target) -> None:
        torch.manual_seed(run.seed)
        self.run, self.recipe, self.target = run, recipe, target
        self.generator = torch.Generator(target.device).manual_seed(run.seed)
        self.model = build().train().to(target.device, memory_format=torch.channels_last)
        self.optimiser, self._penalty = optimiser_of(run, self.model, recipe), PENALTIES.get(run.method)
        self.peak = self.optimiser.param_groups[0]["lr"]
        self.losses: list[float] = []
        self.seconds = 0.0

    def fit(self, images: Tensor, labels: Tensor, augment: Augment | None, state: Path, deadline: Deadline) -> bool:
        """All epochs that are left; False if time is up before the end, and all that matters is in ``state``."""
        if state.is_file():
            self._restore(state)
        for epoch in range(len(self.losses), self.recipe.epochs):
            if not deadline.allows(EPOCH_MARGIN * self.seconds / max(1, epoch)):
                if epoch:
                    self._save(state)
                print(f"{self.run.name}: time is up after epoch {epoch}, the same call goes on", flush=True)
                return False
            start = self.target.now()
            self.losses.append(self._epoch(epoch, images, labels, augment))
            seconds = self.target.now() - start
            self.seconds += seconds
            print(f"{self.run.name}, epoch {epoch + 1}/{self.recipe.epochs}: "
                  f"lr {self.peak * _rate(epoch / self.recipe.epochs):.1g}, "
                  f"loss {self.losses[-1]:.4f}, {seconds:.1f} s", flush=True)  # fmt: skip
        self.model.eval()
        return True

    def _epoch(self, epoch: int, images: Tensor, labels: Tensor, augment: Augment | None) -> float:
        """The mean loss."""
        batch_size = self.recipe.batch
        steps = len(images) // batch_size
        order = torch.randperm(len(images), generator=self.generator, device=self.target.device)
        total = torch.zeros((), dtype=torch.float64, device=self.target.device)
        for step, picks in enumerate(order[: steps * batch_size].split(batch_size), epoch * steps):
            batch = images[picks] if augment is None else augment(images[picks], self.generator)
            with torch.autocast(self.target.device.type, torch.bfloat16, enabled=self.recipe.bf16):
                outputs = self.model(batch)
            loss = F.cross_entropy(outputs.float(), labels[picks])
            total += loss.detach()
            if self._penalty is not None:
                loss = loss + self._penalty(self.model, self.run.strength)
            for group in self.optimiser.param_groups:
                group["lr"] = self.peak * _rate(step / (self.recipe.epochs * steps))
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
        return float(total) / steps

    def _save(self, state: Path) -> None:
        """In one move."""
        held = {
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "losses": self.losses,
            "seconds": self.seconds,
        }
        draft = state.with_suffix(".new")
        torch.save(held, draft)
        os.replace(draft, state)

    def _restore(self, state: Path) -> None:
        held = torch.load(state, map_location="cpu", weights_only=True)
        _same(state, held["recipe"], self.recipe)
        self.model.load_state_dict(held["model"])
        self.optimiser.load_state_dict(held["optimiser"])
        self.generator.set_state(held["generator"])
        self.losses, self.seconds = held["losses"], held["seconds"]
        print(f"{self.run.name}: goes on after epoch {len(self.losses)}", flush=True)


def _rate(done: float) -> float:
    """The learning rate as a share of its start."""
    return 0.5 * (1 + math.cos(math.pi * done))


def train_all(
    runs: list[Run],
    options: argparse.Namespace,
    build: Callable[[], nn.Module],
    training: tuple[Tensor, Tensor],
    recipe: Recipe,
    augment: Augment | None = None,
) -> bool:
    """Train the runs whose weights are not in the folder yet; whether all are there."""
    folder, target, deadline = options.folder, options.target, Deadline(options.minutes)
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = (tensor.to(target.device) for tensor in training)
    torch.backends.cudnn.benchmark = target.cuda
    for run in runs:
        page, state = folder / f"{run.name}.json", folder / f"{run.name}.pt"
        if page.is_file():
            _same(page, json.loads(page.read_text())["recipe"], recipe)
            continue
        job = Training(run, build, recipe, target)
        if not job.fit(images, labels, augment, state, deadline):
            return False
        save_file({name: value.contiguous() for name, value in job.model.state_dict().items()}, _weights(folder, run))
        found = {"recipe": asdict(recipe), "seconds": round(job.seconds, 1), "losses": job.losses}
        draft = page.with_suffix(".new")
        draft.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(draft, page)
        state.unlink(missing_ok=True)
    return True


def trained(run: Run, folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    """A run's network, in eval mode."""
    model = build()
    model.load_state_dict(load_file(_weights(folder, run)))
    return model.eval()


def _weights(folder: Path, run: Run) -> Path:
    return folder / f"{run.name}.safetensors"


def _same(file: Path, known: Mapping[str, object], recipe: Recipe) -> None:
    if known != asdict(recipe):
        raise SystemExit(f"{file} was trained by another recipe, {known}: give another --folder")


def pixels(split: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """MNIST images between 0 and 1, and labels: the background is zero, so that idle pixels are."""
    images, labels = models.mnist(split, count)
    return images * 0.3081 + 0.1307, labels


def options_of(text: str, folder: str, width: float | None = None) -> argparse.Namespace:
    """The options that both tables have, with the target; a tiny run keeps its weights apart, and so does a GPU.

    Args:
        width: The default of ``--width``, where a table has one.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all of the table's")
    parser.add_argument("--epochs", type=int, help="default: the table's own")
    if width is not None:
        parser.add_argument("--width", type=float, default=width, help="share of the network's widths")
    parser.add_argument("--folder", type=Path, help="trained weights")
    parser.add_argument("--train-only", action="store_true", help="leave measuring to another call")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_training(parser)
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it runs, measures nothing")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/; nothing with --quick")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.target = Target.of(options.device)
    if options.folder is None:
        marks = [folder, *(["cuda"] if options.target.cuda else [])]
        marks += [f"width{options.width:g}"] if width not in (None, getattr(options, "width", None)) else []
        marks += [f"epochs{options.epochs}"] if options.epochs else []
        options.folder = Path(".cache") / "_".join(marks)
    if options.quick:
        options.folder = options.folder / "quick"
    return options
