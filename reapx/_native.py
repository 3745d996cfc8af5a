"""The one door between torch and the compiled kernels.

Tensors go through as ``(address, dtype, shape[, strides])``. Checked here: one device, and a layout
that the kernel takes. Checked in ``csrc/bindings.cpp``: dtypes and every size relation. A numerical
failure comes back as an index; the caller, who knows the layer's name, raises.

Every function takes ``core``, the name of an instruction set out of :func:`cores`; the default is
the best one. ``torch.get_num_threads()`` threads are used; results do not depend on how many.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reapx._tasks import CutsTask, PairConsumer, PairTask, PathConsumer, PathTask, SolveTask, Window
from reapx.errors import BackendError

if TYPE_CHECKING:
    from reapx._cpu import Array

__all__ = [
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
    "zero_scan",
]


def cores() -> list[str]:
    """Names of the instruction sets this machine can run, best first."""
    names: list[str] = _module("cpu").cores()
    return names


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

    Reading outside the image gives zero. Products are float32 over at most 256 positions and added
    up in float64. The patch matrix is never built. A linear layer is x viewed as (N, C, 1, 1).

    Args:
        x: (B, C, H, W) float32, contiguous or channels-last.
        window: kernel, stride, padding, dilation and groups.
        output_size: (Ho, Wo).
        gram: (groups, D, D) float64: the upper triangle is added to. The lower one has no meaning until
            :func:`gram_mirror`, after the last batch.
        total: (groups, D) float64, added to.
        target: (B, M, Ho, Wo) float32, contiguous or channels-last; then the next three are needed.
        cross: (groups, M / groups, D) float64, added to.
        target_total: (M,) float64, added to.
        target_square: (M,) float64, added to.
        positions: (B, n) int64 output positions, ``row * Wo + column``, of each image: then only these are
            rows of X and Y, as often as they are named. None for all.
        core: see the module.
        form: "rows" or "shift" forces one way of computing the sums, where it can be used; "" takes the faster.

    Raises:
        BackendError: there are no kernels for the tensors' device.
        ValueError: a dtype, size or layout does not fit.
    """
    outputs = {
        "gram": gram,
        "total": total,
        "cross": cross,
        "target_total": target_total,
        "target_square": target_square,
    }
    inputs = {"x": x, "target": target}
    module = _module(_device([*inputs.items(), *outputs.items(), ("positions", positions)]))
    passed = {name: _passed(name, t) for name, t in outputs.items()}
    images = {name: _passed(name, t, images=True) for name, t in inputs.items()}
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
        _passed("positions", positions),
        torch.get_num_threads(),
        core,
        form,
    )


def gram_mirror(gram: Tensor, *, core: str = "") -> None:
    """Copy the upper triangles of matrices (n, D, D) float64 to the lower ones."""
    module = _module(_device([("gram", gram)]))
    module.gram_mirror(_given("gram", gram), torch.get_num_threads(), core)


def basis_compute(
    grams: Sequence[Tensor], ridges: Sequence[float], bases: Sequence[Tensor], *, core: str = ""
) -> list[int]:
    """Invert damped Gram matrices: ``bases[i] = (grams[i] + ridges[i] I)⁻¹``.

    Args:
        grams: (D, D) float64 each, symmetric; sizes may differ.
        ridges: added to the diagonals.
        bases: (D, D) float64 each, overwritten; exactly symmetric.
        core: see the module.

    Returns:
        For each matrix -1, or the first Cholesky pivot that was not above
        ``D * eps * max(diag(gram + ridge I))``; that basis is then untouched.
    """
    module = _module(_device([*_tensors("grams", grams), *_tensors("bases", bases)]))
    passed = (_packed("grams", grams), [float(ridge) for ridge in ridges], _packed("bases", bases))
    failed: list[int] = module.basis_compute(*passed, torch.get_num_threads(), core)
    return failed


def path_eliminate(tasks: Sequence[PathTask], *, core: str = "") -> None:
    """Remove units one by one, always the one whose removal costs least; see :class:`PathTask`.

    The cost of unit u, exact for least-squares weights, is ``sum_j scale_j tr(W_u P_uu⁻¹ W_uᵀ)``
    with P and W brought up to date after every step. Ties go to the lowest index.
    """
    _module(_device(_tensors("tasks", tasks))).path_eliminate(_packed("tasks", tasks), torch.get_num_threads(), core)


def path_weights(tasks: Sequence[CutsTask], *, core: str = "") -> None:
    """Write the refitted weights at many cuts of each path; see :class:`CutsTask`."""
    _module(_device(_tensors("tasks", tasks))).path_weights(_packed("tasks", tasks), torch.get_num_threads(), core)


def batch_solve(tasks: Sequence[SolveTask], *, core: str = "") -> list[int]:
    """Solve for the weights on the kept features of each task; see :class:`SolveTask`.

    Returns:
        For each task -1, or the first failing pivot, a position in ``kept`` (the test is that of
        :func:`basis_compute`); that weight is then untouched.
    """
    module = _module(_device(_tensors("tasks", tasks)))
    failed: list[int] = module.batch_solve(_packed("tasks", tasks), torch.get_num_threads(), core)
    return failed


