"""What a GPU would be asked for while networks are run. The switches exist in every build of torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import reapx
from reapx.precision import _switches, exact


def switches() -> list[object]:
    return [getattr(place, name) for place, name, _ in _switches()]


WANTED = [value for _, _, value in _switches()]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    found = [(place, name, getattr(place, name)) for place, name, _ in _switches()]
    yield
    for place, name, value in found:
        setattr(place, name, value)


def test_the_users_settings_come_back() -> None:
    torch.backends.cudnn.benchmark = True
    before = switches()
    assert before != WANTED
    with exact():
        assert switches() == WANTED
        with exact():
            pass
        assert switches() == WANTED
    assert switches() == before

    @exact()
    def fail(depth: int) -> None:
        assert switches() == WANTED
        if depth == 0:
            raise KeyError
        fail(depth - 1)

    with pytest.raises(KeyError):
        fail(2)
    assert switches() == before


def test_old_switches_are_readable_afterwards() -> None:
    with exact():
        pass
    assert torch.backends.cudnn.allow_tf32 is True  # torch's default
    assert torch.backends.cuda.matmul.allow_tf32 is False


class Watch(TorchDispatchMode):
    """Notes the switches at every convolution of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[object]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator._schema.name.startswith("aten::convolution") and not isinstance(
            args[0], torch._subclasses.FakeTensor
        ):
            self.seen.append(switches())
        return operator(*args, **(kwargs or {}))


def test_networks_are_run_in_float32() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    images = torch.randn(16, 3, 8, 8)
    plan = reapx.plan(model, images, budget=reapx.MACs(0.6))
    before = switches()
    with Watch() as watch:
        plan.apply()
    assert len(watch.seen) > 20
    assert all(seen == WANTED for seen in watch.seen)
    assert switches() == before
