"""The first epoch of retraining with labels: why a plain loop loses accuracy at first, and what helps.

    python benchmarks/retraining.py [--quick] [--json FILE]

ResNet-20 and ResNet-56 on CIFAR-10, pruned with 1000 images, then one epoch of 10 000 training images with SGD in each
of several ways. Accuracy on the test set before and after. A row that is in the file already is not measured again.
"""

from __future__ import annotations

from dataclasses import dataclass

import models
import torch
import torch.nn.functional as F
from reproduce import recipe
from tables import table
from timing import RESULTS, known_rows, parser, write
from torch import Tensor, nn

import reapx

BATCH, CASES = 128, ((20, 0.5), (20, 0.2), (56, 0.5))


@dataclass(frozen=True)
class Way:
    """How to train.

    Attributes:
        renewed: Whether norms get the statistics of what they read before training.
        train: Whether norms are in train mode.
        teacher: Whether the original's outputs are part of the loss.
        peak: Of the learning rate.
        warm: Whether the learning rate warms up and cools down; else it is constant.
    """

    renewed: bool = False
    train: bool = True
    teacher: bool = False
    peak: float = 0.01
    warm: bool = False


WAYS = {
    "SGD, train mode": Way(),
    "+ warm-up and cosine": Way(warm=True),
    "+ renewed norms": Way(warm=True, renewed=True),
    "+ the original teaches": Way(warm=True, renewed=True, teacher=True),
    "norms in eval mode instead": Way(warm=True, teacher=True, train=False),
}


def retrain(model: nn.Module, original: nn.Module, way: Way, images: Tensor, labels: Tensor, few: Tensor) -> nn.Module:
    """One epoch."""
    torch.manual_seed(0)
    model = reapx.renew_norms(model, few) if way.renewed else model
    model.train(way.train).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), way.peak, 0.9, weight_decay=5e-4, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    steps = len(images) // BATCH
    for step, chosen in enumerate(torch.randperm(len(images), generator=generator)[: steps * BATCH].split(BATCH)):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step, steps, way.peak) if way.warm else way.peak
        batch = recipe.augment(images[chosen], generator)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(batch)
            with torch.no_grad():
                wanted = original(batch) if way.teacher else None
        if wanted is None:
            loss = F.cross_entropy(outputs.float(), labels[chosen])
        else:
            loss = recipe.loss_of(outputs.float(), labels[chosen], wanted.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def main() -> None:
    """Measure what is not known yet."""
    options = parser(__doc__, "few images, one case").parse_args()
    if not models.has_data():
        return
    images, labels = models.cifar10("train_1", 256 if options.quick else 10_000)
    tests, test_labels = models.cifar10("test", 200 if options.quick else None)
    path = options.json or RESULTS / "retraining.json"
    rows = [] if options.quick else known_rows(path)
    for depth, share in CASES[:1] if options.quick else CASES:
        case = f"resnet{depth} x{share}"
        left = [name for name in WAYS if (case, name) not in {(row["case"], row["way"]) for row in rows}]
        if not left:
            continue
        original = models.cifar_resnet(depth)
        few = images[: 100 if options.quick else 1000]
        pruned = reapx.prune(original, few, budget=reapx.MACs(share)).model
        state = {name: value.clone() for name, value in pruned.state_dict().items()}
        before = models.accuracy(pruned, tests, test_labels)
        teacher = models.cifar_resnet(depth).to(memory_format=torch.channels_last)
        for name in left:
            pruned.load_state_dict(state)
            trained = retrain(pruned.eval(), teacher, WAYS[name], images, labels, few)
            after = models.accuracy(trained, tests, test_labels)
            rows.append({"case": case, "way": name, "pruned": round(before, 4), "trained": round(after, 4)})
            print(rows[-1], flush=True)
            if not options.quick:
                write("retraining", rows, options.json)
    told = ("case", "way", "pruned", "trained")
    print(table([[str(row[key]) for key in told] for row in rows], told))


if __name__ == "__main__":
    main()
