"""Parameters that only training uses, such as those of auxiliary heads, and the modules that use them."""

from __future__ import annotations

import copy

from torch import nn

from .graph import Graph

_EVALUATING = (
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
    nn.modules.rnn.RNNBase,
)
"""What they compute in train mode is random or moves their statistics; it reads no other parameters."""


def idle_parameters(graph: Graph) -> set[str]:
    """Qualified names of the parameters that no operator of a captured network reads."""
    return {name for name in graph.parameters.values() if name in graph.trained and not graph.readers(name)}


def training_copy(model: nn.Module) -> nn.Module:
    """A copy in which the user's own modules are in train mode; norms, dropout and all of PyTorch's are not."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        own = not type(module).__module__.startswith("torch.")
        module.training = own and not isinstance(module, _EVALUATING)
    return copied
