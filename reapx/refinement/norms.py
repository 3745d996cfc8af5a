"""Batch norms of a pruned network get the statistics of what they now read, before it is trained on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..calibration.images import Images
from ..capture.precision import plain_mode
from ..inspection.argument_checks import check_arguments
from ..inspection.model_checks import check_forward, check_model, copy_of, model_device


@plain_mode()
def renew_norms(model: nn.Module, images: object, *, memory: int | None = None) -> nn.Module:
    """A copy that computes the same in eval mode, and nearly the same in train mode.

    The batch norms of a pruned network still hold the running mean m and variance v of the original's activations. In
    train mode a norm divides by the statistics of the batch instead, which is another network: accuracy drops before
    the first step is made. Here each norm gets the mean and variance M and V of what it reads now, and scale w and
    shift b take up the difference:

        w' = w * sqrt(V + eps) / sqrt(v + eps),    b' = b + w * (M - m) / sqrt(v + eps)

    Norms without scale and shift, without running statistics, that no image reaches, or that forward() calls several
    times stay as they are.

    Args:
        model: A network in eval mode; it is not changed.
        images: A tensor (images, ...) or an iterable of batches, as for ``reapx.plan``; a few hundred will do.
        memory: As for ``reapx.plan``.

    Returns:
        The copy, in eval mode.

    Raises:
        InputError: the model is in train mode or does not run on the images.

    Source: this package; after the observation that a refitted network's activations are not distributed like the
        original's.
    """
    check_arguments(memory=memory)
    check_model(model)
    found = Images(images, model_device(model), memory, model)
    check_forward(model, found)
    result = copy_of(model)
    sums = _sums(copy.deepcopy(result), found)
    for name, norm in result.named_modules():
        if name in sums:
            _renew(norm, *sums[name])
    return result


def _sums(model: nn.Module, images: Images) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance, float64, of what each norm reads that is called once."""
    totals: dict[str, list[Tensor]] = {}
    calls: dict[str, int] = {}
    hooks = []

    def watch(name: str, norm: nn.Module) -> None:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            value = inputs[0].detach().double().transpose(0, 1).flatten(1)
            part = torch.stack([value.sum(1), value.square().sum(1), torch.full_like(value[:, 0], value.shape[1])])
            totals[name] = [part if name not in totals else totals[name][0] + part]
            calls[name] = calls.get(name, 0) + 1

        hooks.append(norm.register_forward_pre_hook(look))

    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.affine and module.running_mean is not None:
            watch(name, module)
    with torch.no_grad():
        for batch in images:
            images.call(model, batch)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, (total,) in totals.items():
        if calls[name] == len(images):
            mean = total[0] / total[2]
            found[name] = (mean, (total[1] / total[2] - mean.square()).clamp(min=0))
    return found


@torch.no_grad()
def _renew(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    old = (norm.running_var.double() + norm.eps).sqrt()
    norm.bias.copy_(norm.bias + norm.weight * (mean - norm.running_mean) / old)
    norm.weight.copy_(norm.weight * (variance + norm.eps).sqrt() / old)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
