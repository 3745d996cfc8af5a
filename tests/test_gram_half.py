"""gram_accumulate of float16 and bfloat16 against the same of float32 copies."""

from __future__ import annotations

import itertools
from typing import Any

import kernels
import pytest
import torch
from test_gram import natural_size, run
from torch import Tensor

from reapx import _native
from reapx._native import Window

HALF = [torch.float16, torch.bfloat16]


def check_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("special", [False, True], ids=["finite", "special"])
@pytest.mark.parametrize("form", ["rows", "shift"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("core", kernels.CORES)
def test_half_precision_is_as_its_float32_copy(core: str, dtype: torch.dtype, form: str, special: bool) -> None:
    """To the bit, also of only one of both; what is not finite gets to the same places."""
    windows = [Window(), Window((3, 3), padding=(1, 1), groups=2), Window((4, 3), (3, 2), (2, 1), (2, 3))]
    layouts = [torch.contiguous_format, torch.channels_last]
    for window, (x_layout, y_layout) in itertools.product(windows, itertools.permutations(layouts)):
        size = (natural_size(9, window, 0), natural_size(12, window, 1))
        x, y = torch.randn(3, 18, 9, 12).to(dtype), torch.randn(3, 6, *size).to(dtype)
        if special:
            values = torch.tensor([torch.finfo(dtype).smallest_normal / 4, torch.inf, -torch.inf, torch.nan])
            x[0, 1, 2:6, 3], y[1, 2, :2, :2] = values.to(dtype), values.reshape(2, 2).to(dtype)
        x, y = x.to(memory_format=x_layout), y.to(memory_format=y_layout)
        for positions in [None, *([torch.randint(size[0] * size[1], (3, 7))] if form == "rows" else [])]:
            options: dict[str, Any] = {"core": core, "form": form, "positions": positions}
            want = run(x.float(), window, size, y.float(), **options)
            for given in [(x, y), (x, y.float()), (x.float(), y)]:
                check_same(run(given[0], window, size, given[1], **options), want)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("core", kernels.CORES)
def test_every_number_of_half_precision(core: str, dtype: torch.dtype) -> None:
    """All 65536: subnormals, both zeros, Inf and every NaN. A target's total of one row is the target itself."""
    y = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(1, -1, 1, 1)
    got = run(torch.ones(1, 1, 1, 1, dtype=dtype), Window(), (1, 1), y, core=core)
    check_same({"target_total": got["target_total"]}, {"target_total": y.double().flatten()})


@pytest.mark.parametrize("dtype", [torch.float64, torch.int16, torch.uint8, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("core", kernels.CORES)
def test_other_dtypes_are_refused(core: str, dtype: torch.dtype) -> None:
    good, bad = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5).to(dtype)
    for x, y, name in [(bad, good, "x"), (good, bad, "target")]:
        message = f"{name} must be float32, float16 or bfloat16, not {str(dtype).removeprefix('torch.')}"
        with pytest.raises(ValueError, match=message):
            run(x, Window(), (4, 5), y, core=core)


def test_kernels_that_do_not_read_it_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it not copied first."""
    monkeypatch.setattr(_native.kernels, "readable", lambda name, images, half: images)
    with pytest.raises(ValueError, match="x must be copied to float32 for these kernels, not float16"):
        run(torch.zeros(2, 3, 4, 5).half(), Window(), (4, 5), core=_native.cores()[0])
