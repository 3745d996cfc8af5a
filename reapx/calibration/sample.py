"""Parts of the images: a sample on every process, and the split into images that are fitted and images that judge.

A fit looks better on the images it was fitted to than it is. Therefore moments come from one part, and everything that
is chosen or reported comes from the other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import CalibrationWarning
from .images import Images
from .store import TensorStore

EVERY = 4
"""Every so many images, one is held out, evenly over all images of all processes."""

Piece = tuple[int, Tensor]
"""A batch of the source, and the positions of its images that belong to a part."""


class ImagePart(Images):
    """Some of the calibration images, as batches of their own; the images themselves are not copied.

    Attributes:
        source: The images that these are a part of.
    """

    def __init__(self, source: Images, pieces: Sequence[Sequence[Piece]]) -> None:
        """``pieces`` holds, for each process, what makes up each batch."""
        self.source = source
        self.layout, self.memory, self.device = source.layout, source.memory, source.device
        self.processes = source.processes
        self._shapes, self._dtypes, self._first = source._shapes, source._dtypes, source._first
        self._pieces = pieces[self.processes.rank]
        self.lengths = [[len(rows) for _, rows in own] for own in pieces]
        self.count = sum(map(sum, self.lengths))
        self.batches = len(self._pieces)
        self.before = sum(map(len, self.lengths[: self.processes.rank]))

    def __getitem__(self, batch: int) -> tuple[Tensor, ...]:
        index, rows = self._pieces[batch]
        return tuple(value[rows.to(value.device)] for value in self.source[index])

    def pick(self, batch: int, rows: Tensor) -> tuple[Tensor, ...]:
        """Some images of a batch, read from the source without the others."""
        index, own = self._pieces[batch]
        return self.source.pick(index, own[rows])

    def example(self, count: int) -> tuple[Tensor, ...]:
        """Copies of the first images of the source, as ``Images.example``."""
        return self.source.example(count)

    def _like(self) -> tuple[Tensor, ...]:
        return self.source[0]


def split(images: Images, every: int = EVERY) -> tuple[ImagePart, ImagePart]:
    """The images that fits see, and those that judge them: of every ``every`` images, the last one.

    Images are counted over all batches of all processes, so that the split depends neither on the batches nor on the
    processes. Of fewer than ``every`` images, the last one is held out. Each batch of the source gives one batch of
    each part, if it has images of it.

    Warns:
        CalibrationWarning: there is only one image, which is then in both parts.
    """
    step = min(every, images.count)
    if step == 1:
        warnings.warn(
            "one image: none can be held out, so that errors are those on the image that was fitted; give at least 2",
            CalibrationWarning,
            stacklevel=4,
        )
    fitted: list[list[Piece]] = []
    judged: list[list[Piece]] = []
    start = 0
    for lengths in images.lengths:
        fitted.append([])
        judged.append([])
        for batch, length in enumerate(lengths):
            held_out = (torch.arange(start, start + length) + 1) % step == 0
            start += length
            ours, theirs = [rows.nonzero().flatten() for rows in (~held_out if step > 1 else held_out, held_out)]
            if len(ours):
                fitted[-1].append((batch, ours))
            if len(theirs):
                judged[-1].append((batch, theirs))
    return ImagePart(images, fitted), ImagePart(images, judged)


def split_text(images: Images) -> str:
    """How many images are fitted and how many judge, in words."""
    fitted, judged = split_counts(images.count)
    return f"{fitted} images fitted, {judged} held out to judge"


def split_counts(count: int) -> tuple[int, int]:
    """Numbers of images fitted and held out, of so many in all."""
    judged = count // min(EVERY, max(count, 1))
    return (count - judged if count > 1 else count), judged


class Sample:
    """The first images of every batch, with the batches of all processes in the order of their ranks.

    Inputs are small compared with activations, so each process receives the inputs of all others.

    Attributes:
        share: Share of each batch that is in the sample, rounded up to whole images.
    """

    def __init__(self, images: Images, count: int | None) -> None:
        """All processes call this together. ``count`` is the approximate number of images; None for all."""
        self.share = 1.0 if count is None else min(count / images.count, 1.0)
        self._images = images
        self._others = TensorStore(images.memory)
        self._batches = [(rank, batch) for rank, own in enumerate(images.lengths) for batch in range(len(own))]
        if images.processes.size == 1:
            return
        for index, (rank, batch) in enumerate(self._batches):
            values = images.shared(rank, batch, self._cut(images.lengths[rank][batch]))
            if rank != images.processes.rank:
                for part, value in enumerate(values):
                    self._others.put((index, part), value)

    def __len__(self) -> int:
        """Number of batches of all processes."""
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        images, (rank, batch) = self._images, self._batches[index]
        if rank != images.processes.rank:
            return tuple(self._others.get((index, part)) for part in range(len(images.example(1))))
        values = tuple(value[: self._cut(len(value))] for value in images[batch])
        # Equal strides in all processes give equal bits.
        return values if images.processes.size == 1 else tuple(value.contiguous() for value in values)

    def close(self) -> None:
        """Free the images of other processes."""
        self._others.close()

    def _cut(self, length: int) -> int:
        return math.ceil(self.share * length)
