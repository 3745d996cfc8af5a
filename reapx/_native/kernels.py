"""The one door between torch and the compiled kernels.

This module and :mod:`reapx._native.boundary` check that all tensors are on one device and in a layout that the kernel
takes; ``csrc/bindings.cpp`` checks dtypes and every size relation. A numerical failure comes back as an index. The
caller knows the layer's name and raises the error.

Every function takes ``core``, the name of an instruction set from :func:`cores`; the default is the best one. The
CPU's kernels use ``torch.get_num_threads()`` threads, and results do not depend on how many. On a GPU, work is queued
on torch's current stream and nothing waits for it; the values of index tensors are not checked there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from reapx._native.boundary import HALF, backend, device_of, given, packed, readable, tensors
from reapx._native.overlaps import check_apart, named, named_in
from reapx._native.tasks import CutsTask, PairConsumer, PairTask, PathConsumer, PathTask, SolveTask, Window

__all__ = [
    "HALF",
    "CutsTask",
    "PairConsumer",
    "PairTask",
    "PathConsumer",
    "PathTask",
    "SolveTask",
    "Window",
    "basis_compute",
    "batch_solve",
    "cores",
    "gram_accumulate",
    "gram_mirror",
    "pair_scan",
    "path_eliminate",
    "path_weights",
    "require",
    "zero_scan",
]


def cores() -> list[str]:
    """Names of the instruction sets that this machine can run, best first."""
    names: list[str] = backend(torch.device("cpu"))[0].cores()
    return names


def require(device: torch.device) -> None:
    """Refuse a device for which this build has no kernels.

    Raises:
        BackendError: this build has no kernels for the device.
    """
    backend(device)


def gram_accumulate(
    x: Tensor,
    window: Window,
    output_size: tuple[int, int],
    gram: Tensor,
    total: Tensor,
    *,
    target: Tensor | None = None,
    cross: Tensor | None = None,
    target_total: Tensor | None = None,
    target_square: Tensor | None = None,
    positions: Tensor | None = None,
    core: str = "",
    form: str = "",
) -> None:
    """Add the second moments of the patches that a convolution reads.

    With X_g the patches of group g, a row per image and output position, a column per channel of
    the group, kernel row and kernel column (D of them), and Y_g the target in the same rows::

        gram[g] += X_gᵀ X_g    total[g] += column sums of X_g
        cross[g] += Y_gᵀ X_g   target_total += column sums of Y   target_square += those of Y²

    Positions outside the image count as zero. Products are summed in float32 over at most 256 positions and these
    partial sums in float64. The patch matrix is never built. For a linear layer, x is viewed as (N, C, 1, 1).

    Half precision gives the same bits as a float32 copy. The CUDA kernel reads it directly; for the CPU kernel it is
    copied to float32 here.

    Args:
        x: (B, C, H, W) float32, float16 or bfloat16, contiguous or channels-last: the layer's input.
        window: kernel, stride, padding, dilation and groups.
        output_size: (Ho, Wo).
        gram: (groups, D, D) float64; the upper triangle is added to. The lower triangle is undefined until
            :func:`gram_mirror` is called after the last batch.
        total: (groups, D) float64, added to.
        target: (B, M, Ho, Wo), with any dtype and layout that x may have, or None. With a target, the next three
            arguments are required.
        cross: (groups, M / groups, D) float64, added to.
        target_total: (M,) float64, added to.
        target_square: (M,) float64, added to.
        positions: (B, n) int64 output positions ``row * Wo + column`` of each image. Only these become rows of X and
            Y, each as often as it is listed. None for all positions.
        core: Instruction set; see the module.
        form: "rows" or "shift" forces one of the two algorithms where it applies; "" takes the faster one.

    Raises:
        BackendError: this build has no kernels for the tensors' device.
        ValueError: tensors are on different devices, or a dtype, size or layout is not as above.
    """
    outputs = {
        "gram": gram,
        "total": total,
        "cross": cross,
        "target_total": target_total,
        "target_square": target_square,
    }
    inputs = {"x": x, "target": target}
    device = device_of([*inputs.items(), *outputs.items(), ("positions", positions)])
    module, where = backend(device, core)
    passed = {name: packed(name, t) for name, t in outputs.items()}
    # Copies are held by ``inputs``, since they must outlive the call.
    inputs = {name: readable(name, t, half=module.reads_half) for name, t in inputs.items()}
    images = {name: None if t is None else given(name, t, images=True) for name, t in inputs.items()}
    check_apart([*named_in(inputs), *named_in(outputs, written=True)])
    module.gram_accumulate(
        images["x"],
        [window.kernel, window.stride, window.padding, window.dilation],
        window.groups,
        output_size,
        passed["gram"],
        passed["total"],
        images["target"],
        passed["cross"],
        passed["target_total"],
        passed["target_square"],
        packed("positions", positions),
        where,
        form,
    )


def gram_mirror(gram: Tensor, *, core: str = "") -> None:
    """Copy the upper triangles of matrices (n, D, D) float64 to the lower ones."""
    module, where = backend(gram.device, core)
    module.gram_mirror(given("gram", gram), where)


def basis_compute(
    grams: Sequence[Tensor], ridges: Sequence[float], bases: Sequence[Tensor], *, core: str = ""
) -> list[int]:
    """Invert damped Gram matrices: ``bases[i] = (grams[i] + ridges[i] I)⁻¹``.

    Args:
        grams: (D, D) float64 each, symmetric; sizes may differ.
        ridges: One absolute damping value for each matrix, added to its diagonal.
        bases: (D, D) float64 each, overwritten; exactly symmetric.
        core: Instruction set; see the module.

    Returns:
        For each matrix -1, or the index of the first Cholesky pivot that was not above
        ``D * eps * max(diag(gram + ridge I))``; the basis of such a matrix is left as it was.
    """
    device = device_of([*tensors("grams", grams), *tensors("bases", bases)])
    module, where = backend(device, core)
    failed = torch.empty(len(grams), dtype=torch.int64, device=device)
    passed = (packed("grams", grams), [float(ridge) for ridge in ridges], packed("bases", bases))
    module.basis_compute(*passed, given("failed", failed), where)
    return _read(failed)


def path_eliminate(tasks: Sequence[PathTask], *, core: str = "") -> None:
    """Remove units one by one, each time the unit whose removal costs least; see :class:`PathTask`.

    The cost of removing unit u is ``sum_j scale_j tr(W_u P_uu⁻¹ W_uᵀ)``, with P and W updated after every step. It is
    exact where W are least-squares weights. Ties go to the lowest index.
    """
    module, where = backend(device_of(tensors("tasks", tasks)), core)
    passed = packed("tasks", tasks)
    check_apart(named("tasks", tasks))
    module.path_eliminate(passed, where)


def path_weights(tasks: Sequence[CutsTask], *, core: str = "") -> None:
    """Write the refitted weights at many cuts of each path; see :class:`CutsTask`."""
    module, where = backend(device_of(tensors("tasks", tasks)), core)
    passed = packed("tasks", tasks)
    check_apart(named("tasks", tasks))
    module.path_weights(passed, where)


def batch_solve(tasks: Sequence[SolveTask], *, core: str = "") -> list[int]:
    """Solve for the weights on the kept features of each task; see :class:`SolveTask`.

    Returns:
        For each task -1, or the first pivot that fails the test of :func:`basis_compute`, as a position in ``kept``;
        the weight of such a task is left as it was.
    """
    device = device_of(tensors("tasks", tasks))
    module, where = backend(device, core)
    failed = torch.empty(len(tasks), dtype=torch.int64, device=device)
    passed = packed("tasks", tasks)
    check_apart(named("tasks", tasks))
    module.batch_solve(passed, given("failed", failed), where)
    return _read(failed)


def pair_scan(tasks: Sequence[PairTask], *, core: str = "") -> None:
    """Compute what it costs to let one unit emulate another, and merge units greedily; see :class:`PairTask`.

    W_q (M, taps) are the weights on unit q, A_q = W_qᵀ W_q, Δ is the change that the steps so far made to W, and
    R_qp = <W_q, (Δ G)_p>. Letting p emulate q raises the total error ``sum_j scale_j tr(Δ G Δᵀ)`` by::

        err(q -> p) = sum_j scale_j (<A_q, G_qq> - 2 R_qq - a (<A_q, G_qp> - R_qp))
        a = (<A_q, G_qp> - R_qp) / <A_q, G_pp>

    Each consumer has a gain ``a`` of its own, of any sign; it is 0 where p is dead. Each step takes the pair of
    remaining units with the least total error, adds ``a W_q`` to W_p and sets W_q to zero. Ties go to the lowest q,
    then to the lowest p. An error that is not finite counts as inf.
    """
    module, where = backend(device_of(tensors("tasks", tasks)), core)
    passed = packed("tasks", tasks)
    check_apart(named("tasks", tasks))
    module.pair_scan(passed, where)


def zero_scan(weights: Sequence[Tensor], *, core: str = "") -> list[tuple[Tensor, Tensor]]:
    """Find the largest magnitude in each row and each column of every weight, in one pass.

    A maximum of zero means that all weights of the unit are zero. NaN counts as larger than any number.

    Args:
        weights: (A, B, ...) float32 each, contiguous, such as (outputs, inputs / groups, height, width).
        core: Instruction set; see the module.

    Returns:
        For each weight the maxima of its rows (A,) and of its columns (B,), over all other axes; 0 for a row or
        column without elements.

    Raises:
        BackendError: this build has no kernels for the weights' device.
        ValueError: a weight has fewer than two axes, or is not contiguous.
    """
    named = [(f"weights[{i}]", weight) for i, weight in enumerate(weights)]
    module, where = backend(device_of(named), core)
    passed, rows, columns = [], [], []
    for name, weight in named:
        shape = tuple(weight.shape)
        if len(shape) < 2:
            raise ValueError(f"{name} must have two axes or more, not shape {shape}")
        address, dtype = given(name, weight)[:2]
        passed.append((address, dtype, (*shape[:2], math.prod(shape[2:]))))
        rows.append(torch.empty(shape[0], dtype=torch.float32, device=weight.device))
        columns.append(torch.empty(shape[1], dtype=torch.float32, device=weight.device))
    module.zero_scan(passed, packed("rows", rows), packed("columns", columns), where)
    return list(zip(rows, columns, strict=True))


def _read(failed: Tensor) -> list[int]:
    """The index that a kernel wrote for each task. Reading it waits for the GPU; no other function does."""
    indices: list[int] = failed.tolist()
    return indices
