"""Residual networks as serial ones: the same function, its costs, and what can be done with the result."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from graphs import lively
from graphs.residual import Basic, Block, Bottleneck, CifarResNet, Net, ResNet, conv
from torch import Tensor, nn

import reapx
from reapx.serial.operators import Operator
from reapx.serial.result import SerializedBlock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
IMAGES = torch.randn(12, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def subsample(x: Tensor) -> Tensor:
    return F.pad(x[:, :, :, ::2][:, :, ::2], (0, 0, 0, 0, 1, 3))


def pooled(x: Tensor) -> Tensor:
    return F.pad(F.avg_pool2d(x, 1, 2), (0, 0, 0, 0, 0, 4))


class Signal(nn.Module):
    """One-dimensional convolutions, dilated, and of even length, with an operator of its own at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool, self.drop = (
            nn.Conv1d(3, 6, 4, groups=3, padding="same", dilation=2),
            nn.MaxPool1d(2),
            nn.Dropout(0.3),
        )
        self.one, self.two = nn.Conv1d(6, 5, 3, padding=4, dilation=2), nn.Conv1d(5, 6, 3, padding=0, dilation=2)
        self.norm, self.three, self.four = nn.BatchNorm1d(6), nn.Conv1d(6, 5, 4, padding=2), nn.Conv1d(5, 6, 2)
        self.behind, self.head = nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x.flatten(2))))
        x = F.relu(x + self.norm(self.two(self.drop(F.relu(self.one(x))))))
        x = self.behind(F.relu(self.four(F.relu(self.three(x))).clone() + x))
        y = self.drop(self.head(x.mean(-1))).view(-1, 2, 2)
        y *= 2  # in a view: the graph is written anew, with other operators for norms
        return F.log_softmax(y.flatten(1), 1)


