"""Proof: on calibration images, the pruned module equals the original with the same channels masked."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..calibration.images import Images
from ..calibration.other_sizes import Example, other_count, other_sizes
from ..calibration.sample import Sample
from ..capture.execution import run
from ..capture.graph import Graph, tensors_of
from ..capture.precision import exact
from ..capture.widening import computing_in, in_widest_dtype
from ..errors import ProofError
from ..groups.channel_groups import Group
from .cut import Kept, assign_all
from .module_numbers import follow_inputs

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Dtype of the proof -> largest difference of pruned and masked outputs, as a share of the largest output."""


@dataclass(frozen=True)
class Proof:
    """How far two networks' outputs were found apart, and on what.

    Attributes:
        gap: Largest difference, as a share of the largest output.
        dtype: In which they were run: float64 where both can, else float32.
        shapes: Of one image: the calibration images', and the other ones on which the original runs, too.
    """

    gap: float
    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        sizes = " and ".join(str(shape) for shape in self.shapes)
        alone = ", the only size tried that the model takes" if len(self.shapes) == 1 else ""
        return f"in {str(self.dtype).removeprefix('torch.')}, on images of {sizes}{alone}"

    def __add__(self, other: Proof) -> Proof:
        """Both proofs: the larger difference, the narrower dtype, all shapes."""
        narrower = self if torch.finfo(self.dtype).bits <= torch.finfo(other.dtype).bits else other
        shapes = tuple(dict.fromkeys([*self.shapes, *other.shapes]))
        return Proof(max(self.gap, other.gap), narrower.dtype, shapes)


