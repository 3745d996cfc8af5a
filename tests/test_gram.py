"""gram_accumulate against the unfolded product."""

from __future__ import annotations

import itertools
from typing import Any

import kernels
import pytest
import reference
import torch
from torch import Tensor

from reapx import _native
from reapx._native import Window

# One core of each: what depends on shapes alone, and not on instructions.
BACK_ENDS = ["", *(core for core in kernels.CORES if core not in _native.cores())]


def natural_size(size: int, window: Window, axis: int) -> int:
    span = (window.kernel[axis] - 1) * window.dilation[axis] + 1
    return (size + 2 * window.padding[axis] - span) // window.stride[axis] + 1


def run(
    x: Tensor,
    window: Window,
    size: tuple[int, int],
    target: Tensor | None = None,
    start: float = 0.0,
    **options: Any,
) -> dict[str, Tensor]:
    groups = window.groups
    d = x.shape[1] // groups * window.kernel[0] * window.kernel[1]
    shapes: dict[str, tuple[int, ...]] = {"gram": (groups, d, d), "total": (groups, d)}
    if target is not None:
        m = target.shape[1]
        shapes |= {"cross": (groups, m // groups, d), "target_total": (m,), "target_square": (m,)}
    outputs = {n: torch.full(s, start, dtype=torch.float64) for n, s in shapes.items()}
    extra = {n: outputs[n] for n in outputs if n not in ("gram", "total")}
    kernels.gram_accumulate(x, window, size, outputs["gram"], outputs["total"], target=target, **extra, **options)
    kernels.gram_mirror(outputs["gram"], core=options.get("core", ""))
    return outputs


def whole(*shape: int) -> Tensor:
    """Small integers: their products and sums are exact in float32, so every form must be exact."""
    return torch.randint(-15, 16, shape).float()


def check(x: Tensor, window: Window, size: tuple[int, int], target: Tensor | None = None, **options: Any) -> None:
    start = 2.0
    got = run(x, window, size, target, start, **options)
    want = reference.gram_accumulate(x, window, size, target, options.get("positions"))
    for name, value in got.items():
        assert torch.equal(value - start, want[name]), name


WINDOWS = [
    Window(),
    Window((3, 3), padding=(1, 1)),
    Window((3, 3)),
    Window((3, 3), stride=(2, 2), padding=(1, 1)),
    Window((3, 2), stride=(3, 1), padding=(0, 1)),
    Window((3, 3), padding=(2, 2), dilation=(2, 2)),
    Window((2, 4), padding=(1, 3)),
    Window((1, 5), padding=(0, 2)),
    Window((7, 7), stride=(2, 2), padding=(3, 3)),
    Window((5, 5), padding=(2, 2)),
    Window((1, 1), stride=(2, 2)),
    Window((3, 3), stride=(2, 2), padding=(2, 2), dilation=(2, 2)),
    Window((4, 3), stride=(3, 2), padding=(2, 1), dilation=(2, 3)),
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize("form", ["", "rows", "shift"])
def test_windows(window: Window, core: str, form: str) -> None:
    for shape, layout in itertools.product(
        [(3, 5, 9, 12), (2, 17, 8, 7)], [torch.contiguous_format, torch.channels_last]
    ):
        x = whole(*shape).to(memory_format=layout)
        size = (natural_size(shape[2], window, 0), natural_size(shape[3], window, 1))
        y = whole(shape[0], 6, *size).to(memory_format=layout)
        check(x, window, size, y, core=core, form=form)
        check(x, window, size, core=core, form=form)


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 65])
@pytest.mark.parametrize("form", ["rows", "shift"])
def test_channel_counts(channels: int, form: str) -> None:
    x, y = whole(3, channels, 6, 5), whole(3, channels + 1, 6, 5)
    for core in kernels.CORES:
        check(x, Window((3, 3), padding=(1, 1)), (6, 5), y, core=core, form=form)


@pytest.mark.parametrize("form", ["rows", "shift"])
@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (6, 6), (40, 40), (72, 2), (99, 3)])
@pytest.mark.parametrize("core", BACK_ENDS)
def test_groups(channels: int, groups: int, form: str, core: str) -> None:
    window = Window((3, 3), padding=(1, 1), groups=groups)
    x, y = whole(2, channels, 7, 9), whole(2, 2 * groups, 7, 9)
    check(x, window, (7, 9), y, form=form, core=core)
    check(x.to(memory_format=torch.channels_last), window, (7, 9), form=form, core=core)


