"""Train a pruned network on with labels: norms that know what they read, a teacher, and a rate that warms up.

Run it with ``python examples/retrain.py``; it takes about a minute.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reapx
from reapx.demo import read_digits, train

EPOCHS, BATCH, PEAK, TEMPERATURE = 2, 50, 0.02, 4.0


def loss_of(outputs: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
    """One tenth cross-entropy; nine tenths the divergence from the original's softened outputs."""
    ours, theirs = (F.log_softmax(each / TEMPERATURE, 1) for each in (outputs, wanted))
    soft = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return 0.1 * F.cross_entropy(outputs, labels) + 0.9 * soft


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In eval mode."""
    return float((model.eval()(images).argmax(1) == labels).float().mean())


digits = read_digits(seed=0)
original = train(digits, epochs=3, seed=0)
images, labels = digits.train_images, digits.train_labels
result = reapx.prune(original, images[:200], budget=reapx.MACs(0.08))

# In train mode a batch norm divides by the statistics of the batch, not by those that it has stored, which are the
# original's. So the pruned network would become another one before the first step.
model = reapx.renew_norms(result.model, images[:500]).train()
teacher = copy.deepcopy(original).eval()
optimizer = torch.optim.SGD(model.parameters(), PEAK, momentum=0.9, nesterov=True, weight_decay=5e-4)
steps = EPOCHS * (len(images) // BATCH)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps, pct_start=0.1)
torch.manual_seed(0)
for _ in range(steps):
    chosen = torch.randint(len(images), (BATCH,))
    with torch.no_grad():
        wanted = teacher(images[chosen])
    loss = loss_of(model(images[chosen]), wanted, labels[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

tests = digits.test_images, digits.test_labels
before, pruned, trained = (accuracy(each, *tests) for each in (original, result.model, model))
print(f"original {before:.1%}, pruned {pruned:.1%}, trained on {trained:.1%}")
assert trained > pruned
