"""Models, weights and pictures by name on the command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import reapx
from reapx.cli.main import main
from reapx.cli.pictures import read_folder

MODEL = """
import torch
from torch import nn

def build(width=12):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 3))
"""
ZOO = """
from usermodel import build

def list_models():
    return ["resnet18", "resnet50"]

def create_model(name, **arguments):
    return build(**arguments)

get_model = create_model
"""
PICTURES = ["--images", "pictures", "--size", "16"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with pictures, and packages by the names of two zoos."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("usermodel", "timm", "torchvision", "torchvision.models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    Path("usermodel.py").write_text(MODEL)
    Path("timm.py").write_text(ZOO)
    Path("torchvision").mkdir()
    Path("torchvision/__init__.py").touch()
    Path("torchvision/models.py").write_text(ZOO)
    generator = np.random.default_rng(0)
    for index in range(12):
        place = Path("pictures") / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index:02}.{'png' if index % 3 else 'jpg'}")
    return tmp_path


@pytest.mark.parametrize("source", ["timm:resnet18", "torchvision:resnet18", "usermodel.py:build", "usermodel:build"])
def test_a_model_is_built_by_its_name(folder: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    words = ["prune", source, "--arg", "width=10", *PICTURES, "--budget", "macs=0.5", "--out", "half"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "10 -> 5" in printed and "9 images fitted, 3 held out" in printed


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_weights_of_torch_save_are_loaded_without_running_code(folder: Path, nested: str | None) -> None:
    build = importlib.import_module("usermodel").build
    model = build()
    torch.nn.init.constant_(model[2].weight, 0.25)
    state = model.state_dict()
    torch.save(state if nested is None else {nested: state, "epoch": 3}, "weights.pth")
    words = ["prune", "usermodel:build", "--weights", "weights.pth", *PICTURES, "--budget", "macs=0.99"]
    assert main([*words, "--no-reconstruct", "--out", "same"]) == 0
    assert bool((reapx.load(build(), "same")[2].weight == 0.25).all())  # type: ignore[index]


def test_pictures_are_scaled_cut_and_normalised(folder: Path) -> None:
    Image.fromarray(np.full((40, 60, 3), (255, 0, 51), dtype=np.uint8)).save("pictures/a.png")
    found = read_folder(Path("pictures"), 1, 20)
    assert found.shape == (1, 3, 20, 20)
    wanted = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225])
    assert torch.allclose(found[0, :, 7, 9], wanted, atol=1e-5)
    assert read_folder(Path("pictures"), None, 8, (0.5,), (0.5,)).shape == (13, 1, 8, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["timm:resnet19", *PICTURES], "timm has no model 'resnet19'; did you mean resnet18, resnet50?"),
        (["usermodel:bild", *PICTURES], "usermodel has no bild; did you mean build?"),
        (["hf:missing", *PICTURES], "transformers"),
        (["net.pt2", *PICTURES], "give the module that was exported"),
        (["timm:resnet18", "--arg", "width", *PICTURES], "--arg 'width': write NAME=VALUE"),
        (["timm:resnet18", "--arg", "depth=3", *PICTURES], "timm:resnet18 cannot be built"),
        (["usermodel:build", "--images", "pictures", "--mean", "0.5,0.5"], "--mean"),
        (["usermodel:build", "--images", "torchvision"], "has no picture"),
        (["usermodel:build", "--weights", "broken.pth", *PICTURES], "--weights broken.pth"),
        (["usermodel:build", "--weights", "list.pth", *PICTURES], "no state dict"),
    ],
)
def test_refusals(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    Path("broken.pth").write_bytes(b"no pickle")
    torch.save([1, 2], "list.pth")
    assert main(["inspect", *words]) == 1
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


def test_a_result_is_refined(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"x": torch.randn(60, 3, 9, 9)}, "images.safetensors")
    words = ["prune", "usermodel:build", "--images", "images.safetensors", "--budget", "macs=0.5", "--out", "half"]
    assert main([*words, "--refine", "5", "--report", "page.html"]) == 0
    assert "Refined in 5 steps on 55 images, judged on 5" in capsys.readouterr().out
    assert "Refinement" in Path("page.html").read_text()


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert f"reapx {reapx.__version__}, torch {torch.__version__}" in capsys.readouterr().out
