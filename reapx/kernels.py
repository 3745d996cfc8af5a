"""The kernels as public functions of matrices: for use with a matrix X or its Gram matrix XᵀX, without a model.

A weight W is (outputs M, features D), as torch stores it, and reads rows X (rows, D): Y = X Wᵀ. Columns are grouped
into **units**: unit u has the ``taps`` consecutive columns ``u * taps .. (u + 1) * taps - 1``. A unit is an input
channel of a convolution (taps: height times width of the kernel, the layout of ``weight.flatten(1)``), an attention
head (taps: its width), or a single feature (taps 1).

All functions have in common:

- Gram matrices, cross moments and weights are float32 or float64. They are converted to float64, and all results are
  float64. A Gram matrix that was accumulated in float32 has lost digits that the conversion does not restore.
- All tensors of a call are on one device, the CPU or a GPU for which there are kernels, and so are the results.
- They use ``torch.get_num_threads()`` threads; results do not depend on how many. Gradients are not tracked.
- ``damping`` is a fraction of the mean diagonal of the Gram matrix: λ = damping * mean(diag G), whichever columns are
  kept. The default, zero, gives plain least squares, which needs a nonsingular Gram matrix. Where there are few rows or
  similar columns, 1e-2 is a good start.

``InputError`` is a ``ValueError``, ``NumericalError`` an ``ArithmeticError``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _native
from ._native import arguments
from ._native.removal_path import ReapPath, distance_grown, unit_columns
from .errors import NumericalError
from .moments.gram_moments import GramMoments

__all__ = ["GramMoments", "ReapPath", "gram_matrix", "least_squares", "pair_errors", "reap_path", "zero_rows"]


def gram_matrix(
    x: Tensor,
    kernel_size: int | tuple[int, int] = 1,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    target: Tensor | None = None,
) -> GramMoments:
    """Compute the Gram matrix XᵀX of the patches of a convolution, or of a matrix, without building the patches.

    X has a row for each image and output position and a column for each (channel, kernel row, kernel column), so that
    the convolution is ``X @ weight.flatten(1).T``. X is the transpose of what ``torch.nn.functional.unfold`` returns.
    Products are summed in float32 over at most 256 rows, and these partial sums in float64.

    Args:
        x: (images, channels, height, width), or (rows, features) for a linear layer; float32, float16 or bfloat16,
            contiguous or channels-last.
        kernel_size, stride, padding, dilation, groups: As of ``torch.nn.Conv2d``, with zero padding; pairs are (height,
            width). They keep their defaults, except ``groups``, where x is a matrix.
        target: Target of the layer, (images, outputs, output height, output width), or (rows, outputs); None for
            moments without a target.

    Returns:
        Moments with D = channels / groups * kernel height * kernel width features and M / groups outputs per group.

    Raises:
        InputError: a dtype, shape, layout or device does not fit.
        NumericalError: x or target has a value that is NaN, infinite, or too large to be squared in float32.
        BackendError: there are no kernels for the device.
    """
    window = arguments.window(kernel_size, stride, padding, dilation, groups)
    images, size = arguments.images(x, window)
    wanted = None if target is None else arguments.target_images(target, x, window, size)
    features = images.shape[1] // groups * window.kernel[0] * window.kernel[1]
    outputs = 0 if wanted is None else wanted.shape[1] // groups
    shapes = (features, features), (features,), (outputs, features), (outputs,), (outputs,)
    sums = [torch.zeros(groups, *shape, dtype=torch.float64, device=x.device) for shape in shapes]
    gram, total, cross, target_total, target_square = sums
    _native.gram_accumulate(
        images,
        window,
        size,
        gram,
        total,
        target=wanted,
        cross=cross,
        target_total=target_total.flatten(),
        target_square=target_square.flatten(),
    )
    _native.gram_mirror(gram)
    arguments.check_sums(gram, total, target_square)
    if groups == 1:
        gram, total, cross, target_total, target_square = (value[0] for value in sums)
    rows = len(images) * size[0] * size[1]
    if wanted is None:
        return GramMoments(gram, total, rows)
    return GramMoments(gram, total, rows, cross, target_total, target_square)


def least_squares(
    gram: Tensor,
    cross: Tensor,
    kept: Tensor | Sequence[int] | None = None,
    damping: float = 0.0,
    *,
    reference: Tensor | None = None,
) -> Tensor:
    """Solve for the weights on the kept columns that minimise ``‖Y - X_kept Wᵀ‖² + λ ‖W - reference‖²``.

    Args:
        gram: (D, D) XᵀX, symmetric.
        cross: (M, D) YᵀX. Where Y is the output of old weights, it is ``weight @ gram``.
        kept: (n,) int64, distinct: columns that the weights may use; None for all.
        damping: λ as a fraction of the mean diagonal of ``gram``.
        reference: (M, D) weights towards which damping pulls, such as the old weights; None for zero.

    Returns:
        (M, n) float64, columns in the order of ``kept``.

    Raises:
        InputError: a dtype, shape, index, device or the damping does not fit, or ``gram`` is not symmetric.
        NumericalError: a value is NaN or infinite, or the damped Gram matrix is singular; the message names the column.
    """
    gram = arguments.gram_of(gram)
    columns = arguments.indices("kept", range(len(gram)) if kept is None else kept, gram)
    cross = arguments.matrix("cross", cross, gram)
    old = None if reference is None else arguments.matrix("reference", reference, gram, len(cross))
    weight = gram.new_empty(len(cross), len(columns))
    task = _native.SolveTask(gram, cross, columns, arguments.ridge(gram, damping), old, weight)
    pivot = _native.batch_solve([task])[0]
    if pivot >= 0:
        raise arguments.singular(gram, int(columns[pivot]), 1, damping)
    return weight


def reap_path(
    gram: Tensor,
    weight: Tensor | None = None,
    taps: int = 1,
    steps: int | None = None,
    damping: float = 0.0,
    *,
    cross: Tensor | None = None,
    target_square: Tensor | float | None = None,
    first: Tensor | Sequence[int] | None = None,
) -> ReapPath:
    """Remove units one by one, each time the unit that costs least once all remaining weights are refitted.

    With P = (G + λI)⁻¹, the Gram matrix of the biorthogonal basis, removing unit u costs tr(W_u (P_uu)⁻¹ W_uᵀ). This
    gives the exact costs of all units without a trial; P and W are updated after each removal. There are two problems:

    - ``weight`` alone: Y is the output of ``weight``. Damping pulls towards it, and the path starts from it.
    - ``cross``: Y is any target. Damping pulls towards ``weight``, or towards zero without one. The path starts from
      ``least_squares(gram, cross, damping=damping, reference=weight)``.

    Units whose columns of X are all zero leave first, even if damping gives their weights a cost.

    Args:
        gram: (D, D) XᵀX, symmetric, D = units * taps.
        weight: (M, D); of a convolution ``weight.flatten(1)``.
        taps: Number of columns of each unit.
        steps: Number of removals, at most the number of units; None for all of them.
        damping: λ as a fraction of the mean diagonal of ``gram``.
        cross: (M, D) YᵀX.
        target_square: ‖Y‖², a number or the (M,) sums of squares of Y's columns. With it and ``cross``, ``errors`` are
            whole errors instead of increases.
        first: (count,) int64, distinct: units that leave first, in this order. With ``steps=len(first)`` they are the
            whole path.

    Returns:
        The order of removal, the errors, and the weights at any cut.

    Raises:
        InputError: a dtype, shape, index, device, number of steps or the damping does not fit, or ``gram`` is not
            symmetric.
        NumericalError: a value is NaN or infinite, or the damped Gram matrix is singular; the message names the unit.

    Source: K. Kamma and T. Wada, "REAP: A Method for Pruning Convolutional Neural Networks with Performance
    Preservation", IEICE Trans. Inf. & Syst. E104-D(1), 2021.
    """
    gram = arguments.gram_of(gram, taps)
    ridge = arguments.ridge(gram, damping)
    steps, forced = arguments.removals(gram, taps, steps, first)
    old, wanted, square = arguments.problem(gram, weight, cross, target_square)
    basis = torch.empty_like(gram)
    pivot = _native.basis_compute([gram], [ridge], [basis])[0]
    if pivot >= 0:
        raise arguments.singular(gram, pivot, taps, damping)
    start, pull, error = _start(gram, old, wanted, square, damping)
    rows, units = steps * taps, unit_columns(gram, taps)
    factor, residual = gram.new_empty(rows, len(gram)), gram.new_empty(rows, len(start))
    order, status = forced.new_empty(steps), forced.new_empty(1)
    consumer = _native.PathConsumer(basis, start, units, 1.0, factor, residual)
    task = _native.PathTask([consumer], forced, order, gram.new_empty(steps), status)
    _native.path_eliminate([task])
    if int(status) >= 0:
        raise NumericalError(
            f"gram: the units that are left after {int(status)} removals are linearly dependent to rounding at "
            f"damping={damping}: raise it (1e-2, say), or ask for fewer steps"
        )
    grown = torch.cat([gram.new_zeros(1), task.errors.clamp(min=0).cumsum(0)])
    errors = error + grown - (ridge * distance_grown(factor, residual, pull, taps) if ridge else 0.0)
    if wanted is None or square is not None:  # an increase may be negative: damped weights do not have the least error
        errors = errors.clamp(min=0)
    return ReapPath(order, errors, grown, ridge, taps, (start, factor, residual))


def pair_errors(gram: Tensor, weight: Tensor, taps: int = 1) -> Tensor:
    """Errors where one unit emulates another: W_p += a W_q, W_q = 0, with the best gain a for each pair.

    With A_q = W_qᵀ W_q and <., .> the sum of elementwise products, the gain is <A_q, G_qp> / <A_q, G_pp>, of any sign
    (0 where p is dead), and the error ``<A_q, G_qq> - a <A_q, G_qp>``. With one tap, a = G_qp / G_pp.

    Args:
        gram: (D, D) XᵀX, symmetric, D = units * taps. Use a Gram matrix about the mean where a bias takes constants.
        weight: (M, D); of a convolution ``weight.flatten(1)``.
        taps: Number of columns of each unit.

    Returns:
        (units, units) float64, in squares of the layer's outputs. Entry [q, p] is the error where unit p emulates unit
        q, which leaves; inf on the diagonal.

    Raises:
        InputError: a dtype, shape or device does not fit, or ``gram`` is not symmetric.
        NumericalError: a value is NaN or infinite.

    Source: K. Kamma, Y. Isoda, S. Inoue and T. Wada, "Neural Behavior-Based Approach for Neural Network Pruning",
    IEICE Trans. Inf. & Syst. E103-D(5), 2020.
    """
    gram = arguments.gram_of(gram, taps)
    units, none = unit_columns(gram, taps), gram.new_empty(0)
    table = gram.new_empty(len(units), len(units))
    consumer = _native.PairConsumer(gram, arguments.matrix("weight", weight, gram), units, 1.0, none)
    _native.pair_scan([_native.PairTask([consumer], table, none.long(), none.long(), none)])
    return table


def zero_rows(weight: Tensor, tolerance: float = 0.0) -> Tensor:
    """Find the rows of a weight that are zero: outputs that depend on no input.

    Args:
        weight: (rows, ...) of two axes or more; float32, float16 or bfloat16, contiguous. To find inputs that
            no output reads, pass ``weight.transpose(0, 1).contiguous()``.
        tolerance: Largest magnitude that counts as zero.

    Returns:
        (rows,) bool, on the weight's device. A row with a NaN is not zero; a row without entries is zero.

    Raises:
        InputError: the dtype, the shape, the layout or the tolerance does not fit.
        BackendError: there are no kernels for the device.
    """
    return _native.zero_scan([arguments.scanned(weight, tolerance)])[0][0] <= tolerance


def _start(
    gram: Tensor, old: Tensor | None, cross: Tensor | None, square: float | None, damping: float
) -> tuple[Tensor, Tensor | None, float]:
    """The full weights W₀; their distance W₀ - reference, or None for zero; and their undamped error."""
    if cross is None:
        assert old is not None
        return old.clone(), None, 0.0  # the path must not change with the caller's weight
    full = least_squares(gram, cross, damping=damping, reference=old)
    error = 0.0 if square is None else square + float(((full @ gram - 2 * cross) * full).sum())
    return full, full if old is None else full - old, error
