"""LASSO (CP, channel pruning): the channels stay that a LASSO regression of the next layer's outputs picks.

Source: Y. He, X. Zhang and J. Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017. There the
penalty is raised until few enough channels are left; here the whole path of penalties is followed at once, by the
homotopy of B. Efron et al., "Least Angle Regression", Annals of Statistics 32(2), 2004.
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
    """Refuse where scikit-learn is missing.

    Raises:
        InputError: it is.
    """
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise InputError("selection='lasso' needs scikit-learn: pip install 'reapx[lasso]'") from error


def lasso_order(consumers: Sequence[MeasuredConsumer], steps: int) -> Tensor:
    """(steps,) int64 units that are not in the support of the LASSO, those that enter it last first.

    With Z_c what unit c adds to the outputs Y, the support is that of the smallest λ for which ::

        min over β of  ½ ‖Y - Σ_c β_c Z_c‖² + λ ‖β‖₁

    has at most all but ``steps`` units in it; where it has fewer, the next to enter stay too. Cuts before the last
    one follow the order of entry alone. Only inner products of the Z_c are needed.
    """
    gram = shared_gram(consumers).cpu().numpy()
    support, entry = _follow(gram)
    size = len(gram)
    stays = size - steps
    counts = support.sum(0)
    knot = int(np.flatnonzero(counts <= stays)[-1])
    # Those of the knot first, then by entry; what never enters last, by size.
    rank = np.lexsort((-gram.diagonal(), entry, ~support[:, knot]))
    return torch.from_numpy(rank[stays:][::-1].copy())


def _follow(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which units are in the support (units, knots) at each knot of λ, from the largest down; when each enters."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    size = len(gram)
    alive = np.flatnonzero(gram.diagonal() > 1e-12 * max(gram.diagonal().mean(), 1e-300))
    support = np.zeros((size, 1), dtype=bool)
    if len(alive):
        own = gram[np.ix_(alive, alive)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what cannot be told apart does not enter
            _, _, path = lars_path_gram(own.sum(1), own, n_samples=1, method="lasso", max_iter=8 * size)
        support = np.zeros((size, path.shape[1]), dtype=bool)
        support[alive] = path != 0
    entry = np.where(support.any(1), support.argmax(1), support.shape[1])
    return support, entry
