"""Proof: on calibration images, the pruned module equals the original with the same channels masked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..calibration.images import Images
from ..capture.execution import in_widest_dtype, run
from ..capture.graph import Graph
from ..capture.precision import exact
from ..errors import ProofError
from ..groups.channel_groups import Group
from .bare_norms import follow_inputs
from .cut import Kept

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Dtype of the proof -> largest difference of pruned and masked outputs, as a share of the largest output."""


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
    try:
        return in_widest_dtype(lambda dtype: _difference(module, graph, tensors, images, inputs, dtype))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:
        raise ProofError(f"the pruned module does not run: {error}") from error


@exact()
def _difference(
    module: nn.Module,
    graph: Graph,
    tensors: Mapping[str, Tensor],
    images: Images,
    inputs: tuple[Tensor, ...],
    dtype: torch.dtype,
) -> float:
    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    cast_inputs = tuple(cast(value) for value in inputs)
    with torch.no_grad():
        expected = run(graph, cast_inputs, {name: cast(value) for name, value in tensors.items()})
        tried = copy.deepcopy(module).to(dtype)
        follow_inputs(tried)
        actual = tensors_in(images.call(tried, cast_inputs))
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
def output_change(module: nn.Module, graph: Graph, images: Images) -> float:
    """Mean squared difference of a module's outputs from the original's, as a share of the latter's variance.

    It is taken over at most 100 images of the first batch (of rank 0), and over all floating-point outputs together.
    """
    inputs = images.example(100)
    with torch.no_grad():
        wanted = run(graph, inputs, graph.tensors)
        actual = tensors_in(images.call(module, inputs))
    error = energy = 0.0
    for ours, theirs in zip(actual, wanted, strict=True):
        if theirs.is_floating_point():
            theirs = theirs.double()
            error += float((ours.double() - theirs).square().sum())
            energy += float((theirs - theirs.mean(0)).square().sum())
    return images.processes.gather(error / energy if energy > 0 else error)[0]


def tensors_in(value: object) -> list[Tensor]:
    """All tensors in a nested output, in order."""
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]


def prove(
    module: nn.Module, graph: Graph, tensors: Mapping[str, Tensor], images: Images, *, rounded: bool = False
) -> float:
    """Prove that a module equals the masked original up to rounding.

    Args:
        module: The pruned module.
        graph: The original network.
        tensors: Qualified name -> masked parameter; see :func:`masked_tensors`.
        images: Calibration images.
        rounded: Whether parameters of the module were computed from the original's and then rounded to its dtype; the
            tolerance is then that of float32.

    Returns:
        The largest difference in any process, as a share of the largest output.

    Raises:
        ProofError: the difference exceeds ``TOLERANCE``, or the module does not run.
    """
    with images.processes.together():
        gap, dtype = difference(module, graph, tensors, images)
        limit = TOLERANCE[torch.float32 if rounded else dtype]
        if not gap <= limit:
            raise ProofError(
                f"the pruned module differs from the masked original by {gap:.1e} of its largest output "
                f"(at most {limit:.0e} is rounding). Your model is unchanged. Exclude the last layers that "
                "were pruned with exclude=[...], and please report the model"
            )
    return max(images.processes.gather(gap))
