"""A checkpoint's folder: what comes back, what is refused, what damage does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import exit_code
from test_saves_killed import files_of_at_most
from torch import Tensor

import reapx
from reapx.calibration.checkpoint import Checkpoint, fingerprint
from reapx.calibration.images import Images

KEY = {"model": "a", "images": "b", "positions": None, "exclude": ("x", "y"), "damping": 0.1}


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "new" / "folder", KEY, interval=0)
    assert kept.tensors("sums") == (0, {}) and kept.values("points") is None
    tensors = {
        "gram": torch.randn(2, 5, 5, dtype=torch.float64),
        "rows": torch.tensor(7),
        "none": torch.empty(0, 3),
        "half": torch.randn(3).to(torch.bfloat16),
    }
    kept.keep_tensors("sums", 3, tensors, last=False)
    kept.keep_tensors("empty", 2, {}, last=False)
    page = {"layer": [0.1, 1e300, 3, None, "é"], "inner": {"1": [True]}}
    kept.keep_values("points", page, last=False)
    again = Checkpoint(tmp_path / "new" / "folder", KEY)
    batches, found = again.tensors("sums")
    assert batches == 3 and {name: value.dtype for name, value in found.items()} == {
        name: value.dtype for name, value in tensors.items()
    }
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert again.tensors("empty") == (2, {})
    assert again.values("points") == page


def test_only_what_fits_is_restored(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path, KEY)
    kept.keep_tensors("sums", 3, {"a": torch.ones(2), "b": torch.ones(1)}, last=True)
    for other in (
        {"a": torch.zeros(2)},
        {"a": torch.zeros(2), "c": torch.zeros(1)},
        {"a": torch.zeros(3), "b": torch.zeros(1)},
        {"a": torch.zeros(2), "b": torch.zeros(1, dtype=torch.float64)},
    ):
        assert kept.restore("sums", other) == 0
        assert not any(bool(value.any()) for value in other.values())
    sums = {"b": torch.zeros(1), "a": torch.zeros(2)}
    assert kept.restore("sums", sums) == 3 and sums["a"].tolist() == [1, 1]


def test_stores_wait_for_the_interval_but_the_last_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("reapx.calibration.checkpoint.time.monotonic", lambda: now[0])
    kept = Checkpoint(tmp_path, KEY, interval=10)

    def stored(batches: int, last: bool = False) -> int:
        kept.keep_tensors("sums", batches, {}, last)
        return kept.tensors("sums")[0]

    assert stored(1) == 0
    now[0] += 10
    assert stored(2) == 2
    now[0] += 9.9
    assert stored(3) == 2
    assert stored(4, last=True) == 4
    now[0] += 10
    kept.keep_values("points", {}, last=False)
    assert kept.values("points") == {}
    assert stored(5) == 4


def test_another_key_is_refused_and_said(tmp_path: Path) -> None:
    Checkpoint(tmp_path, KEY).keep_values("points", {"a": 1}, last=True)
    with pytest.raises(
        reapx.InputError, match=r"the images differ from those .* delete this one to start anew"
    ) as info:
        Checkpoint(tmp_path, {**KEY, "images": "c"})
    assert "model" not in str(info.value) and str(tmp_path) in str(info.value)
    with pytest.raises(reapx.InputError, match="the model's tensors differ from those"):
        Checkpoint(tmp_path, {**KEY, "model": "c"})
    with pytest.raises(reapx.InputError, match="positions is 5, it was measured with None; new is 1, "):
        Checkpoint(tmp_path, {**KEY, "positions": 5, "new": 1})
    assert Checkpoint(tmp_path, KEY).values("points") == {"a": 1}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(reapx.InputError, match="cannot be made a folder"):
        Checkpoint(tmp_path / "taken", KEY)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """The last digit or the last value: what only a checksum tells."""
    data = bytearray(path.read_bytes())
    place = max(i for i, byte in enumerate(data) if chr(byte).isdigit()) if path.suffix == ".json" else len(data) - 1
    data[place] ^= 1
    path.write_bytes(data)


def nested(path: Path) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000)


def foreign(path: Path) -> None:
    path.write_text("[1, 2]\n")


@pytest.mark.parametrize("damage", [halve, empty, flip, foreign, nested])
@pytest.mark.parametrize("file", ["sums.safetensors", "points.json", "key.json"])
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], file: str) -> None:
    kept = Checkpoint(tmp_path, KEY)
    kept.keep_tensors("sums", 3, {"a": torch.ones(20)}, last=True)
    kept.keep_values("points", {"a": [1, 2]}, last=True)
    damage(tmp_path / file)
    with pytest.raises(reapx.CheckpointError, match=rf"{file} is damaged or truncated \(.*\): delete it"):
        again = Checkpoint(tmp_path, KEY)
        again.tensors("sums")
        again.values("points")
    (tmp_path / file).unlink()
    again = Checkpoint(tmp_path, KEY)
    again.tensors("sums")
    again.values("points")


def test_files_of_another_call_are_refused(tmp_path: Path) -> None:
    """Without its key a folder may be taken by any call, but not what is in it."""
    kept = Checkpoint(tmp_path, KEY)
    kept.keep_tensors("sums", 3, {"a": torch.ones(20)}, last=True)
    kept.keep_values("points", {"a": 1}, last=True)
    (tmp_path / "key.json").unlink()
    other = Checkpoint(tmp_path, {**KEY, "model": "c"})
    with pytest.raises(reapx.CheckpointError, match=r"sums.safetensors was stored by another call: delete it"):
        other.tensors("sums")
    with pytest.raises(reapx.CheckpointError, match=r"points.json was stored by another call: delete it"):
        other.values("points")


def test_a_full_disk_is_said_and_the_earlier_version_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoint(tmp_path, KEY)
    kept.keep_values("points", {"a": 1}, last=True)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reapx.files.whole_files.os.fsync", full)
    with pytest.raises(reapx.CheckpointError, match=r"points.json cannot be written \(.*No space left"):
        kept.keep_values("points", {"a": 2}, last=True)
    assert kept.values("points") == {"a": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "key.json", "points.json"]


def test_an_existing_folder_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoint(tmp_path, KEY).keep_values("points", {"a": 1}, last=True)

    def read_only(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("reapx.files.whole_files.os.open", read_only)
    with pytest.raises(reapx.CheckpointError, match=r"cannot be written \(.*\): make it writable, or give another"):
        Checkpoint(tmp_path, KEY)


def test_no_room_for_a_file_is_said(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path, KEY)
    kept.keep_tensors("sums", 1, {"a": torch.ones(10)}, last=True)
    for store in (
        lambda: kept.keep_tensors("sums", 2, {"a": torch.ones(9000)}, last=True),
        lambda: kept.keep_values("points", {"a": [1] * 9000}, last=True),
    ):
        with files_of_at_most(8000), pytest.raises(reapx.CheckpointError, match=r"cannot be written \(.*\): make room"):
            store()
    assert kept.tensors("sums")[0] == 1 and kept.values("points") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "key.json", "sums.safetensors"]


def test_a_folder_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    """The same one may open it again; it is free once that is done with it."""
    kept = Checkpoint(tmp_path, KEY)
    Checkpoint(tmp_path, KEY)
    code, text = exit_code(Checkpoint, tmp_path, KEY)
    assert code == 1 and "is in use by another process: wait for it, or give each process a folder of its own" in text
    del kept
    assert exit_code(Checkpoint, tmp_path, KEY) == (0, "")


def test_links_are_not_followed_and_what_a_kill_left_goes(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("untouched")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "points.json.part").symlink_to(precious)
    (folder / ".points.json.1-2.part").write_text("half")
    (folder / "sums.safetensors").symlink_to(precious)
    kept = Checkpoint(folder, KEY)
    kept.keep_values("points", {"a": 1}, last=True)
    kept.keep_tensors("sums", 1, {"a": torch.ones(2)}, last=True)
    assert precious.read_text() == "untouched" and not (folder / "sums.safetensors").is_symlink()
    assert not (folder / ".points.json.1-2.part").exists()
    del kept
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(precious)
    with pytest.raises(reapx.CheckpointError, match="cannot be written"):
        Checkpoint(folder, KEY)


def test_the_key_keeps_its_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="own page"):
        Checkpoint(tmp_path, KEY).keep_values("key", {}, last=True)


def test_fingerprints() -> None:
    """A digest changes with values, shapes, dtypes, names and batches, and with nothing else."""

    def digests(tensors: dict[str, Tensor], batches: object) -> tuple[str, str]:
        found = fingerprint(tensors, Images(batches, torch.device("cpu"), 2**20))
        assert list(found) == ["model", "images"]
        return found["model"], found["images"]

    tensors = {"a": torch.randn(3, 4), "b": torch.tensor(2), "c": torch.ones(5, dtype=torch.bool)}
    images = torch.randn(6, 2, 4, 4)
    model, data = digests(tensors, [images])
    assert digests(dict(reversed(tensors.items())), [images.to(memory_format=torch.channels_last)]) == (model, data)
    changed = tensors["a"].clone()
    changed[2, 3] += 1e-6
    others = (
        {**tensors, "a": changed},
        {**tensors, "a": tensors["a"].reshape(4, 3)},
        {**tensors, "a": tensors["a"].view(torch.int32)},
        {"a": tensors["a"], "b": tensors["b"], "d": tensors["c"]},
    )
    assert len({model, *(digests(other, [images])[0] for other in others)}) == 5
    batches = ([images[:5]], [images[:3], images[3:]], [images.double()], [{"x": images}], [images.reshape(6, 2, 2, 8)])
    assert len({data, *(digests(tensors, other)[1] for other in batches)}) == 6
