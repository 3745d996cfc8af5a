"""Head axes: along which axis of a reshape attention heads run.

A reshape such as (batch, positions, 3 * heads * size) -> (batch, positions, 3, heads, size) splits the channels into
several axes, and only one of them can be pruned. Which one it is shows later, where attention takes the heads for a
batch axis. So a first pass gives every new axis of every such reshape channels of its own, and looks which of them
arrive there.
"""

from __future__ import annotations

from bisect import bisect_right

from torch.fx import Node

from ..capture.graph import Graph, arguments, operator_name
from .propagation import Propagation
from .rules.analysis_state import NodeLayout
from .rules.attention_rules import ATTENTION, PRODUCTS
from .rules.channel_table import Channels, Layout, repeated, reshape_runs
from .rules.operator_rules import RESHAPES

_OPERANDS = {ATTENTION: ("query", "key", "value"), **PRODUCTS}
"""Operators that take heads for a batch axis -> the names of the operands that have them."""


def find_head_axes(graph: Graph) -> dict[Node, frozenset[int]]:
    """Reshape -> the axes of its result that arrive at attention as heads."""
    if not any(operator_name(node) in _OPERANDS for node in graph.nodes):
        return {}
    found: dict[Node, set[int]] = {}
    for node, axis in _Search(graph).arrived:
        found.setdefault(node, set()).add(axis)
    return {node: frozenset(axes) for node, axes in found.items()}


class _Search(Propagation):
    """A pass in which every axis of a split has channels of its own.

    Attributes:
        arrived: (reshape, axis of its result), for each that arrives at attention as heads.
    """

    def __init__(self, graph: Graph) -> None:
        self.arrived: set[tuple[Node, int]] = set()
        self._starts: list[int] = []
        self._owners: list[tuple[Node, int, int]] = []
        super().__init__(graph)

    def _apply(self, node: Node) -> NodeLayout:
        name = operator_name(node)
        if name in RESHAPES:
            return self._reshaped(node)
        for operand in _OPERANDS.get(name, ()):
            argument = arguments(node)[operand]
            layout = self.layout(argument) if isinstance(argument, Node) else []
            if len(layout) > 3 and layout[-3] is not None:
                self._arrive(layout[-3])
        return super()._apply(node)

    def _reshaped(self, node: Node) -> Layout:
        source = node.all_input_nodes[0]
        layout, old, new = self.layout(source), self.graph.shape(source), self.graph.shape(node)
        result: Layout = [None] * len(new)
        if 0 in old:
            return result
        for before, after in reshape_runs(old, new):
            long = [axis for axis in after if new[axis] > 1]
            tracked = [axis for axis in before if layout[axis] is not None]
            if len(long) > 1:
                for axis in long:
                    result[axis] = self._fresh(node, axis, new[axis])
            elif len(long) == 1 and len(tracked) == 1:
                result[long[0]] = repeated(layout, tracked[0], before, old)
        return result

    def _fresh(self, node: Node, axis: int, size: int) -> Channels:
        channels = self.table.fresh(size)
        self._starts.append(int(channels[0]))
        self._owners.append((node, axis, size))
        return channels

    def _arrive(self, channels: Channels) -> None:
        for channel in {int(channels[0]), int(channels[-1])}:
            place = bisect_right(self._starts, channel) - 1
            if place >= 0 and channel < self._starts[place] + self._owners[place][2]:
                self.arrived.add(self._owners[place][:2])
