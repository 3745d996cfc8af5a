"""Reconstruction: one sweep that is judged on held-out images, and a second one that fits all images.

The first sweep fits one part of the images. On the held-out part it chooses each layer's damping, and tells how good
the fits are. The second sweep fits all images with these dampings, and gives the weights that stay. Two sweeps are
needed, since a layer that was fitted to the held-out images would hide from them what later layers lose: their
dampings would be too weak, and the errors that are told too small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..calibration.images import Images
from ..calibration.sample import ImagePart
from ..surgery.cut import Kept, narrow
from .layer_refit import LayerRefit
from .sweep import Sweep


@dataclass(frozen=True)
class Refits:
    """What least squares changed in a pruned network.

    Attributes:
        updates: Qualified name -> new parameter, fitted to all images.
        judged: The same, fitted without the held-out images.
        fits: Error of each refitted layer on the held-out images, by which ``judged`` was judged.
    """

    updates: Mapping[str, Tensor]
    judged: Mapping[str, Tensor]
    fits: tuple[LayerRefit, ...]

    def narrowed(self, lasting: Kept) -> Refits:
        """The same without what will not last of each parameter."""
        updates, judged = (
            {name: narrow(value, lasting.get(name, {})) for name, value in found.items()}
            for found in (self.updates, self.judged)
        )
        return Refits(updates, judged, self.fits)


def reconstruct(sweep: Sweep, images: Images, parts: tuple[ImagePart, ImagePart], damping: float | None) -> Refits:
    """Refit the pruned network's layers so that it follows the original.

    Args:
        sweep: The two networks, and how layers are refitted.
        images: All images.
        parts: The images that are fitted first, and those that are held out.
        damping: Pull towards the old weights, a fraction of the mean diagonal of the Gram matrix; None to choose it
            for each layer.
    """
    fitted, held_out = parts
    judged, fits = sweep.run(fitted, held_out, damping)
    if fitted.count == images.count:  # a single image is in both parts
        return Refits(judged, judged, tuple(fits))
    updates, _ = sweep.run(images, None, {fit.layer: fit.damping for fit in fits})
    return Refits(updates, judged, tuple(fits))
