"""Norms with the statistics of what they now read: the same in eval mode, nearly the same in train mode."""

from __future__ import annotations

import pytest
import torch
from graphs import lively
from torch import Tensor, nn

import reapx


def network(dimensions: int = 2) -> nn.Module:
    torch.manual_seed(0)
    conv, norm = [(nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d)][dimensions - 1]
    layers = [conv(3, 8, 3), norm(8), nn.ReLU(), conv(8, 6, 1), norm(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)]
    model = nn.Sequential(*layers)
    model(images(dimensions)[:2])
    return lively(model)


def images(dimensions: int = 2) -> Tensor:
    return torch.randn(200, 3, *[5] * dimensions, generator=torch.Generator().manual_seed(1)) * 2 + 1


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_eval_mode_is_the_same_and_train_mode_close(dimensions: int) -> None:
    model, given = network(dimensions), images(dimensions)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    renewed = reapx.renew_norms(model, list(given.split(60)))
    with torch.no_grad():
        wanted = model(given)
        assert gap(renewed(given), wanted) < 1e-5
        assert gap(renewed.train()(given), wanted) < 2e-3  # the batch's variance is the biased one
        other = network(dimensions).train()
        assert gap(other(given), wanted) > 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_norm_that_is_called_twice_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(x) + self.norm(x * 2))

    model = lively(Twice())
    renewed = reapx.renew_norms(model, images())
    assert torch.equal(renewed.norm.weight, model.norm.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(renewed.last.weight, model.last.weight)  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        assert gap(renewed(images()), model(images())) < 1e-5


def test_a_constant_channel_and_bad_input() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[2] = 0  # type: ignore[index]
        renewed = reapx.renew_norms(model, images())
        assert gap(renewed(images()), model(images())) < 1e-4
        assert bool(renewed.train()(images()).isfinite().all())
    with pytest.raises(reapx.InputError, match="train mode"):
        reapx.renew_norms(network().train(), images())
