"""The command line, run as a user would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import reapx
from reapx.cli import main

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
    images = np.random.default_rng(0).standard_normal((60, 3, 7, 7), dtype=np.float32)
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
        (["inspect", "usermodel.py:nothing", "--images", "images.npz:images"], "cannot be loaded"),
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
    assert all(command in printed for command in ("prune", "inspect", "demo"))
