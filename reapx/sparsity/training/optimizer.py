"""Adam with an L2 penalty inside the gradient, the optimiser that drives whole ReLU nodes to zero."""

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
"""Options of ``torch.optim.Adam`` that go by another name, or would change or undo the penalty, and why."""


def adam_l2(params: Iterable[Any], lr: float = 1e-3, l2: float = 1e-4, **options: Any) -> torch.optim.Adam:
    """``torch.optim.Adam`` on loss + l2 / 2 · ‖w‖², which makes sparse what ReLU leaves idle.

    A weight that the loss does not pull at is only pulled by the penalty, and Adam divides every pull by its own
    recent size: as the memory of older gradients fades, the weight shrinks doubly exponentially. That meets all
    incoming weights of a node whose ReLU rarely fires, so whole nodes vanish. ``reapx.compact`` removes them, and
    ``reapx.NodeMonitor`` shows them go.

    Decoupled decay (``torch.optim.AdamW``), AMSGrad and momentum SGD shrink such weights only exponentially.

    Args:
        params: As ``torch.optim.Adam`` takes them: tensors, (name, tensor) pairs, or dicts, one a parameter group,
            which may hold ``lr`` and ``l2`` of their own.
        lr: Learning rate. Large at first and then cooling down slowly, such as along a cosine, makes many nodes vanish.
        l2: Strength of the penalty, usually from 1e-5 to 1e-3; more removes more.
        options: Others of ``torch.optim.Adam``: betas, eps, fused, ...

    Returns:
        The optimiser.

    Raises:
        InputError: a learning rate or strength is no positive number (a strength may be 0), or an option would undo the
            penalty; says why.

    Source: A. Yaguchi et al., "Adam Induces Implicit Weight Sparsity in Rectifier Neural Networks", ICMLA 2018.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimiser = adam_l2([weight], lr=0.1, l2=1e-4)
        >>> weight.grad = torch.zeros(1)  # no pull but the penalty's, which Adam's first step makes lr long
        >>> optimiser.step()
        >>> round(weight.item(), 4)
        0.9
    """
    _check_options(options)
    _check("lr", lr, positive=True)
    _check("l2", l2, positive=False)
    return torch.optim.Adam(_groups(params), lr=lr, weight_decay=l2, **options)


def _groups(params: Iterable[Any]) -> Iterable[Any]:
    """The parameters, with ``l2`` by its name in PyTorch where they come in groups."""
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
