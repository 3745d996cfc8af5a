"""Folding: dead nodes leave a network's tensors, and their constants go into the consumers' biases, exactly.

A node is dead if its output is the same for every image, or if no weight reads it. A zero-padding convolution maps a
constant input to other values at the border than inside, so no bias can replace it. But the inputs of all constant
nodes of a group differ only by a factor there, so one node, the *carrier*, can replace the others: its weights are
increased by theirs, times the ratio of the constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...capture.graph import Graph
from ...capture.layers import Layer
from ...capture.tails import tail_of
from ...groups.channel_groups import Consumer, Group
from .known_values import differs_at_border

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class ReadUnits:
    """What one consumer reads of each unit of a group; all tensors are on the CPU.

    Attributes:
        consumer: The consumer.
        columns: (units, channels * taps) int64, columns of the layer's weight matrix.
        constant: (units, channels) float64, the value at every position of every image; NaN where it varies.
        unread: (units,) bool, whether all weights that read the unit are zero.
    """

    consumer: Consumer
    columns: Tensor
    constant: Tensor
    unread: Tensor

    @property
    def dead(self) -> Tensor:
        """(units,) bool: whether the unit's contribution to the consumer is the same for all images."""
        return self.unread | ~self.constant.isnan().any(1)

    @property
    def silent(self) -> Tensor:
        """(units,) bool: whether the unit contributes nothing to the consumer's output."""
        return self.unread | (self.constant == 0).all(1)


@dataclass(frozen=True)
class Verdict:
    """Decision on a group's dead units.

    Attributes:
        removable: (count,) int64 units that can leave.
        constant: Number of these units that output a nonzero constant, which is folded into a bias or the carrier.
        carrier: The unit that stays and replaces other constant units, or None.
        staying: Dead unit that stays (the carrier is one) -> why.
    """

    removable: Tensor
    constant: int
    carrier: int | None
    staying: dict[int, str]


def read(group: Group, tensors: Tensors, constants: Mapping[torch.fx.Node, Tensor]) -> list[ReadUnits]:
    """What each consumer of a group reads of its units.

    Args:
        group: The group.
        tensors: Qualified name -> parameter.
        constants: Node of each consumer's layer -> the constants that it reads; see ``known_constants``.
    """
    return [_reading(consumer, tensors, constants[consumer.layer.node]) for consumer in group.consumers]


def _reading(consumer: Consumer, tensors: Tensors, constant: Tensor) -> ReadUnits:
    layer, columns = consumer.layer, consumer.columns()
    width = len(constant) // layer.window.groups
    own = constant[consumer.conv_group * width : (consumer.conv_group + 1) * width][torch.from_numpy(consumer.channels)]
    matrix = layer.matrix(tensors[layer.weight])[consumer.conv_group]
    unread = (matrix == 0).all(0).cpu()[columns].all(1)
    return ReadUnits(consumer, columns, own, unread)


def judge(graph: Graph, group: Group, readings: Sequence[ReadUnits], gone: Tensor, droppable: bool) -> Verdict:
    """Decide which of a group's dead units can leave, and why the others stay.

    Args:
        graph: The captured network.
        group: The group.
        readings: What each consumer reads of its units.
        gone: (count,) int64 units that were removed in earlier rounds.
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
    """Why a constant that a layer reads cannot be folded into a bias; None if it can."""
    if differs_at_border(layer.node, layer.taps):
        return f"its constant is not constant at the border of {layer.name}, which pads with zeros"
    if _constant_target(graph, layer) is None:
        return f"{layer.name} reads its constant and has neither a bias nor a batch norm behind it that can take it"
    return None


def _carrier(held: list[int], readings: Sequence[ReadUnits]) -> int:
    """The best carrier among some units: the one with the largest constants where the others have constants."""
    scores = torch.full((len(held),), torch.inf, dtype=torch.float64)
    for reading in readings:
        sizes = torch.where(reading.unread[held, None], 0.0, reading.constant[held].abs())
        wanted = sizes.amax(0) > 0
        if bool(wanted.any()):
            scores = torch.minimum(scores, (sizes / sizes.amax(0))[:, wanted].amin(1))
    return held[int(scores.argmax())]


def _stands_for(carrier: int, unit: int, readings: Sequence[ReadUnits]) -> bool:
    """Whether a carrier can replace a unit: it has a nonzero constant wherever the unit has one."""
    return all(
        bool(reading.silent[unit])
        or bool(((reading.constant[unit] == 0) | (reading.constant[carrier].abs() > 0)).all())  # False for NaN
        for reading in readings
    )


def fold(graph: Graph, group: Group, readings: Sequence[ReadUnits], verdict: Verdict, tensors: Tensors) -> Tensors:
    """The tensors that change when the removable units leave, as new tensors.

    Args:
        graph: The captured network.
        group: The group.
        readings: What each consumer reads of its units.
        verdict: The decision on its dead units.
        tensors: Qualified name -> parameter of the network; not changed.

    Returns:
        Qualified name -> float64 weight, bias or running mean of full size, with zeros where the units were read.
    """
    changed: Tensors = {}
    gone = verdict.removable
    for reading in readings:
        layer, conv_group = reading.consumer.layer, reading.consumer.conv_group
        weight = changed.get(layer.weight, tensors[layer.weight])
        matrix = layer.matrix(weight).clone()
        own, columns = matrix[conv_group], reading.columns[gone]
        constant = torch.where(reading.silent[gone, None], 0.0, reading.constant[gone])
        spread = constant.repeat_interleave(layer.taps, 1)  # the constant of every column
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
    """The tensor that takes a layer's constant, and the sign: its bias (+1), or the running mean behind it (-1).

    None if there is neither, or if forward() also returns the tensor itself, which must not change then.
    """
    returned = {graph.parameter_of(node) for node in graph.outputs}
    if layer.bias is not None and layer.bias not in returned:
        return layer.bias, 1
    norm = tail_of(graph, layer).norm
    mean = None if norm is None else graph.parameter_of(norm.args[3])
    return None if mean is None or mean in returned else (mean, -1)
