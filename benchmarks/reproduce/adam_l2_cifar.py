"""Nodes that vanish on CIFAR-10 in a 16-layer convolutional network: parameters removed and accuracy (Figure 7).

VGG16 with batch norms and three linear layers, at a quarter of its widths, trained for few epochs in bfloat16, so that
a CPU can: the report does not call its network narrow; ``--width 1`` and ``--epochs`` are for a GPU. Adam + L2 at
several strengths, next to plain Adam (the dense network). Of each network: what ``reapx.compact`` removes, and what
REAP removes beyond that at equal accuracy.
Everything is chosen on the last 2000 training images.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import models
from recipe import augment
from sparse_table import Data, report
from sparse_training import Recipe, options_of, runs_of, train_all
from training import HELD_OUT, data

CALIBRATION = 1000
LOSS = 0.01
"""Held-out accuracy that a strength may cost, as in the report."""
WIDTH, HIDDEN = 0.25, 2
RECIPE = Recipe(epochs=12, lr=2e-3, batch=128, bf16=True)
QUICK = Recipe(epochs=1, lr=2e-3, batch=128)
STRENGTHS = {"adam": [0.0], "adam_l2": [1e-3, 2e-3, 3e-3]}


def main() -> None:
    options = options_of(__doc__ or "", "adam_l2_cifar", WIDTH)
    if not models.has_data():
        return
    images, labels, held = data(validate=True, quick=options.quick)
    assert held is not None and len(held[0]) in (200, HELD_OUT)
    recipe = QUICK if options.quick else replace(RECIPE, epochs=options.epochs or RECIPE.epochs)
    strengths = {"adam": [0.0], "adam_l2": [3e-3]} if options.quick else STRENGTHS
    runs = runs_of(strengths, options)

    def network() -> nn.Module:
        """13 convolutions, 3 linear layers."""
        return models.Vgg16Bn(options.width, HIDDEN)

    done = train_all(runs, options, network, (images, labels), recipe, augment)
    if done and not options.train_only:
        test = models.cifar10("test", 500 if options.quick else None)
        found = Data(images[:CALIBRATION], held, test)
        report(options, "adam_l2_cifar", runs, network, found, recipe, LOSS)


if __name__ == "__main__":
    main()
