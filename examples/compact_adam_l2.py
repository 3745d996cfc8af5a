"""Adam with L2 drives idle nodes to zero while it trains; compact removes them, and the function stays the same.

Run it with ``python examples/compact_adam_l2.py``; it takes a few seconds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import reapx

STEPS = 3000

torch.manual_seed(0)
inputs = torch.randn(2000, 10)
targets = (inputs[:, :2].prod(1) > 0).long()  # two of ten inputs matter, so a few nodes are enough
model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

optimizer = reapx.adam_l2(model.parameters(), lr=1e-2, l2=3e-3)  # the L2 term in the gradient; not AdamW
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for _ in range(STEPS):
    batch = torch.randint(len(inputs), (100,))
    loss = F.cross_entropy(model(inputs[batch]), targets[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

model.eval()
print(reapx.zero_nodes(model), end="\n\n")  # only reports
small = reapx.compact(model)
print(small)
with torch.no_grad():
    right = (model(inputs).argmax(1) == targets).float().mean()
    apart = (model(inputs) - small(inputs)).abs().max()
assert sum(x.numel() for x in small.parameters()) < sum(x.numel() for x in model.parameters())
print(f"accuracy {right:.1%} before; outputs differ by at most {apart:.0e}")
