"""Errors at the network's outputs when some of its tensors are replaced.

Only what depends on the replaced tensors is run again, from values of the first run that are kept for one batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node
from tqdm import tqdm

from ..graph import Graph, evaluate, operator_name, run
from ..images import Images, TensorStore

OUTPUT_ERRORS = ("squared", "kl")
_SOFTMAX = ("softmax", "_softmax", "log_softmax", "_log_softmax")


def scored_outputs(graph: Graph) -> list[Node]:
    """The nodes whose values are compared: floating-point outputs, before a softmax."""
    found = []
    for node in graph.outputs:
        while operator_name(node) in _SOFTMAX:
            source = node.args[0]
            assert isinstance(source, Node)
            node = source
        if node.meta["val"].is_floating_point():
            found.append(node)
    return found


class _Suffix:
    """What has to be run when some tensors change: the nodes, and the values that they start from."""

    def __init__(self, graph: Graph, names: set[str], outputs: Sequence[Node]) -> None:
        changed = {node for node, name in graph.parameters.items() if name in names}
        below = []
        for node in graph.nodes:
            if not changed.isdisjoint(node.all_input_nodes):
                changed.add(node)
                below.append(node)
        above = _ancestors(outputs)
        self.nodes = [node for node in below if node in above]
        self.outputs = [node for node in outputs if node in changed]
        inside = set(self.nodes)
        read = {argument for node in self.nodes for argument in node.all_input_nodes}
        self.frontier = {node for node in read if node.op == "call_function"} - inside
        last = {argument: node for node in self.nodes for argument in node.all_input_nodes}
        self._spent: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for argument, node in last.items():
            if argument in inside and argument not in outputs:
                self._spent[node].append(argument)

    def run(self, values: dict[Node, object]) -> dict[Node, Tensor]:
        """The changed outputs; ``values`` holds parameters, inputs and frontier, and is used up."""
        for node in self.nodes:
            values[node] = evaluate(node, values.__getitem__)
            for argument in self._spent[node]:
                del values[argument]
        return {node: values[node] for node in self.outputs}  # type: ignore[misc]


def _ancestors(nodes: Sequence[Node]) -> set[Node]:
    found: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def output_errors(
    graph: Graph,
    images: Images,
    edits: Sequence[Mapping[str, Tensor]],
    *,
    base: Mapping[str, Tensor] | None = None,
    measure: str = "squared",
    progress: bool = False,
) -> list[float]:
    """How far replaced tensors move the outputs.

    Args:
        graph: The original network; its own tensors make the outputs that all are compared with.
        images: All of them are run.
        edits: Each: qualified name -> tensor, in place of the base's.
        base: Qualified name -> tensor, in place of the network's in every edit.
        measure: ``"squared"``: squared difference, as a share of the variance of the original's outputs; ``"kl"``:
            Kullback-Leibler divergence from the original's softmax over axis 1, in nats. Outputs are taken
            before a softmax; several are averaged.

    Returns:
        The error of each edit.
    """
    outputs = scored_outputs(graph)
    tensors = {**graph.tensors, **(base or {})}
    suffixes = [_Suffix(graph, set(edit), outputs) for edit in edits]
    wanted = set(outputs).union(*(suffix.frontier for suffix in suffixes))
    sums = _Sums(len(outputs), len(edits), measure)
    for batch in tqdm(range(len(images)), "measuring outputs", unit="batch", leave=False, disable=not progress):
        inputs = images[batch]
        kept = _kept_values(graph, inputs, tensors, wanted, images.memory // 2)
        original = kept if base is None else _kept_values(graph, inputs, graph.tensors, set(outputs), math.inf)
        references = [original.get(node) for node in outputs]
        for edit, suffix in enumerate(suffixes):
            values = _placeholders(graph, inputs, {**tensors, **edits[edit]})
            values.update({node: kept.get(node) for node in suffix.frontier})
            with torch.no_grad():
                changed = suffix.run(values)
            for output, node in enumerate(outputs):
                value = changed[node] if node in changed else kept.get(node)
                sums.add(output, edit, value, references[output])
        sums.end_batch(references)
        kept.close()
    return sums.shares()


def _placeholders(graph: Graph, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> dict[Node, object]:
    values: dict[Node, object] = {node: tensors[name] for node, name in graph.parameters.items()}
    values.update(zip(graph.inputs, inputs, strict=True))
    return values


def _kept_values(
    graph: Graph, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor], wanted: set[Node], memory: float
) -> TensorStore:
    """The values of some nodes for one batch; beyond ``memory`` bytes, on disk."""
    store = TensorStore(memory)

    def visit(node: Node, _: Mapping[Node, object], value: object) -> None:
        if node in wanted:
            store.put(node, value)

    run(graph, inputs, tensors, visit)
    return store


class _Sums:
    """Errors of each edit at each output, added up over batches, and what they are shares of."""

    def __init__(self, outputs: int, edits: int, measure: str) -> None:
        self._measure = measure
        self._images = 0
        self._errors = torch.zeros(outputs, edits, dtype=torch.float64)
        self._squares = torch.zeros(outputs, dtype=torch.float64)
        self._totals: list[Tensor] = []

    def add(self, output: int, edit: int, value: Tensor, reference: Tensor) -> None:
        """Add one edit's output of one batch."""
        value, reference = value.double(), reference.double()
        if self._measure == "kl":
            expected, found = reference.log_softmax(1), value.log_softmax(1)
            error = (expected.exp() * (expected - found)).sum() * (reference.shape[1] / max(reference[0].numel(), 1))
        else:
            error = (value - reference).square().sum()
        self._errors[output, edit] += float(error)

    def end_batch(self, references: Sequence[Tensor]) -> None:
        """Add the original's outputs of one batch."""
        self._images += len(references[0])
        totals = [reference.double().sum(0) for reference in references]
        self._totals = [a + b for a, b in zip(self._totals, totals, strict=True)] if self._totals else totals
        self._squares += torch.stack([reference.double().square().sum() for reference in references])

    def shares(self) -> list[float]:
        """The error of each edit, averaged over outputs."""
        if self._measure == "kl":
            return (self._errors / self._images).mean(0).tolist()
        means = torch.stack([total.square().sum() / self._images for total in self._totals])
        variance = (self._squares - means).clamp(min=1e-300)
        return (self._errors / variance[:, None]).mean(0).tolist()
