"""How one tensor of images is divided into batches, and the memory they may take; of a GPU, as torch would tell it."""

from __future__ import annotations

import pytest
import torch
from test_saves_killed import files_of_at_most
from torch import Tensor

import reapx
from reapx.calibration.images import MEMORY, _batches, _memory
from reapx.calibration.store import TensorStore

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MIB = 2**20


def lengths(images: Tensor, device: torch.device, memory: int = 2**34) -> list[int]:
    return [len(batch) for batch in _batches(images, device, memory)]  # type: ignore[arg-type]


def images(count: int, *shape: int) -> Tensor:
    return torch.empty(1, *shape).expand(count, *shape)


@pytest.mark.parametrize("free", [7_000 * MIB, 8_192 * MIB, 141_000 * MIB])
def test_a_gpus_memory_is_an_eighth_at_most(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    held, used = 512 * MIB, 100 * MIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - held, 2 * free))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held + used)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used)
    assert free / 16 < _memory(GPU) <= free / 8
    assert _memory(CPU) == MEMORY


def test_batches_are_larger_on_a_gpu() -> None:
    small = images(1000, 3, 32, 32)
    assert lengths(small, CPU) == [100] * 10
    assert lengths(small, GPU) == [1000]
    assert lengths(images(1601, 3, 32, 32), GPU) == [801, 800]


def test_a_full_temporary_folder_is_said() -> None:
    """Nothing of the failed file stays, and what was stored before is still there."""
    store = TensorStore(limit=0)
    store.put("small", torch.ones(10))
    words = r"what exceeds memory=0 bytes cannot be written .*: make room, set the environment's TMPDIR"
    with files_of_at_most(1000), pytest.raises(reapx.InputError, match=words):
        store.put("large", torch.ones(5000))
    assert torch.equal(store.get("small"), torch.ones(10))
    folder = store._folder
    assert folder is not None and [path.name for path in folder.iterdir()] == ["1.bin"]
    (folder / "1.bin").write_bytes(b"1234")
    with pytest.raises(reapx.InputError, match="was cut short: leave reapx's temporary folder alone"):
        store.get("small")
    (folder / "1.bin").unlink()
    with pytest.raises(reapx.InputError, match="is gone"):
        store.get("small")
    store.close()


def test_batches_of_large_images_fit() -> None:
    large = images(200, 3, 224, 224)  # 588 KB each
    assert max(lengths(large, CPU)) == 8  # at least so many
    assert max(lengths(large, GPU)) == 100
    assert max(lengths(large, GPU, 512 * MIB)) == 13
    assert sum(lengths(large, GPU, 512 * MIB)) == 200
