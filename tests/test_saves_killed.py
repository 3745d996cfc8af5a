"""Saves that are killed or find no room: whatever happens, the earlier result or the new one loads."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from interrupts import at_line
from processes import exit_code
from saved import rewrite
from torch import nn

import reapx
from reapx.surgery.storage import save

POINTS = 20


def network(value: float) -> nn.Module:
    """One whose weights all have a value."""
    net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)).eval()
    for parameter in net.parameters():
        nn.init.constant_(parameter, value)
    return net


def value_in(folder: Path) -> float:
    """The value of all weights in a saved network."""
    values = torch.cat([parameter.detach().flatten() for parameter in reapx.load(network(7), folder).parameters()])
    assert values.min() == values.max()
    return values[0].item()


def kill_saves(root: str) -> None:
    """Kill saves over an earlier result at points all over; runs in a process of its own, which may fork."""
    torch.set_num_threads(1)
    old, folder = Path(root) / "old", Path(root) / "folder"
    save(old, network(1), {}, "old")
    shutil.copytree(old, folder)
    with at_line(0, lambda: None) as count:
        save(folder, network(2), {}, "new", overwrite=True)
    found = []
    for point in range(POINTS):
        shutil.rmtree(folder)
        shutil.copytree(old, folder)
        line = 1 + point * (count[0] - 1) // (POINTS - 1)
        child = os.fork()
        if child == 0:
            with at_line(line, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                save(folder, network(2), {}, "new", overwrite=True)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        found.append(value_in(folder))
        save(folder, network(3), {}, "newer", overwrite=True)
        assert value_in(folder) == 3
        assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "weights.safetensors"]
    assert found == sorted(found) and set(found) == {1.0, 2.0}


def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    assert exit_code(kill_saves, str(tmp_path)) == (0, "")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to make a file larger, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("format_1", [False, True])
def test_where_there_is_no_room_the_earlier_result_stays(tmp_path: Path, format_1: bool) -> None:
    save(tmp_path, network(1), {}, "old")
    if format_1:
        rewrite(tmp_path, lambda page: page, form=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with (
        files_of_at_most(1000),
        pytest.raises(reapx.CheckpointError, match=r"cannot be written \(.*\): make room, or give another folder"),
    ):
        save(tmp_path, network(2), {}, "new", overwrite=True)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert value_in(tmp_path) == 1


def test_links_are_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("untouched")
    for name in ("plan.json", "weights.safetensors", "weights.safetensors.new"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).symlink_to(tmp_path / "precious")
    save(tmp_path / "folder", network(2), {}, "new", overwrite=True)
    assert value_in(tmp_path / "folder") == 2 and (tmp_path / "precious").read_text() == "untouched"
    assert not any(path.is_symlink() for path in (tmp_path / "folder").iterdir())


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(reapx.InputError, match="cannot be made a folder"):
        save(tmp_path / "file" / "folder", network(1), {}, "")
