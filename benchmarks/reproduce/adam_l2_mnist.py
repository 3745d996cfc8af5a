"""Nodes that vanish on MNIST, 784-500-300-10: parameters removed and accuracy (Figure 6 of the second report).

Adam + L2 at several strengths, next to plain Adam (the dense network), AdamW and momentum SGD (negative controls), and
the penalties made for it: group lasso (Wen et al.) and group sparse (Scardapane et al.). Of each network: what
``reapx.compact`` removes, and what REAP removes beyond that at equal accuracy. Strengths are chosen on the last 5000
training images, which no training sees. A run takes two minutes; processes can share them by --seeds and --train-only.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models
from sparse_table import Data, report
from sparse_training import Recipe, options_of, pixels, runs_of, train_all

HELD, CALIBRATION = 5000, 2000
LOSS = 2e-4
"""Held-out accuracy that a strength may cost, as in the report."""
RECIPE = Recipe(epochs=50, lr=3e-3, sgd_lr=0.1, batch=128)
STRENGTHS = {
    "adam": [0.0],
    "adam_l2": [1e-4, 2e-4, 3e-4, 5e-4, 1e-3],
    "adamw": [1e-2],
    "sgd": [5e-4],
    "group lasso": [1e-4],
    "group sparse": [5e-6],
}


def main() -> None:
    options = options_of(__doc__ or "", "adam_l2_mnist")
    if not models.has_data():
        return
    images, labels = pixels("train", 2000 if options.quick else None)
    held = 200 if options.quick else HELD
    recipe = replace(RECIPE, epochs=1 if options.quick else options.epochs or RECIPE.epochs)
    runs = runs_of({"adam": [0.0], "adam_l2": [1e-3]} if options.quick else STRENGTHS, options)
    done = train_all(runs, options, models.mnist_mlp, (images[:-held], labels[:-held]), recipe)
    if done and not options.train_only:
        test = pixels("test", 500 if options.quick else None)
        found = Data(images[:CALIBRATION], (images[-held:], labels[-held:]), test)
        report(options, "adam_l2_mnist", runs, models.mnist_mlp, found, recipe, LOSS)


if __name__ == "__main__":
    main()
