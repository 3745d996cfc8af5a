"""The monitor of nodes against loops over their weights, and the pictures of what it and others measure."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from test_sparsity import EPS, F64, Mixed, layers_of, mlp, rows_and_columns, train
from torch import nn

import reapx
from reapx.report.node_figures import write_histogram


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_monitor_measures_incoming_weights(dtype: torch.dtype) -> None:
    model = Mixed().to(dtype)
    monitor = reapx.NodeMonitor(model)
    monitor.record()
    with torch.no_grad():
        model.last.weight[2] = 0
    monitor.record()
    assert monitor.steps == [1, 2]
    assert monitor.layers == list(layers_of(model))
    for name, layer in layers_of(model).items():
        found = monitor.squared_norms(name)
        expected = torch.stack([row.square().sum() for row in rows_and_columns(layer)[0]])
        assert found.dtype == torch.float32 and found.shape == (2, len(expected))
        torch.testing.assert_close(found[1].double(), expected, rtol=64 * EPS, atol=0.0)
    assert monitor.squared_norms("last")[:, 2].tolist() == [
        pytest.approx(float(monitor.squared_norms("last")[0, 2])),
        0,
    ]
    assert monitor.alive()["last"] == [5, 4]
    monitor.squared_norms("last").zero_()
    assert monitor.alive()["last"] == [5, 4], "what comes back is a copy"


def test_monitor_follows_the_optimiser_until_it_is_closed() -> None:
    model = mlp()
    optimiser = reapx.adam_l2(model.parameters())
    with reapx.NodeMonitor(model, optimiser, every=3) as monitor:
        monitor.record()
        train(model, optimiser, 7)
        assert monitor.steps == [0, 3, 6]
        assert monitor.squared_norms("0").shape == (3, 8)
        train(model, optimiser, 2)
        last = model[0].weight.detach().square().sum(1)
        torch.testing.assert_close(monitor.squared_norms("0")[3], last, rtol=16 * EPS, atol=0.0)
    train(model, optimiser, 3)
    monitor.close()
    assert monitor.steps == [0, 3, 6, 9]


def test_monitor_leaves_training_as_it_was() -> None:
    seen, alone = mlp(), mlp()
    alone.load_state_dict(seen.state_dict())
    optimiser = reapx.adam_l2(seen.parameters())
    monitor = reapx.NodeMonitor(seen, optimiser, every=1)
    train(seen, optimiser, 5)
    train(alone, reapx.adam_l2(alone.parameters()), 5)
    assert all(map(torch.equal, seen.parameters(), alone.parameters()))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(seen.parameters(), alone.parameters(), strict=True))
    kept = [norms for new in monitor._new.values() for norms in new]
    assert len(kept) == 10 and not any(norms.requires_grad or norms._base is not None for norms in kept)
    assert sum(norms.untyped_storage().nbytes() for norms in kept) == 5 * (8 + 3) * 4  # a float for each node, no more


def test_alive_counts_what_is_above_the_share_of_the_largest() -> None:
    layer = nn.Linear(1, 5, bias=False)
    monitor = reapx.NodeMonitor(layer)
    for weights in ([1.0, 0.5, 0.25, 1e-5, 0.0], [0.0] * 5, [1.0, math.nan, 0.0, 0.0, 0.0]):
        layer.weight.data = torch.tensor(weights)[:, None]
        monitor.record()
    assert monitor.alive()[""] == [3, 0, 5], "of NaN nothing is known to be dead"
    assert monitor.alive(0.0625)[""] == [2, 0, 5], "the threshold itself is dead"
    assert monitor.alive(0)[""] == [4, 0, 5]
    for wrong in (-1e-9, 1, math.nan, "0", True):
        with pytest.raises(reapx.InputError, match="threshold="):
            monitor.alive(wrong)


def test_monitor_as_text() -> None:
    model = mlp()
    monitor = reapx.NodeMonitor(model)
    assert "monitor.record()" in str(monitor)
    monitor.record()
    assert "left at record 1" in str(monitor).splitlines()[0]
    model[0].weight.data[:5] = 0
    monitor.record()
    assert [line.split() for line in str(monitor).splitlines()[2:]] == [["0", "8", "8", "3"], ["2", "3", "3", "3"]]


@pytest.fixture(scope="module")
def vanishing() -> reapx.NodeMonitor:
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Conv1d(20, 9, 1), nn.Linear(9, 1))
    monitor = reapx.NodeMonitor(model)
    for step in range(30):
        model[0].weight.data[7:] *= 0.9**step
        model[2].weight.data[0] = 0
        monitor.record()
    return monitor


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("deep/er/b.SVG", b"<?xml"), ("c.pdf", b"%PDF")])
def test_plot(vanishing: reapx.NodeMonitor, tmp_path: Path, name: str, start: bytes) -> None:
    path = vanishing.plot(tmp_path / name)
    content = path.read_bytes()
    assert path == tmp_path / name and content.startswith(start) and len(content) > 10_000
    assert content == vanishing.plot(str(path)).read_bytes()
    assert content != vanishing.plot(path, threshold=0.5).read_bytes(), "the colours follow the threshold"


def test_plot_draws_each_node_in_the_colour_of_its_end(vanishing: reapx.NodeMonitor, tmp_path: Path) -> None:
    text = vanishing.plot(tmp_path / "a.svg").read_text()
    legend = 1
    assert text.count("stroke: #1f6fb2") == 7 + 8 + legend
    assert text.count("stroke: #d9662b") == 13 + 1 + legend
    assert text.count("<clipPath") == 2, "a layer of one node has no panel"
    assert vanishing.plot(tmp_path / "b.svg", "2").read_text().count("stroke: #d9662b") == 1 + legend


def test_plot_of_a_single_record_and_of_nothing_but_zeros(tmp_path: Path) -> None:
    layer = nn.Linear(2, 4)
    nn.init.zeros_(layer.weight)
    monitor = reapx.NodeMonitor(layer)
    monitor.record()
    assert monitor.plot(tmp_path / "a.png").stat().st_size > 5000


def test_monitor_refuses(vanishing: reapx.NodeMonitor, tmp_path: Path) -> None:
    model = mlp()
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(reapx.InputError, match=r"every=.*whole number"):
            reapx.NodeMonitor(model, every=wrong)
    new = reapx.NodeMonitor(model, reapx.adam_l2(model.parameters()), every=7)
    for read in (new.alive, lambda: new.squared_norms("0"), lambda: new.plot(tmp_path / "a.png")):
        with pytest.raises(reapx.InputError, match=r"nothing is recorded yet.*step 7.*monitor\.record\(\)"):
            read()
    with pytest.raises(reapx.InputError, match=r"layer='9' names no .*there are 0, 2, 3"):
        vanishing.squared_norms("9")
    named = reapx.NodeMonitor(Mixed())
    with pytest.raises(reapx.InputError, match="did you mean grouped"):
        named.plot(tmp_path / "a.png", "groupd")
    for name in ("a.jpg", "a", "a.png.txt"):
        with pytest.raises(reapx.InputError, match=r"\.png, \.svg, \.pdf"):
            vanishing.plot(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_monitor_of_a_model_that_changed_asks_for_a_new_one() -> None:
    model = mlp()
    monitor = reapx.NodeMonitor(model)
    monitor.record()
    model[0] = nn.Linear(6, 5)
    with pytest.raises(reapx.InputError, match=r"0 has 5 nodes, but had 8.*new NodeMonitor"):
        monitor.record()
    model[0] = nn.Identity()
    with pytest.raises(reapx.InputError, match=r"no layer 0 any more.*new NodeMonitor"):
        monitor.record()
    model[0], model[1] = nn.Linear(6, 8), nn.Linear(8, 8)
    with pytest.raises(reapx.InputError, match=r"a new layer 1.*new NodeMonitor"):
        monitor.record()
    assert len(monitor.steps) == 1 and monitor.squared_norms("0").shape == (1, 8)


@pytest.mark.parametrize("layers", [1, 5, 16])
def test_histogram_has_both_sides_of_the_limit(tmp_path: Path, layers: int) -> None:
    sizes = {str(k): torch.tensor([0.0, 1e-30, 1e-9, 2.0**-10, 0.8, 1.0, 1.1]) for k in range(layers)}
    text = write_histogram(tmp_path / "a.svg", sizes, dict.fromkeys(sizes, 2.0**-10)).read_text()
    # A bar for zeros, one for each of three dead sizes (up to the limit) and at least one for the live ones.
    assert text.count("fill: #d9662b") == 4 * layers and text.count("fill: #1f6fb2") in (layers, 2 * layers)


def test_histogram_of_layers_that_are_all_alive_or_all_zero(tmp_path: Path) -> None:
    live = write_histogram(tmp_path / "a.svg", {"a": torch.rand(50) + 1}, {"a": 0.0}).read_text()
    assert "fill: #1f6fb2" in live and "fill: #d9662b" not in live
    dead = write_histogram(tmp_path / "b.svg", {"a": torch.zeros(5)}, {"a": 0.0}).read_text()
    assert dead.count("fill: #d9662b") == 1 and "fill: #1f6fb2" not in dead
    with pytest.raises(reapx.InputError, match="no layers"):
        write_histogram(tmp_path / "c.svg", {}, {})
