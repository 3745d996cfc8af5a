"""The door between torch and the kernels: what is refused, and in which words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch

from reapx import _native
from reapx._native import PairConsumer, PairTask, PathConsumer, PathTask, SolveTask, Window, boundary
from reapx.errors import BackendError, ReapxError

F64 = torch.float64


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=F64)


def gram(**changes: object) -> None:
    arguments: dict[str, object] = {
        "x": torch.zeros(2, 4, 5, 5),
        "window": Window((3, 3), padding=(1, 1)),
        "output_size": (5, 5),
        "gram": zeros(1, 36, 36),
        "total": zeros(1, 36),
        "target": torch.zeros(2, 6, 5, 5),
        "cross": zeros(1, 6, 36),
        "target_total": zeros(6),
        "target_square": zeros(6),
    }
    _native.gram_accumulate(**(arguments | changes))  # type: ignore[arg-type]


def basis(**changes: object) -> None:
    arguments: dict[str, object] = {"grams": [zeros(3, 3)], "ridges": [1.0], "bases": [zeros(3, 3)]}
    _native.basis_compute(**(arguments | changes))  # type: ignore[arg-type]


def spread(changes: dict[str, object], consumer: dict[str, object], task: dict[str, object]) -> None:
    """Put changed arguments where they belong: names of consumers and tasks differ."""
    for name, value in changes.items():
        (consumer if name in consumer else task)[name] = value


def path(**changes: object) -> None:
    consumer: dict[str, object] = {
        "basis": torch.eye(6, dtype=F64),
        "weight": zeros(2, 6),
        "columns": torch.arange(6).reshape(3, 2),
        "scale": 1.0,
        "factor": zeros(6, 6),
        "residual": zeros(6, 2),
    }
    task: dict[str, object] = {
        "forced": torch.zeros(0, dtype=torch.int64),
        "order": torch.zeros(3, dtype=torch.int64),
        "errors": zeros(3),
        "status": torch.zeros(1, dtype=torch.int64),
    }
    spread(changes, consumer, task)
    consumers = [PathConsumer(**consumer)]  # type: ignore[arg-type]
    _native.path_eliminate([PathTask(consumers=consumers, **task)])  # type: ignore[arg-type]


def solve(**changes: object) -> None:
    task: dict[str, object] = {
        "gram": torch.eye(4, dtype=F64),
        "cross": zeros(2, 4),
        "kept": torch.tensor([0, 2]),
        "ridge": 0.0,
        "reference": zeros(2, 4),
        "weight": zeros(2, 2),
    }
    _native.batch_solve([SolveTask(**(task | changes))])  # type: ignore[arg-type]


def pairs(**changes: object) -> None:
    consumer: dict[str, object] = {
        "gram": torch.eye(6, dtype=F64),
        "weight": zeros(2, 6),
        "columns": torch.arange(6).reshape(3, 2),
        "scale": 1.0,
        "gains": zeros(2),
    }
    task: dict[str, object] = {
        "table": zeros(3, 3),
        "removed": torch.zeros(2, dtype=torch.int64),
        "partner": torch.zeros(2, dtype=torch.int64),
        "errors": zeros(2),
    }
    spread(changes, consumer, task)
    consumers = [PairConsumer(**consumer)]  # type: ignore[arg-type]
    _native.pair_scan([PairTask(**({"consumers": consumers} | task))])  # type: ignore[arg-type]


def weights(**changes: object) -> None:
    arguments: dict[str, object] = {"weights": [torch.zeros(2, 3), torch.zeros(4, 2, 3, 3)]}
    _native.zero_scan(**(arguments | changes))  # type: ignore[arg-type]


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


SHARED = zeros(36 * 36)

REFUSED: list[tuple[Callable[..., None], dict[str, object], str]] = [
    (gram, {"x": zeros(2, 4, 5, 5)}, "x must be float32, float16 or bfloat16, not float64"),
    (gram, {"x": torch.zeros(2, 4, 5, 9).half()[..., ::2]}, "x must be contiguous or channels-last"),
    (gram, {"gram": zeros(1, 36, 36).half()}, "gram must be float64, not float16"),
    (gram, {"x": torch.zeros(2, 4, 5)}, "x must have 4 axes, not shape (2, 4, 5)"),
    (gram, {"x": torch.zeros(2, 4, 5, 9)[..., ::2]}, "x must be contiguous or channels-last"),
    (gram, {"gram": torch.zeros(1, 36, 36)}, "gram must be float64, not float32"),
    (gram, {"gram": zeros(1, 35, 36)}, "gram must have shape (1, 36, 36), not (1, 35, 36)"),
    (gram, {"gram": zeros(1, 36, 72)[..., ::2]}, "gram must be contiguous"),
    (gram, {"total": zeros(36)}, "total must have shape (1, 36), not (36,)"),
    (gram, {"target": torch.zeros(2, 6, 5, 4)}, "target must have shape (2, 6, 5, 5)"),
    (gram, {"target": torch.zeros(3, 6, 5, 5)}, "target must have shape (2, 6, 5, 5)"),
    (gram, {"cross": None}, "target needs cross, target_total and target_square"),
    (gram, {"cross": zeros(1, 5, 36)}, "cross must have shape (1, 6, 36)"),
    (gram, {"target_total": zeros(5)}, "target_total must have shape (6,)"),
    (gram, {"target_square": zeros(7)}, "target_square must have shape (6,)"),
    (gram, {"output_size": (-1, 5)}, "output_size must not be negative"),
    (gram, {"window": Window((0, 3))}, "window needs kernel, stride and dilation of at least 1"),
    (gram, {"window": Window((3, 3), (1, 0))}, "window needs kernel, stride and dilation"),
    (gram, {"window": Window((3, 3), padding=(-1, 0))}, "padding of at least 0"),
    (gram, {"window": Window((3, 3), groups=3)}, "groups must divide the 4 channels of x"),
    (gram, {"core": "abacus"}, "core: 'abacus' is not one of"),
    (gram, {"window": Window((4, 2**62 + 1))}, "window and output_size must not exceed 2^30, not 4611686018427387905"),
    (gram, {"window": Window((3, 3), stride=(2**61, 1))}, "window and output_size must not exceed 2^30"),
    (gram, {"window": Window((3, 3), padding=(1, 2**61))}, "window and output_size must not exceed 2^30"),
    (gram, {"window": Window((3, 3), dilation=(2**62, 1))}, "window and output_size must not exceed 2^30"),
    (gram, {"output_size": (5, 2**62)}, "window and output_size must not exceed 2^30"),
    (gram, {"output_size": (2**30, 2**30), "x": torch.zeros(32, 4, 5, 5)}, "the positions of all images are more than"),
    (gram, {"window": Window((2**30, 2**30)), "x": torch.zeros(2, 32, 1, 1)}, "the features of a window are more than"),
    (gram, {"x": torch.zeros(0, 2**40, 5, 5)}, "x must not have a size above 2^31, not 1099511627776"),
    (
        gram,
        {"total": SHARED[:36].reshape(1, 36), "gram": SHARED.reshape(1, 36, 36)},
        "total and gram overlap in memory",
    ),
    (
        gram,
        {"cross": SHARED[:216].reshape(1, 6, 36), "gram": SHARED.reshape(1, 36, 36)},
        "overlap in memory: give each",
    ),
    (gram, {"form": "cube"}, "form: 'cube' is not one of rows, shift"),
    (basis, {"ridges": []}, "grams, ridges and bases must be of one length"),
    (basis, {"grams": [zeros(3, 4)]}, "grams[0] must have shape (3, 3), not (3, 4)"),
    (basis, {"bases": [zeros(4, 4)]}, "bases[0] must have shape (3, 3), not (4, 4)"),
    (basis, {"bases": [torch.zeros(3, 3)]}, "bases[0] must be float64, not float32"),
    (path, {"basis": zeros(6, 5)}, "tasks[0].consumers[0].basis must have shape (6, 6)"),
    (path, {"weight": zeros(2, 5)}, "weight must have shape (2, 6), not (2, 5)"),
    (path, {"columns": torch.zeros(3, 2)}, "columns must be int64, not float32"),
    (path, {"columns": integers(0, 1, 2, 3, 4, 6).reshape(3, 2)}, "columns holds 6"),
    (path, {"columns": integers(0, 1, 2, 3, 4, 4).reshape(3, 2)}, "columns holds 4 twice"),
    (path, {"factor": zeros(3, 6)}, "factor must have shape (6, 6), not (3, 6)"),
    (path, {"residual": zeros(6, 3)}, "residual must have shape (6, 2), not (6, 3)"),
    (path, {"forced": integers(1, 1)}, "tasks[0].forced holds 1 twice"),
    (path, {"forced": integers(3)}, "tasks[0].forced holds 3, which is not in 0..2"),
    (path, {"order": integers(0, 0, 0, 0)}, "tasks[0].order has 4 steps for 3 units"),
    (path, {"errors": zeros(2)}, "tasks[0].errors must have shape (3,), not (2,)"),
    (path, {"factor": SHARED[:36].reshape(6, 6), "basis": SHARED[:36].reshape(6, 6)}, "basis and "),
    (path, {"residual": SHARED[30:42].reshape(6, 2), "factor": SHARED[:36].reshape(6, 6)}, "overlap in memory"),
    (path, {"scale": float("nan")}, "tasks[0].consumers[0].scale must not be negative, infinite or NaN"),
    (path, {"scale": float("inf")}, "tasks[0].consumers[0].scale must not be negative, infinite or NaN"),
    (path, {"scale": -1.0}, "tasks[0].consumers[0].scale must not be negative, infinite or NaN"),
    (path, {"status": integers()}, "tasks[0].status must have shape (1,), not (0,)"),
    (solve, {"gram": zeros(4, 3)}, "tasks[0].gram must have shape (4, 4)"),
    (solve, {"cross": zeros(2, 3)}, "tasks[0].cross must have shape (2, 4)"),
    (solve, {"kept": integers(0, 4)}, "tasks[0].kept holds 4, which is not in 0..3"),
    (solve, {"kept": integers(-1, 2)}, "tasks[0].kept holds -1"),
    (solve, {"reference": zeros(1, 4)}, "tasks[0].reference must have shape (2, 4)"),
    (solve, {"weight": zeros(2, 3)}, "tasks[0].weight must have shape (2, 2), not (2, 3)"),
    (pairs, {"consumers": []}, "tasks[0] must have a consumer"),
    (pairs, {"gram": zeros(6, 5)}, "tasks[0].consumers[0].gram must have shape (6, 6)"),
    (pairs, {"gram": torch.zeros(6, 6)}, "gram must be float64, not float32"),
    (pairs, {"weight": zeros(2, 5)}, "weight must have shape (2, 6), not (2, 5)"),
    (pairs, {"weight": zeros(6, 2).T}, "tasks[0].consumers[0].weight must be contiguous"),
    (pairs, {"columns": torch.zeros(3, 2)}, "columns must be int64, not float32"),
    (pairs, {"columns": integers(0, 1, 2, 3, 4, 6).reshape(3, 2)}, "columns holds 6"),
    (pairs, {"columns": integers(0, 1, 2, 3, 4, 4).reshape(3, 2)}, "columns holds 4 twice"),
    (pairs, {"scale": float("nan")}, "tasks[0].consumers[0].scale must not be negative, infinite or NaN"),
    (pairs, {"scale": -1.0}, "tasks[0].consumers[0].scale must not be negative"),
    (pairs, {"gains": zeros(3)}, "gains must have shape (2,), not (3,)"),
    (pairs, {"table": zeros(3, 2)}, "tasks[0].table must have shape (3, 3), not (3, 2)"),
    (pairs, {"removed": integers(0, 0, 0)}, "removed has 3 steps for 3 units, one of which must stay"),
    (pairs, {"removed": zeros(2)}, "tasks[0].removed must be int64, not float64"),
    (pairs, {"partner": integers(0)}, "tasks[0].partner must have shape (2,), not (1,)"),
    (pairs, {"errors": zeros(1)}, "tasks[0].errors must have shape (2,), not (1,)"),
    (weights, {"weights": [torch.zeros(3)]}, "weights[0] must have two axes or more, not shape (3,)"),
    (weights, {"weights": [torch.zeros(2, 2), zeros(2, 2)]}, "weights[1] must be float32, not float64"),
    (weights, {"weights": [torch.zeros(3, 2).T]}, "weights[0] must be contiguous; its strides are (1, 2)"),
    (weights, {"core": "abacus"}, "core: 'abacus' is not one of"),
]


@pytest.mark.parametrize(("call", "changes", "message"), REFUSED, ids=[m for *_, m in REFUSED])
def test_refused(call: Callable[..., None], changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(**changes)


@pytest.mark.parametrize("call", [gram, basis, path, solve, pairs, weights])
def test_accepted_without_changes(call: Callable[..., None]) -> None:
    call()


def test_no_gradient_is_needed() -> None:
    gram(x=torch.zeros(2, 4, 5, 5, requires_grad=True))


def test_other_devices() -> None:
    meta = torch.zeros(2, 4, 5, 5, device="meta")
    with pytest.raises(ValueError, match="x is on meta but target is on cpu"):
        gram(x=meta)
    with pytest.raises(BackendError, match="no META kernels in this build: move the model") as info:
        basis(grams=[zeros(3, 3).to("meta")], bases=[zeros(3, 3).to("meta")])
    assert isinstance(info.value, ReapxError)


def test_without_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the device alone: there need not be one."""
    device = torch.device("cuda", 0)
    monkeypatch.setitem(sys.modules, "reapx._native._cuda", None)
    with pytest.raises(
        BackendError, match=r"_cuda, which has the CUDA kernels, is missing: .*nvcc.*REAPX_CUDA=ON.*model\.cpu\(\)"
    ):
        _native.require(device)


def test_broken_cuda_kernels_raise_their_own_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_cuda.py").write_text("raise ImportError('libsomething.so: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "reapx._native._cuda", raising=False)
    monkeypatch.setattr(_native, "__path__", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [PathFinder])  # an editable install has a finder of its own
    with pytest.raises(ImportError, match=r"libsomething\.so"):
        _native.require(torch.device("cuda", 0))


def test_cores_are_the_cpus() -> None:
    with pytest.raises(ValueError, match="core: 'generic' is for tensors on the CPU; these are on 'cuda:0'"):
        boundary.backend(torch.device("cuda", 0), "generic")


def test_devices_of_this_run_have_kernels(devices: list[str]) -> None:
    for device in devices:
        failed = _native.basis_compute([torch.eye(3, dtype=F64, device=device)], [1.0], [zeros(3, 3).to(device)])
        assert failed == [-1]


def test_cores() -> None:
    assert _native.cores()[-1] == "generic"
