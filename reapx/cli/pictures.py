"""A folder of pictures as a tensor of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, which most pretrained networks are normalised by."""


def read_folder(
    folder: Path, count: int | None, size: int, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Tensor:
    """(images, channels, size, size) float32: pictures of a folder and those below it, in the order of their paths.

    The shorter side is scaled to ``size``, the middle is cut out, and ``(value / 255 - mean) / std`` normalises. One
    number for mean and deviation reads pictures in grey.

    Raises:
        InputError: there is no picture, one cannot be read, or Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            f"--images {folder} is a folder of pictures, which Pillow reads: pip install pillow"
        ) from error
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)[:count]
    if not paths:
        raise InputError(f"--images {folder} has no picture ({', '.join(ENDINGS)})")
    if len(mean) != len(std) or len(mean) not in (1, 3) or min(std) <= 0:
        raise InputError(f"--mean {mean} --std {std}: give one number or three for each, deviations above 0")
    found = torch.empty(len(paths), len(mean), size, size)
    for image, path in zip(found, paths, strict=True):
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB" if len(mean) == 3 else "L")
        except OSError as error:
            raise InputError(
                f"--images {folder}: {path.name} cannot be read ({error}): repair it or take it out"
            ) from error
        scale = size / min(picture.size)
        width, height = (max(round(side * scale), size) for side in picture.size)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
        pixels = torch.from_numpy(np.array(picture)).reshape(size, size, len(mean)).permute(2, 0, 1)
        image.copy_(pixels.float().div_(255))
    shift, spread = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return found.sub_(shift).div_(spread)
