"""What retraining a pruned CIFAR network consists of: crops and flips, norms, a teacher, a rate, a loss."""

from __future__ import annotations

import math

import models
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

WARM_UP = 0.05
"""Share of the iterations before the learning rate's peak."""
SHARE, TEMPERATURE = 0.9, 4.0
"""Weight of distillation in the loss, and what it divides the outputs by before the softmax."""
MARGIN = 4
"""Pixels that a crop moves by at most."""


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop and flip of each image, black beyond the edge; channels last in memory.

    Random numbers are drawn where the generator is: on a GPU, others than on the CPU.
    """
    count, _, height, width = images.shape
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in models.RESNET_NORM)
    black = -mean / std
    padded = F.pad(images - black, (MARGIN,) * 4).add_(black).permute(0, 2, 3, 1)
    top, left = torch.randint(2 * MARGIN + 1, (2, count, 1), generator=generator, device=generator.device)
    flip = torch.rand(count, 1, generator=generator, device=generator.device) < 0.5
    across = torch.arange(width, device=generator.device)
    rows = (top + torch.arange(height, device=generator.device)).to(images.device)
    columns = (left + torch.where(flip, width - 1 - across, across)).to(images.device)
    each = torch.arange(count, device=images.device)
    return padded[each[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def rebase(model: nn.Module, images: Tensor, batch: int = 250) -> None:
    """Give every batch norm the statistics of what it now reads, without changing what the network computes.

    A pruned network still carries the original's statistics. In training mode the norms would divide by those of
    the batch, which is another network; scale and shift take up the difference instead.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    sums: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}

    def watch(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double()
        sums[norm].append(torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))]))

    hooks = [norm.register_forward_pre_hook(watch) for norm in norms]
    for start in range(0, len(images) - batch + 1, batch):
        model(images[start : start + batch])
    for hook in hooks:
        hook.remove()
    for norm in norms:
        mean, square = torch.stack(sums[norm]).mean(0)
        variance = (square - mean.square()).clamp_(min=0)
        old = (norm.running_var.double() + norm.eps).sqrt()
        norm.bias.add_(norm.weight * (mean - norm.running_mean) / old)
        norm.weight.mul_((variance + norm.eps).sqrt() / old)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def fused(model: nn.Module) -> nn.Module:
    """The same network with its batch norms folded into the convolutions; the given module is used up."""
    for module in list(model.modules()):
        for number in ("1", "2"):
            conv, norm = getattr(module, f"conv{number}", None), getattr(module, f"bn{number}", None)
            if conv is not None and norm is not None:
                setattr(module, f"conv{number}", fuse_conv_bn_eval(conv, norm))
                setattr(module, f"bn{number}", nn.Identity())
    return model.requires_grad_(False)


def rate(step: int, steps: int, peak: float) -> float:
    """Learning rate of one iteration: linear to the peak, then a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def loss_of(outputs: Tensor, labels: Tensor, wanted: Tensor | None) -> Tensor:
    """Cross-entropy, mixed with the divergence from the teacher's softened outputs where there is a teacher."""
    hard = F.cross_entropy(outputs, labels)
    if wanted is None:
        return hard
    pair = (F.log_softmax(values / TEMPERATURE, 1) for values in (outputs, wanted))
    soft = F.kl_div(*pair, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return (1 - SHARE) * hard + SHARE * soft
