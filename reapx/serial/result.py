"""Serialising a residual network: the public call and its result."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..calibration.images import Images
from ..calibration.input_layout import ONE
from ..capture.graph import Graph, capture
from ..capture.precision import plain_mode
from ..costs.budget import Costs
from ..errors import InputError, ProofError
from ..groups.channel_groups import find_groups
from ..inspection.argument_checks import check_arguments
from ..inspection.model_checks import check_forward, check_model, model_device
from ..surgery.proof import Proof, difference, difference_elsewhere
from ..text import saving, table
from .blocks import Link, ResidualBlock, find_chain
from .norms import with_norms
from .operators import ChildNames, modules_of, node_name
from .residual_branches import Conv, ShortcutKind
from .rewrite import Projection, carried_channels, convolution, serial_convolutions

LIMIT = 1e-5
"""Largest allowed difference from the original's outputs, as a share of the largest output."""


@dataclass(frozen=True)
class SerializedBlock:
    """A residual block of the original network, and the layers that replace it.

    Attributes:
        name: Module path of its convolutions, such as ``layer1.0``.
        shortcut: Kind of its shortcut.
        carried: Number of channels that carry the shortcut through f's ReLUs; 0 where f is one convolution.
        layers: Number of convolutions that replace the block; f had as many.
    """

    name: str
    shortcut: ShortcutKind
    carried: int
    layers: int


@dataclass(frozen=True)
class Serialized:
    """A serial network that computes what a residual one does; ``print`` it.

    Attributes:
        model: The serial network, in eval mode; it shares no tensor with the original.
        blocks: The residual blocks and the layers that replace them.
        macs: Multiply-accumulates per image, before and after.
        params: Parameters, before and after.
        proof: Largest difference from the original's output on a few images, as a share of the largest output, in which
            dtype, and on images of which sizes. In float64 it shows only the rounding of the new weights.
    """

    model: nn.Sequential = field(repr=False)
    blocks: list[SerializedBlock]
    macs: tuple[int, int]
    params: tuple[int, int]
    proof: Proof

    @property
    def gap(self) -> float:
        """The proof's largest difference, a share of the largest output."""
        return self.proof.gap

    def __str__(self) -> str:
        rows = [[block.name, block.shortcut, str(block.carried), str(block.layers)] for block in self.blocks]
        costs = f"{saving('MACs', self.macs)}, {saving('parameters', self.params)}"
        return "\n".join(
            [
                f"{len(rows)} residual blocks as {sum(block.layers for block in self.blocks)} plain layers: {costs}",
                f"same outputs up to {self.gap:.1e} of the largest, {self.proof}",
                "",
                table(rows, ["block", "shortcut", "carried channels", "layers"]),
                "",
                f"to prune back to what it was: reapx.prune(model, images, budget=reapx.MACs({self.macs[0]}))",
            ]
        )


