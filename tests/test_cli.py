"""The command line, run as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import reapx
from reapx.cli.main import main

MODEL = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a model, its weights, images."""
    monkeypatch.chdir(tmp_path)
    Path("usermodel.py").write_text(MODEL)
    images = np.random.default_rng(0).standard_normal((80, 3, 7, 7), dtype=np.float32)
    np.savez("images.npz", images=images, other=np.zeros(3))
    namespace: dict[str, object] = {}
    exec(MODEL, namespace)
    save_file(namespace["build"]().state_dict(), "weights.safetensors")  # type: ignore[operator]
    return tmp_path


COMMON = ["usermodel.py:build", "--images", "images.npz:images"]


def test_prune_saves_what_load_rebuilds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prune", *COMMON, "--weights", "weights.safetensors", "--budget", "macs=0.5", "--out", "half"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "Plan: MACs" in printed and "pruned equals masked" in printed
    namespace: dict[str, object] = {}
    exec(MODEL, namespace)
    model = reapx.load(namespace["build"](), "half")  # type: ignore[operator]
    assert model[0].out_channels < 8


def test_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", *COMMON, "--budget", "params=0.5", "--out", "half", "--dry-run"]) == 0
    assert "predicted error" in capsys.readouterr().out
    assert not Path("half").exists()


def test_allocation_options_reach_the_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them at once; the trade-off and the page are written without a result too."""
    words = ["prune", *COMMON, "--budget", "macs=0.6", "--dry-run", "--bound", "0=0.5:1.0", "--bound", "2=3:4"]
    words += ["--points", "2", "--rounds", "2", "--output-error", "kl", "--no-streams", "--resume", "measured"]
    assert main([*words, "--tradeoff", "new/curve.json", "--report", "new/plan.html"]) == 0
    printed = capsys.readouterr().out
    assert "pro allocation" in printed and "nats" in printed
    assert "6 -> 3" in printed or "6 -> 4" in printed
    assert list(Path("measured").iterdir())
    page = Path("new/plan.html").read_text()
    assert page.count("<svg") == 4
    curve = json.loads(Path("new/curve.json").read_text())
    assert (curve["budget"], curve["output_error"]) == ("macs", "kl")
    points = curve["points"]
    assert all(set(point) == {"cost", "share", "error", "widths"} for point in points)
    assert [point["cost"] for point in points] == sorted((point["cost"] for point in points), reverse=True)
    assert all(4 <= point["widths"]["0"] <= 8 and 3 <= point["widths"]["2"] <= 4 for point in points)


def test_uniform_without_streams_is_still_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prune", *COMMON, "--budget", "macs=0.6", "--allocation", "uniform", "--streams", "--dry-run"]
    assert main(words) == 0
    assert "uniform allocation" in capsys.readouterr().out


def test_an_earlier_result_is_replaced_by_force_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prune", *COMMON, "--budget", "macs=0.5", "--allocation", "uniform", "--out", "half"]
    assert main(words) == 0
    before = Path("half/weights.safetensors").read_bytes()
    capsys.readouterr()
    assert main([*words, "--selection", "magnitude"]) == 1
    printed = capsys.readouterr()
    assert "half has a plan.json already" in printed.err and printed.out == ""  # said before anything is measured
    assert Path("half/weights.safetensors").read_bytes() == before
    assert main([*words, "--selection", "magnitude", "--force"]) == 0
    assert Path("half/weights.safetensors").read_bytes() != before


def test_latency_budget(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prune", *COMMON, "--budget", "latency=1", "--batch", "3", "--out", "half", "--report", "page.html"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "budget Latency(1.0)" in printed and "a batch of 3" in printed and "ms measured after" in printed
    assert "ms for a batch of 3" in Path("page.html").read_text()
    assert Path("half", "plan.json").is_file()


def test_inspect_shows_groups_and_frozen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "usermodel:build", "--images", "images.npz:images", "--count", "5"]) == 0
    printed = capsys.readouterr().out
    assert "2 channel groups" in printed and "it is an output of the model: 5 (4)" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune", *COMMON, "--budget", "half", "--out", "x"], "write macs=0.5"),
        (["prune", *COMMON, "--budget", "macs=0.01", "--out", "x"], "smallest that can be reached"),
        (["prune", *COMMON, "--budget", "macs=0.5", "--out", "usermodel.py"], "is a file: give a folder"),
        (["prune", *COMMON, "--budget", "speed=0.5", "--out", "x"], "latency=0.6"),
        (["prune", *COMMON, "--budget", "macs=0.5", "--batch", "4", "--out", "x"], "--batch 4: only a latency"),
        (["prune", *COMMON, "--budget", "macs=0.5"], "--out is missing"),
        (["prune", *COMMON, "--budget", "macs=0.5", "--out", "x", "--bound", "0:4"], "write LAYER=FEWEST:MOST"),
        (["prune", *COMMON, "--budget", "macs=0.5", "--out", "x", "--bound", "0=4"], "--bound '0=4'"),
        (["prune", *COMMON, "--budget", "macs=0.5", "--out", "x", "--bound", "0=a:b"], "0.25:1.0"),
        (["prune", *COMMON, "--budget", "macs=0.5", "--out", "x", "--bound", "=1:4"], "names no layer"),
        (["prune", *COMMON, "--budget", "macs=0.5", "--out", "x", *["--bound", "0=1:4"] * 2], "has a bound already"),
        (["prune", *COMMON, "--budget", "macs=0.5", "--out", "x", "--bound", "9=1:4"], "matches no layer"),
        (["prune", *COMMON, "--budget", "macs=0.5", "--out", "x", "--bound", "0=5:99"], "8 channels"),
        (["prune", *COMMON, "--budget", "macs=0.5", "--out", "x", "--report", "."], "--report . is a folder"),
        (["prune", *COMMON, "--budget", "macs=0.5", "--out", "x", "--tradeoff", "."], "--tradeoff . is a folder"),
        (
            ["prune", *COMMON, "--budget", "macs=0.5", "--out", "x", "--allocation", "uniform", "--tradeoff", "t.json"],
            "only --allocation pro",
        ),
        (
            ["prune", *COMMON, "--budget", "macs=0.5", "--out", "x", "--allocation", "uniform", "--points", "3"],
            "needs allocation='pro'",
        ),
        (["inspect", "usermodel.py:nothing", "--images", "images.npz:images"], "usermodel.py has no nothing"),
        (["inspect", "usermodel.py:build", "--images", "images.npz"], "there are images, other"),
        (["inspect", "usermodel.py:build", "--images", "missing.npy"], "missing.npy"),
        (["inspect", "usermodel.py:build", "--images", "images.npz:images", "--weights", "images.npz"], "save_file"),
    ],
)
def test_refusals(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(words) == 1
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


def test_images_from_a_callable(folder: Path) -> None:
    Path("userdata.py").write_text("import torch\ndef batches():\n    return [torch.randn(4, 3, 7, 7)] * 3\n")
    assert main(["inspect", "usermodel.py:build", "--images", "userdata:batches"]) == 0


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(command in printed for command in ("prune", "compact", "inspect", "demo"))


def with_dead_nodes(name: str) -> nn.Module:
    """The user's model, two nodes of its first layer dead, in a file."""
    namespace: dict[str, object] = {}
    exec(MODEL, namespace)
    model = namespace["build"]()  # type: ignore[operator]
    with torch.no_grad():
        model[0].weight[2:4] = 0
    save_file(model.state_dict(), name)
    return model