@pytest.mark.parametrize("form", ["rows", "shift"])
@pytest.mark.parametrize("core", BACK_ENDS)
def test_output_sizes_other_than_the_natural_one(form: str, core: str) -> None:
    """Zeros after the last row and column may differ from those before the first."""
    x = whole(2, 4, 6, 7)
    for size in [(6, 7), (7, 8), (5, 9), (4, 5), (1, 1), (12, 3), (8, 20)]:
        check(x, Window((3, 3), padding=(1, 0)), size, whole(2, 3, *size), form=form, core=core)


@pytest.mark.parametrize("core", BACK_ENDS)
def test_vectors_with_padding_are_no_linear_layer(core: str) -> None:
    """One position that reads only zeros, and one of which a part does."""
    check(whole(4, 3, 1, 1), Window(padding=(1, 1)), (1, 1), whole(4, 2, 1, 1), core=core)
    check(whole(4, 3, 1, 1), Window(stride=(3, 3), padding=(1, 1)), (1, 1), core=core)
    check(whole(4, 3, 1, 1), Window(padding=(1, 1)), (3, 3), core=core)


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize("size", [0, 1, 7, 63, 64, 65, 130])
def test_mirror(size: int, core: str) -> None:
    matrices = torch.randn(2, size, size, dtype=torch.float64)
    want = matrices.triu() + matrices.triu(1).mT
    kernels.gram_mirror(matrices, core=core)
    assert torch.equal(matrices, want)


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 1500])
@pytest.mark.parametrize("features", [1, 31, 32, 33, 130, 257])
@pytest.mark.parametrize("core", BACK_ENDS)
def test_linear(rows: int, features: int, core: str) -> None:
    x, y = whole(rows, features, 1, 1), whole(rows, 10, 1, 1)
    check(x, Window(), (1, 1), y, core=core)


@pytest.mark.parametrize("window", [*WINDOWS, Window((3, 3), padding=(1, 1), groups=2)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("core", BACK_ENDS)
def test_chosen_positions(window: Window, layout: torch.memory_format, count: int, core: str) -> None:
    """Other positions in each image, some of them several times."""
    x = whole(3, 34, 9, 12).to(memory_format=layout)
    size = (natural_size(9, window, 0), natural_size(12, window, 1))
    y = whole(3, 6, *size).to(memory_format=layout)
    positions = torch.randint(size[0] * size[1], (3, count))
    check(x, window, size, y, positions=positions, core=core)
    check(x, window, size, positions=positions, core=core)


def test_positions_outside_the_map_are_refused() -> None:
    for bad in (-1, 20):
        with pytest.raises(ValueError, match=f"positions holds {bad}, which is not in 0..19"):
            run(whole(2, 3, 4, 5), Window(), (4, 5), positions=torch.tensor([[1], [bad]]))
    with pytest.raises(ValueError, match=r"positions must have shape \(2, 1\), not \(3, 1\)"):
        run(whole(2, 3, 4, 5), Window(), (4, 5), positions=torch.zeros(3, 1, dtype=torch.int64))


@pytest.mark.parametrize("core", BACK_ENDS)
def test_more_images_than_a_batch_of_the_kernel(core: str) -> None:
    x, y = whole(70, 9, 20, 20), whole(70, 5, 20, 20)
    for form in ("rows", "shift"):
        check(x, Window((3, 3), padding=(1, 1)), (20, 20), y, form=form, core=core)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((0, 3, 4, 4), (4, 4)),
        ((2, 0, 4, 4), (4, 4)),
        ((2, 3, 4, 4), (0, 4)),
        ((2, 3, 0, 4), (2, 4)),
    ],
)
@pytest.mark.parametrize("core", BACK_ENDS)
def test_empty(shape: tuple[int, ...], size: tuple[int, int], core: str) -> None:
    x = whole(*shape)
    check(x, Window((3, 3), padding=(1, 1)), size, whole(shape[0], 2, *size), core=core)
    check(x, Window((3, 3), padding=(1, 1)), size, whole(shape[0], 0, *size), core=core)


