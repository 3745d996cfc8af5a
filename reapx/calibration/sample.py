"""A sample of the images of all processes, held by each of them."""

from __future__ import annotations

import math

from torch import Tensor

from .images import Images
from .store import TensorStore


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
            return tuple(self._others.get((index, part)) for part in range(len(images[0])))
        values = tuple(value[: self._cut(len(value))] for value in images[batch])
        # Equal strides in all processes give equal bits.
        return values if images.processes.size == 1 else tuple(value.contiguous() for value in values)

    def close(self) -> None:
        """Free the images of other processes."""
        self._others.close()

    def _cut(self, length: int) -> int:
        return math.ceil(self.share * length)