def pair_scan(tasks: Sequence[PairTask], *, core: str = "") -> None:
    """Find what it costs to let one unit emulate another, and merge units greedily; see :class:`PairTask`.

    With W_q (M, taps) the weights on unit q, A_q = W_qᵀ W_q, Δ what the steps so far changed in W, and
    R_qp = <W_q, (Δ G)_p>, letting p emulate q raises the total error ``sum_j scale_j tr(Δ G Δᵀ)`` by::

        err(q -> p) = sum_j scale_j (<A_q, G_qq> - 2 R_qq - a (<A_q, G_qp> - R_qp))
        a = (<A_q, G_qp> - R_qp) / <A_q, G_pp>

    with a gain ``a`` for each consumer, of any sign (0 where p is dead). Each step takes the pair, of units still
    there, with which the total is least, ties going to the lowest q and then the lowest p, adds ``a W_q`` to W_p and
    zeroes W_q. An error that is not finite counts as inf.
    """
    _module(_device(_tensors("tasks", tasks))).pair_scan(_packed("tasks", tasks), torch.get_num_threads(), core)


def zero_scan(weights: Sequence[Tensor], *, core: str = "") -> list[tuple[Tensor, Tensor]]:
    """Find the largest magnitude in each row and column of all weights, in one pass over them.

    A unit none of whose weights differ from zero has a maximum of zero. NaN is larger than everything.

    Args:
        weights: (A, B, ...) float32 each, contiguous, such as (outputs, inputs / groups, height, width).
        core: see the module.

    Returns:
        For each weight the maxima of its rows (A,) and of its columns (B,), over all other axes; 0 where
        there is nothing to look at.
    """
    named = [(f"weights[{i}]", weight) for i, weight in enumerate(weights)]
    module = _module(_device(named))
    passed, rows, columns = [], [], []
    for name, weight in named:
        shape = tuple(weight.shape)
        if len(shape) < 2:
            raise ValueError(f"{name} must have two axes or more, not shape {shape}")
        address, dtype = _given(name, weight)[:2]
        passed.append((address, dtype, (*shape[:2], math.prod(shape[2:]))))
        rows.append(torch.empty(shape[0], dtype=torch.float32, device=weight.device))
        columns.append(torch.empty(shape[1], dtype=torch.float32, device=weight.device))
    module.zero_scan(passed, _packed("rows", rows), _packed("columns", columns), torch.get_num_threads(), core)
    return list(zip(rows, columns, strict=True))


def _device(named: Iterable[tuple[str, Tensor | None]]) -> str:
    """The type of the one device of all tensors; "cpu" when there are none."""
    first: tuple[str, torch.device] | None = None
    for name, tensor in named:
        if tensor is None:
            continue
        if first is None:
            first = (name, tensor.device)
        elif tensor.device != first[1]:
            raise ValueError(f"{first[0]} is on {first[1]} but {name} is on {tensor.device}")
    return "cpu" if first is None else first[1].type


def require(device: torch.device) -> None:
    """Raise BackendError unless there are kernels for a device."""
    _module(device.type)


def _module(device: str) -> ModuleType:
    if device != "cpu":
        raise BackendError(
            f"the tensors are on '{device}', and reapx has no {device.upper()} kernels in this "
            "build: move the model and the images to the CPU"
        )
    try:
        return importlib.import_module("reapx._cpu")
    except ModuleNotFoundError as error:
        raise BackendError(
            "the compiled module reapx._cpu is missing: install reapx with 'pip install .' "
            "instead of importing it from its sources"
        ) from error


def _tensors(name: str, given: object) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a task or of a list of them, with their names."""
    if isinstance(given, Tensor):
        yield name, given
    elif is_dataclass(given):
        for field in fields(given):
            yield from _tensors(f"{name}.{field.name}", getattr(given, field.name))
    elif isinstance(given, Sequence):
        for i, item in enumerate(given):
            yield from _tensors(f"{name}[{i}]", item)


def _packed(name: str, given: object) -> object:
    """The same as the extension reads it: a tuple of fields for a task, a list for a list."""
    if isinstance(given, Tensor):
        return _given(name, given)
    if is_dataclass(given):
        return tuple(_packed(f"{name}.{field.name}", getattr(given, field.name)) for field in fields(given))
    if isinstance(given, Sequence):
        return [_packed(f"{name}[{i}]", item) for i, item in enumerate(given)]
    return given


def _passed(name: str, tensor: Tensor | None, *, images: bool = False) -> Array | None:
    return None if tensor is None else _given(name, tensor, images=images)


def _given(name: str, tensor: Tensor, *, images: bool = False) -> Array:
    tensor = tensor.detach()
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    if not images:
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous; its strides are {tensor.stride()}")
        return (tensor.data_ptr(), dtype, shape)
    if tensor.dim() == 4 and not (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError(f"{name} must be contiguous or channels-last; its strides are {tensor.stride()}")
    return (tensor.data_ptr(), dtype, shape, tuple(tensor.stride()))