class Reparametrised(nn.Module):
    """RepVGG's block: branches of 3x3, of 1x1 and of nothing, each with its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.small, self.none = conv(6, 6), conv(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.wide(x) + self.small(x) + self.none(x))


def build(name: str) -> nn.Module:
    blocks: dict[str, Callable[[], nn.Module]] = {
        "identity": lambda: Net(Block([conv(6, 5), conv(5, 6)]), Block([conv(6, 7), conv(7, 6)])),
        "option A": lambda: Net(Block([conv(6, 5, 3, 2), conv(5, 10)], subsample), outputs=10),
        "pooled": lambda: Net(Block([conv(6, 5), conv(5, 10, 3, 2)], pooled), outputs=10),
        "twice": lambda: Net(*[Block([conv(6, 5), conv(5, 6)])] * 2),
        "long": lambda: Net(Block([conv(6, 4, 1), conv(4, 5, 5, 2), conv(5, 4), conv(4, 8, 1)], conv(6, 8, 1, 2)),
                            outputs=8),
        "one": lambda: Net(Block([conv(6, 6)]), Block([conv(6, 8, 3, 2)], conv(6, 8, 1, 2)), outputs=8),
        "norm": lambda: Net(Block([conv(6, 6), conv(6, 6)], nn.BatchNorm2d(6)), Block([conv(6, 6)], nn.BatchNorm2d(6))),
        "three": lambda: Net(Reparametrised(), Reparametrised()),
        "basic": lambda: ResNet(Basic, (2, 1), 4),
        "bottleneck": lambda: ResNet(Bottleneck, (2, 1), 3),
        "cifar": lambda: CifarResNet(8, 4),
        "signal": Signal,
    }  # fmt: skip
    torch.manual_seed(0)
    return lively(blocks[name]()).double()


NAMES = "three,option A,pooled,twice,long,one,norm,basic,bottleneck,cifar,signal".split(",")


@pytest.mark.parametrize("name", NAMES)
def test_same_function(name: str) -> None:
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    given: list[dict[str, object]] = [{}]
    given += [{"projection": "split"}] if name in ("long", "basic", "bottleneck") else []
    given += [{"norms": True}] if name in ("one", "bottleneck", "signal") else []
    for options in given:
        result = reapx.serialize(model, IMAGES, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            wanted, found = model(IMAGES), result.model(IMAGES)
        assert float((found - wanted).abs().max()) < 1e-12 * float(wanted.abs().max())
        assert result.gap < 1e-12
        assert type(result.model) is nn.Sequential and not result.model.training
        assert not any(list(module.children()) for module in result.model)
        assert all(p.requires_grad and p.dtype == torch.float64 for p in result.model.parameters())
        assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in result.model.parameters()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_blocks_and_names() -> None:
    result = reapx.serialize(build("bottleneck"), IMAGES)
    assert result.blocks == [
        SerializedBlock("layer1.0", "projection", 3, 3),
        SerializedBlock("layer1.1", "identity", 12, 3),
        SerializedBlock("layer2.0", "projection", 12, 3),
    ]
    assert " ".join(dict(result.model.named_children())).startswith(
        "conv1 conv1_relu maxpool layer1_0_conv1 layer1_0_conv1_relu layer1_0_conv2 layer1_0_conv2_relu "
        "layer1_0_conv3 layer1_0_conv3_relu layer1_1_conv1"
    )
    assert list(dict(result.model.named_children()))[-3:] == ["avgpool", "flatten", "fc"]
    split = reapx.serialize(build("bottleneck"), IMAGES, projection="split")
    assert [block.carried for block in split.blocks] == [24, 12, 48]
    assert split.macs[1] > result.macs[1] > result.macs[0] == split.macs[0]


def test_text_says_how_to_prune_back() -> None:
    text = str(reapx.serialize(build("option A"), IMAGES))
    assert "option A" in text and "carried channels" in text
    assert "budget=reapx.MACs(" in text


def test_single_convolutions_stay_single() -> None:
    result = reapx.serialize(build("one"), IMAGES)
    assert [(block.carried, block.layers) for block in result.blocks] == [(0, 1), (0, 1)]
    assert result.macs[1] < result.macs[0]  # the projection went into the kernel
    assert sum(isinstance(module, nn.Conv2d) for module in result.model) == 3


@pytest.mark.parametrize(("depth", "millions"), [(20, 80.66), (32, 137.28), (44, 193.91), (56, 250.53)])
def test_costs_of_cifar_networks(depth: int, millions: float) -> None:
    """The numbers that the paper gives for SRN-20 to SRN-56."""
    result = reapx.serialize(CifarResNet(depth).eval(), torch.randn(2, 3, 32, 32))
    assert result.macs[1] / 1e6 == pytest.approx(millions, abs=0.01)
    assert result.gap < 1e-6


def test_norms_hold_the_statistics_of_all_images() -> None:
    """Also of channels that are constant: the padded ones of an option-A shortcut."""
    result = reapx.serialize(build("option A"), IMAGES.split(5), norms=True)
    plain = reapx.serialize(build("option A"), IMAGES)
    stem, (norm, other) = plain.model[0], (m for m in list(result.model)[:5] if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        value = stem(IMAGES)
    torch.testing.assert_close(norm.running_var, value.var((0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, value.mean((0, 2, 3)) - stem.bias)
    torch.testing.assert_close(norm.bias, value.mean((0, 2, 3)))
    assert int((other.running_var == 0).sum()) == 4  # 10 channels of which 6 carry
    assert all(module.bias is None for module in result.model if isinstance(module, nn.Conv2d))
    with torch.no_grad():  # nearly the same function with the statistics of the batch
        wanted, found = result.model(IMAGES), copy.deepcopy(result.model).train()(IMAGES)
    assert float((found - wanted).abs().max()) < 0.02 * float(wanted.abs().max())


@pytest.mark.parametrize("norms", [False, True])
def test_result_is_a_model_like_others(norms: bool) -> None:
    """It can be copied, stored, cast, exported and trained."""
    model = reapx.serialize(build("signal"), IMAGES, norms=norms).model
    assert any(isinstance(module, Operator) for module in model)
    assert "log_softmax.int(<input>, 1)" in str(model)
    wanted = model(IMAGES)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(IMAGES), wanted)
    torch.testing.assert_close(copy.deepcopy(model).float()(IMAGES.float()), wanted.float(), rtol=1e-4, atol=1e-4)
    exported = torch.export.export(model, (IMAGES,)).module()
    torch.testing.assert_close(exported(IMAGES), wanted)
    model.train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    F.nll_loss(model(IMAGES), torch.arange(12) % 4).backward()
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert not torch.equal(before["one.weight"], model.state_dict()["one.weight"])


def test_former_stream_can_be_pruned() -> None:
    torch.manual_seed(0)
    model, images = lively(CifarResNet(8, 4)), torch.randn(60, 3, 12, 12)
    serial = reapx.serialize(model, images)
    groups = {group.name: group.size for group in reapx.inspect(serial.model, images).groups}
    assert groups["blocks_0_conv2"] == 4 and groups["blocks_1_conv1"] == 16 and groups["blocks_2_conv2"] == 16
    result = reapx.prune(serial.model, images, budget=reapx.MACs(serial.macs[0]), allocation="uniform")
    assert result.plan.macs[1] <= serial.macs[0]
    assert result.model[0].out_channels < 4  # the stem, which writes to the former stream


def test_one_input_by_name() -> None:
    model = build("identity")
    result = reapx.serialize(model, [{"x": IMAGES}], norms=True)
    torch.testing.assert_close(result.model(IMAGES), model(IMAGES))


@pytest.mark.usefixtures("shared_data")
def test_pretrained_resnet20_on_real_images() -> None:
    import models

    model, (images, _) = models.cifar_resnet(20), models.cifar10("test", 100)
    for norms in (False, True):
        result = reapx.serialize(model, images, norms=norms)
        with torch.no_grad():
            wanted, found = model(images), result.model(images)
        assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
        assert torch.equal(found.argmax(1), wanted.argmax(1))