def test_compact_saves_what_load_rebuilds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = with_dead_nodes("dead.safetensors").eval()
    words = ["compact", "usermodel.py:build", "--weights", "dead.safetensors", "--images", "images.npz:images"]
    assert main([*words, "--plot", "sizes.png", "--out", "small"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 14 nodes can leave" in printed and "same outputs up to" in printed
    assert Path("sizes.png").stat().st_size > 1000
    namespace: dict[str, object] = {}
    exec(MODEL, namespace)
    model = reapx.load(namespace["build"](), "small").eval()  # type: ignore[operator]
    assert model[0].out_channels == 6
    images = torch.randn(4, 3, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(model(images), original(images), rtol=1e-5, atol=1e-6)


def test_compact_looks_with_images_of_its_own_and_dry_run_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = "nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))"
    Path("linear.py").write_text(f"from torch import nn\ndef build():\n    return {net}\n")
    assert main(["compact", "linear.py:build", "--dry-run", "--exclude", "0"]) == 0
    assert "excluded by the caller" in capsys.readouterr().out
    assert main(["compact", "linear.py:build", "--dry-run"]) == 0
    assert "0 of 3 nodes can leave" in capsys.readouterr().out
    assert main(["compact", "linear.py:build"]) == 1
    assert "--out is missing" in capsys.readouterr().err
