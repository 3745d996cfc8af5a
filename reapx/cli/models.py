"""Models and weights by name: of the user's modules, timm, torchvision and transformers."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import InputError

_NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Entries under which training scripts keep a state dict."""


def named_model(text: str, given: Sequence[str]) -> nn.Module:
    """The model that ``timm:NAME``, ``torchvision:NAME``, ``hf:FOLDER`` or ``module:callable`` names.

    Args:
        text: The name.
        given: Texts ``name=value``, arguments of what builds the model.

    Raises:
        InputError: there is no such model, a package is missing, or building it fails.
    """
    if text.endswith((".pt2", ".onnx", ".pte")):
        raise InputError(
            f"{text} is an exported program, whose sizes are fixed: give the module that was exported, as "
            "module:callable, and export the pruned one"
        )
    arguments = dict(_argument(one) for one in given)
    source, _, name = text.partition(":")
    build = _BUILDERS.get(source)
    model = call(text, arguments) if build is None else build(name, arguments)
    if not isinstance(model, nn.Module):
        raise InputError(f"{text} returned a {type(model).__name__}, not an nn.Module")
    return model


def call(text: str, arguments: dict[str, Any] | None = None) -> Any:
    """Import ``module:callable`` or ``file.py:callable`` and call it."""
    place, _, name = text.rpartition(":")
    if not place:
        raise InputError(
            f"{text!r}: write module:callable or file.py:callable (models may also be timm:NAME, torchvision:NAME or "
            "hf:FOLDER, images .npy, .npz, .safetensors or a folder of pictures)"
        )
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        if not hasattr(module, name):
            raise InputError(f"{text!r}: {place} has no {name}{_close(name, vars(module))}")
        return getattr(module, name)(**(arguments or {}))
    except InputError:
        raise
    except Exception as error:  # the user's module may raise anything
        told = f"with {arguments}" if arguments else "without arguments"
        raise InputError(f"{text!r} cannot be loaded or called {told}: {error!r}") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict from ``.safetensors``, or from a file of ``torch.save`` without running its code.

    Raises:
        InputError: the file cannot be read, or does not fit the model.
    """
    try:
        model.load_state_dict(_state_of(path))
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:400]
        raise InputError(
            f"--weights {path}: {reason}. It must be a state dict of this model: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors'), or torch.save(model.state_dict(), "
            "'weights.pth')"
        ) from error


def _state_of(path: Path) -> dict[str, Tensor]:
    if path.suffix not in (".pth", ".pt", ".bin"):
        return load_file(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    nested = next((key for key in _NESTED if isinstance(found, dict) and isinstance(found.get(key), dict)), None)
    state = found if nested is None else found[nested]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"it holds a {type(state).__name__} that is no state dict")
    return state


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--arg {text!r}: write NAME=VALUE, such as num_classes=10")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _of_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    timm = _package("timm", "timm")
    _check_name("timm", name, timm.list_models())
    return _built(f"timm:{name}", lambda: timm.create_model(name, **arguments))


def _of_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    models = _package("torchvision.models", "torchvision")
    _check_name("torchvision", name, models.list_models())
    return _built(f"torchvision:{name}", lambda: models.get_model(name, **arguments))


def _of_transformers(folder: str, arguments: dict[str, Any]) -> nn.Module:
    transformers = _package("transformers", "transformers")
    if not Path(folder).is_dir():
        raise InputError(f"hf:{folder}: there is no such folder; save_pretrained(folder) writes one")
    model = _built(
        f"hf:{folder}",
        lambda: transformers.AutoModel.from_pretrained(folder, local_files_only=True, **arguments),
    )
    if getattr(getattr(model, "config", None), "use_cache", False):
        model.config.use_cache = False  # type: ignore[union-attr]  # a cache is no output that can be compared
    return model


_BUILDERS: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "timm": _of_timm,
    "torchvision": _of_torchvision,
    "hf": _of_transformers,
}


def _package(module: str, install: str) -> ModuleType | Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{install} is not installed ({error}): pip install {install}") from error


def _built(text: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except Exception as error:  # other packages may raise anything
        raise InputError(f"{text} cannot be built: {error!r}; --arg NAME=VALUE gives its arguments") from error


def _check_name(source: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name.partition(".")[0] not in names and name not in names:
        raise InputError(f"{source} has no model {name!r}{_close(name, names)}")


def _close(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, [str(one) for one in known], 5)
    return f"; did you mean {', '.join(found)}?" if found else ""
