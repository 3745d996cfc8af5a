"""What has no serial form: the message names the block and the reason, and the model stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs.coupled import Dense, Gate, PreActivation, TwoOutputs
from graphs.residual import Basic, Block, Net, ResNet, conv
from torch import Tensor, nn

import reapx

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def basic(**options: object) -> nn.Module:
    return Block([conv(6, 5), conv(5, 6)], **options)  # type: ignore[arg-type]


class Excited(nn.Module):
    """A branch that ends in a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.gate = conv(6, 6), conv(6, 6), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.relu(self.one(x)))
        return F.relu(y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))) + x)


class Shared(nn.Module):
    """The sum is also read before its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(6, 6), conv(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.relu(self.one(x))) + x
        return F.relu(y) + y


class Weighted(Excited):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.add(self.two(F.relu(self.one(x))), x, alpha=2))


class Nested(Excited):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(x))
        return F.relu(self.gate(F.relu(self.two(y) + y)) + x)


class Standardised(Excited):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.gate.weight / self.gate.weight.std()
        return F.relu(F.conv2d(F.relu(self.one(x)), weight) + x)


def resnet_d(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, 2)


def shifted(x: Tensor) -> Tensor:
    return x[:, :, 1::2, 1::2]


BLOCKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "negative input": (lambda: Net(basic(), act=lambda x: x), "input may be negative.*output of a ReLU"),
    "leaky input": (lambda: Net(basic(), act=F.leaky_relu), "input may be negative"),
    "linear sum": (lambda: Net(basic(last=lambda x: x)), "its sum is not followed by ReLU"),
    "SiLU": (lambda: Net(basic(act=F.silu)), "activation is silu, not ReLU"),
    "ReLU6": (lambda: Net(basic(act=F.relu6)), "activation is relu6.*carried values above 6 would be cut"),
    "SiLU behind": (lambda: Net(basic(last=F.silu)), "sum is followed by silu"),
    "ReLU6 behind": (lambda: Net(basic(last=F.relu6)), "followed by relu6.*carried values above 6 would be cut"),
    "no ReLU": (lambda: Net(basic(act=lambda x: x)), r"no ReLU between blocks.0.layers.0.0 and blocks.0.layers.1.0"),
    "ReLU before the sum": (lambda: Net(Block([nn.Sequential(conv(6, 6), nn.ReLU())])), "ReLU stands behind the last"),
    "both active": (lambda: Net(basic(shortcut=nn.Sequential(conv(6, 6, 1), nn.ReLU()))), "two branches have an act"),
    "groups": (lambda: Net(Block([conv(6, 6, 3, 1, 3), conv(6, 6)])), "blocks.0.layers.0.0 has 3 groups.*groups=1"),
    "no tap": (
        lambda: Net(Block([nn.Conv2d(6, 5, 2, padding=1, dilation=2), conv(5, 6)])),
        r"kernel \(2, 2\), dilation \(2, 2\), padding \(1, 1\)\) has no centre tap",
    ),
    "too small": (
        lambda: Net(Block([nn.Conv2d(6, 5, 3), nn.Conv2d(5, 6, 3, padding=2)])),
        r"the input of blocks.0.layers.1 is too small \(6, 6\)",
    ),
    "stride": (
        lambda: Net(Block([conv(6, 5, 3, 2), conv(5, 6)], lambda x: x[:, :, :4, :4])),
        r"convolutions have stride \(2, 2\) together, its shortcut \(1, 1\)",
    ),
    "average": (
        lambda: Net(Block([conv(6, 5, 3, 2), conv(5, 6)], resnet_d)),
        r"shortcut has avg_pool2d.*\(ResNet-D\)",
    ),
    "shift": (lambda: Net(Block([conv(6, 5, 3, 2), conv(5, 6)], shifted)), "shortcut has slice.*from position 0"),
    "wide shortcut": (lambda: Net(basic(shortcut=conv(6, 6))), "shortcut has blocks.0.shortcut.0"),
    "instance norm": (
        lambda: Net(Block([nn.Sequential(conv(6, 5), nn.InstanceNorm2d(5)), conv(5, 6)])),
        "f holds the operator instance_norm",
    ),
    "gate inside": (lambda: Net(Excited()), "joined by mul.*squeeze-and-excitation"),
    "read twice": (lambda: Net(Shared()), "not followed by ReLU alone"),
    "nested": (lambda: Net(Nested()), "values are added in add.* inside of one of its branches"),
    "weighted": (lambda: Net(Weighted()), "its sum is weighted"),
    "computed weight": (lambda: Net(Standardised()), "computed in forward"),
}


def refused(model: nn.Module, images: Tensor, words: str) -> None:
    model.eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(reapx.InputError, match=words):
        reapx.serialize(model, images)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", list(BLOCKS))
def test_blocks(name: str) -> None:
    build, words = BLOCKS[name]
    refused(build(), IMAGES, f"^blocks.0.* cannot be serialised: .*{words}")


class Dropped(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, training=True)


class Scaled(Net):
    """A parameter outside of blocks that is in no layer."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale)


