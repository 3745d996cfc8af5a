"""Networks trained until some of their nodes vanish: which runs there are, training one, and what lies on disk.

A run is a method, its strength and a seed. Its weights are kept in a folder, so that a killed script goes on with the
next run, several processes can share the runs by seed, and whatever is measured afterwards needs no new training.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import models
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import reapx

Augment = Callable[[Tensor, torch.Generator], Tensor]

PENALTIES: dict[str, Callable[[nn.Module, float], Tensor]] = {
    "group lasso": lambda model, strength: reapx.group_lasso(model, filters=strength, channels=strength),
    "group sparse": lambda model, strength: reapx.group_sparse(model, strength),
}
"""Trained with Adam as well, without L2."""

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


def train(
    run: Run, build: Callable[[], nn.Module], images: Tensor, labels: Tensor, recipe: Recipe, augment: Augment | None
) -> tuple[nn.Module, list[float]]:
    """Train a fresh network; returns it in eval mode, and the mean loss of each epoch."""
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    model = build().train().to(memory_format=torch.channels_last)
    optimiser, penalty = optimiser_of(run, model, recipe), PENALTIES.get(run.method)
    peak = optimiser.param_groups[0]["lr"]
    steps = len(images) // recipe.batch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step / (recipe.epochs * steps)))
    losses = []
    for epoch in range(recipe.epochs):
        total, start = 0.0, time.perf_counter()
        order = torch.randperm(len(images), generator=generator)[: steps * recipe.batch]
        for picks in order.split(recipe.batch):
            batch = images[picks] if augment is None else augment(images[picks], generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                outputs = model(batch)
            loss = F.cross_entropy(outputs.float(), labels[picks])
            total += float(loss.detach())
            if penalty is not None:
                loss = loss + penalty(model, run.strength)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        losses.append(total / steps)
        print(f"{run.name}, epoch {epoch + 1}/{recipe.epochs}: lr {peak * _rate(epoch / recipe.epochs):.1g}, "
              f"loss {losses[-1]:.4f}, {time.perf_counter() - start:.1f} s", flush=True)  # fmt: skip
    return model.eval(), losses


def _rate(done: float) -> float:
    """The learning rate as a share of its start."""
    return 0.5 * (1 + math.cos(math.pi * done))


def train_all(
    runs: list[Run],
    folder: Path,
    build: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    augment: Augment | None = None,
) -> None:
    """Train the runs whose weights are not in the folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        page = folder / f"{run.name}.json"
        if page.is_file():
            _check(page, recipe)
            continue
        start = time.perf_counter()
        model, losses = train(run, build, images, labels, recipe, augment)
        seconds = round(time.perf_counter() - start, 1)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, _weights(folder, run))
        text = json.dumps({"recipe": asdict(recipe), "seconds": seconds, "losses": losses}, indent=1)
        draft = page.with_suffix(".new")
        draft.write_text(text + "\n")
        os.replace(draft, page)


def trained(run: Run, folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    """A run's network, in eval mode."""
    model = build()
    model.load_state_dict(load_file(_weights(folder, run)))
    return model.eval()


def _weights(folder: Path, run: Run) -> Path:
    return folder / f"{run.name}.safetensors"


def _check(page: Path, recipe: Recipe) -> None:
    known = json.loads(page.read_text())["recipe"]
    if known != asdict(recipe):
        raise SystemExit(f"{page} was trained by another recipe, {known}: give another --folder")


def pixels(split: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """MNIST images between 0 and 1, and labels: the background is zero, so that idle pixels are."""
    images, labels = models.mnist(split, count)
    return images * 0.3081 + 0.1307, labels


def options_of(text: str, folder: str) -> argparse.Namespace:
    """The options that both tables have; a tiny run keeps its weights apart."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all of the table's")
    parser.add_argument("--folder", type=Path, default=Path(".cache") / folder, help="trained weights")
    parser.add_argument("--train-only", action="store_true", help="leave measuring to another call")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it runs, measures nothing")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/; nothing with --quick")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.folder = options.folder / "quick"
    return options
