"""Errors at the network's outputs when some of its tensors are replaced.

For each replacement only the nodes that depend on it are run, from values that a first run of the batch has stored.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.fx import Node

from ..calibration.checkpoint import Checkpoint, digest_of
from ..calibration.images import Images
from ..calibration.progress import SILENT, Progress
from ..calibration.sample import Sample
from ..calibration.store import TensorStore
from ..capture.dependence import ancestors
from ..capture.execution import evaluate, last_reads, run
from ..capture.graph import Graph, is_dynamic, operator_name
from ..capture.precision import exact
from ..errors import InputError

OutputError = Literal["squared", "kl"]
"""What an error at the outputs is."""

OUTPUT_ERRORS: tuple[OutputError, ...] = get_args(OutputError)
_SOFTMAX = ("softmax", "_softmax", "log_softmax", "_log_softmax")


def scored_outputs(graph: Graph, measure: str = "squared") -> list[Node]:
    """The nodes whose values are compared: floating-point outputs with values for each image, before a softmax.

    Args:
        graph: The captured network.
        measure: ``"squared"`` or ``"kl"``.

    Raises:
        InputError: there is no such output, or an output has no classes for ``"kl"``.
    """
    found = []
    for node in graph.outputs:
        while operator_name(node) in _SOFTMAX:
            source = node.args[0]
            assert isinstance(source, Node)
            node = source
        if node.op == "call_function" and node.meta["val"].is_floating_point() and _image_axis(node) is not None:
            found.append(node)
    if not found:
        raise InputError(
            "the model has no floating-point output with values for each image, so that pruning cannot be measured "
            "there: plan with allocation='uniform', or let forward() return its scores"
        )
    for shape in (graph.shape(node) for node in found):
        if measure == "kl" and (len(shape) < 2 or shape[_class_axis(len(shape))] < 2):
            raise InputError(
                f"output_error='kl' compares classes, the model puts out shape (images, "
                f"{', '.join(map(str, shape[1:]))}): use 'squared'"
            )
    return list(dict.fromkeys(found))


def _class_axis(dimensions: int) -> int:
    """The axis of classes: the last one of (images, tokens, classes), else the second."""
    return 2 if dimensions == 3 else 1


def _image_axis(node: Node) -> int | None:
    """The axis of a value whose size depends on the number of images; None unless there is exactly one."""
    axes = [axis for axis, size in enumerate(node.meta["val"].shape) if is_dynamic(size)]
    return axes[0] if len(axes) == 1 else None


def _image_shape(graph: Graph, node: Node) -> tuple[int, ...]:
    """Shape of a value for one image."""
    axis = _image_axis(node)
    return tuple(size for other, size in enumerate(graph.shape(node)) if other != axis)


class _Suffix:
    """The part of a network that must be run when some tensors change.

    Attributes:
        nodes: Nodes to run, in execution order.
        outputs: Outputs that change.
        frontier: Nodes before this part whose values it reads.
    """

    def __init__(self, graph: Graph, names: set[str], outputs: Sequence[Node]) -> None:
        changed = {node for node, name in graph.parameters.items() if name in names}
        below = []
        for node in graph.nodes:
            if not changed.isdisjoint(node.all_input_nodes):
                changed.add(node)
                below.append(node)
        above = ancestors(outputs)
        self.nodes = [node for node in below if node in above]
        self.outputs = [node for node in outputs if node in changed]
        read = {argument for node in self.nodes for argument in node.all_input_nodes}
        self.frontier = {node for node in read if node.op == "call_function"}.difference(self.nodes)
        self._spent = last_reads(self.nodes, outputs)

    @exact()
    def run(self, values: dict[Node, object]) -> dict[Node, Tensor]:
        """The changed outputs; ``values`` holds parameters, inputs and the frontier, and loses entries on the way."""
        for node in self.nodes:
            values[node] = evaluate(node, values.__getitem__)
            for argument in self._spent[node]:
                del values[argument]
        return {node: values[node] for node in self.outputs}  # type: ignore[misc]


def output_errors(
    graph: Graph,
    images: Images,
    replacements: Sequence[Mapping[str, Tensor]],
    *,
    base: Mapping[str, Tensor] | None = None,
    measure: str = "squared",
    count: int | None = None,
    progress: Progress = SILENT,
    checkpoint: Checkpoint | None = None,
) -> list[float]:
    """Errors at the outputs for each of several replacements of tensors.

    Args:
        graph: The original network. With its own tensors it gives the outputs that all others are compared with.
        images: Images to run; the images of all processes are used.
        replacements: For each run: qualified name -> tensor that replaces the base's. They may differ between
            processes.
        base: Qualified name -> tensor that replaces the network's in every run.
        measure: ``"squared"`` for the squared difference as a share of the variance of the original's outputs (of their
            squares where they are constant); ``"kl"`` for the Kullback-Leibler divergence in nats from the original's
            softmax over the classes (axis 1; the last axis of tokens). Outputs are taken before a softmax, and errors
            are averaged over several outputs.
        count: Approximate number of images to run, the first of every batch; None for all.
        progress: Whether to show a progress bar.
        checkpoint: Folder in which sums are stored while they accumulate, and from which a later call resumes.

    Returns:
        The error of each replacement of this process; non-finite errors are 1e30, so that they rank last.

    Raises:
        InputError: no output can be compared; see ``scored_outputs``.
        CheckpointError: a stored file is damaged or cannot be written.
    """
    outputs = scored_outputs(graph, measure)
    axes = [_image_axis(node) or 0 for node in outputs]
    tensors = {**graph.tensors, **(base or {})}
    suffixes = [_Suffix(graph, set(replacement), outputs) for replacement in replacements]
    wanted = set(outputs).union(*(suffix.frontier for suffix in suffixes))
    sums = _ErrorSums([_image_shape(graph, node) for node in outputs], len(replacements), measure, images.device)
    sample = Sample(images, count)
    name = "" if checkpoint is None else f"outputs-{_digest(base or {}, replacements, measure, sample.share)}"
    with images.processes.together():
        done = 0 if checkpoint is None else checkpoint.restore(name, sums.tensors)
        batches = range(done, len(sample))
        for batch in progress.over(batches, "measuring outputs", done=done):
            inputs = sample[batch]
            kept = _KeptValues(graph, inputs, tensors, wanted, images.memory // 2)
            original = kept if base is None else _KeptValues(graph, inputs, graph.tensors, set(outputs), math.inf)
            references = [original.tensor(node).movedim(axis, 0) for node, axis in zip(outputs, axes, strict=True)]
            for index, suffix in enumerate(suffixes):
                values = _placeholders(graph, inputs, {**tensors, **replacements[index]})
                values.update({node: kept.value(node) for node in suffix.frontier})
                with torch.no_grad():
                    changed = suffix.run(values)
                for output, node in enumerate(outputs):
                    value = changed[node] if node in changed else kept.tensor(node)
                    sums.add(output, index, value.movedim(axes[output], 0), references[output])
            sums.end_batch(references)
            kept.close()
            if checkpoint is not None:
                checkpoint.keep_tensors(name, batch + 1, sums.tensors, last=batch + 1 == len(sample))
    sample.close()
    return sums.shares()


def _digest(
    base: Mapping[str, Tensor], replacements: Sequence[Mapping[str, Tensor]], measure: str, share: float
) -> str:
    """Digest of everything that the sums depend on, besides the network and the images."""
    digest = hashlib.sha256(f"{measure} {share}".encode())
    for tensors in (base, *replacements):
        digest.update(digest_of(tensors).encode())
    return digest.hexdigest()[:16]


def _placeholders(graph: Graph, inputs: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> dict[Node, object]:
    values: dict[Node, object] = {node: tensors[name] for node, name in graph.parameters.items()}
    values.update(zip(graph.inputs, inputs, strict=True))
    return values


class _KeptValues:
    """Values of the ``wanted`` nodes for one batch; beyond ``memory`` bytes they are on disk."""

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[Tensor],
        tensors: Mapping[str, Tensor],
        wanted: set[Node],
        memory: float,
    ) -> None:
        self._wanted = wanted
        self._tensors = TensorStore(memory)
        self._sizes: dict[Node, object] = {}
        run(graph, inputs, tensors, self._keep)

    def _keep(self, node: Node, _: Mapping[Node, object], value: object) -> None:
        if node not in self._wanted:
            return
        if isinstance(value, Tensor):
            self._tensors.put(node, value)
        else:
            self._sizes[node] = value

    def value(self, node: Node) -> object:
        return self._sizes[node] if node in self._sizes else self._tensors.get(node)

    def tensor(self, node: Node) -> Tensor:
        return self._tensors.get(node)

    def close(self) -> None:
        self._tensors.close()


class _ErrorSums:
    """Sums over batches: the error of each replacement at each output, and the outputs' variances.

    Attributes:
        tensors: Name -> float64 sums.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], count: int, measure: str, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._measure = measure
        self._errors = zeros(len(shapes), count)
        self._squares = zeros(len(shapes))
        self._rows = zeros(len(shapes))
        self._totals = [zeros(*shape) for shape in shapes]
        totals = {f"total{index}": total for index, total in enumerate(self._totals)}
        self.tensors = {"errors": self._errors, "squares": self._squares, "rows": self._rows, **totals}

    def add(self, output: int, index: int, value: Tensor, reference: Tensor) -> None:
        """Add one output of one batch with one replacement, next to the original's (images, ...)."""
        value, reference = value.double(), reference.double()
        if self._measure == "kl":
            classes = _class_axis(reference.dim())
            expected, found = reference.log_softmax(classes), value.log_softmax(classes)
            error = (expected.exp() * (expected - found)).sum() * (
                reference.shape[classes] / max(reference[0].numel(), 1)
            )
        else:
            error = (value - reference).square().sum()
        self._errors[output, index] += error

    def end_batch(self, references: Sequence[Tensor]) -> None:
        """Add one batch of the original's outputs."""
        for output, reference in enumerate(references):
            self._rows[output] += len(reference)
            self._totals[output] += reference.double().sum(0)
            self._squares[output] += reference.double().square().sum()

    def shares(self) -> list[float]:
        """The error of each replacement, averaged over outputs."""
        if self._measure == "kl":
            found = self._errors / self._rows[:, None]
        else:
            means = torch.stack([total.square().sum() for total in self._totals]) / self._rows
            variances = self._squares - means
            varies = variances > 1e-10 * self._squares
            found = self._errors / torch.where(varies, variances, self._squares).clamp(min=1e-300)[:, None]
        lost = 1e30  # non-finite errors rank last
        return [float(value) for value in found.mean(0).nan_to_num(lost, lost).cpu()]
