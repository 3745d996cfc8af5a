"""What is alive must not be taken for dead, however well an operator hides it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compacting import assert_same, compacted, gone, kill, left
from graphs import lively
from torch import Tensor, nn

import reapx


class Between(nn.Module):
    """Something between a producer and its consumer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.function = nn.Linear(5, 6), nn.Linear(6, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function(self.one(x)))


HIDING: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": torch.sign,
    "compared": lambda x: (x > 0).float(),
    "where": lambda x: torch.where(x > 0, x, 0.25 * x),
    "masked": lambda x: x.masked_fill(x > 0.1, 2.0),
    "nan_to_num": lambda x: torch.nan_to_num(x, nan=0.5),
    "isnan": lambda x: torch.where(torch.isnan(x), x, 1.0 - x),
    "rounded": lambda x: (3 * x).round().long().float(),
    "clamped": lambda x: x.clamp(-0.1, 0.1),
    "least": lambda x: torch.minimum(x, torch.zeros_like(x)),
    "logical": lambda x: torch.logical_not(x < 0).to(x.dtype),
    "sorted": lambda x: torch.sort(x, 1)[0],
    "best": lambda x: torch.topk(x, 6, 1)[0],
    "best_index": lambda x: torch.topk(x, 6, 1)[1].float(),
    "largest": lambda x: F.one_hot(x.argmax(1), 6).float(),
    "order": lambda x: x.argsort(1).float(),
    "power": lambda x: x.abs() ** 0.0 + x,
    "gated": lambda x: x * (x > 0),
}


@pytest.mark.parametrize("name", HIDING)
def test_operators_that_swallow_what_is_not_known(name: str) -> None:
    """NaN in, a number out: the nodes are alive all the same."""
    model = lively(Between(HIDING[name]))
    done = compacted(model, torch.randn(4, 5))
    assert not left(done)
    with torch.no_grad():
        model.two.weight[:, 4] = 0
    done = compacted(model, torch.randn(4, 5))
    frozen = {"sorted", "best", "best_index", "largest", "order", "isnan"}
    assert left(done) == ({} if name in frozen else {"one": 1})


class Words(nn.Module):
    """Whole numbers in: an embedding, and a comparison of the numbers themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.one, self.two = nn.Embedding(9, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        x = F.relu(self.one(self.table(ids)))
        return self.two(x * (ids > 3).unsqueeze(2).to(x.dtype) * scale[:, None]).mean(1)


def test_whole_numbers_are_not_known() -> None:
    model = lively(Words())
    kill(model.one, 2, -0.4)
    kill(model.one, 3, 0.4)

    def batch() -> dict[str, Tensor]:
        return {"ids": torch.randint(0, 9, (6, 7)), "scale": torch.randn(6, 1)}

    done = reapx.zero_nodes(model, [batch()]).remove()
    assert gone(done) == {"one": [2]}
    assert_same(model, done.model, batch(), batch())
