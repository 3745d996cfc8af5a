"""Checks of models: whether it is one that can be pruned, can be copied, and runs on the images."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .. import _native
from ..calibration.images import Images
from ..errors import InputError
from ..surgery.proof import tensors_in

_NO_MODULES: tuple[tuple[Callable[[object], bool], str], ...] = (
    (
        lambda value: isinstance(value, torch.export.ExportedProgram),
        "give the torch.nn.Module that was exported: pruning changes the sizes that an export fixes",
    ),
    (
        lambda value: isinstance(value, Mapping),
        "give the network itself, with a state dict loaded by model.load_state_dict(state)",
    ),
    (lambda value: isinstance(value, type), "give an instance of the class, such as Net().eval()"),
    (
        lambda value: isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module),
        "give the module itself, not a method of it",
    ),
    (callable, "give a torch.nn.Module that holds the layers and calls the function in its forward()"),
    (
        lambda value: isinstance(value, str | Path),
        "give the network itself: build it, then load its weights",
    ),
    (lambda value: value is None, "give a torch.nn.Module (does the function that builds it return it?)"),
)
"""What users give instead of a module -> what to give instead."""

_QUANTIZED = (
    "torch.ao.nn.qat",
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.qat",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.quantization.fake_quantize",
    "torch.ao.quantization.observer",
    "torchao.quantization",
)
"""Where the modules lie that round or observe values for quantization; stubs and fused modules do neither."""


def model_device(model: nn.Module) -> torch.device:
    """The device of all parameters and buffers.

    Raises:
        InputError: they are on several devices, or there are none.
        BackendError: there are no kernels for the device.
    """
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if len(devices) > 1:
        raise InputError(f"the model is on several devices ({devices}): move it to one, model.to(device)")
    if not devices:
        raise InputError("the model has no parameters, so there is nothing to prune")
    device = devices.pop()
    _native.require(device)
    return device


def check_model(model: nn.Module) -> None:
    """Refuse values that are not a model, models that something wraps or has changed, and models in train mode.

    Raises:
        InputError: the model cannot be pruned as it is; the message says what to give instead.
    """
    if not isinstance(model, nn.Module):
        cure = next((cure for fits, cure in _NO_MODULES if fits(model)), "give a torch.nn.Module")
        raise InputError(f"model is of type {type(model).__name__}: {cure}")
    if hasattr(model, "_orig_mod"):
        raise InputError("this is a model compiled by torch.compile: pass the original, model._orig_mod")
    for name, module in model.named_modules():
        cure = _instead(module, f"model.{name}" if name else "model")
        if cure is not None:
            kind = f"{type(module).__name__} ({type(module).__module__})"
            raise InputError(f"{name or 'the model'} is a {kind}: {cure}")
    for name, module in model.named_modules():
        if module.training:
            raise InputError(
                f"the model is in train mode ({name or type(model).__name__}): call model.eval() first, so that "
                "norms and dropout act as at inference"
            )


def _instead(module: nn.Module, path: str) -> str | None:
    """What to give instead of a module that cannot be pruned; None for others."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return f"pass the module that it wraps, {path}.module, and wrap the pruned one again"
    if isinstance(module, torch.jit.ScriptModule):
        return "pass the torch.nn.Module that was traced or scripted, and compile the pruned one again"
    if isinstance(module, torch.fx.GraphModule) and "inline_constraints" in module.meta:
        return "pass the torch.nn.Module that was exported: pruning changes the sizes that an export fixes"
    if type(module).__module__.startswith(_QUANTIZED):
        return "prune before quantization: pass the floating-point model, and quantize the pruned one"
    return None


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy, which shares nothing with the model.

    Raises:
        InputError: something in the model cannot be copied; the message names it.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # attributes of the user's classes may raise anything
        raise InputError(f"the model cannot be copied: {_uncopied(model, error)}") from error


def _uncopied(model: nn.Module, error: Exception) -> str:
    """What in a model cannot be copied, and what to do about it."""
    for name, module in model.named_modules():
        given = f"model.get_submodule({name!r})" if name else "model"
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm):
                kind = "weight" if isinstance(hook, WeightNorm) else "spectral"
                call = f"torch.nn.utils.remove_{kind}_norm({given}, {hook.name!r})"
                return f"{name or 'it'} computes its {hook.name} by an old {kind}_norm: call {call} first"
            if isinstance(hook, prune.BasePruningMethod):
                call = f"torch.nn.utils.prune.remove({given}, {hook._tensor_name!r})"
                return f"{name or 'it'} still has a mask of torch.nn.utils.prune: call {call} first"
    reason = " ".join(str(error).split())[:200]
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key == "_modules":
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                what = f"its attribute {f'{name}.{key}'.lstrip('.')} is of type {type(value).__name__} ({reason})"
                return f"{what}. Take it off before, or make it where forward() needs it"
    return reason


def check_forward(model: nn.Module, images: Images) -> object:
    """Refuse images on which the model does not run; returns the model's output for two of them."""
    copied = copy_of(model)  # forward() may change buffers
    tensors = tuple(torch.cat([value, value]) if len(value) == 1 else value for value in images.example(2))
    try:
        with torch.no_grad():
            value = images.call(copied, tensors)
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(
            f"the model does not run on images of shape {images.shape} and dtype {tensors[0].dtype}: "
            f"{reason}. {_cure(model, images)}"
        ) from error
    if not tensors_in(value):
        raise InputError("the model returns no tensor")
    return value


def _cure(model: nn.Module, images: Images) -> str:
    """How to give images on which a model did not run."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in named if p.default is p.empty]
    given = list(needed[:1] if images.layout.names is None else images.layout.names)
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    if set(needed) - set(given) or not (takes_any or set(given) <= {p.name for p in named}):
        example = ", ".join(f"{name!r}: ..." for name in needed)
        return (
            f"forward() needs {' and '.join(needed)}: give each batch as a dict by these names, "
            f"images=[{{{example}}}, ...], or as a tuple in this order"
        )
    conv = next((module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)), None)
    if conv is not None and len(images.shape) + 1 == conv.weight.dim() - 1:
        return (
            "Each item of `images` is a batch (images, channels, ...): if these are single images, "
            "torch.stack(images) makes a batch of them"
        )
    return (
        "They must be as the model wants them at inference: (images, channels, height, width), normalised, in the "
        "dtype of its weights (images.float() makes float32)"
    )
