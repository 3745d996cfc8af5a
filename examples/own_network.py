"""A network of your own and a DataLoader whose batches are (image, label): labels are ignored.

Run it with ``python examples/own_network.py``; it takes a few seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reapx


class TwoBranches(nn.Module):
    """Two branches that are concatenated, and a gate on what they found."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.narrow = nn.Conv2d(16, 12, 1)
        self.wide = nn.Conv2d(16, 12, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 24, 1), nn.Sigmoid())
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([self.narrow(x).relu(), self.wide(x).relu()], 1)
        return self.head((x * self.gate(x)).mean((2, 3)))  # type: ignore[no-any-return]


torch.manual_seed(0)
model = TwoBranches().eval()  # trained, in your case
data = TensorDataset(torch.randn(200, 3, 16, 16), torch.randint(5, (200,)))
loader = DataLoader(data, batch_size=50)

print(reapx.inspect(model, loader), end="\n\n")  # what can be removed, and what cannot
result = reapx.prune(model, loader, budget=reapx.Params(0.6), exclude=["stem"])
print(result)
assert result.model.stem.out_channels == 16  # excluded
