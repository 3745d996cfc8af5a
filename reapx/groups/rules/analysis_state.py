"""The state of the channel analysis: the layouts of all values so far, and the channel table."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.fx import Node

from ...capture.graph import Graph
from .channel_table import Channels, ChannelTable, Layout

NodeLayout = Layout | tuple[Layout, ...]
"""Layout of a node's value; a tuple of layouts where the node returns several values."""


class AnalysisState:
    """State of one pass over a graph.

    Attributes:
        graph: The captured network.
        table: All channels: which are joined, and which are frozen.
        parameters: Qualified name -> layout of that parameter.
        layouts: Node -> layout of its value.
        origins: Node -> the layers and model inputs that its value is computed from without a layer in between.
        head_axes: Reshape -> the axes of its result along which attention heads run.
        attention: Attention operators, each with the channels of its head axis.
    """

    def __init__(self, graph: Graph, head_axes: Mapping[Node, frozenset[int]] | None = None) -> None:
        self.graph = graph
        self.table = ChannelTable()
        self.parameters: dict[str, Layout] = {}
        self.layouts: dict[Node, NodeLayout] = {}
        self.origins: dict[Node, frozenset[Node]] = {}
        self.head_axes = head_axes or {}
        self.attention: list[tuple[Node, Channels]] = []

    def layout(self, node: Node) -> Layout:
        """Layout of a node's value; of the first value where the node returns several."""
        found = self.layouts[node]
        return found[0] if isinstance(found, tuple) else found

    def layout_at(self, node: Node, index: int) -> Layout:
        """Layout of one of the several values that a node returns."""
        found = self.layouts[node]
        return found[index] if isinstance(found, tuple) else []

    def trace(self, node: Node, starts: bool) -> None:
        """Note a node's origins: itself, if values start there, or those of what it reads."""
        read = [self.origins[x] for x in node.all_input_nodes if x in self.graph.varying]
        self.origins[node] = frozenset([node]) if starts else frozenset().union(*read)

    def untracked(self, node: Node) -> NodeLayout:
        """Layout of a node's value that carries no channels: None for each axis."""
        value = node.meta.get("val")
        if isinstance(value, list | tuple):
            return tuple([None] * getattr(item, "ndim", 0) for item in value)
        return [None] * value.ndim if isinstance(value, Tensor) else []

    def freeze_inputs(self, node: Node, reason: str) -> NodeLayout:
        """Freeze all inputs of an operator; its result carries no channels."""
        for argument in node.all_input_nodes:
            self.freeze(argument, reason)
        return self.untracked(node)

    def freeze(self, node: Node, reason: str) -> None:
        """Freeze every axis of a node's value."""
        found = self.layouts[node]
        for layout in found if isinstance(found, tuple) else (found,):
            self.table.freeze_layout(layout, reason)
