"""Checks of the arguments of :mod:`reapx.kernels`, and their conversion to the form that the kernels take."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError, NumericalError
from .boundary import HALF
from .kernels import require
from .tasks import Window

_ASYMMETRY = torch.finfo(torch.float32).eps ** 0.5
"""Largest allowed difference of mirrored entries, as a share of the largest diagonal entry.

It is half of float32's digits: more than a product XᵀX loses in float32, and less than the effect of a mistake."""


def window(
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    groups: int,
) -> Window:
    """The window of a convolution, from arguments as ``torch.nn.Conv2d`` takes them."""
    return Window(
        _pair("kernel_size", kernel_size, 1),
        _pair("stride", stride, 1),
        _pair("padding", padding, 0),
        _pair("dilation", dilation, 1),
        _whole("groups", groups, 1),
    )


def images(x: Tensor, given: Window) -> tuple[Tensor, tuple[int, int]]:
    """The input as images (images, channels, height, width), with height and width 1 for a matrix; the output size."""
    found = _four_axes("x", x)
    require(x.device)
    if x.dim() == 2 and given != Window(groups=given.groups):
        raise InputError(
            "x is a matrix (rows, features), over which no kernel can move: give images (images, channels, height, "
            "width), or leave kernel_size, stride, padding and dilation at their defaults"
        )
    if found.shape[1] % given.groups:
        raise InputError(f"groups={given.groups}: x has {found.shape[1]} channels, which are not divisible by it")
    axes = zip(found.shape[2:], given.kernel, given.stride, given.padding, given.dilation, strict=True)
    height, width = (
        (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for length, kernel, stride, padding, dilation in axes
    )
    if height < 1 or width < 1:
        raise InputError(
            f"kernel_size={given.kernel} with dilation={given.dilation} and padding={given.padding} does not fit "
            f"into x's {tuple(found.shape[2:])}"
        )
    return found, (height, width)


def target_images(target: Tensor, x: Tensor, given: Window, size: tuple[int, int]) -> Tensor:
    """The target as images of the output size."""
    found = _four_axes("target", target)
    expected = (len(x), *size) if x.dim() == 4 else (len(x), 1, 1)
    if target.dim() != x.dim() or (len(found), *found.shape[2:]) != expected:
        shape = f"({len(x)}, outputs{f', {size[0]}, {size[1]}' if x.dim() == 4 else ''})"
        raise InputError(f"target has shape {tuple(target.shape)}: for this x and kernel give {shape}")
    if found.shape[1] % given.groups:
        raise InputError(f"groups={given.groups}: target has {found.shape[1]} outputs, which are not divisible by it")
    if target.device != x.device:
        raise InputError(f"x is on {x.device} but target is on {target.device}: move one to the other's device")
    return found


def check_sums(gram: Tensor, total: Tensor, target_square: Tensor) -> None:
    """Refuse moments of values that were not finite, or too large; (groups, D, D), (groups, D) and (groups, M)."""
    bad = (~(torch.isfinite(gram.diagonal(dim1=1, dim2=2)) & torch.isfinite(total))).nonzero()
    if len(bad):
        raise NumericalError(
            f"x has NaN, Inf, or values too large to be squared in float32, read by feature {int(bad[0, 1])} of group "
            f"{int(bad[0, 0])}: look for them with torch.isfinite, or scale x down"
        )
    bad = (~torch.isfinite(target_square.flatten())).nonzero()
    if len(bad):
        raise NumericalError(
            f"target has NaN, Inf, or values too large to be squared in float32, in output {int(bad[0, 0])}: look for "
            "them with torch.isfinite, or scale it down"
        )


def gram_of(gram: Tensor, taps: int = 1) -> Tensor:
    """A Gram matrix (D, D) of units with ``taps`` columns each: float64, contiguous, symmetric to the last bit."""
    if isinstance(gram, Tensor) and gram.dim() == 3:
        raise InputError(
            f"gram has shape {tuple(gram.shape)}, which is one matrix for each conv group: call once for each, gram[g]"
        )
    if not isinstance(gram, Tensor) or gram.dim() != 2 or gram.shape[0] != gram.shape[1]:
        raise InputError(f"gram: give a tensor (D, D), XᵀX, not {_shown(gram)}")
    if gram.shape[0] % _whole("taps", taps, 1):
        raise InputError(f"taps={taps}: gram has {gram.shape[0]} columns, which are not divisible by it")
    require(gram.device)
    found = matrix("gram", gram, gram)
    if not len(found):
        return found
    least, largest = (float(value) for value in found.diagonal().aminmax())
    if least < 0:
        raise InputError(f"gram has {least:.3g} on its diagonal, which holds sums of squares: give XᵀX")
    if torch.equal(found, found.T):
        return found
    apart = float((found - found.T).abs().max())
    if apart > _ASYMMETRY * largest:
        raise InputError(
            f"gram is not symmetric: mirrored entries differ by up to {apart:.3g}, where its largest diagonal entry is "
            f"{largest:.3g}: give XᵀX, not a triangle of it or XᵀY"
        )
    return (found + found.T) / 2


def matrix(name: str, value: Tensor, gram: Tensor, rows: int | None = None) -> Tensor:
    """A (rows, D) matrix that goes with a Gram matrix: float64, contiguous, without gradients."""
    wanted = ("outputs" if rows is None else rows, gram.shape[1])
    if (
        not isinstance(value, Tensor)
        or value.dim() != 2
        or value.shape[1] != wanted[1]
        or rows not in (None, len(value))
    ):
        hint = f"; of a convolution, {name}.flatten(1)" if isinstance(value, Tensor) and value.dim() == 4 else ""
        raise InputError(f"{name}: give a tensor ({wanted[0]}, {wanted[1]}), not {_shown(value)}{hint}")
    if value.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{name} is {value.dtype}: give float32 or float64, {name}.double()")
    if value.device != gram.device:
        raise InputError(f"gram is on {gram.device} but {name} is on {value.device}: move one to the other's device")
    found = value.detach().to(torch.float64).contiguous()
    bad = (~torch.isfinite(found)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise NumericalError(
            f"{name}[{row}, {column}] is {float(found[row, column])}: look for such values in what it comes from, "
            "with torch.isfinite"
        )
    return found


def indices(name: str, given: Tensor | Sequence[int], gram: Tensor, taps: int = 1) -> Tensor:
    """(n,) int64, distinct: indices of a Gram matrix's units, which are its columns where a unit has one tap."""
    size = len(gram) // taps
    found = torch.as_tensor(given)
    found = found.long() if found.numel() == 0 else found
    if found.dim() != 1 or found.dtype != torch.int64:
        hint = ", mask.nonzero().flatten() of a mask" if found.dtype == torch.bool else ""
        raise InputError(f"{name}: give (n,) int64 indices{hint}, not {_shown(found)}")
    values = found.tolist()
    outside = [value for value in values if not 0 <= value < size]
    if outside:
        raise InputError(f"{name} names {outside[0]}: give indices from 0 to {size - 1}")
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise InputError(f"{name} names {twice} twice: give each index once")
    return found.to(gram.device).contiguous()


def removals(gram: Tensor, taps: int, steps: int | None, first: Tensor | Sequence[int] | None) -> tuple[int, Tensor]:
    """The number of removals, and the units (n,) int64 that leave first: those in ``first``, then units zero in X."""
    units = len(gram) // taps
    steps = units if steps is None else _whole("steps", steps, 0)
    if steps > units:
        raise InputError(f"steps={steps}: there are only {units} units")
    named = indices("first", [] if first is None else first, gram, taps)
    if len(named) > steps:
        raise InputError(f"first names {len(named)} units, but steps={steps}: raise steps, or name fewer")
    dead = (gram.diagonal() == 0).reshape(units, taps).all(1)
    dead[named] = False
    return steps, torch.cat([named, dead.nonzero().flatten()])[:steps].contiguous()


def ridge(gram: Tensor, damping: float) -> float:
    """The ridge λ: a fraction of the mean diagonal; for a zero matrix the damping itself."""
    if not isinstance(damping, int | float) or not 0 <= damping < math.inf:
        raise InputError(f"damping={damping!r}: give a number from 0, a fraction of the Gram matrix's mean diagonal")
    mean = float(gram.diagonal().mean()) if len(gram) else 0.0
    return float(damping * mean or damping)


def problem(
    gram: Tensor, weight: Tensor | None, cross: Tensor | None, target_square: Tensor | float | None
) -> tuple[Tensor | None, Tensor | None, float | None]:
    """The weight, the cross moments and ‖Y‖² of a path, each or None; weight or cross moments must be given."""
    if weight is None and cross is None:
        raise InputError("there is neither weight nor cross: give weight (M, D), cross (M, D), or both")
    if cross is None and target_square is not None:
        raise InputError("target_square is the square of a target, of which there is no cross: give both or neither")
    old = None if weight is None else matrix("weight", weight, gram)
    wanted = None if cross is None else matrix("cross", cross, gram, None if old is None else len(old))
    square = None if wanted is None or target_square is None else _total_square(target_square, len(wanted))
    return old, wanted, square


def scanned(weight: Tensor, tolerance: float) -> Tensor:
    """A weight in float32, as the scan for zeros reads it."""
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        raise InputError(f"weight: give a tensor of two axes or more, (rows, ...), not {_shown(weight)}")
    if weight.dtype not in (torch.float32, *HALF):
        raise InputError(f"weight is {weight.dtype}: give float32, weight.float(), or half precision")
    if not weight.is_contiguous():
        raise InputError(f"weight is not contiguous (strides {weight.stride()}): pass weight.contiguous(), a copy")
    if not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance={tolerance!r}: give a number from 0")
    return weight.detach().float()


def singular(gram: Tensor, column: int, taps: int, damping: float) -> NumericalError:
    """The error for a damped Gram matrix whose factorisation failed at a column."""
    where = f"column {column}" if taps == 1 else f"unit {column // taps} (column {column})"
    why = "is zero in X" if float(gram[column, column]) == 0 else "is a combination of others, to rounding"
    return NumericalError(
        f"gram is singular at {where}, which {why}, at damping={damping}: raise it (1e-2, say), or sum up more rows"
    )


def _four_axes(name: str, x: Tensor) -> Tensor:
    """Images unchanged; a matrix (rows, features) as images of one pixel."""
    if not isinstance(x, Tensor) or x.dim() not in (2, 4):
        raise InputError(
            f"{name}: give images, (images, channels, height, width), or a matrix, (rows, features), not {_shown(x)}; "
            "tokens are rows, x.flatten(0, -2)"
        )
    if x.dtype not in (torch.float32, *HALF):
        raise InputError(f"{name} is {x.dtype}: give float32, {name}.float(), float16 or bfloat16")
    if not x.is_contiguous() and not (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        raise InputError(
            f"{name} is not contiguous or channels-last (strides {x.stride()}): pass {name}.contiguous(), a copy"
        )
    return x.detach() if x.dim() == 4 else x.detach()[:, :, None, None]


def _total_square(value: Tensor | float, outputs: int) -> float:
    """‖Y‖², from a number or from the sums of squares of each output."""
    if isinstance(value, Tensor) and value.shape not in ((), (outputs,)):
        raise InputError(f"target_square: give ‖Y‖², a number, or the ({outputs},) sums of Y², not {_shown(value)}")
    total = float(value.sum()) if isinstance(value, Tensor) else float(value)
    if not 0 <= total < math.inf:
        raise InputError(f"target_square adds up to {total}: give ‖Y‖², a number from 0")
    return total


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    rows, columns = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    return _whole(name, rows, least), _whole(name, columns, least)


def _whole(name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value!r}: give a whole number from {least}")
    return value


def _shown(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
