"""The flow on tensors of a GPU: a real one where REAPX_TEST_DEVICES names it, and one that pretended.py makes up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kernels
import pretended
import pytest
import torch
from torch import Tensor, nn

import reapx
from reapx import _native
from reapx._native import boundary
from reapx.calibration.store import TensorStore
from reapx.capture import layers
from reapx.capture.fingerprint import fingerprint_of
from reapx.kernels import gram_matrix, least_squares, pair_errors, reap_path, zero_rows

PLACES = [*(["pretended"] if kernels.EMULATED else []), *(["cuda"] if "cuda" in kernels.DEVICES else [])]
if not PLACES:
    pytest.skip("the CUDA kernels are not built for the CPU ('make emulated' does it)", allow_module_level=True)

OTHER = 5e-4
"""Kernels of another device sum in another order, and a ReLU that passes a value or not doubles the difference."""


class Net(nn.Module):
    """A residual block, a norm, a stride, a pool, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.inside = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.back = nn.Conv2d(6, 8, 1)
        self.last = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.score = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.back(torch.relu(self.norm(self.inside(x)))))
        return self.score(torch.relu(self.last(x)).mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    model = Net().eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, 8, 8)


@dataclass
class Place:
    """Where a test works, and how things get there and back: copies of tensors, modules and lists of tensors."""

    device: torch.device
    moved: Callable[[Any], Any]
    returned: Callable[[Any], Any]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return copy.deepcopy(value).to(device)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "pretended":
        with pretended.device(monkeypatch):
            yield Place(pretended.DEVICE, pretended.moved, pretended.returned)
    else:
        cuda, cpu = torch.device(request.param, 0), torch.device("cpu")
        yield Place(cuda, partial(_moved, device=cuda), partial(_moved, device=cpu))


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Iterator[pretended.Record]:
    if not kernels.EMULATED:
        pytest.skip("copies are written down on the pretended device only ('make emulated' builds it)")
    with pretended.device(monkeypatch) as found:
        yield found


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items()}


def assert_same(found: nn.Module, wanted: nn.Module) -> None:
    """Of models on the CPU."""
    ours, theirs = parameters(found), parameters(wanted)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=OTHER, msg=lambda text, name=name: f"{name}: {text}")


PLANS: list[dict[str, Any]] = [
    {},
    {"allocation": "uniform"},
    {"rounds": 2, "output_error": "kl"},
    {"swaps": 2},
    {"positions": 5, "round_to": 2},
    *({"selection": name, "allocation": "uniform"} for name in ("dpp", "lasso", "output_norm")),
    *({"selection": name} for name in ("magnitude", "nu", "thinet")),
]


@pytest.mark.parametrize("options", PLANS, ids=str)
def test_plans_and_weights_are_those_of_the_cpu(
    net: nn.Module, images: Tensor, place: Place, options: dict[str, Any]
) -> None:
    given = {"budget": reapx.MACs(0.6), "streams": True, "progress": False, **options}
    wanted = reapx.prune(net, images, **given)
    found = reapx.prune(place.moved(net), place.moved(images), **given)
    for ours, theirs in zip(found.plan.groups, wanted.plan.groups, strict=True):
        assert ours.removed.tolist() == theirs.removed.tolist(), ours.group.name
    assert_same(place.returned(found.model), wanted.model)
    assert all(value.device == place.device for value in found.model.parameters())


@pytest.mark.parametrize("selection", ["nu", "thinet"])
def test_what_methods_do_themselves_is_that_of_the_cpu(
    net: nn.Module, images: Tensor, place: Place, selection: str
) -> None:
    given: dict[str, Any] = {"budget": reapx.MACs(0.6), "reconstruct": False, "selection": selection}
    found = reapx.prune(place.moved(net), place.moved(images), **given)
    assert_same(place.returned(found.model), reapx.prune(net, images, **given).model)


