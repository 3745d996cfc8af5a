"""Random networks: surgery against a mask by data flow, compaction against the network itself, at several sizes.

``REAPX_FUZZ=1000`` runs so many of them ("make fuzz"); a failure names its seed, and ``REAPX_FUZZ_FROM`` starts there.
"""

from __future__ import annotations

import os
import warnings
from random import Random

import pytest
import torch
from compacting import assert_same
from fuzz.masks import masked_outputs
from fuzz.networks import kill, network
from torch import nn

import reapx
from reapx.inspection.inspection import examine
from reapx.removal.remove import remove

FIRST = int(os.environ.get("REAPX_FUZZ_FROM", "0"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("REAPX_FUZZ", "60")))


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def check_pruned(seed: int) -> None:
    """Units of every group leave at random; a third of the networks is refitted as well."""
    model, shape = network(seed)
    rng, dtype = Random(seed), dtype_of(model)
    found = examine(model, torch.randn(8, *shape, dtype=dtype))
    removed = {
        group.name: torch.tensor(sorted(rng.sample(range(group.size), rng.randrange(group.size))), dtype=torch.int64)
        for group in found.groups
    }
    done = remove(model, found, removed, refit=None, damping=0.0, rectify=0, changed={})
    smaller = done.model.double()
    for count, size in ((3, shape), (5, (3, shape[1] + 4, shape[2] + 3))):
        images = torch.randn(count, *size, dtype=torch.float64)
        wanted = masked_outputs(model, done.kept, images)
        assert not bool(wanted.isnan().any()), "a removed channel reaches the outputs"
        with torch.no_grad():
            torch.testing.assert_close(smaller(images), wanted, rtol=1e-9, atol=1e-9)
    if seed % 3 == 0:
        refitted = remove(model, found, removed, refit="all", damping=1e-2, rectify=0, changed={})
        assert refitted.proof.gap < 1e-8


def check_compacted(seed: int) -> None:
    """Killed nodes leave, and the outputs are the same for images of any size and number."""
    model, shape = network(seed)
    kill(model, seed)
    dtype = dtype_of(model)
    done = reapx.zero_nodes(model, torch.randn(4, *shape, dtype=dtype)).remove()
    others = ((1, shape), (5, (3, shape[1] + 4, shape[2] + 3)), (2, (3, 2 * shape[1], 2 * shape[2])))
    assert_same(model, done.model, *(torch.randn(count, *size, dtype=dtype) for count, size in others))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", reapx.errors.CalibrationWarning)  # a few images are enough here
        (check_pruned if seed % 2 == 0 else check_compacted)(seed)
