"""After a kill the same call goes on, and what comes out is the same to the bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from processes import exit_code
from torch import Tensor, nn

import reapx
import reapx.moments.measure
from reapx.calibration.checkpoint import Checkpoint, fingerprint
from reapx.capture.layers import Layer
from reapx.inspection.inspection import Inspection, inspect
from reapx.moments.measure import Accumulator, measure
from reapx.moments.moments import Moments
from reapx.selection.find_paths import find_paths

BATCHES = 6


def network() -> Inspection:
    """Three groups, one of them read by two layers that share their patches; the same in every process."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
            self.left, self.right, self.last = nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 1), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.two(torch.relu(self.one(x))))
            return self.last((self.left(x) * torch.sigmoid(self.right(x))).mean((2, 3)))

    torch.manual_seed(3)
    model = Net().eval()
    # The limit is one byte, so that each group is a pass of its own.
    return inspect(model, [torch.randn(4, 3, 7, 7) for _ in range(BATCHES)], memory=1)


def layers_of(found: Inspection) -> list[Layer]:
    return list({c.layer.weight: c.layer for group in found.groups for c in group.consumers}.values())


def whole(found: Inspection, checkpoint: Checkpoint | None = None, positions: int | None = None) -> dict[str, Tensor]:
    graph, images = found._graph, found._images
    moments = measure(
        graph,
        images,
        layers_of(found),
        graph.tensors,
        positions=positions,
        checkpoint=checkpoint,
    )
    return flat(moments)


def some(found: Inspection, checkpoint: Checkpoint | None = None) -> dict[str, Tensor]:
    return whole(found, checkpoint, 5)


def paths(found: Inspection, checkpoint: Checkpoint | None = None) -> dict[str, Tensor]:
    widths = {group.name: group.size // 2 for group in found.groups}
    result = find_paths(
        found._graph,
        found._images,
        found.groups,
        widths,
        "reap",
        damping=1e-2,
        swaps=0,
        positions=None,
        checkpoint=checkpoint,
    )
    return {
        f"{group.name} {part}": getattr(path, part)
        for group, path in zip(found.groups, result, strict=True)
        for part in ("order", "errors")
    }


def flat(moments: Mapping[str, list[Moments]]) -> dict[str, Tensor]:
    result = {}
    for name, parts in moments.items():
        for g, own in enumerate(parts):
            result |= {f"{name} {g} gram": own.gram, f"{name} {g} total": own.total}
            result[f"{name} {g} rows"] = torch.tensor(own.rows)
    return result


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and len(one) > 0 and all(torch.equal(one[name], other[name]) for name in one)


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every batch run."""
    runs: list[int] = []
    real = reapx.moments.measure.run

    def counted(*args: object, **options: object) -> object:
        runs.append(1)
        return real(*args, **options)

    monkeypatch.setattr(reapx.moments.measure, "run", counted)
    return runs


def is_killed(folder: Path, work: str, count: int, middle: bool) -> None:
    """This process, as its ``count``-th file is stored, or in the middle of writing it."""
    found = network()
    key = fingerprint(found._graph.tensors, found._images)
    place = os.replace
    stored = 0

    def replace(source: Path, target: Path) -> None:
        nonlocal stored
        stored += 1
        if stored == count:
            if middle:
                os.truncate(source, os.path.getsize(source) // 2)
            else:
                place(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
        place(source, target)

    os.replace = replace  # type: ignore[assignment]
    globals()[work](found, Checkpoint(folder, key, interval=0))


# Store 1 is the key's, store 1 + n follows batch n.
@pytest.mark.parametrize(
    ("work", "count", "middle", "left"),
    [
        ("whole", 4, False, 3),
        ("whole", 4, True, 4),
        ("whole", 2, True, 6),
        ("whole", 1, True, 6),
        ("whole", 7, False, 0),
        ("some", 3, True, 5),
        ("paths", 9, False, 2 * BATCHES - 2),
    ],
)
def test_a_kill_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str, count: int, middle: bool, left: int
) -> None:
    folder = tmp_path / "stored"
    assert exit_code(is_killed, folder, work, count, middle) == (-signal.SIGKILL, "")
    assert len(list(folder.glob("*.part"))) == middle

    found = network()
    runs = count_runs(monkeypatch)
    does: Callable[..., dict[str, Tensor]] = globals()[work]
    key = fingerprint(found._graph.tensors, found._images)
    resumed = does(found, Checkpoint(folder, key))
    assert len(runs) == left
    assert same(resumed, does(found))
    # All of it is stored now.
    runs.clear()
    assert same(resumed, does(found, Checkpoint(folder, key)))
    assert not runs


def test_each_pass_has_its_own_name_and_a_different_division_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = network()
    expected = paths(found, Checkpoint(tmp_path, {}))
    passes = len(list(tmp_path.glob("moments-*.safetensors")))
    assert passes == len(found.groups) >= 2
    found._images.memory = 2**30
    runs = count_runs(monkeypatch)
    assert same(paths(found, Checkpoint(tmp_path, {})), expected)
    assert len(runs) == BATCHES


def test_random_positions_depend_on_the_batch_alone() -> None:
    found = network()
    layer = layers_of(found)[0]
    one, other = (Accumulator(layer, positions=3, device=torch.device("cpu")) for _ in range(2))
    one._positions(4, 49)
    assert torch.equal(one._positions(4, 49), other._positions(4, 49))
    one.counts[0] = 1
    assert not torch.equal(one._positions(4, 49), other._positions(4, 49))
