"""Adam with an L2 penalty inside the gradient, which drives whole ReLU nodes to zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError

_REFUSED = {
    "weight_decay": "the penalty is called l2 here",
    "decoupled_weight_decay": "that is AdamW: it decays weights outside of Adam's normalisation, only exponentially",
    "amsgrad": "it never forgets the largest gradient, which every later step is divided by",
}
"""Options of ``torch.optim.Adam`` that are refused, and why: they have another name here, or undo the penalty."""


def adam_l2(params: Iterable[Any], lr: float = 1e-3, l2: float = 1e-4, **options: Any) -> torch.optim.Adam:
    """``torch.optim.Adam`` on loss + l2 / 2 · ‖w‖², which drives nodes with inactive ReLUs to zero.

    A weight without a gradient from the loss is changed by the penalty alone. Adam divides each gradient by its recent
    magnitude, so once older gradients are forgotten the weight shrinks doubly exponentially. This affects all incoming
    weights of a node whose ReLU is rarely active, so whole nodes vanish. ``reapx.compact`` removes them, and
    ``reapx.NodeMonitor`` shows how they vanish.

    Decoupled decay (``torch.optim.AdamW``), AMSGrad and momentum SGD shrink such weights only exponentially.

    Args:
        params: As ``torch.optim.Adam`` takes them: tensors, (name, tensor) pairs, or dicts, one a parameter group,
            which may hold ``lr`` and ``l2`` of their own.
        lr: Learning rate. A rate that is large at first and falls slowly, such as along a cosine, makes many nodes
            vanish.
        l2: Strength of the penalty, usually from 1e-5 to 1e-3; a larger one makes more nodes vanish.
        options: Other options of ``torch.optim.Adam``: betas, eps, fused, ...

    Returns:
        The optimiser.

    Raises:
        InputError: ``params`` is empty or a single tensor, a learning rate is not a positive finite number, a strength
            is negative or not finite, or an option would undo the penalty; the message says why.

    Source: A. Yaguchi et al., "Adam Induces Implicit Weight Sparsity in Rectifier Neural Networks", ICMLA 2018.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimiser = adam_l2([weight], lr=0.1, l2=1e-4)
        >>> weight.grad = torch.zeros(1)  # only the penalty acts; Adam's first step has length lr
        >>> optimiser.step()
        >>> round(weight.item(), 4)
        0.9
    """
    _check_options(options)
    _check("lr", lr, positive=True)
    _check("l2", l2, positive=False)
    return torch.optim.Adam(_groups(params), lr=lr, weight_decay=l2, **options)


def _groups(params: Iterable[Any]) -> Iterable[Any]:
    """The parameters as Adam takes them; in parameter groups, ``l2`` becomes ``weight_decay``."""
    if isinstance(params, Tensor):
        raise InputError("params is one tensor: give model.parameters() or a list")
    items = iter(params)
    first = next(items, None)
    if first is None:
        raise InputError("there are no parameters to train: give model.parameters()")
    everything = chain([first], items)
    return [_group(item) for item in everything] if isinstance(first, Mapping) else everything


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(group)
    _check_options(own)
    if "lr" in own:
        _check("lr", own["lr"], positive=True)
    if "l2" in own:
        _check("l2", own["l2"], positive=False)
        own["weight_decay"] = own.pop("l2")
    return own


def _check_options(options: Mapping[str, Any]) -> None:
    for name, reason in _REFUSED.items():
        if options.get(name, False) is not False:
            raise InputError(
                f"{name}={options[name]!r}: {reason}. Give l2=..., as in adam_l2(params, lr=1e-3, l2=1e-4)"
            )


def _check(name: str, value: object, *, positive: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, Tensor) and value.numel() == 1:
        value, number = value.item(), True
    if not number or not math.isfinite(value) or value < 0 or (positive and value == 0):  # type: ignore[arg-type, operator]
        raise InputError(f"{name}={value!r}: give a number {'above' if positive else 'from'} 0")