@plain_mode()
def serialize(
    model: nn.Module,
    images: object,
    *,
    norms: bool = False,
    projection: Projection = "carry",
    memory: int | None = None,
) -> Serialized:
    """Rewrite a network of blocks relu(f(x) + shortcut(x)) as a plain serial network of the same function.

    A block's input is the output of a ReLU, so it is not negative. Additional channels therefore carry it unchanged
    through f's ReLUs, at the centre taps of the kernels, and the last convolution adds it. The serial network costs
    more. In return, each of its channels can be pruned by itself, including those of the former residual stream. Norms
    are folded, dropout inside blocks is left out, and a layer that is called twice becomes two layers.

    Args:
        model: Module in eval mode; it is not changed, and the result shares no tensor with it.
        images: A tensor (images, ...) or an iterable of batches, as for ``reapx.plan``. A few images prove the result;
            with ``norms`` all are read.
        norms: Whether to put a batch norm behind every convolution, with statistics over the images, for training.
        projection: How a shortcut P x + b with a 1x1 convolution is carried. ``"carry"`` carries x unchanged, which is
            exact for x >= 0, and applies P in the last layer. It is cheaper while P has at most twice as many inputs
            as outputs. ``"split"``, as in the paper, applies P in the first layer and carries [P x + b; -P x - b].
        memory: Bytes of the device's memory for images before they move to disk, as for ``reapx.plan``.

    Returns:
        The serial network, its blocks and its costs.

    Raises:
        InputError: images cannot be used, the model is in train mode or returns no single tensor, there is no residual
            block, a block has no serial form, ``norms`` is not a bool, or ``projection`` is neither "carry" nor
            "split".
        CaptureError: torch.export refuses the model, or the model fixes its batch size.
        ProofError: the serial network's outputs differ from the model's by more than rounding.
        BackendError: there are no kernels for the model's device.

    Source:
        K. Kamma and T. Wada, "Serialized Residual Network", MIRU 2020.
    """
    if not isinstance(norms, bool):
        raise InputError(f"norms={norms!r}: give True or False")
    if projection not in ("carry", "split"):
        raise InputError(f"projection={projection!r}: choose one of carry, split")
    check_arguments(memory=memory)
    check_model(model)
    calibration = Images(images, model_device(model), memory, model)
    _check_output(check_forward(model, calibration))
    graph = capture(model, calibration.as_inputs(2))
    chain = find_chain(graph, signed=projection == "split")
    named = copy.copy(calibration)
    calibration.layout = ONE  # a serial network takes its one input by position
    serial = _assemble(graph, chain, projection)
    if norms:
        serial = with_norms(serial, calibration)
    proof = _prove(serial, model, graph, calibration, named)
    blocks = [_summary(link, projection) for link in chain if isinstance(link, ResidualBlock)]
    macs, params = zip(_costs(graph), _costs(capture(serial, calibration.as_inputs(2))), strict=True)
    return Serialized(serial, blocks, macs, params, proof)


def _check_output(output: object) -> None:
    """Refuse a model that does not return a single tensor, as a serial network does."""
    if not isinstance(output, Tensor):
        raise InputError(
            f"the model returns a {type(output).__name__}, and a serial network returns one tensor: serialise the part "
            "of the model that does, too"
        )


def _assemble(graph: Graph, chain: list[Link], projection: Projection) -> nn.Sequential:
    """The serial network of a chain, in eval mode."""
    names, children = ChildNames(), OrderedDict[str, nn.Module]()
    last = ""  # name of the convolution that was appended last

    def put(path: str, module: nn.Module) -> str:
        name = names.unique(path)
        children[name] = module
        return name

    for link in chain:
        if isinstance(link, Conv):
            last = put(link.layer.name, convolution(graph, link.layer, *link.folded(graph)))
        elif isinstance(link, ResidualBlock):
            made = serial_convolutions(graph, link, projection)
            for index, (conv, module) in enumerate(zip(link.convs, made, strict=True)):
                if index:
                    put(f"{last}_relu", nn.ReLU())
                last = put(conv.layer.name, module)
        else:
            for index, module in enumerate(modules_of(graph, link)):
                follows = last and isinstance(module, nn.ReLU)
                put(f"{last}_relu" if follows else "flatten" if index else node_name(graph, link), module)
                last = ""
    return nn.Sequential(children).eval()


def _prove(serial: nn.Module, model: nn.Module, graph: Graph, images: Images, named: Images) -> Proof:
    """The difference from the outputs of the original, which takes ``named`` images.

    Raises:
        ProofError: the difference exceeds ``LIMIT``.
    """
    proof = Proof(*difference(serial, graph, graph.tensors, images), (images.shape,))
    elsewhere = difference_elsewhere(serial, model, graph.tensors, images, named)
    proof = proof if elsewhere is None else proof + elsewhere
    if not proof.gap <= LIMIT:
        raise ProofError(
            f"the serial network differs from the original by {proof.gap:.1e} of its largest output {proof} (at most "
            f"{LIMIT:.0e} is rounding). Your model is unchanged. Please report the model"
        )
    return proof


def _summary(block: ResidualBlock, projection: Projection) -> SerializedBlock:
    return SerializedBlock(block.name, block.shortcut.kind, carried_channels(block, projection), len(block.convs))


def _costs(graph: Graph) -> tuple[int, int]:
    """Multiply-accumulates and parameters of a captured network."""
    costs = Costs(graph, find_groups(graph))
    return costs.macs(), costs.params()