def test_activations_stay_on_the_device(net: nn.Module, images: Tensor, record: pretended.Record) -> None:
    model, batches = pretended.moved(net), pretended.moved(images)
    record.copies.clear()
    reapx.prune(model, batches, budget=reapx.MACs(0.6))
    assert record.copies  # orders, errors, pivots
    assert record.largest <= 8 * 12 * 2  # no more than a number or two for each unit of a group


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_read_as_it_is(
    net: nn.Module, images: Tensor, place: Place, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not through float32 copies, which would give the same to the bit."""
    seen: dict[str, set[torch.dtype]] = {"x": set(), "target": set()}

    def given(name: str, tensor: Tensor, **options: Any) -> Any:
        seen.get(name, set()).add(tensor.dtype)
        return boundary.given(name, tensor, **options)

    monkeypatch.setattr(_native.kernels, "given", given)
    model, batches = place.moved(net.to(dtype)), place.moved(images.to(dtype))
    found = reapx.prune(model, batches, budget=reapx.MACs(0.6))
    assert seen == {"x": {dtype}, "target": {dtype}}
    monkeypatch.setattr(layers, "HALF", ())
    wanted = reapx.prune(model, batches, budget=reapx.MACs(0.6))
    assert torch.float32 in seen["x"]
    theirs = parameters(place.returned(wanted.model))
    for name, value in parameters(place.returned(found.model)).items():
        assert torch.equal(value, theirs[name]), name


def test_a_gpu_is_not_waited_for_more_often_with_more_batches(
    net: nn.Module, images: Tensor, record: pretended.Record
) -> None:
    counts = []
    for size in (12, 6):
        model, batches = pretended.moved(net), pretended.moved(list(images.split(size)))
        record.copies.clear()
        reapx.plan(model, batches, budget=reapx.MACs(0.6))
        counts.append(len(record.copies))
    batches_more, measured = 2, 1
    assert counts[1] - counts[0] <= batches_more * (measured + 1)  # finite images, finite sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_fingerprints_tell_values_shapes_and_order(dtype: torch.dtype, place: Place) -> None:
    value = (torch.arange(12).reshape(3, 4) % 5 > 1).to(dtype)
    other = value.clone()
    other[1, 2] = 1 - int(other[1, 2])
    different = [value, other, value.flip(1), value.reshape(4, 3), torch.zeros_like(value)]
    assert len({fingerprint_of(place.moved(each)) for each in different}) == len(different)
    assert fingerprint_of(place.moved(value.T.contiguous().T)) == fingerprint_of(place.moved(value))


def test_in_place_and_saved(net: nn.Module, images: Tensor, place: Place, tmp_path: Path) -> None:
    model = place.moved(net)
    result = reapx.prune(model, place.moved(images), budget=reapx.Params(0.6), inplace=True)
    assert result.model is model
    result.save(tmp_path / "pruned")
    fresh = reapx.load(Net().eval(), tmp_path / "pruned")
    assert_same(place.returned(model), fresh)


def test_resumed(net: nn.Module, images: Tensor, place: Place, tmp_path: Path) -> None:
    model, batches = place.moved(net), place.moved(images)
    first = reapx.plan(model, batches, budget=reapx.MACs(0.6), resume=tmp_path)
    again = reapx.plan(model, batches, budget=reapx.MACs(0.6), resume=tmp_path)
    assert [entry.kept for entry in first.groups] == [entry.kept for entry in again.groups]
    assert first.output_error == again.output_error


def test_latency(net: nn.Module, images: Tensor, place: Place) -> None:
    result = reapx.prune(place.moved(net), place.moved(images), budget=reapx.Latency(1, batch=4))
    assert result.latency is not None and all(value > 0 for value in result.latency)


def test_behaviors(net: nn.Module, images: Tensor, place: Place, tmp_path: Path) -> None:
    found = reapx.behaviors(place.moved(net), place.moved(images), "first")
    wanted = reapx.behaviors(net, images, "first")
    torch.testing.assert_close(found.correlation, wanted.correlation, rtol=0, atol=1e-5)
    assert str(found) == str(wanted)
    found.plot(tmp_path / "pairs.png")


def test_serialized(net: nn.Module, images: Tensor, place: Place) -> None:
    found = reapx.serialize(place.moved(net), place.moved(images))
    assert_same(place.returned(found.model), reapx.serialize(net, images).model)


def test_zero_nodes(net: nn.Module, images: Tensor, place: Place, tmp_path: Path) -> None:
    with torch.no_grad():
        net.inside.weight[2] = 0
        net.norm.weight[4] = 0
        net.last.weight[1] = 0
    nodes = reapx.zero_nodes(place.moved(net), place.moved(images))
    assert str(nodes) == str(reapx.zero_nodes(net, images))
    nodes.plot(tmp_path / "nodes.png")
    found = nodes.remove()
    assert found.params[1] < found.params[0]
    assert_same(place.returned(found.model), reapx.compact(net, images))
    assert_same(place.returned(reapx.compact(place.moved(net))), reapx.compact(net))


def test_penalties_and_monitor(net: nn.Module, images: Tensor, place: Place, tmp_path: Path) -> None:
    model, batch = place.moved(net), place.moved(images)
    monitor = reapx.NodeMonitor(model)
    loss = model(batch).square().mean() + 1e-3 * reapx.group_lasso(model) + reapx.group_sparse(model, 1e-3)
    loss.backward()
    monitor.record()
    assert monitor.alive()
    monitor.plot(tmp_path / "norms.png")


def test_images_on_the_cpu_are_copied(net: nn.Module, images: Tensor, place: Place) -> None:
    model = place.moved(net)
    there = reapx.prune(model, place.moved(images), budget=reapx.MACs(0.6))
    for given in (images, iter(images.split(10))):
        found = reapx.prune(model, given, budget=reapx.MACs(0.6))
        assert_same(place.returned(found.model), place.returned(there.model))
    with pytest.raises(reapx.InputError, match=rf"are on {place.device}, the model is on cpu.*images\.to\(device\)"):
        reapx.inspect(net, place.moved(images))


def test_the_device_refuses_what_a_gpu_would(record: pretended.Record) -> None:
    here, there = torch.ones(3), pretended.moved(torch.ones(3))
    places = torch.tensor([0, 2])
    for refused in (
        lambda: here + there,
        lambda: there.index_select(0, places),
        lambda: there.index_fill(0, places, 0),
        lambda: here[pretended.moved(places)],
        lambda: torch.rand(3, device=pretended.DEVICE, generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError, match="expected"):
            refused()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert there[places].device == pretended.DEVICE
    assert not record.copies
    assert (there.cpu() == 1).all() and float(there.sum()) == 3
    assert [size for size, _ in record.copies] == [12, 4]


def test_what_goes_to_disk_comes_back_to_the_device(place: Place) -> None:
    store = TensorStore(0)
    value = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    store.put("key", place.moved(value))
    found = store.get("key")
    assert found.device == place.device
    assert torch.equal(place.returned(found), value)
    store.close()


def test_the_kernels_by_themselves_are_those_of_the_cpu(place: Place) -> None:
    x, y, weight = torch.randn(6, 5, 7, 7), torch.randn(6, 4, 7, 7), torch.randn(4, 45)
    dead = torch.zeros(3, 2, 3)
    dead[1] = 1

    def everything(moved: Callable[[Tensor], Tensor]) -> list[Tensor]:
        found = gram_matrix(moved(x[:2]), 3, padding=1, target=moved(y[:2]))
        found = (found + gram_matrix(moved(x[2:]), 3, padding=1, target=moved(y[2:]))).centred()
        path = reap_path(
            found.gram, moved(weight), 9, 4, 0.1, cross=found.cross, target_square=found.target_square, first=[2]
        )
        refitted = least_squares(found.gram, found.cross, path.columns(3), 0.1, reference=moved(weight))
        torch.testing.assert_close(path.weights(3)[:, path.columns(3)], refitted)
        pairs = pair_errors(found.gram, moved(weight), 9)
        results = [path.order, path.errors, path.damped_errors, path.kept(3), refitted, pairs, zero_rows(moved(dead))]
        return [found.gram, found.cross, *results]

    for ours, theirs in zip(everything(place.moved), everything(torch.clone), strict=True):
        assert ours.device == place.device
        torch.testing.assert_close(place.returned(ours), theirs, rtol=OTHER, atol=OTHER)
