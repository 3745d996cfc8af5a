"""Processes that share the work through ``torch.distributed``: each measures its own images; sums are exchanged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import errors
from ..errors import InputError, NumericalError, ReapxError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes that share the work, and the rank of this one.

    All processes call the same methods in the same order. A single process exchanges nothing.

    Attributes:
        rank: Index of this process, from 0.
        size: Number of processes.
        device: Device on which tensors must be to be exchanged, as NCCL requires; None for any device.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    def sum(self, *tensors: Tensor | None) -> None:
        """Replace each tensor by its sum over all processes, in place; None is ignored."""
        for tensor in tensors:
            if tensor is not None and self.size > 1:
                near = self._near(tensor)
                dist.all_reduce(near)
                if near is not tensor:
                    tensor.copy_(near)

    def share(self, value: Tensor, source: int = 0) -> Tensor:
        """The tensor of one process, contiguous, in all processes; ``value`` itself in a single process.

        Args:
            value: Of the same shape and dtype in all processes; its contents matter only in the source process.
            source: Rank of the source process.
        """
        if self.size == 1 or value.numel() == 0:
            return value
        own = self.rank == source
        shared = value.detach().contiguous() if own else torch.empty_like(value, memory_format=torch.contiguous_format)
        data = shared.reshape(-1).view(torch.uint8)  # not every backend knows every dtype
        near = self._near(data)
        dist.broadcast(near, source)
        if near is not data and not own:
            data.copy_(near)
        return shared

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes in the order of their ranks; each must be small and picklable."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        here: AbstractContextManager[Any] = nullcontext() if self.device is None else torch.cuda.device(self.device)
        with here:
            dist.all_gather_object(found, value)
        return found

    def first(self, make: Callable[[], Value]) -> Value:
        """The value that rank 0 computes, in all processes; the others wait. An error in rank 0 is raised in all."""
        with self.together():
            value = make() if self.rank == 0 else None
        return self.gather(value)[0]  # type: ignore[return-value]

    def odd(self, value: object) -> int | None:
        """The first rank whose value differs from that of rank 0; None if all are equal."""
        found = self.gather(value)
        return next((rank for rank, other in enumerate(found) if other != found[0]), None)

    def check_rounding(self, what: str, value: object) -> None:
        """Refuse processes that computed different values from the same sums, because they round differently.

        Args:
            what: Name of the value in the error message.
            value: This process's value.

        Raises:
            NumericalError: values differ; all processes raise it.
        """
        rank = self.odd(value)
        if rank is not None:
            raise NumericalError(
                f"rank {rank} chose other {what} than rank 0, since they round differently: give all processes the "
                "same hardware, versions and number of threads (OMP_NUM_THREADS)"
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes pass or none: an error in one process is raised by all at the end of the block.

        Inside the block nothing may be exchanged, since another process may have failed already.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        found = self.gather(None if failure is None else (type(failure).__name__, str(failure)))
        if failure is not None and not isinstance(failure, ReapxError):
            raise failure
        for rank, other in enumerate(found):
            if other is not None:
                name, text = other
                kind = getattr(errors, name, None)
                raise (kind or ReapxError)(f"rank {rank}: {text if kind else f'{name}: {text}'}") from failure

    def _near(self, tensor: Tensor) -> Tensor:
        """The tensor, contiguous, on the device from which it can be exchanged."""
        return (tensor if self.device is None else tensor.to(self.device)).contiguous()


ALONE = Processes()

PATIENCE = timedelta(hours=12)
"""How long processes wait for one that reads its images or measures milliseconds. torchrun ends all if one fails."""


def processes_of(distributed: bool, model: nn.Module) -> Processes:
    """The processes of ``torch.distributed``'s default group; a single process unless ``distributed``.

    Args:
        distributed: Whether the processes share the work.
        model: The model, whose device the group's backend must support.

    Raises:
        InputError: there is no default group, or its backend does not support the model's device.
    """
    if not distributed:
        return ALONE
    if not dist.is_available() or not dist.is_initialized():
        raise InputError(
            "distributed=True, but this process is in no group: start it with torchrun, and call "
            "torch.distributed.init_process_group('gloo') ('nccl' for a model on a GPU) first"
        )
    device = None
    if "nccl" in dist.get_backend() and "gloo" not in dist.get_backend():
        device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
        if device.type != "cuda":
            raise InputError(
                f"the process group's backend is nccl, which does not reach a model on {device}: call "
                "torch.distributed.init_process_group('gloo'), or move the model to a GPU"
            )
    return Processes(dist.get_rank(), dist.get_world_size(), device)


@dataclass(frozen=True)
class Launch:
    """The processes that torchrun started, read from the environment.

    Attributes:
        rank: Index of this process, from 0.
        size: Number of processes.
        local: Index of this process among those on this machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0


def launched() -> Launch:
    """The processes that torchrun started; a single one without torchrun.

    Raises:
        InputError: WORLD_SIZE is 2 or more, but another variable of torchrun is missing.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2:
        return Launch()
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"the environment has WORLD_SIZE={size}, but no {', '.join(missing)}: start with torchrun "
            f"--nproc-per-node {size} -m reapx, or unset WORLD_SIZE"
        )
    return Launch(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started, joined in a group until the block ends; a single one without torchrun.

    Args:
        device: Device of this process's model; a GPU takes the backend nccl, the CPU gloo.

    Raises:
        InputError: WORLD_SIZE is 2 or more, but another variable of torchrun is missing.
    """
    launch = launched()
    if launch.size == 1:
        yield ALONE
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield Processes(launch.rank, launch.size, device if on_gpu else None)
    finally:
        dist.destroy_process_group()