def masked_tensors(
    graph: Graph, groups: Sequence[Group], kept: Kept, updates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Parameters of the original size that ignore the removed channels.

    Refitted values stand at the positions that stay, and columns that read removed channels are zero.

    Args:
        graph: The original network.
        groups: Its channel groups.
        kept: Positions of each parameter that stay.
        updates: Qualified name -> refitted parameter of the pruned network.
    """
    tensors = dict(graph.tensors)
    for name, value in updates.items():
        tensors[name] = _embed(graph.tensors[name], kept.get(name, {}), value)
    for group in groups:
        for consumer in group.consumers:
            name, axis = consumer.layer.weight, consumer.layer.in_axis
            stays = kept.get(name, {}).get(axis)
            if stays is not None:
                mask = torch.zeros(tensors[name].shape[axis], dtype=tensors[name].dtype)
                mask[stays] = 1
                shape = [1] * tensors[name].dim()
                shape[axis] = -1
                tensors[name] = tensors[name] * mask.reshape(shape).to(tensors[name].device)
    return tensors


def _embed(full: Tensor, axes: Mapping[int, Tensor], value: Tensor) -> Tensor:
    """``full`` with ``value`` written at the positions that stay."""
    grid = [axes.get(axis, torch.arange(size)) for axis, size in enumerate(full.shape)]
    result = full.clone()
    result[torch.meshgrid(*grid, indexing="ij")] = value.to(full.dtype)
    return result


def difference(
    module: nn.Module, graph: Graph, tensors: Mapping[str, Tensor], images: Images, count: int = 4
) -> tuple[float, torch.dtype]:
    """Largest difference between a module's outputs and those of a graph with the given parameters.

    Args:
        module: The pruned module; a copy is run.
        graph: The original network.
        tensors: Qualified name -> parameter for the graph.
        images: Calibration images.
        count: Number of images to compare on.

    Returns:
        The difference as a share of the largest output, and the dtype of the comparison: float64 where the module
        runs in it, else float32.

    Raises:
        ProofError: the module does not run, or returns other numbers or shapes of tensors.
    """
    inputs = images.example(count)

    def compare(dtype: torch.dtype) -> float:
        with torch.no_grad(), computing_in(dtype):
            expected = run(graph, _cast(inputs, dtype), dict(zip(tensors, _cast(tensors.values(), dtype), strict=True)))
        return _largest_gap(outputs_of(module, images, inputs, dtype), expected)

    try:
        return in_widest_dtype(compare)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:
        raise ProofError(f"the pruned module does not run: {error}") from error


def difference_elsewhere(
    module: nn.Module,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    images: Images,
    original_images: Images | None = None,
) -> Proof | None:
    """Largest difference from the original module with other parameters, on images of other sizes and another number.

    Args:
        model: The original; not touched.
        tensors: Qualified name -> what stands in the place of the original's parameter or buffer.
        original_images: The images as the original takes them, if it takes them by other names. The module is then
            another network, which may refuse sizes that the original takes.

    Returns:
        None where the original runs on no other number of images.

    Raises:
        ProofError: the module does not run on images on which the original does.
    """
    original = copy.deepcopy(model)
    own = tensors_of(model)
    changed = [x for x in own if x in tensors and tensors[x].data_ptr() != own[x].data_ptr()]
    assign_all(original, {name: tensors[name].clone() for name in changed})
    example = images.example(4)

    def apart(batches: list[Example]) -> Proof | None:
        """The difference on the first batch that the original takes."""
        found = (_apart(module, images, original, original_images or images, inputs) for inputs in batches)
        return next(filter(None, found), None)

    proofs = [proof for proof in map(apart, other_sizes(example)) if proof is not None]
    return sum(proofs[1:], proofs[0]) if proofs else apart([other_count(example)])


def _apart(
    module: nn.Module, images: Images, original: nn.Module, original_images: Images, inputs: Example
) -> Proof | None:
    """The difference between two modules on some images, or None where the original does not take them."""
    found = finite_outputs(original, original_images, inputs)
    if found is None:
        return None
    expected, dtype = found
    shape = tuple(inputs[0].shape[1:])
    try:
        return Proof(_largest_gap(outputs_of(module, images, inputs, dtype), expected), dtype, (shape,))
    except (RuntimeError, TypeError, ProofError) as error:
        if original_images is not images and not isinstance(error, ProofError):
            return None
        raise ProofError(f"on images of shape {shape}, which the original takes: {error}") from error


def finite_outputs(module: nn.Module, images: Images, inputs: Example) -> tuple[list[Tensor], torch.dtype] | None:
    """Outputs of a module and their dtype, the widest that it runs in; None if it fails or they are not finite."""
    try:
        outputs, dtype = in_widest_dtype(lambda dtype: outputs_of(module, images, inputs, dtype))
    except Exception:  # whatever forward() raises on a size that is not its own
        return None
    return (outputs, dtype) if all(bool(value.isfinite().all()) for value in outputs) else None


def _cast(values: Iterable[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(value.to(dtype) if value.is_floating_point() else value for value in values)


@exact()
def outputs_of(module: nn.Module, images: Images, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """A copied module's outputs in a dtype."""
    copied = copy.deepcopy(module).to(dtype)
    follow_inputs(copied)
    with torch.no_grad(), computing_in(dtype):
        return tensors_in(images.call(copied, _cast(inputs, dtype)))


def _largest_gap(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if len(actual) != len(expected):
        raise ProofError(f"the pruned module returns {len(actual)} tensors instead of {len(expected)}")
    worst = 0.0
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.shape != theirs.shape:
            raise ProofError(f"the pruned module returns shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}")
        if theirs.numel():
            worst = max(worst, _gap(ours, theirs))
    return worst


def _gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a share of the largest finite value; inf where only one of two values is finite."""
    apart = (ours.double() - theirs.double()).abs()
    apart[ours == theirs] = 0  # infinities of equal sign do not differ
    scale = float(theirs.double().nan_to_num(0, 0, 0).abs().max())
    gap = float(apart.nan_to_num(torch.inf).max())
    return gap / scale if scale > 0 else gap


@exact()
def output_change(module: nn.Module, graph: Graph, images: Images, count: int = 300) -> float:
    """Mean squared difference of a module's outputs from the original's, as a share of the latter's variance.

    It is taken over about ``count`` images of all processes, and over all floating-point outputs together.
    """
    sample = Sample(images, count)
    error = squares = 0.0
    rows, totals = 0, [torch.zeros((), dtype=torch.float64)] * len(graph.outputs)
    with images.processes.together(), torch.no_grad():
        for inputs in (sample[index] for index in range(len(sample))):
            rows += len(inputs[0])
            pairs = zip(tensors_in(images.call(module, inputs)), run(graph, inputs, graph.tensors), strict=True)
            for output, (ours, theirs) in enumerate(pairs):
                if theirs.is_floating_point():
                    theirs = theirs.double()
                    error += float((ours.double() - theirs).square().sum())
                    squares += float(theirs.square().sum())
                    totals[output] = totals[output].to(theirs.device) + theirs.sum(0)
    sample.close()
    variance = squares - sum(float(total.square().sum()) for total in totals) / max(rows, 1)
    return images.processes.gather(error / variance if variance > 1e-10 * squares else error)[0]


def tensors_in(value: object) -> list[Tensor]:
    """All tensors in a nested output, in order."""
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]


def prove(
    module: nn.Module,
    graph: Graph,
    tensors: Mapping[str, Tensor],
    images: Images,
    *,
    model: nn.Module | None = None,
    rounded: bool = False,
) -> Proof:
    """Prove that a module equals the masked original up to rounding.

    Args:
        module: The pruned module.
        graph: The original network.
        tensors: Qualified name -> masked parameter; see :func:`masked_tensors`.
        images: Calibration images.
        model: The original, to prove it on images of other sizes as well; by default on the calibration images alone.
        rounded: Whether parameters of the module were computed from the original's and then rounded to its dtype; the
            tolerance is then that of float32.

    Returns:
        The largest difference in any process, as a share of the largest output, and on what it was found.

    Raises:
        ProofError: the difference exceeds ``TOLERANCE``, or the module does not run.
    """
    with images.processes.together():
        gap, dtype = difference(module, graph, tensors, images)
        proof = Proof(gap, dtype, (images.shape,))
        elsewhere = None if model is None else difference_elsewhere(module, model, tensors, images)
        for found in (proof, elsewhere):
            limit = TOLERANCE[torch.float32 if rounded or found is None else found.dtype]
            if found is not None and not found.gap <= limit:
                raise ProofError(
                    f"the pruned module differs from the masked original by {found.gap:.1e} of its largest output, "
                    f"{found} (at most {limit:.0e} is rounding). Your model is unchanged. Exclude the last layers "
                    "that were pruned with exclude=[...], and please report the model"
                )
        proof = proof if elsewhere is None else proof + elsewhere
    return replace(proof, gap=max(images.processes.gather(proof.gap)))
