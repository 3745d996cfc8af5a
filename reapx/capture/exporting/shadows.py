"""Shadows: copies of a network's modules that hold the network's own tensors."""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn


def shadow(model: nn.Module) -> nn.Module:
    """A copy of a network's modules that holds the same tensors, to be changed instead of the network.

    Assignments to the copy give it its own tensors. Nothing may write into the tensors that it shares.
    """
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
