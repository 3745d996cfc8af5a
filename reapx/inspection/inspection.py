"""Inspection: what can be removed from a model, what cannot, and why, before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import nn

from ..calibration.checkpoint import digest_of
from ..calibration.images import Images
from ..calibration.processes import Processes, processes_of
from ..calibration.progress import timed
from ..calibration.sample import ImagePart, split
from ..capture.fingerprint import fingerprints
from ..capture.graph import Graph, capture
from ..capture.layers import Layer
from ..capture.precision import plain_mode
from ..capture.training import idle_parameters, training_copy
from ..costs.budget import Costs
from ..errors import CaptureError, InputError
from ..groups.channel_groups import ChannelAnalysis, Frozen, Group, find_groups
from ..groups.training_only import with_training
from ..moments.finite_check import check_outputs
from ..notebook.html import summary_html
from ..text import frozen_text, short, table
from .argument_checks import Layers, check_arguments
from .dry_run import find_droppable, freeze_failing
from .model_checks import check_forward, check_model, model_device
from .validation import layer_names, without_excluded


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """The channel groups of a model; ``print`` it.

    Attributes:
        groups: Channel groups that can be pruned.
        layers: The convolutions and linear layers, in the order in which the model runs them.
        frozen: Channels that cannot be removed, and why.
        costs: MACs and parameters as functions of the groups' widths.
        droppable: Names of groups that may leave as a whole: those inside a residual branch, which then adds only a
            constant.
    """

    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    frozen: tuple[Frozen, ...]
    costs: Costs
    droppable: frozenset[str]
    _channels: ChannelAnalysis
    _graph: Graph
    _images: Images

    @cached_property
    def _parts(self) -> tuple[ImagePart, ImagePart]:
        """The images that fits see first, and those that judge them."""
        return split(self._images)

    def __repr__(self) -> str:
        return (
            f"Inspection({len(self.groups)} channel groups, {len(self.layers)} layers, "
            f"{short(self.costs.macs())} MACs, {short(self.costs.params())} parameters)"
        )

    def __str__(self) -> str:
        header, rows = self._columns()
        return "\n".join([self._title, "", table(rows, header), *frozen_text(self.frozen)])

    def _repr_html_(self) -> str:
        return summary_html([self._title], *self._columns(), end="\n".join(frozen_text(self.frozen)))

    @property
    def _title(self) -> str:
        costs = self.costs
        return f"{len(self.groups)} channel groups, {short(costs.macs())} MACs, {short(costs.params())} parameters"

    def _columns(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table of groups."""
        rows = [[g.name, g.kind, str(g.size * g.per_unit), str(len(g.consumer_names))] for g in self.groups]
        return ["group", "kind", "channels", "read by"], rows


def inspect(
    model: nn.Module,
    images: object,
    *,
    exclude: Layers = (),
    memory: int | None = None,
    distributed: bool = False,
) -> Inspection:
    """Find the channel groups of a model; the model is not changed.

    Args:
        model: Module in eval mode.
        images: A tensor (images, ...) or an iterable of batches, as for ``reapx.plan``; only a few images are run.
        exclude: Layer names, patterns (``"layer3.*"``) or modules whose output channels stay.
        memory: Bytes of the device's memory for images before they move to disk, as for ``reapx.plan``.
        distributed: Whether several processes share the work, as for ``reapx.plan``.

    Returns:
        The groups, the frozen channels and the network's costs.

    Raises:
        InputError: images cannot be used, the model is in train mode or does not run on them, a pattern in ``exclude``
            matches no layer, no channel can be removed, or processes have different models.
        CaptureError: torch.export refuses the model, or the model fixes its batch size.
        NumericalError: the model's output is NaN; the message names the first layer with a non-finite input.
        BackendError: there are no kernels for the model's device.
    """
    found = examine(model, images, exclude=exclude, memory=memory, distributed=distributed)
    if not found.groups:
        reasons = sorted({f"{entry.layer}: {entry.reason}" for entry in found.frozen})
        raise InputError("no channel of this model can be removed: " + "; ".join(reasons[:5]))
    return found


@plain_mode()
def examine(
    model: nn.Module,
    images: object,
    *,
    exclude: Layers = (),
    memory: int | None = None,
    measured: bool = True,
    distributed: bool = False,
) -> Inspection:
    """As ``inspect``, but a model without removable channels is not refused.

    Args:
        measured: Whether the layers will be measured. If so, the inputs of layers with more than ``MAX_FEATURES``
            features are frozen.
    """
    check_arguments(distributed=distributed)
    processes = processes_of(distributed, model)
    with processes.together():
        check_arguments(memory=memory)
        check_model(model)
        excluded = layer_names(model, exclude)
        calibration = Images(images, model_device(model), memory, model)
        check_forward(model, calibration)
    calibration.meet(processes)
    with timed("capturing"):
        graph = capture(model, calibration.as_inputs(2))
        graph.fingerprints = fingerprints(graph.tensors)
    _check_same(graph, processes)
    with timed("finding channel groups"):
        channels = _with_training(model, find_groups(graph, measured=measured), graph, calibration)
        check_outputs(graph, channels.layers, calibration)
        channels = freeze_failing(model, graph, channels, calibration)
        channels = without_excluded(channels, excluded)
        droppable = find_droppable(model, graph, channels, calibration)
    _check_equal(processes, "channel groups", [(x.name, x.size, x.name in droppable) for x in channels.groups])
    costs = Costs(graph, channels)
    groups, layers, frozen = tuple(channels.groups), tuple(channels.layers), tuple(channels.frozen)
    return Inspection(groups, layers, frozen, costs, droppable, channels, graph, calibration)


def _with_training(model: nn.Module, channels: ChannelAnalysis, graph: Graph, images: Images) -> ChannelAnalysis:
    """The groups with what they own in parameters that only training uses, as far as training can be captured."""
    idle = idle_parameters(graph)
    if not idle:
        return channels
    try:
        training = capture(training_copy(model), images.as_inputs(2))
    except CaptureError:  # the dry run says which channels training needs
        return channels
    buffers = {name for node, name in graph.parameters.items() if not graph.users.get(node)}
    return with_training(channels, training, idle | buffers)


def _check_same(graph: Graph, processes: Processes) -> None:
    """Refuse processes whose networks are not the same."""
    if processes.size > 1:
        _check_equal(processes, "tensors", digest_of(graph.tensors))
        _check_equal(processes, "operators", graph.digest())


def _check_equal(processes: Processes, what: str, value: object) -> None:
    rank = processes.odd(value)
    if rank is not None:
        raise InputError(
            f"rank {rank}: the model's {what} are not those of rank 0: give all processes the same model, with the "
            "same weights"
        )
