"""The two public calls: find zero nodes, and remove them."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from ...capture.precision import plain_mode
from ...errors import CompactionWarning, InputError
from ...groups.channel_groups import Group
from ...inspection.argument_checks import Layers, check_arguments
from ...inspection.inspection import examine
from ...inspection.model_checks import check_model
from .elimination import eliminate
from .node_sizes import dead_rows
from .random_inputs import example_of
from .views import views_of
from .zero_nodes import TOLERANCE, GroupNodes, ZeroNodes

RELATIVE = 1e-4
"""Default share of a layer's largest node size up to which a node's weights count as zero.

It is the largest power of ten at which the outputs of all measured networks changed by less than float32 rounding. Few
nodes lie between 1e-4 and 1e-2: vanished nodes lie below, living ones above (``ZeroNodes.plot`` shows them).
"""


@plain_mode()
def zero_nodes(
    model: nn.Module,
    images: object = None,
    *,
    relative: float = RELATIVE,
    absolute: float = 0.0,
    exclude: Layers = (),
    memory: int | None = None,
) -> ZeroNodes:
    """Find the nodes of a network that compute nothing any more; the model is not changed.

    A node is a neuron, or an output channel of a convolution. It can leave if all its incoming weights are zero, since
    its output is then a constant; if a batch norm behind it scales by zero; if no layer reads it; or if it reads only
    such nodes, or is read only by them. A channel of a residual stream must be dead in every layer that adds to it. A
    constant is folded into the consumer's bias, or into the running mean of the norm behind the consumer. A
    zero-padding convolution sees a constant that is not constant at the border. There, one such node of the group stays
    and stands for the others.

    Args:
        model: Module in eval mode.
        images: A tensor (images, ...) or an iterable of batches, as for ``reapx.plan``; a few are enough. The result is
            checked on them, and MACs are counted at their size. By default, random images of the first shape on which
            the model runs; the printed text names this shape.
        relative: Share of a layer's largest node size up to which the incoming weights of a node count as zero. The
            same share holds for the weights that read a node. A node's size is the largest magnitude of its incoming
            weights, times the scale of the batch norm behind it.
        absolute: Size up to which weights count as zero in every layer.
        exclude: Layer names, patterns (``"layer3.*"``) or modules whose output channels stay.
        memory: Bytes of the device's memory for images before they move to disk, as for ``reapx.plan``.

    Returns:
        The nodes that can leave, and the dead nodes that stay, for each channel group.

    Raises:
        InputError: a threshold is not a finite number from 0, images cannot be used, the model is in train mode or runs
            on no random images that were tried, or a pattern in ``exclude`` matches no layer.
        CaptureError: torch.export refuses the model, or the model fixes its batch size.
        NumericalError: the model's output is NaN.
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
    layers = found._channels.layers
    views = views_of(model, found._graph, layers, found._images)
    done = eliminate(views, found._channels, found.droppable, relative, absolute)
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
    """Number of units whose incoming weights count as zero in every producer."""
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
    """Remove the zero nodes of a network: ``zero_nodes`` and ``ZeroNodes.remove`` in one call.

    ``reapx.zero_nodes(model).remove()`` does the same, and also tells which nodes were removed and which stay and why;
    its result can be saved.

    Args:
        model: Module in eval mode; unchanged unless ``inplace``.
        images, relative, absolute, exclude: As for ``reapx.zero_nodes``.
        tolerance: Largest difference from the model's outputs, as a share of the largest output.
        inplace: Whether to change the given model instead of a copy; its parameters are then new objects.

    Returns:
        The smaller module. A CompactionWarning names dead nodes that stay, and why.

    Raises:
        InputError: a threshold or the tolerance is not a number from 0, images cannot be used, the model is in train
            mode, or a pattern in ``exclude`` matches no layer.
        CaptureError: torch.export refuses the model, or the model fixes its batch size.
        NumericalError: the model's output is NaN.
        BackendError: there are no kernels for the model's device.
        ProofError: the smaller network differs by more than ``tolerance``; the model is unchanged.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
        >>> _ = nn.init.zeros_(model[0].weight[1].detach())  # node 1 is dead
        >>> compact(model)
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    check_arguments(inplace=inplace)
    nodes = zero_nodes(model, images, relative=relative, absolute=absolute, exclude=exclude)
    reasons = nodes.reasons()
    if reasons:
        warnings.warn("; ".join(reasons), CompactionWarning, stacklevel=2)
    return nodes.remove(tolerance=tolerance, inplace=inplace).model
