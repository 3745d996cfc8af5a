"""A residual network written as a serial one with the same outputs, then pruned back to its cost.

Run it with ``python examples/serialize_resnet.py``; it takes a few seconds.
"""

from __future__ import annotations

import torch

import reapx
from reapx.demo import DigitNet

torch.manual_seed(0)
model = DigitNet(width=4).eval()  # trained, in your case
images = torch.randn(40, 1, 28, 28)

serial = reapx.serialize(model, images)  # an nn.Sequential of convolutions, ReLUs, pooling and linear layers
print(serial, end="\n\n")
with torch.no_grad():
    assert torch.allclose(serial.model(images), model(images), atol=1e-5)

result = reapx.prune(serial.model, images, budget=reapx.MACs(serial.macs[0]))  # the cost of the original
print(result)
