"""The one door between torch and the compiled kernels.

Tensors go through as ``(address, dtype, shape[, strides])``. Checked here: one device, and a layout
that the kernel takes. Checked in ``csrc/bindings.cpp``: dtypes and every size relation. A numerical
failure comes back as an index; the caller, who knows the layer's name, raises.

Every function takes ``core``, the name of an instruction set out of :func:`cores`; the default is
the best one. ``torch.get_num_threads()`` threads are used; results do not depend on how many.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reapx.errors import BackendError

if TYPE_CHECKING:
    from reapx._cpu import Array, Consumer

__all__ = [
    "PathConsumer",
    "PathTask",
    "SolveTask",
    "Window",
    "basis_compute",
    "batch_solve",
    "cores",
    "gram_accumulate",
    "path_eliminate",
]


@dataclass(frozen=True)
class Window:
    """How a convolution reads its input; every pair is (rows, columns).

    ``padding`` counts the zeros before the first row and column. Zeros after the last ones follow
    from the output size, so they may differ.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass
class PathConsumer:
    """One weight that reads the units of a :class:`PathTask`. D features, M outputs, q taps a unit.

    Args:
        basis: (D, D) float64, symmetric: the inverse of the (damped) Gram matrix.
        weight: (M, D) float64: the full weights, refitted, so that the errors below are exact.
        columns: (U, q) int64, distinct: the columns of each unit. Columns may belong to no unit.
        scale: this consumer's share in the score.
        factor: (T * q, D) float64, overwritten: Lᵀ. Weights after t steps are
            ``weight - residual[: t * q].T @ factor[: t * q]``.
        residual: (T * q, M) float64, overwritten: V.
    """

    basis: Tensor
    weight: Tensor
    columns: Tensor
    scale: float
    factor: Tensor
    residual: Tensor


@dataclass
class PathTask:
    """U units that leave one by one, T of them, from all consumers at once.

    Args:
        consumers: at least one; all with the same U, each with its own q.
        forced: (F,) int64: units that leave first, in this order.
        order: (T,) int64, overwritten: the unit that left at each step.
        errors: (T,) float64, overwritten: by how much the scaled error grew at each step.
        status: (1,) int64, overwritten: -1, or the step whose pivot block was not positive
            definite; outputs from that step on are zero.
    """

    consumers: list[PathConsumer]
    forced: Tensor
    order: Tensor
    errors: Tensor
    status: Tensor


@dataclass
class SolveTask:
    """Weights on kept features: ``W (G_RR + ridge I) = cross_R + ridge reference_R``.

    Args:
        gram: (D, D) float64, symmetric.
        cross: (M, D) float64: YᵀX.
        kept: (n,) int64, distinct: R.
        ridge: added to the diagonal.
        reference: (M, D) float64, what the damping pulls towards; None for zero.
        weight: (M, n) float64, overwritten.
    """

    gram: Tensor
    cross: Tensor
    kept: Tensor
    ridge: float
    reference: Tensor | None
    weight: Tensor


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
        gram: (groups, D, D) float64, symmetric, added to.
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
    named = [(f"grams[{i}]", t) for i, t in enumerate(grams)]
    outputs = [(f"bases[{i}]", t) for i, t in enumerate(bases)]
    module = _module(_device(named + outputs))
    failed: list[int] = module.basis_compute(
        [_passed(name, t) for name, t in named],
        [float(ridge) for ridge in ridges],
        [_passed(name, t) for name, t in outputs],
        torch.get_num_threads(),
        core,
    )
    return failed


def path_eliminate(tasks: Sequence[PathTask], *, core: str = "") -> None:
    """Remove units one by one, always the one whose removal costs least; see :class:`PathTask`.

    The cost of unit u, exact for least-squares weights, is ``sum_j scale_j tr(W_u P_uu⁻¹ W_uᵀ)``
    with P and W brought up to date after every step. Ties go to the lowest index.
    """
    module = _module(_device(_path_tensors(tasks)))
    passed = []
    for i, task in enumerate(tasks):
        place = f"tasks[{i}]"
        consumers: list[Consumer] = []
        for j, c in enumerate(task.consumers):
            at = f"{place}.consumers[{j}]"
            consumers.append(
                (
                    _given(f"{at}.basis", c.basis),
                    _given(f"{at}.weight", c.weight),
                    _given(f"{at}.columns", c.columns),
                    float(c.scale),
                    _given(f"{at}.factor", c.factor),
                    _given(f"{at}.residual", c.residual),
                )
            )
        names = ("forced", "order", "errors", "status")
        rest = [_given(f"{place}.{name}", getattr(task, name)) for name in names]
        passed.append((consumers, *rest))
    module.path_eliminate(passed, torch.get_num_threads(), core)


def batch_solve(tasks: Sequence[SolveTask], *, core: str = "") -> list[int]:
    """Solve for the weights on the kept features of each task; see :class:`SolveTask`.

    Returns:
        For each task -1, or the first failing pivot, a position in ``kept`` (the test is that of
        :func:`basis_compute`); that weight is then untouched.
    """
    fields = ("gram", "cross", "kept", "reference", "weight")
    named = [(f"tasks[{i}].{field}", getattr(task, field)) for i, task in enumerate(tasks) for field in fields]
    module = _module(_device(named))
    passed = []
    for i, task in enumerate(tasks):
        a = {field: _passed(f"tasks[{i}].{field}", getattr(task, field)) for field in fields}
        ridge = float(task.ridge)
        passed.append((a["gram"], a["cross"], a["kept"], ridge, a["reference"], a["weight"]))
    failed: list[int] = module.batch_solve(passed, torch.get_num_threads(), core)
    return failed


def _path_tensors(tasks: Sequence[PathTask]) -> list[tuple[str, Tensor]]:
    named = []
    for i, task in enumerate(tasks):
        for name in ("forced", "order", "errors", "status"):
            named.append((f"tasks[{i}].{name}", getattr(task, name)))
        for j, c in enumerate(task.consumers):
            for name in ("basis", "weight", "columns", "factor", "residual"):
                named.append((f"tasks[{i}].consumers[{j}].{name}", getattr(c, name)))
    return named


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
