"""Texts that every Python installation carries, and tokens of them."""

from __future__ import annotations

import importlib.util
import pydoc_data.topics
import re

import numpy as np
import torch
from torch import Tensor

SHORT, LONG, TOKENS = 100, 300, 32
"""Characters of the sentences that are taken, and tokens that are read of each, so that there is hardly any padding."""


def has_packages(*names: str) -> bool:
    """Whether some packages are there; says which are not."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: {' and '.join(missing)} not installed")
    return not missing


def documents() -> list[str]:
    """Python's help topics, in alphabetical order."""
    return [text for _, text in sorted(pydoc_data.topics.topics.items())]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different sentences out of the help topics, in random order."""
    found: dict[str, None] = {}
    for text in documents():
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
            if SHORT <= len(sentence) <= LONG:
                found[sentence] = None
    order = np.random.default_rng(seed).permutation(len(found))[:count]
    known = list(found)
    return [known[index] for index in order]


def batches(tokenizer: object, texts: list[str], size: int = 30) -> list[dict[str, Tensor]]:
    """The first tokens of texts in batches, and which of them are padding."""
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    encoded = [tokenizer(part, padding="max_length", truncation=True, max_length=TOKENS) for part in parts]  # type: ignore[operator]
    return [{name: torch.tensor(one[name]) for name in ("input_ids", "attention_mask")} for one in encoded]


def windows(tokens: list[int], count: int, length: int, seed: int = 0) -> Tensor:
    """(count, length) int64: parts of a long text that do not overlap, in random order."""
    whole = torch.tensor(tokens[: len(tokens) // length * length]).reshape(-1, length)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(whole))[:count])
    return whole[order]
