"""Output norm (OP): the channels whose outgoing weights are smallest leave first; no data is looked at."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .readers import Reader


def output_norm_order(readers: Sequence[Reader], steps: int) -> Tensor:
    """(steps,) int64 units, by ‖W_c‖² of the weights that read each, as a share of each consumer's weights.

    Norms behind the consumers are folded into the weights.

    Source: T. He et al., "Reshaping Deep Neural Network for Fast Decoding by Node-Pruning", ICASSP 2014 (there the
    mean of absolute values).
    """
    total = readers[0].weight.new_zeros(len(readers[0].columns))
    for reader in readers:
        square = reader.weight.square()
        total += square[:, reader.columns].sum((0, 2)) / square.sum().clamp(min=1e-300)
    return total.cpu().argsort(stable=True)[:steps]
