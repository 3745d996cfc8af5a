"""Norms without parameters and statistics, such as ``nn.InstanceNorm2d(16)``: no tensor shows their width."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..calibration.images import Images


def bare_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._NormBase]:
    """Path -> batch or instance norm, for all that hold no tensor."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and not module.affine and not module.track_running_stats
    }


def follow_inputs(model: nn.Module) -> None:
    """Let such norms set their width to that of their input on every call."""
    for norm in bare_norms(model).values():
        norm.register_forward_pre_hook(_follow, with_kwargs=True)


def _follow(norm: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    norm.num_features = next(iter((*args, *kwargs.values()))).shape[1]


def input_widths(model: nn.Module, images: Images) -> dict[str, int]:
    """Path of each such norm -> width of its input; the model is not changed."""
    if not bare_norms(model):
        return {}
    copied = copy.deepcopy(model)
    follow_inputs(copied)
    with torch.no_grad():
        images.call(copied, images.example(2))
    return {path: norm.num_features for path, norm in bare_norms(copied).items()}


def set_widths(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Set ``num_features`` of such norms, by their paths."""
    norms = bare_norms(model)
    for path, width in widths.items():
        norms[path].num_features = width
