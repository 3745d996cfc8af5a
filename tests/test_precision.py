"""What a GPU would be asked for while networks are run. The switches exist in every build of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import reapx
from reapx.capture.precision import exact

BACKENDS: Any = torch.backends
CUDNN: Any = torch.backends.cudnn


def switches() -> dict[str, object]:
    """All that says how float32 is multiplied; old switches cannot be read beside some words."""
    readers: dict[str, Callable[[], object]] = {
        "cudnn": lambda: CUDNN.allow_tf32,
        "matmul": lambda: BACKENDS.cuda.matmul.allow_tf32,
        "products": torch.get_float32_matmul_precision,
        "convolutions": lambda: CUDNN.conv.fp32_precision,
        "recurrences": lambda: CUDNN.rnn.fp32_precision,
        "matmul by word": lambda: BACKENDS.cuda.matmul.fp32_precision,
        "deterministic": lambda: CUDNN.deterministic,
        "benchmark": lambda: CUDNN.benchmark,
    }
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "unreadable"
    return found


def is_exact(found: dict[str, object]) -> bool:
    words = [found[name] for name in ("convolutions", "recurrences", "matmul by word")]
    old = [found["cudnn"], found["matmul"]]
    return (
        set(words) <= {"none", "ieee"} and True not in old and bool(found["deterministic"]) and not found["benchmark"]
    )


SETTINGS: dict[str, list[tuple[Any, str, object]]] = {
    "torch's own": [],
    "benchmark": [(CUDNN, "benchmark", True)],
    "products too": [(BACKENDS.cuda.matmul, "allow_tf32", True)],
    "nowhere": [(CUDNN, "allow_tf32", False)],
    "a word": [(CUDNN.conv, "fp32_precision", "ieee")],
    "a word for all": [(BACKENDS, "fp32_precision", "tf32")],
    "a word for all, and a switch": [(BACKENDS, "fp32_precision", "tf32"), (CUDNN, "allow_tf32", False)],
    "a word for products": [(BACKENDS.cuda.matmul, "fp32_precision", "tf32")],
}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    words = [(place, place.fp32_precision) for place in (CUDNN.conv, CUDNN.rnn, BACKENDS.cuda.matmul, BACKENDS)]
    old = CUDNN.allow_tf32, CUDNN.benchmark, torch.get_float32_matmul_precision()
    yield
    BACKENDS.fp32_precision = "none"
    for place, word in words:
        place.fp32_precision = word
    CUDNN.allow_tf32, CUDNN.benchmark = old[:2]
    torch.set_float32_matmul_precision(old[2])


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_users_settings_come_back(setting: str) -> None:
    for place, name, value in SETTINGS[setting]:
        setattr(place, name, value)
    before = switches()
    assert not is_exact(before)
    with exact():
        assert is_exact(switches())
        with exact():
            pass
        assert is_exact(switches())
    assert switches() == before

    @exact()
    def fail(depth: int) -> None:
        assert is_exact(switches())
        if depth == 0:
            raise KeyError
        fail(depth - 1)

    with pytest.raises(KeyError):
        fail(2)
    assert switches() == before


class Watch(TorchDispatchMode):
    """Notes the switches at every convolution of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, object]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fake = isinstance(args[0], torch._subclasses.FakeTensor) if args else False
        if operator._schema.name.startswith("aten::convolution") and not fake:
            self.seen.append(switches())
        return operator(*args, **(kwargs or {}))


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def test_networks_are_run_in_float32() -> None:
    plan = reapx.plan(network(), torch.randn(16, 3, 8, 8), budget=reapx.MACs(0.6))
    before = switches()
    with Watch() as watch:
        plan.apply()
    assert len(watch.seen) > 20
    assert all(is_exact(seen) for seen in watch.seen)
    assert switches() == before


class Switching(nn.Module):
    """Uses torch's own context of the same switches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            return self.net(x)  # type: ignore[no-any-return]


def test_a_network_may_switch_itself() -> None:
    found = reapx.prune(Switching().eval(), torch.randn(16, 3, 8, 8), budget=reapx.MACs(0.6))
    assert found.plan.macs[1] < found.plan.macs[0]
