"""Dead nodes out of a network's tensors: each constant into the biases behind it, exactly or not at all.

A node is dead when what it hands on is the same for every image, or when nobody reads it. A constant through a
zero-padded convolution is no constant at the border, so no bias can stand for it; but all such constants of a group
have one shape, so that one of the nodes, the *carrier*, can stand for all the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...capture.graph import Graph
from ...capture.layers import Layer, differs_at_border, tail_of
from ...groups.channel_groups import Consumer, Group

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class ReadUnits:
    """What one consumer gets from each unit of a group; on the CPU, where it is judged.

    Attributes:
        consumer: The consumer.
        columns: (units, channels * taps) of the layer's weight matrix.
        constant: (units, channels) value at every position of every image; NaN where it varies.
        unread: (units,) whether all weights that read the unit are zero.
    """

    consumer: Consumer
    columns: Tensor
    constant: Tensor
    unread: Tensor

    @property
    def dead(self) -> Tensor:
        """(units,) whether the consumer's output is the same for all images, as far as it reads the unit."""
        return self.unread | ~self.constant.isnan().any(1)

    @property
    def silent(self) -> Tensor:
        """(units,) whether the consumer's output does not depend on the unit at all."""
        return self.unread | (self.constant == 0).all(1)


@dataclass(frozen=True)
class Verdict:
    """What can be done with a group's dead units.

    Attributes:
        removable: (count,) units that can leave.
        constant: How many of them hand a constant on, which goes elsewhere.
        carrier: Unit that stays and takes over the constants of others, or None.
        staying: Dead units that stay, the carrier among them -> why.
    """

    removable: Tensor
    constant: int
    carrier: int | None
    staying: dict[int, str]


def read(group: Group, tensors: Tensors, values: dict[torch.fx.Node, Tensor]) -> list[ReadUnits]:
    """What each consumer of a group gets, from values that are known to be the same for all images."""
    return [_reading(consumer, tensors, values[consumer.layer.input]) for consumer in group.consumers]


def _reading(consumer: Consumer, tensors: Tensors, value: Tensor) -> ReadUnits:
    layer, columns = consumer.layer, consumer.columns()
    flat = value.movedim(1 if layer.spatial else -1, 0).flatten(1).double()
    low, high = flat.amin(1), flat.amax(1)
    same = high - low <= 1e-6 * torch.maximum(low.abs(), high.abs())
    constant = torch.where(same, (low + high) / 2, torch.nan).cpu()
    width = len(constant) // layer.window.groups
    own = constant[consumer.conv_group * width : (consumer.conv_group + 1) * width][torch.from_numpy(consumer.channels)]
    matrix = layer.matrix(tensors[layer.weight])[consumer.conv_group]
    unread = (matrix == 0).all(0).cpu()[columns].all(1)
    return ReadUnits(consumer, columns, own, unread)


def judge(graph: Graph, group: Group, readings: Sequence[ReadUnits], gone: Tensor, droppable: bool) -> Verdict:
    """Which of a group's units can leave, and why others stay though they are dead.

    Args:
        gone: (count,) units that have left.
        droppable: Whether the group may leave as a whole.
    """
    dead = torch.stack([reading.dead for reading in readings]).all(0)
    dead[gone] = False
    stuck = torch.zeros_like(dead)
    reasons = []
    for reading in readings:
        reason = _why_not_foldable(graph, reading.consumer.layer)
        if reason is not None:
            stuck |= dead & ~reading.silent
            reasons.append((reading, reason))
    held = stuck.nonzero().flatten().tolist()
    staying: dict[int, str] = {}
    carrier = None
    if held:
        carrier = _carrier(held, [reading for reading, _ in reasons])
        for unit in held:
            if unit == carrier or not _stands_for(carrier, unit, [reading for reading, _ in reasons]):
                staying[unit] = next(reason for reading, reason in reasons if not reading.silent[unit])
    removable = dead.clone()
    removable[list(staying)] = False
    if not droppable and int(removable.sum()) + len(gone) == group.size:
        last = int(removable.nonzero()[0])
        removable[last], staying[last] = False, "it is the last of its group"
    silent = torch.stack([reading.silent for reading in readings]).all(0)
    constant = int((removable & ~silent).sum())
    return Verdict(removable.nonzero().flatten(), constant, carrier if len(held) > len(staying) else None, staying)


