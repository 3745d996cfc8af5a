"""Arguments of the command line: models, images, budgets and bounds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..calibration.images import share_of
from ..calibration.processes import ALONE, Processes, launched
from ..costs.budget import Budget, MACs, Params, Size
from ..costs.latency import Latency
from ..errors import InputError, ReapxError
from .models import call, load_weights, named_model
from .pictures import MEAN, STD, read_folder

BUDGETS: dict[str, type[Budget]] = {"macs": MACs, "params": Params, "size": Size, "latency": Latency}


def budget_of(text: str, batch: int | None) -> Budget:
    """A budget from text such as ``macs=0.5``."""
    kind, _, amount = text.partition("=")
    try:
        budget = BUDGETS[kind.lower()](float(amount))
    except (KeyError, ValueError) as error:
        if isinstance(error, ReapxError):
            raise
        raise InputError(f"--budget {text!r}: write macs=0.5, params=0.4 or latency=0.6") from error
    if batch is None:
        return budget
    if not isinstance(budget, Latency):
        raise InputError(f"--batch {batch}: only a latency depends on it; leave it out with --budget {text}")
    return replace(budget, batch=batch)


def bounds_of(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Bounds as ``reapx.plan`` takes them, from texts ``LAYER=FEWEST:MOST``."""
    found: dict[str, tuple[float, float]] = {}
    for text in texts:
        layer, _, ends = text.rpartition("=")
        try:
            fewest, most = (float(end) if "." in end else int(end) for end in ends.split(":"))
        except ValueError as error:
            raise InputError(
                f"--bound {text!r}: write LAYER=FEWEST:MOST, in shares such as 'layer1.*=0.25:1.0' or in channels "
                "such as stem=8:16"
            ) from error
        if not layer:
            raise InputError(f"--bound {text!r} names no layer: write LAYER=FEWEST:MOST, such as stem=8:16")
        if layer in found:
            raise InputError(f"--bound {text!r}: {layer} has a bound already; give one for each layer or pattern")
        found[layer] = (fewest, most)
    return found


def device_of(text: str) -> torch.device:
    """A device from ``cpu``, ``cuda`` or ``cuda:1``; with ``cuda``, each of several processes takes its own GPU."""
    kind, _, index = text.partition(":")
    if text == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or not (index.isdigit() or text == "cuda"):
        raise InputError(f"--device {text}: choose cpu, cuda or one of several GPUs, such as cuda:1")
    launch = launched()
    if index and launch.size > 1:
        raise InputError(f"--device {text}: {launch.size} processes want a GPU each: write cuda")
    number = int(index) if index else launch.local
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= seen:
        raise InputError(
            f"--device {text}: torch sees {seen} CUDA devices, the first is cuda:0: choose one of them, or cpu"
            if seen
            else f"--device {text}: torch sees no CUDA device: choose cpu, or install a torch with CUDA"
        )
    return torch.device("cuda", number)


def model_of(options: argparse.Namespace) -> nn.Module:
    """The model, weights and device that the arguments name; the model is in eval mode."""
    device = device_of(options.device)
    model = named_model(options.model, options.arg)
    if options.weights is not None:
        load_weights(model, options.weights)
    return model.eval().to(device)


def images_of(options: argparse.Namespace, processes: Processes = ALONE) -> object:
    """The images that the arguments name; with several processes, this one's part."""
    folder = Path(options.images)
    if folder.is_dir():
        images: object = read_folder(folder, options.count, options.size, options.mean, options.std)
    else:
        images = _images_of(options.images, options.count)
    if processes.size == 1:
        return images
    return share_of(images, device_of(options.device), processes.rank, processes.size)


def _images_of(text: str, count: int | None) -> object:
    """The first ``count`` images in a file, or the images that a callable returns."""
    path, _, key = text.partition(":")
    suffix = Path(path).suffix
    if suffix not in (".npy", ".npz", ".safetensors"):
        return call(text)
    try:
        if suffix == ".safetensors":
            values = _entry(load_file(path), key, path)
        else:
            found = np.load(path, allow_pickle=False)
            values = torch.from_numpy(found if suffix == ".npy" else _entry(dict(found), key, path))
    except (OSError, ValueError, EOFError, BadZipFile, SafetensorError) as error:
        if isinstance(error, ReapxError):
            raise
        raise InputError(f"--images {path}: {error}") from error
    return values[:count] if values.dim() else values


def _entry(entries: dict[str, Any], key: str, path: str) -> Any:
    if not key and len(entries) == 1:
        return next(iter(entries.values()))
    if key not in entries:
        raise InputError(f"--images {path}: name one of its arrays, {path}:KEY; there are {', '.join(entries)}")
    return entries[key]


def count_of(text: str) -> int:
    """A whole number from 1."""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("give a whole number from 1")
    return count


def numbers_of(text: str) -> tuple[float, ...]:
    """One or several numbers, such as 0.485,0.456,0.406."""
    return tuple(float(part) for part in text.split(","))


def listed_lines(named: Mapping[str, str]) -> str:
    """``name: line; ...`` of a help text."""
    return "; ".join(f"{name}: {line}" for name, line in named.items())


def add_model(parser: argparse.ArgumentParser, images: bool = True) -> None:
    """Add the arguments that name the model and the images; the images are required if ``images``."""
    parser.add_argument(
        "model",
        help="module:callable or file.py:callable that returns the nn.Module; timm:NAME, torchvision:NAME or hf:FOLDER",
    )
    parser.add_argument(
        "--arg", action="append", default=[], metavar="NAME=VALUE", help="argument of what builds it; repeatable"
    )
    parser.add_argument("--weights", type=Path, help="state dict to load into it: .safetensors, or .pth of torch.save")
    parser.add_argument(
        "--images",
        required=images,
        help=".npy, .npz or .safetensors with (images, ...) as the model wants them, optionally FILE:KEY; "
        "module:callable that returns an iterable of batches; or a folder of pictures"
        + ("" if images else "; by default random ones"),
    )
    parser.add_argument("--count", type=count_of, help="use only the first so many images of a file or folder")
    parser.add_argument("--size", type=count_of, default=224, help="of pictures: pixels of a side; default %(default)s")
    for name, values in (("mean", MEAN), ("std", STD)):
        wording = "of pictures: one number or three; default ImageNet's"
        parser.add_argument(f"--{name}", type=numbers_of, default=values, help=wording)
    parser.add_argument(
        "--device",
        default="cpu",
        help="where the model runs: cpu (the default), cuda, or one of several such as cuda:1",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="LAYER",
        help="layer names or patterns to leave alone; repeatable",
    )
