"""Calibration images: read once, checked, kept in memory up to a limit, then on disk."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .input_layout import ONE, InputLayout, read_batch
from .processes import ALONE, Processes
from .store import TensorStore
from .threads import TURNS

BATCH_IMAGES, BATCH_BYTES = 100, 4 * 2**20
"""Largest number of images, and of bytes, in a batch that is cut from a single tensor of images."""

ON_A_GPU = 16
"""Factor by which these batches are larger on a GPU, where launching an operator takes longer than a small batch."""

MEMORY = 512 * 2**20
"""Bytes of memory for images before they move to disk; the same amount again for activations."""

FIRST_IMAGES = 100
"""Largest number of images of rank 0's first batch that every process holds."""


class Images:
    """The calibration set as a list of batches, each a tuple of tensors in the model's argument order.

    Where several processes share the work, each holds its own part, and all have called :meth:`meet`.

    Attributes:
        layout: How a batch's tensors become the arguments of forward().
        count: Number of images in all processes.
        batches: Number of batches in this process.
        lengths: Number of images in each batch of each process.
        before: Number of batches in all processes of lower rank.
        memory: Bytes of memory before batches move to disk.
        device: The model's device; batches on the CPU are copied there.
        processes: The processes that share the work.
    """

    def __init__(
        self, source: object, device: torch.device, memory: int | None = None, model: nn.Module | None = None
    ) -> None:
        """Read and check all batches of a source; ``source`` and ``memory`` are as for ``reapx.plan``.

        Of ``model``, the arguments of forward() say what the items of a tuple are.

        Raises:
            InputError: there is no batch, or batches differ in structure, shape or dtype, are on another device, or
                contain NaN or Inf.
        """
        memory = _memory(device) if memory is None else memory
        self.layout: InputLayout = ONE
        self.memory = memory
        self.device = device
        self.count = 0
        self.batches = 0
        self.before = 0
        self.processes = ALONE
        self._first: tuple[Tensor, ...] | None = None
        self.lengths: list[list[int]] = [[]]
        held = isinstance(source, Tensor | list | tuple)  # the caller keeps these in memory anyway
        self._store = TensorStore(math.inf if held else memory)
        self._shapes: list[tuple[int, ...]] = []
        self._dtypes: list[torch.dtype] = []
        self._reused = not held  # a loader may reuse its memory for every batch
        for batch in _batches(source, device, memory):
            known = self.layout if self.batches else None
            self.layout, tensors = read_batch(batch, model, known, f"batch {self.batches}")
            self._add(tensors)
        if self.count == 0:
            raise InputError(
                "no images: `images` gave no batch. Pass a tensor (images, channels, height, width) or an "
                "iterable of such batches; a generator that was read before is empty"
            )

    def _add(self, tensors: tuple[Tensor, ...]) -> None:
        where, device = f"batch {self.batches}", self.device
        for name, value in zip(self.layout.labels, tensors, strict=True):
            if value.device != device and value.device.type != "cpu":
                raise InputError(
                    f"{name} of {where} are on {value.device}, the model is on {device}: move one of them, "
                    "for instance images.to(device)"
                )
            if not value.is_floating_point() and self.layout.names is None and not _may_be_ids(value):
                raise InputError(f"{name} of {where} have dtype {value.dtype}: {_NOT_FLOATING}")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(f"{name} of {where} contain NaN or Inf: remove those images")
        shapes = [tuple(value.shape[1:]) for value in tensors]
        if self.batches == 0:
            self._shapes, self._dtypes = shapes, [value.dtype for value in tensors]
        if [value.dtype for value in tensors] != self._dtypes:
            raise InputError(
                f"images of {where} have dtype {tensors[0].dtype} and those of batch 0 {self._dtypes[0]}: "
                "bring them to one dtype"
            )
        if shapes != self._shapes:
            odd = next(k for k, shape in enumerate(shapes) if shape != self._shapes[k])
            raise InputError(
                f"{self.layout.labels[odd]} of {where} have shape {shapes[odd]} and those of batch 0 "
                f"{self._shapes[odd]}: bring them to one shape (pad or cut sentences to one length)"
            )
        if len(tensors[0]) == 0:
            return
        for index, value in enumerate(tensors):
            own = value.detach().to(device)
            if value.device != device:
                self._store.limit = self.memory  # copies on the device take memory of our own
            elif self._reused:
                own = own.clone()
            self._store.put((self.batches, index), own)
        self.count += len(tensors[0])
        self.batches += 1
        self.lengths[0].append(len(tensors[0]))

    def meet(self, processes: Processes) -> None:
        """Make these images one process's part of the whole set; the images of rank 0 come first.

        Args:
            processes: All of them call this together.

        Raises:
            InputError: images of different processes differ in names, shape or dtype; all processes raise it.
        """
        layouts = processes.gather((self.layout.labels, self._shapes, [str(dtype) for dtype in self._dtypes]))
        for rank, layout in enumerate(layouts):
            if layout != layouts[0]:
                raise InputError(
                    f"rank {rank}: images have {_layout(*layout)}, those of rank 0 {_layout(*layouts[0])}: give all "
                    "processes images of one kind"
                )
        self.processes = processes
        self.memory = min(processes.gather(self.memory))  # it decides the number of passes over the images
        self.lengths = processes.gather(self.lengths[0])
        self.count = sum(map(sum, self.lengths))
        self.before = sum(map(len, self.lengths[: processes.rank]))
        if processes.size > 1:
            length = min(self.lengths[0][0], FIRST_IMAGES)
            self._first = self.shared(0, 0, length)

    def shared(self, rank: int, batch: int, length: int) -> tuple[Tensor, ...]:
        """The first ``length`` images of batch ``batch`` of process ``rank``; all processes call this together."""
        if rank == self.processes.rank:
            given = [value[:length] for value in self[batch]]
        else:
            given = [value.new_empty(length, *value.shape[1:]) for value in self._like()]
        return tuple(self.processes.share(value, rank) for value in given)

    def _like(self) -> tuple[Tensor, ...]:
        """Tensors of the dtypes and the memory of every batch."""
        return self[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self._shapes[0]

    def __getitem__(self, batch: int) -> tuple[Tensor, ...]:
        return tuple(self._store.get((batch, index)) for index in range(len(self._shapes)))

    def pick(self, batch: int, rows: Tensor) -> tuple[Tensor, ...]:
        """Some images of a batch, by their indices (count,) int64."""
        return tuple(value[rows.to(value.device)] for value in self[batch])

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self[batch] for batch in range(self.batches))

    def example(self, count: int) -> tuple[Tensor, ...]:
        """Copies of at most ``count`` first images of the first batch; in all processes those of rank 0."""
        return tuple(value[:count].clone() for value in self._first or self[0])

    def as_inputs(self, count: int) -> tuple[Any, ...] | dict[str, Any]:
        """At most ``count`` first images as the model takes them: one argument by position, or several by keyword."""
        return self.layout.arguments(self.example(count))

    def call(self, model: nn.Module, tensors: tuple[Tensor, ...]) -> Any:
        """The model's output for the tensors of one batch."""
        given = self.layout.arguments(tensors)
        with TURNS.together():
            return model(**given) if isinstance(given, dict) else model(*given)