@pytest.mark.parametrize("window", WINDOWS[:5], ids=str)
@pytest.mark.parametrize("form", ["rows", "shift"])
@pytest.mark.parametrize("groups", [1, 4])
def test_threads_do_not_change_a_bit(window: Window, form: str, groups: int) -> None:
    """Real numbers: a sum in another order would differ. Few and many panels, one batch and several."""
    window = Window(window.kernel, window.stride, window.padding, window.dilation, groups)
    for images, channels in [(40, 36), (8, 140), (300, 36)]:
        x = torch.randn(images, channels, 11, 10)
        size = (natural_size(11, window, 0), natural_size(10, window, 1))
        y = torch.randn(images, 20, *size)
        positions = torch.randint(size[0] * size[1], (images, 13))
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([run(x, window, size, y, form=form), run(x, window, size, y, positions=positions)])
        for other in results[1:]:
            for want, got in zip(results[0], other, strict=True):
                assert all(torch.equal(want[n], got[n]) for n in want)


@pytest.mark.skipif(not kernels.EMULATED, reason="the emulated kernels are not built")
@pytest.mark.parametrize("form", ["rows", "shift"])
@pytest.mark.parametrize("window", [WINDOWS[1], WINDOWS[3], Window((3, 3), padding=(1, 1), groups=2)], ids=str)
def test_order_of_blocks_does_not_change_a_bit(window: Window, form: str) -> None:
    x = torch.randn(20, 34, 12, 13)
    size = (natural_size(12, window, 0), natural_size(13, window, 1))
    y = torch.randn(20, 10, *size)
    want, got = (run(x, window, size, y, form=form, core=core) for core in kernels.EMULATED)
    assert all(torch.equal(want[n], got[n]) for n in want)


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize("form", ["rows", "shift"])
@pytest.mark.parametrize("window", [WINDOWS[1], WINDOWS[2], WINDOWS[7]], ids=str)
def test_rounding_is_that_of_short_float32_sums(window: Window, form: str, core: str) -> None:
    x = torch.randn(20, 24, 12, 13)
    size = (natural_size(12, window, 0), natural_size(13, window, 1))
    y = torch.randn(20, 9, *size)
    got = run(x, window, size, y, form=form, core=core)
    want = reference.gram_accumulate(x, window, size, y)
    bounds = reference.gram_bounds(x, y)
    for name, value in got.items():
        assert (value - want[name]).abs().max() <= bounds[name], name
    assert torch.equal(got["gram"], got["gram"].mT)


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize("features", [20, 60, 250])
@pytest.mark.parametrize("offset", ["none", "positive", "far"])
def test_error_is_small_and_has_either_sign(offset: str, features: int, core: str) -> None:
    """Also where nothing cancels what each addition cuts off: all numbers positive, or far from zero. One size for
    each tile of the CUDA kernel."""
    x = torch.randn(3000 if features < 100 else 700, features, 1, 1)
    x = {"none": x, "positive": x.relu(), "far": 0.1 * x - 30}[offset]
    got = run(x, Window(), (1, 1), core=core)
    want = reference.gram_accumulate(x, Window(), (1, 1))
    error = got["gram"] - want["gram"]
    assert error.norm() <= 3e-7 * want["gram"].norm()
    magnitudes = reference.gram_accumulate(x.abs(), Window(), (1, 1))["gram"]
    assert (error / magnitudes).abs().max() <= 1e-6
    assert (error / magnitudes).mean().abs() <= 2e-7
    assert (got["total"] - want["total"]).abs().max() <= 1e-6 * x.abs().sum(0).max()


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize("features", [20, 60, 250])
def test_what_is_not_finite_stays_in_its_row_and_column(features: int, core: str) -> None:
    x = whole(300, features, 1, 1)
    want = reference.gram_accumulate(x, Window(), (1, 1))["gram"]
    values = [torch.nan, torch.inf, -torch.inf, *torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)]
    for i, value in enumerate(values):
        x[100 * i // 2, 3 * i] = value
    got = run(x, Window(), (1, 1), core=core)["gram"]
    bad = torch.zeros(features, dtype=torch.bool)
    bad[: 3 * len(values) : 3] = True
    assert not got[0][bad].isfinite().any()
    assert torch.equal(got[0][~bad][:, ~bad], want[0][~bad][:, ~bad])
