"""LASSO (CP, channel pruning): the channels that a LASSO regression of the next layer's outputs selects stay.

Source: Y. He, X. Zhang and J. Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017. There the
penalty is raised until few enough channels remain. Here the homotopy of B. Efron et al., "Least Angle Regression",
Annals of Statistics 32(2), 2004, follows all penalties in one pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .paths.channel_grams import shared_gram
from .paths.consumers import MeasuredConsumer


def require_lasso() -> None:
    """Check that scikit-learn is installed.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise InputError("selection='lasso' needs scikit-learn: pip install 'reapx[lasso]'") from error


def lasso_order(consumers: Sequence[MeasuredConsumer], steps: int) -> Tensor:
    """(steps,) int64 units outside the support of the LASSO; those that would enter it last come first.

    With Z_c the contribution of unit c to the outputs Y, the support is that of the smallest λ for which ::

        min over β of  ½ ‖Y - Σ_c β_c Z_c‖² + λ ‖β‖₁

    has at most ``units - steps`` units in its support. Where it has fewer, the next units to enter stay too. Earlier
    cuts follow the order of entry. Only inner products of the Z_c are needed.
    """
    gram = shared_gram(consumers).cpu().numpy()
    support, entry = _follow(gram)
    size = len(gram)
    stays = size - steps
    counts = support.sum(0)
    knot = int(np.flatnonzero(counts <= stays)[-1])
    # Units in the support at the knot come first, then by entry; units that never enter come last, by their energy.
    rank = np.lexsort((-gram.diagonal(), entry, ~support[:, knot]))
    return torch.from_numpy(rank[stays:][::-1].copy())


def _follow(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The support (units, knots) bool at each knot of λ, the largest λ first; the knot (units,) where each enters."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    size = len(gram)
    alive = np.flatnonzero(gram.diagonal() > 1e-12 * max(gram.diagonal().mean(), 1e-300))
    support = np.zeros((size, 1), dtype=bool)
    if len(alive):
        own = gram[np.ix_(alive, alive)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # linearly dependent units do not enter
            _, _, path = lars_path_gram(own.sum(1), own, n_samples=1, method="lasso", max_iter=8 * size)
        support = np.zeros((size, path.shape[1]), dtype=bool)
        support[alive] = path != 0
    entry = np.where(support.any(1), support.argmax(1), support.shape[1])
    return support, entry
