"""Finding zero nodes and removing them: the two calls."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from ...errors import CompactionWarning, InputError
from ...groups.channel_groups import Group
from ...inspection.argument_checks import Layers
from ...inspection.inspection import examine
from ...inspection.validation import check_model
from .elimination import eliminate
from .node_sizes import dead_rows
from .random_inputs import example_of
from .zero_nodes import TOLERANCE, GroupNodes, ZeroNodes

RELATIVE = 1e-4
"""Default share of a layer's largest node up to which weights count as zero.

The largest power of ten at which outputs of the networks measured stayed the same to less than float32's own rounding:
few nodes lie between 1e-4 and 1e-2, the vanished ones below and the living above (``ZeroNodes.plot`` shows them).
"""


def zero_nodes(
    model: nn.Module,
    images: object = None,
    *,
    relative: float = RELATIVE,
    absolute: float = 0.0,
    exclude: Layers = (),
    memory: int | None = None,
) -> ZeroNodes:
    """Find the nodes of a network that compute nothing any more, however they died; nothing is touched.

    A node (a neuron, or an output channel of a convolution) can leave if all its incoming weights are zero, so that it
    hands on a constant; if a batch norm behind it scales by zero; if nobody reads it; or if it reads, or is read by,
    nothing but such nodes. A channel of a residual stream has to be dead in every layer that adds to it. Constants go
    into the biases of what reads them, or into the running mean of the norm behind. Where a convolution pads with
    zeros they are none at the border, so one of those nodes stays and stands for others of its group.

    Args:
        model: Module in eval mode.
        images: As for ``reapx.plan``, a few are enough. The result is checked on them, and MACs are those of their
            size. By default random ones of the first shape that the model takes, which the text then names.
        relative: Share of a layer's largest node up to which the weights of a node count as zero; the same for all
            weights that read a node. A node's size is its largest weight's magnitude, times the scale of the batch
            norm behind it.
        absolute: Size up to which they count as zero in any layer.
        exclude: Layer names, patterns (``"layer3.*"``) or modules whose output channels stay.
        memory: Bytes of the device's memory for images before they go to disk; as for ``reapx.plan``.

    Raises:
        InputError: a threshold is no number from 0, the images cannot be used, or the model is in train mode.
        CaptureError: torch.export refuses the model.
        BackendError: there are no kernels for the model's device.

    Source: A. Yaguchi et al., "Adam Induces Implicit Weight Sparsity in Rectifier Neural Networks", ICMLA 2018.
    """
    for name, value in (("relative", relative), ("absolute", absolute)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise InputError(f"{name}={value!r}: give a number from 0, such as 1e-4")
    check_model(model)
    guessed = example_of(model) if images is None else None
    images = images if guessed is None else guessed
    found = examine(model, images, exclude=exclude, memory=memory, measured=False)
    done = eliminate(found._graph, found._channels, found.droppable, relative, absolute)
    layers = found._channels.layers
    rows = {x.weight: dead_rows(*own) for x, own in zip(layers, zip(done.sizes, done.limits, strict=True), strict=True)}
    groups = [
        GroupNodes(x, _zero(x, rows), done.removed[x.name], done.constant[x.name], done.staying[x.name])
        for x in found.groups
    ]
    widths = {entry.group.name: entry.group.size - len(entry.removed) for entry in groups}
    names = [layer.name for layer in layers]
    return ZeroNodes(
        groups,
        (found.costs.macs(), found.costs.macs(widths)),
        (found.costs.params(), found.costs.params(widths)),
        {name: own.incoming for name, own in zip(names, done.sizes, strict=True)},
        {name: limit.incoming for name, limit in zip(names, done.limits, strict=True)},
        None if guessed is None else tuple(guessed.shape[1:]),
        model,
        found,
        done.changed,
    )


def _zero(group: Group, rows: dict[str, Tensor]) -> int:
    """Units whose incoming weights count as zero in every layer that produces them."""
    zero = [rows[x.weight][torch.from_numpy(group.cuts[x.weight, x.out_axis])].all(1) for x in group.producers]
    return int(torch.stack(zero).all(0).sum())


def compact(
    model: nn.Module,
    images: object = None,
    *,
    relative: float = RELATIVE,
    absolute: float = 0.0,
    exclude: Layers = (),
    tolerance: float = TOLERANCE,
    inplace: bool = False,
) -> nn.Module:
    """A smaller module with the same function: ``zero_nodes``, and their removal in one call.

    ``reapx.zero_nodes(model).remove()`` does the same and can tell more: what left, what stays and why; and it can
    save.

    Args:
        model: Module in eval mode; left as it is unless ``inplace``.
        images, relative, absolute, exclude: As for ``reapx.zero_nodes``.
        tolerance, inplace: As for ``ZeroNodes.remove``.

    Returns:
        The smaller module.

    Raises:
        InputError, CaptureError, BackendError: as ``reapx.zero_nodes``.
        ProofError: the smaller network differs by more than ``tolerance``; the model is as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
        >>> _ = nn.init.zeros_(model[0].weight[1].detach())  # node 1 is dead
        >>> compact(model)
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    nodes = zero_nodes(model, images, relative=relative, absolute=absolute, exclude=exclude)
    reasons = nodes.reasons()
    if reasons:
        warnings.warn("; ".join(reasons), CompactionWarning, stacklevel=2)
    return nodes.remove(tolerance=tolerance, inplace=inplace).model