_NOT_FLOATING = (
    "give images in floating point, scaled and normalised as in training, for instance images.float() / 255; token ids "
    'are an int64 tensor (sentences, length), or [{"input_ids": ids}]'
)


def _may_be_ids(value: Tensor) -> bool:
    """Whether whole numbers without a name may be token ids; of pixels, every image has three axes."""
    return value.dtype in (torch.int64, torch.int32) and value.dim() == 2


def _layout(labels: tuple[str, ...], shapes: list[tuple[int, ...]], dtypes: list[str]) -> str:
    parts = [f"shape {shape} and dtype {dtype}" for shape, dtype in zip(shapes, dtypes, strict=True)]
    if labels == ("images",):
        return parts[0]
    return ", ".join(f"{label} of {part}" for label, part in zip(labels, parts, strict=True))


def share_of(source: object, device: torch.device, rank: int, size: int) -> Iterable[object]:
    """The batches of one of ``size`` processes; all get about the same number, and those of rank 0 come first.

    A single tensor that gives fewer batches than there are processes is divided by images instead.

    Args:
        source: The whole set, as for ``reapx.plan``; the same in each process.
        device: The model's device.
        rank: Index of this process.
        size: Number of processes.

    Raises:
        InputError: there are fewer batches than processes.
    """
    batches = _batches(source, device, _memory(device))
    if isinstance(source, Tensor) and len(batches) < size <= len(source):  # type: ignore[arg-type]
        return [source[rank * len(source) // size : (rank + 1) * len(source) // size]]
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError:  # a generator, or a loader of unknown length
        batches = list(batches)
        count = len(batches)
    if count < size:
        raise InputError(
            f"batches of images: {count}, processes: {size}. Each process needs one: start at most {count}, or give "
            "more images"
        )
    start, end = rank * count // size, (rank + 1) * count // size
    return batches[start:end] if isinstance(batches, list | tuple) else islice(batches, start, end)


def _memory(device: torch.device) -> int:
    """Default memory: ``MEMORY`` on the CPU; on a GPU the largest power of two below an eighth of the free memory.

    Powers of two keep the value, and so the number of passes, the same from call to call.
    """
    if device.type != "cuda":
        return MEMORY
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # reserved, but free
    return 1 << max((torch.cuda.mem_get_info(device)[0] + held).bit_length() - 4, 20)


def _batches(source: object, device: torch.device, memory: int) -> Iterable[object]:
    if isinstance(source, Tensor):
        if source.dim() < 2:
            raise InputError(
                f"images have shape {tuple(source.shape)}: the first axis counts images, so at least two axes are "
                "needed; images.unsqueeze(0) makes one image a batch"
            )
        if len(source) == 0:
            return []
        images, size = BATCH_IMAGES, BATCH_BYTES
        if device.type == "cuda":
            images, size = ON_A_GPU * images, min(ON_A_GPU * size, memory // 64)  # activations take far more
        most = max(min(size // max(source[0].nbytes, 1), images), 8)
        if device.type == "cuda":
            most = -(-len(source) // -(-len(source) // most))  # batches of about equal size
        return torch.split(source, most)
    if isinstance(source, Mapping | UserDict):
        raise InputError("images is a dict, which is one batch: put it in a list, images=[batch]")
    if not isinstance(source, Iterable):
        raise InputError(
            f"images is a {type(source).__name__}: pass a tensor or an iterable of batches (a DataLoader, a list)"
        )
    return source