class Named(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"out": super().forward(x)}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (PreActivation, "one to two cannot be serialised: it is a pre-activation block.*negative"),
        (Dense, "layers.* cannot be serialised: values are joined by cat.*DenseNet"),
        (Gate, "joined by mul.*squeeze-and-excitation"),
        (TwoOutputs, "the model returns a tuple"),
        (lambda: Net(nn.Sequential(conv(6, 6), nn.ReLU())), "nothing to serialise.*prune it as it is"),
        (lambda: Dropped(basic()), "drops values at inference"),
        (lambda: Scaled(basic()), "reads scale besides its input"),
        (lambda: Named(basic()), "returns a dict"),
    ],
)
def test_models(build: Callable[[], nn.Module], words: str) -> None:
    refused(build(), IMAGES, words)


class Two(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + y)


def test_two_inputs() -> None:
    with pytest.raises(reapx.InputError, match="the model has 2 tensor inputs"):
        reapx.serialize(Two(basic()).eval(), [{"x": IMAGES, "y": IMAGES}])


def test_arguments() -> None:
    model = ResNet(Basic, (1,), 4).eval()
    with pytest.raises(reapx.InputError, match="norms=1: give True or False"):
        reapx.serialize(model, IMAGES, norms=1)  # type: ignore[arg-type]
    with pytest.raises(reapx.InputError, match="projection='paper': choose one of carry, split"):
        reapx.serialize(model, IMAGES, projection="paper")  # type: ignore[arg-type]
    with pytest.raises(reapx.InputError, match="no images"):
        reapx.serialize(model, [])
    with pytest.raises(reapx.InputError, match="does not run on images"):
        reapx.serialize(model, torch.randn(2, 4, 8, 8))
    with pytest.raises(reapx.InputError, match="train mode"):
        reapx.serialize(model.train(), IMAGES)


def test_negative_inputs_of_projections_can_be_split() -> None:
    """With both signs carried, and in a single convolution, nothing needs to be positive."""
    images = IMAGES.double()
    model = Net(Block([conv(6, 5), conv(5, 6)], conv(6, 6, 1)), act=lambda x: x).double().eval()
    refused(model, images, "input may be negative")
    assert reapx.serialize(model, images, projection="split").gap < 1e-12
    assert reapx.serialize(Net(Block([conv(6, 6)]), act=lambda x: x).double().eval(), images).gap < 1e-12


def test_wrong_result_is_not_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reapx.serial.result.difference", lambda *_: (2e-4, torch.float32))
    with pytest.raises(reapx.ProofError, match=r"differs from the original by 2\.0e-04"):
        reapx.serialize(Net(basic()).eval(), IMAGES)
