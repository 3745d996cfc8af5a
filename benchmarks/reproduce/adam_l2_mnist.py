"""Nodes that vanish on MNIST, 784-500-300-10: parameters removed and accuracy (Figure 6 of the second report).

Adam + L2 at several strengths, next to plain Adam (the dense network), AdamW and momentum SGD (negative controls), and
the penalties made for it: group lasso (Wen et al.) and group sparse (Scardapane et al.). Training takes two minutes a
run; several processes can share it by --seeds with --train-only.
"""

from __future__ import annotations

import models
import torch
from sparse_training import Recipe, Run, mnist_mlp, options_of, pixels, train_all

VALIDATION = 5000
RECIPE = Recipe(epochs=50, lr=3e-3, sgd_lr=0.1, batch=128)
STRENGTHS = {
    "adam": [0.0],
    "adam_l2": [1e-4, 2e-4, 3e-4, 5e-4, 1e-3],
    "adamw": [1e-2],
    "sgd": [5e-4],
    "group lasso": [1e-4],
    "group sparse": [1e-5],
}


def main() -> None:
    options = options_of(__doc__ or "", "adam_l2_mnist").parse_args()
    if not models.has_data():
        return
    torch.set_num_threads(options.threads)
    runs = [
        Run(method, strength, seed) for seed in options.seeds for method, grid in STRENGTHS.items() for strength in grid
    ]
    images, labels = pixels("train")
    train_all(runs, options.folder, mnist_mlp, images[:-VALIDATION], labels[:-VALIDATION], RECIPE)


if __name__ == "__main__":
    main()
