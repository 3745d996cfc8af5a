"""Operators that stack, repeat, pick, unfold and multiply: groups, and networks that are pruned and proved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reapx

IMAGES = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """A convolution, any function, and a layer that reads its result."""

    def __init__(self, function: Callable[[Tensor], Tensor], last: nn.Module) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Conv2d(3, 8, 3, padding=1), function, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.relu(self.first(x)))).flatten(1).mean(1, keepdim=True)


FLIP = torch.tensor([5, 4, 3, 2, 1, 0])
KEPT: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]] = {
    "stack": (lambda x: torch.stack([x, x.flip(3)], 2).flatten(2, 3), nn.Conv2d(8, 2, 1)),
    "unbind": (lambda x: sum(x.unbind(2)).unsqueeze(2), nn.Conv2d(8, 2, 1)),  # type: ignore[union-attr]
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), nn.Conv2d(16, 2, 3)),
    "repeat positions": (lambda x: x.repeat(1, 1, 2, 1), nn.Conv2d(8, 2, 3)),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, 1), nn.Conv2d(24, 2, 1)),
    "index": (lambda x: x[:, :, FLIP], nn.Conv2d(8, 2, 3)),
    "index_select": (lambda x: x.index_select(3, FLIP), nn.Conv2d(8, 2, 3)),
    "gather": (lambda x: x.gather(2, x.argsort(2)), nn.Conv2d(8, 2, 3)),
    "topk": (lambda x: x.topk(3, 3)[0], nn.Conv2d(8, 2, 1)),
    "sort": (lambda x: x.sort(2)[0], nn.Conv2d(8, 2, 3)),
    "roll": (lambda x: x.roll(1, 2), nn.Conv2d(8, 2, 3)),
    "unfold": (lambda x: F.unfold(x, 3, padding=1).transpose(1, 2), nn.Linear(72, 2)),
    "windows": (lambda x: x.unfold(2, 3, 1).mean(4), nn.Conv2d(8, 2, 3)),
    "flip": (lambda x: x.flip(1), nn.Conv2d(8, 2, 3)),
    "std_mean": (lambda x: torch.cat(torch.std_mean(x, (2, 3), keepdim=True), 2), nn.Conv2d(8, 2, 1)),
}
"""What lies between -> the layer that reads it."""

FROZEN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "index": (lambda x: x[:, torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])], "picks channels by their positions"),
    "index_select": (lambda x: x.index_select(1, torch.arange(8)), "picks channels by their positions"),
    "unbind": (lambda x: torch.cat([part.unsqueeze(1) for part in x.unbind(1)], 1), "single channels"),
    "roll": (lambda x: x.roll(1, 1), "roll combines the channels"),
    "windows": (
        lambda x: x.unfold(1, 2, 2).flatten(1, 2).mean(3, keepdim=True).repeat(1, 1, 1, 6)[:, :8],
        "unfold combines",
    ),
    "index_put": (lambda x: x.index_put((torch.tensor([0]),), torch.zeros(8, 6, 6)), "writes into a part"),
    "gather": (lambda x: x.gather(1, (0 * x).long()), "picks channels by their positions"),
    "product": (lambda x: x * (x.flatten(2).mT @ x.flatten(2)).mean((1, 2))[:, None, None, None], "sums over"),
}


@pytest.mark.parametrize("name", KEPT)
def test_channels_pass(name: str) -> None:
    torch.manual_seed(0)
    model = Between(*KEPT[name]).eval()
    found = reapx.inspect(model, IMAGES)
    assert [(group.name, group.size) for group in found.groups] == [("first", 8)]
    result = reapx.prune(model, IMAGES, budget=reapx.MACs(0.6))
    assert result.model.first.out_channels < 8 and result.gap < 1e-12


@pytest.mark.parametrize("name", FROZEN)
def test_channels_are_frozen(name: str) -> None:
    torch.manual_seed(0)
    function, words = FROZEN[name]
    with pytest.raises(reapx.InputError, match=words):
        reapx.inspect(Between(function, nn.Conv2d(8, 2, 1)).eval(), IMAGES)


class Turned(nn.Module):
    """A linear layer that stores its weight as (inputs, outputs), as GPT-2 does."""

    def __init__(self, inputs: int, outputs: int, how: str) -> None:
        super().__init__()
        self.nf, self.how = outputs, how
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "addmm":
            return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)
        if self.how == "linear":
            return F.linear(x, self.weight.t(), self.bias)
        return x @ self.weight


@pytest.mark.parametrize("how", ["addmm", "linear", "matmul"])
def test_weights_stored_as_inputs_by_outputs(how: str, tmp_path: Path) -> None:
    """Cut, refitted towards the same outputs, saved and loaded, and counted as any linear layer."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        turned = [Turned(6, 16, how), nn.ReLU(), Turned(16, 12, how), nn.ReLU(), Turned(12, 3, how)]
        return nn.Sequential(*turned).eval()

    model, images = build(), torch.randn(200, 5, 6)
    plan = reapx.plan(model, images, budget=reapx.MACs(0.5))
    assert [(entry.group.name, entry.group.size) for entry in plan.groups] == [("0", 16), ("2", 12)]
    assert plan.macs[0] == 5 * (6 * 16 + 16 * 12 + 12 * 3)
    result = plan.apply()
    assert result.gap < 1e-12
    first, second = (result.model[index] for index in (0, 2))
    assert first.weight.shape == (6, first.nf) and second.weight.shape == (first.nf, second.nf)
    for fit in result.fits:
        assert fit.error <= fit.before
    assert any(fit.error < 0.9 * fit.before for fit in result.fits)
    result.save(tmp_path / "half")
    with torch.no_grad():
        assert torch.equal(reapx.load(build(), tmp_path / "half")(images), result.model(images))


def test_a_turned_layer_is_refitted_as_a_plain_one() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    turned = nn.Sequential(Turned(6, 16, "linear"), nn.ReLU(), Turned(16, 3, "linear")).eval()
    with torch.no_grad():
        for index in (0, 2):
            turned[index].weight.copy_(plain[index].weight.t())
            turned[index].bias.copy_(plain[index].bias)
    images = torch.randn(200, 6)
    results = [reapx.prune(model, images, budget=reapx.MACs(0.5)) for model in (plain, turned)]
    with torch.no_grad():
        torch.testing.assert_close(results[0].model(images), results[1].model(images), rtol=1e-4, atol=1e-5)
