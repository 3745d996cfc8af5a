"""Value streams: a network's values for all images, advanced node by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Node

from ..calibration.images import Images
from ..calibration.store import TensorStore
from ..capture.execution import evaluate, last_reads
from ..capture.graph import Graph
from ..capture.precision import exact


class ValueStream:
    """A network's values for all images, advanced in steps; values that no later step needs are freed.

    Attributes:
        graph: The captured network.
        tensors: Qualified name -> parameter. The caller replaces entries between steps.
        images: The calibration images.
        wanted: Node -> number of future calls of ``advance`` that have it among their targets.
    """

    def __init__(self, graph: Graph, tensors: dict[str, Tensor], images: Images, memory: int) -> None:
        """``memory`` is what values may take in bytes before they go to disk."""
        self.graph = graph
        self.tensors = tensors
        self.images = images
        self._store = TensorStore(memory)
        self._sizes: dict[tuple[Node, int], object] = {}  # values that are no tensors: numbers
        self._held: set[Node] = set()
        self._done: set[Node] = set()
        self.wanted: Counter[Node] = Counter()

    def advance(self, targets: list[Node]) -> Iterator[list[Tensor]]:
        """Compute and yield the targets' values, one list for each batch; the counts in ``wanted`` fall by one.

        The iterator must be read to its end: only then is the frontier of stored values complete.
        """
        todo = self._missing(targets)
        self._done.update(todo)
        self.wanted.subtract(targets)
        reached = self._held | set(todo) | set(self.graph.inputs)
        keep = {node for node in reached if self._is_needed(node)} - set(self.graph.inputs)
        keep = {n for n in keep if not isinstance(n.meta.get("val"), list | tuple)}
        last_read = last_reads(todo, keep.union(targets))
        fixed = {node: self.tensors[name] for node, name in self.graph.parameters.items()}
        for batch in range(len(self.images)):
            values: dict[Node, object] = dict(fixed)
            values.update(zip(self.graph.inputs, self.images[batch], strict=True))
            for node in self._held:
                values[node] = self._load(node, batch)
            with torch.no_grad(), exact():
                for node in todo:
                    values[node] = evaluate(node, values.__getitem__)
                    for spent in last_read[node]:
                        del values[spent]
            for node in self._held - keep:
                self._store.drop((node, batch))
            for node in keep - self._held:
                self._save(node, batch, values[node])
            yield [values[node] for node in targets]  # type: ignore[misc]
        self._held = keep

    def _load(self, node: Node, batch: int) -> object:
        if (node, batch) in self._sizes:
            return self._sizes[node, batch]
        return self._store.get((node, batch))

    def _save(self, node: Node, batch: int, value: object) -> None:
        if isinstance(value, Tensor):
            self._store.put((node, batch), value)
        elif isinstance(value, int | float):
            self._sizes[node, batch] = value

    def _is_needed(self, node: Node) -> bool:
        return self.wanted[node] > 0 or any(user not in self._done for user in self.graph.users.get(node, ()))

    def _missing(self, targets: list[Node]) -> list[Node]:
        """Nodes that must be evaluated for the targets, in execution order."""
        found: set[Node] = set()
        stack = list(targets)
        while stack:
            node = stack.pop()
            if node.op == "placeholder" or node in self._held or node in found:
                continue
            found.add(node)
            stack.extend(node.all_input_nodes)
            if isinstance(node.meta.get("val"), list | tuple):  # the items of a tuple are stored, not the tuple
                stack.extend(self.graph.users.get(node, ()))
        return sorted(found, key=lambda node: int(node.meta["order"]))

    def close(self) -> None:
        """Free memory and temporary files."""
        self._store.close()