def _why_not_foldable(graph: Graph, layer: Layer) -> str | None:
    """Why a constant that a layer reads cannot go into a bias, or None."""
    if differs_at_border(layer.node, layer.taps):
        return f"its constant is none at the border of {layer.name}, which pads with zeros"
    if _constant_target(graph, layer) is None:
        return f"{layer.name} reads its constant and has neither a bias nor a batch norm behind it that can take it"
    return None


def _carrier(held: list[int], readings: Sequence[ReadUnits]) -> int:
    """The unit whose constants are largest where others need them."""
    scores = torch.full((len(held),), torch.inf, dtype=torch.float64)
    for reading in readings:
        sizes = torch.where(reading.unread[held, None], 0.0, reading.constant[held].abs())
        wanted = sizes.amax(0) > 0
        if bool(wanted.any()):
            scores = torch.minimum(scores, (sizes / sizes.amax(0))[:, wanted].amin(1))
    return held[int(scores.argmax())]


def _stands_for(carrier: int, unit: int, readings: Sequence[ReadUnits]) -> bool:
    return all(
        bool(reading.silent[unit])
        or bool(((reading.constant[unit] == 0) | (reading.constant[carrier].abs() > 0)).all())  # NaN is not
        for reading in readings
    )


def fold(graph: Graph, group: Group, readings: Sequence[ReadUnits], verdict: Verdict, tensors: Tensors) -> Tensors:
    """The tensors that change when the removable units leave; none of them is touched.

    Args:
        tensors: Qualified name -> parameter of the network.

    Returns:
        Qualified name -> weight, bias or running mean, of full size, float64, with zeros where the units were read.
    """
    changed: Tensors = {}
    gone = verdict.removable
    for reading in readings:
        layer, conv_group = reading.consumer.layer, reading.consumer.conv_group
        weight = changed.get(layer.weight, tensors[layer.weight])
        matrix = layer.matrix(weight).clone()
        own, columns = matrix[conv_group], reading.columns[gone]
        constant = torch.where(reading.silent[gone, None], 0.0, reading.constant[gone])
        spread = constant.repeat_interleave(layer.taps, 1)  # of every column
        if bool(constant.any()):
            if _why_not_foldable(graph, layer) is None:
                shift = own[:, columns.flatten()] @ spread.flatten().to(own.device)
                target = _constant_target(graph, layer)
                assert target is not None
                name, sign = target
                changed[name] = changed.get(name, tensors[name]).double().clone()
                changed[name][conv_group * len(shift) : (conv_group + 1) * len(shift)] += sign * shift
            else:
                assert verdict.carrier is not None
                base = reading.constant[verdict.carrier].repeat_interleave(layer.taps)
                ratios = torch.where(spread == 0, 0.0, spread / base)
                added = torch.einsum("ouc,uc->oc", own[:, columns], ratios.to(own.device))
                own[:, reading.columns[verdict.carrier]] += added
        own[:, columns.flatten()] = 0
        changed[layer.weight] = layer.weight_from(matrix, weight.double())
    return changed


def _constant_target(graph: Graph, layer: Layer) -> tuple[str, int] | None:
    """The bias that takes a layer's constant, and its sign there; or the running mean of the norm behind; or None.

    What forward() also returns as it is must not change.
    """
    returned = {graph.parameter_of(node) for node in graph.outputs}
    if layer.bias is not None and layer.bias not in returned:
        return layer.bias, 1
    norm = tail_of(graph, layer).norm
    mean = None if norm is None else graph.parameter_of(norm.args[3])
    return None if mean is None or mean in returned else (mean, -1)
