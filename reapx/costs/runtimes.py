"""The runtimes in which networks are timed: each prepares a module once and then runs it as often as wanted."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import BudgetError
from .layer_times import milliseconds

Inputs = tuple[Any, ...] | dict[str, Any]
"""What the module takes, by position or by keyword: tensors, or lists and dicts of them with constants beside them."""

MeasureFunction = Callable[[nn.Module, Inputs], float]
"""A function that takes a module in eval mode and its inputs and returns milliseconds of one forward pass."""

Run = Callable[[], float]
"""Runs a prepared module once and returns milliseconds."""


def prepare(runtime: str, module: nn.Module, inputs: Inputs, threads: int | None) -> Run:
    """Prepare a module for a runtime.

    Args:
        runtime: A key of :data:`RUNTIMES`.
        module: In eval mode. It is run on the device of its inputs; exporting runtimes run on the CPU.
        inputs: Inputs of one batch.
        threads: Number of threads; None for ``torch.get_num_threads()``.

    Raises:
        BudgetError: the runtime's package is not installed, or the runtime refuses the module.
    """
    count = torch.get_num_threads() if threads is None else threads
    return RUNTIMES[runtime](module, inputs, count)


def _called(module: Callable[..., object], inputs: Inputs) -> object:
    """Run the module on copies, since forward() may write to its inputs."""
    given = pytree.tree_map_only(Tensor, torch.clone, inputs)
    return module(**given) if isinstance(given, Mapping) else module(*given)


def _tensors(inputs: Inputs) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


@contextmanager
def threads_of(count: int | None) -> Iterator[None]:
    """Sets torch's number of threads, and resets it in the end; None changes nothing."""
    before = torch.get_num_threads()
    count = before if count is None else count
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


def _torch_run(module: Callable[..., object], inputs: Inputs, threads: int) -> Run:
    device = _tensors(inputs)[0].device

    def run() -> float:
        with torch.no_grad(), threads_of(threads):
            return milliseconds(partial(_called, module, inputs), device)

    return run


def _eager(module: nn.Module, inputs: Inputs, threads: int) -> Run:
    return _torch_run(module, inputs, threads)


def _compiled(module: nn.Module, inputs: Inputs, threads: int) -> Run:
    torch.compiler.reset()  # otherwise the networks of earlier widths make torch compile for any width
    return _torch_run(torch.compile(module, dynamic=False), inputs, threads)


def _torchscript(module: nn.Module, inputs: Inputs, threads: int) -> Run:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named = {"example_kwarg_inputs": inputs} if isinstance(inputs, Mapping) else {"example_inputs": inputs}
        traced = torch.jit.trace(module, **named, check_trace=False)  # type: ignore[no-untyped-call]
        return _torch_run(torch.jit.freeze(traced.eval()), inputs, threads)


def _onnx_bytes(runtime: str, module: nn.Module, inputs: Inputs) -> bytes:
    """The module as an ONNX file in memory, through the TorchScript exporter, which takes a fraction of a second."""
    _package("onnx", runtime)
    file = io.BytesIO()
    given: Any = (dict(inputs),) if isinstance(inputs, Mapping) else tuple(inputs)
    names = (
        list(inputs) if isinstance(inputs, Mapping) else [f"input_{index}" for index in range(len(_tensors(inputs)))]
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(module, given, file, dynamo=False, input_names=names)  # type: ignore[arg-type]
        except Exception as error:
            raise BudgetError(
                f"runtime={runtime!r}: torch.onnx.export refuses {type(module).__name__} ({error}): give "
                "measure=function, which exports it in its own way, or runtime='eager'"
            ) from error
    return file.getvalue()


def _onnxruntime(module: nn.Module, inputs: Inputs, threads: int) -> Run:
    package = _package("onnxruntime", "onnxruntime")
    options = package.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    data = _onnx_bytes("onnxruntime", module, inputs)
    session = package.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    values = [value.detach().cpu().numpy() for value in _tensors(inputs)]
    feed = dict(zip([given.name for given in session.get_inputs()], values, strict=True))
    return partial(milliseconds, partial(session.run, None, feed), torch.device("cpu"))


def _openvino(module: nn.Module, inputs: Inputs, threads: int) -> Run:
    package = _package("openvino", "openvino")
    data = io.BytesIO(_onnx_bytes("openvino", module, inputs))
    core = package.Core()
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_NUM_THREADS": threads})
    values = [value.detach().cpu().numpy() for value in _tensors(inputs)]
    return partial(milliseconds, partial(compiled, values), torch.device("cpu"))


def _package(name: str, runtime: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BudgetError(
            f"runtime={runtime!r} needs the package {name}, which is not installed: pip install {name}"
        ) from error


RUNTIMES: dict[str, Callable[[nn.Module, Inputs, int], Run]] = {
    "eager": _eager,
    "compile": _compiled,
    "torchscript": _torchscript,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
EXPORTING = frozenset({"onnxruntime", "openvino"})
"""Runtimes with operators of their own: their layers are timed in them; those of the others are timed in eager mode."""
