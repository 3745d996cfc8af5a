"""reapx.kernels on a plain matrix, next to the loop that it replaces: delete each candidate, refit, keep the best.

Run it with ``python examples/embedding_kernels.py``; it takes a few seconds and needs nothing but torch and reapx.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from reapx.kernels import gram_matrix, least_squares, reap_path

LAYERS = {  # name: units, taps of each, outputs
    "linear, 64 features": (64, 1, 32),
    "3x3 convolution, 16 channels": (16, 9, 16),
}


def naive_path(gram: Tensor, weight: Tensor, taps: int, steps: int) -> tuple[list[int], list[float]]:
    """The order of removal and the error after each step, with a refit for every candidate at every step."""
    columns = torch.arange(len(gram)).reshape(-1, taps)
    cross = weight @ gram
    square = float((cross * weight).sum())  # ‖X Wᵀ‖²: what is lost where nothing is left
    left, order, errors = list(range(len(columns))), [], []
    for _ in range(steps):
        costs = {}
        for unit in left:
            kept = columns[[other for other in left if other != unit]].flatten()
            refitted = torch.linalg.solve(gram[kept][:, kept], cross[:, kept].T)
            costs[unit] = square - float((refitted.T * cross[:, kept]).sum())
        best = min(costs, key=costs.__getitem__)
        order.append(best)
        errors.append(costs[best])
        left.remove(best)
    return order, errors


def compare(name: str, units: int, taps: int, outputs: int) -> None:
    """Half of the units, both ways; prints a line, and exits where the two disagree."""
    features, steps = units * taps, units // 2
    mixing = torch.eye(features) + 0.3 * torch.randn(features, features) / features**0.5
    batches = [torch.randn(1000, features) @ mixing for _ in range(2)]
    weight = torch.randn(outputs, features)

    moments = gram_matrix(batches[0]) + gram_matrix(batches[1])  # batches add up
    start = time.perf_counter()
    path = reap_path(moments.gram, weight, taps, steps)
    fast = time.perf_counter() - start
    start = time.perf_counter()
    order, errors = naive_path(moments.gram, weight.double(), taps, steps)
    slow = time.perf_counter() - start

    whole = float(((weight.double() @ moments.gram) * weight).sum())
    apart = float((path.errors[1:] - torch.tensor(errors, dtype=torch.float64)).abs().max()) / whole
    print(
        f"{name:30}{float(path.errors[-1]) / whole:>15.3%}{apart:>14.1e}{fast:>12.4f}{slow:>12.4f}{slow / fast:>9.0f}x"
    )
    kept = path.columns(steps)
    refitted = least_squares(moments.gram, weight.double() @ moments.gram, kept)
    if path.order.tolist() != order or apart > 1e-9 or not torch.allclose(path.weights(steps)[:, kept], refitted):
        raise SystemExit(f"{name}: the two paths differ")


def main() -> None:
    """A table with a line for each layer."""
    torch.manual_seed(0)
    print(
        f"{'half of the units removed':30}{'error':>15}{'difference':>14}{'reapx, s':>12}{'naive, s':>12}{'ratio':>10}"
    )
    for name, sizes in LAYERS.items():
        compare(name, *sizes)


if __name__ == "__main__":
    main()
