"""Propagation: one pass over a graph that assigns channels to every axis of every tensor.

An operator without an operator rule freezes all axes of its inputs; no operator is assumed to act elementwise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor
from torch.fx import Node

from ..capture.exporting.recurrent import RECURRENT
from ..capture.exporting.user_code import line_of_node
from ..capture.graph import Graph, operator_name
from ..capture.layers import LAYERS, Layer, can_refit, describe, name_of
from .rules.analysis_state import AnalysisState, NodeLayout
from .rules.channel_table import Channels, Layout
from .rules.operator_rules import SKIPPED, rule_of

WRITES = frozenset("diagonal_scatter index_copy index_fill".split())
"""Operators that an assignment such as ``x[:, :4] = y`` becomes, which the user did not write."""


class Propagation(AnalysisState):
    """The channel analysis of one graph.

    Args:
        graph: The captured network.
        head_axes: Reshape -> the axes of its result along which attention heads run.
        several_calls: Whether layers that are called several times may lose channels.

    Attributes:
        layers: Convolutions and linear layers that reapx can describe.
        refused: (name, output channels, reason) of the other convolutions and linear layers.
    """

    def __init__(
        self, graph: Graph, head_axes: Mapping[Node, frozenset[int]] | None = None, *, several_calls: bool = True
    ) -> None:
        super().__init__(graph, head_axes)
        self.layers: list[Layer] = []
        self.refused: list[tuple[str, int, str]] = []
        for name, tensor in graph.tensors.items():
            layout: Layout = [self.table.fresh(size) if size > 1 else None for size in tensor.shape]
            self.parameters[name] = layout
            if name in graph.constants:
                self.table.freeze_layout(layout, "it meets a tensor that is a literal in forward()")
        self._freeze_shared(several_calls)
        for node in graph.inputs:
            self.layouts[node] = self.untracked(node)
            self.trace(node, starts=True)
        for node, name in graph.parameters.items():
            self.layouts[node] = self.parameters[name]
        for node in graph.nodes:
            self.trace(node, starts=operator_name(node) in LAYERS)
            self.layouts[node] = self._apply(node)
        for node in graph.outputs:
            self.freeze(node, "it is an output of the model")

    def _freeze_shared(self, several_calls: bool) -> None:
        graph = self.graph
        for name, users in graph.shared.items():
            known = graph.aliases(name) if several_calls else [name] if name not in graph.tied else []
            vector = sum(size > 1 for size in graph.tensors[name].shape) < 2
            if known and (vector or (several_calls and self._refitted(name))):
                continue  # what reads it is coupled by it; nobody refits it, or one layer for all its calls
            reason = f"{users} share the parameter {name}: refitting it for one would break the other"
            self.table.freeze_layout(self.parameters[name], reason)

    def _refitted(self, name: str) -> bool:
        """Whether a matrix is the weight of a layer whose calls are all that reads it, or nothing reads it."""
        readers = self.graph.readers(name)
        layers = [describe(self.graph, node) for node in readers]
        return all(isinstance(x, Layer) and x.weight == name and can_refit(self.graph, x) for x in layers)

    def _apply(self, node: Node) -> NodeLayout:
        name = operator_name(node)
        if name in SKIPPED or not isinstance(node.meta.get("val"), Tensor | list | tuple):
            return []  # sizes and checks of sizes carry no channels
        layer = describe(self.graph, node)
        if isinstance(layer, Layer):
            return self._layer(node, layer)
        producer = describe(self.graph, node, computed_bias=True)
        if isinstance(layer, str) and isinstance(producer, Layer):
            return self._only_producer(node, producer, layer)
        if isinstance(layer, str):
            channels = self.graph.shape(node)[-1 if name == "linear" else 1]
            self.refused.append((name_of(self.graph, node), channels, layer))
            return self.freeze_inputs(node, layer)
        rule = rule_of(name)
        self.table.line = line_of_node(node)
        try:
            if rule is not None:
                return rule(self, node)
            if node.target in RECURRENT:
                return self.freeze_inputs(node, "hidden sizes of recurrent layers stay")
            if name in WRITES:
                return self.freeze_inputs(node, "forward() writes into a part of a tensor")
            return self.freeze_inputs(node, f"operator {name} is not known to act per channel")
        finally:
            self.table.line = None

    def _only_producer(self, node: Node, layer: Layer, reason: str) -> Layout:
        """A layer whose bias forward() computes: it is not refitted, so its inputs stay; its outputs may leave."""
        self.freeze(layer.input, reason)
        bias = self.layout(node.args[2])[0]  # type: ignore[arg-type]
        if bias is None:
            self.freeze(node.args[1], reason)  # type: ignore[arg-type]
        result = self._layer(node, layer)
        outputs = self.parameters[layer.weight][layer.out_axis]
        if bias is not None and outputs is not None:
            self.table.join(outputs, bias)
        return result

    def _layer(self, node: Node, layer: Layer) -> Layout:
        self.layers.append(layer)
        source = self.layout(layer.input)
        axis = len(source) - 1 - layer.spatial
        outputs = self._layer_channels(layer, source[axis])
        others = [k for k in range(len(source)) if k != axis]
        self.table.freeze_layout(source, f"{layer.name} does not read its channels there", others)
        if layer.bias is not None and outputs is not None:
            bias = self.parameters[layer.bias][0]
            if bias is not None:
                self.table.join(outputs, bias)
        result: Layout = [None] * len(self.graph.shape(node))
        result[axis] = outputs
        return result

    def _layer_channels(self, layer: Layer, inputs: Channels | None) -> Channels | None:
        weight, groups = self.parameters[layer.weight], layer.window.groups
        inner, outer = weight[layer.in_axis], weight[layer.out_axis]
        fixed = "these are the model's input channels or of a fixed number"
        if layer.kind == "transposed" and groups > 1 and inner is not None:
            for channels in (inputs, inner, outer):
                if channels is not None:
                    self.table.freeze(channels, f"{layer.name} is a grouped transposed convolution")
            return None
        if inner is None and groups > 1 and outer is not None:  # depthwise
            if inputs is None:
                self.table.freeze(outer, fixed)
            else:  # output c * multiplier + m reads input c only
                self.table.join(outer, np.repeat(inputs, len(outer) // groups))
            return outer
        if groups > 1 and outer is not None:  # every conv group loses the same outputs
            for part in outer.reshape(groups, -1)[1:]:
                self.table.join(outer[: len(part)], part)
        if inner is not None and inputs is None:
            self.table.freeze(inner, fixed)
        elif inner is not None and inputs is not None:  # and the same inputs
            for part in inputs.reshape(groups, -1):
                self.table.join(inner, part)
        elif inputs is not None:
            self.table.freeze(inputs, f"{layer.name} reads a single channel")
        return outer
