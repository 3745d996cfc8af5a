"""Two processes share the images and the work, and both end with the same smaller network.

Run it with ``python examples/several_processes.py``; it takes some seconds. Under torchrun,
``dist.init_process_group("gloo")`` needs no further arguments.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

import reapx

PROCESSES = 2


def work(rank: int, folder: str) -> None:
    """What each process does: the model is the same in all, the images are not."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 4)
    )
    batches = torch.randn(200, 3, 12, 12).split(50)
    result = reapx.prune(model.eval(), batches[rank::PROCESSES], budget=reapx.MACs(0.5), distributed=True)
    if rank == 0:  # all have the same result
        print(result)
        result.save(Path(folder) / "half")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (folder,), nprocs=PROCESSES)
