"""Capture: a model as a functional ATen graph that can be analysed and run in parts.

Surgery never edits the graph. It changes the user's own module, by parameter name, and the result is captured again.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.utils._pytree import tree_map_only

from ..calibration.threads import TURNS
from ..errors import CaptureError
from .dependence import ancestors, varying
from .exporting.export import Inputs, export
from .exporting.inlining import inline_blocks
from .exporting.plain_attention import with_plain_attention
from .exporting.products import products_as_layers
from .exporting.recurrent import inputs_as_layers
from .fingerprint import fingerprint_of

VIEWS = frozenset(
    "view reshape flatten unflatten slice select narrow chunk split split_with_sizes unbind permute transpose t "
    "squeeze unsqueeze expand movedim alias detach getitem dropout feature_dropout contiguous to _to_copy".split()
)
"""Operators whose result may share memory with their input, so that writing into one changes the other."""
_MANY_IMAGES = 10**6
"""A captured graph must hold for at least this number of images."""
_VIEWED, _RESHAPE = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default), torch.ops.aten.reshape.default

_TORCH = ("aten", "prim", "prims")


def operator_name(node: Node) -> str:
    """ATen name without overload and in-place mark (``"add"``); other operators keep their namespace (``"a::add"``)."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target))
    namespace, _, name = str(schema.name).rpartition("::")
    name = name.removesuffix("_") if name.endswith("_") and not name.endswith("__") else name
    return name if namespace in _TORCH else f"{namespace}::{name}"


def calling_module(node: Node) -> tuple[str, str]:
    """Path and class of the module whose forward() runs an operator; both empty where the export does not say."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return (str(stack[-1][0]), str(stack[-1][1])) if stack else ("", "")


def arguments(node: Node) -> dict[str, Any]:
    """An operator's arguments by their names in its schema, including defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [argument.name for argument in schema.arguments]
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _is_in_place(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


@dataclass
class Graph:
    """A captured model.

    Attributes:
        nodes: Operator nodes in execution order.
        inputs: Placeholders of the images.
        outputs: Nodes whose values the model returns.
        parameters: Placeholder -> qualified name of a parameter, buffer or constant.
        tensors: Qualified name -> tensor (the model's own, not a copy).
        constants: Qualified names in ``tensors`` that no module holds, such as literals.
        trained: Qualified names of parameters, without buffers.
        shared: Qualified name of a tensor that several operators read or several modules hold -> their names, for
            messages. Such a tensor is never refitted.
        tied: Qualified name -> the names that hold the same tensor, itself among them, where there are several.
        varying: Nodes whose values depend on the images, not only on their number or size.
        users: Node -> operator nodes that read it.
        versions: Qualified name -> version counter of the tensor at capture; every write raises it, but through .data.
        fingerprints: Qualified name -> fingerprint of the tensor's values then, where they are to stay as they are.
    """

    nodes: list[Node]
    inputs: list[Node]
    outputs: list[Node]
    parameters: dict[Node, str]
    tensors: dict[str, Tensor]
    constants: frozenset[str]
    trained: frozenset[str] = frozenset()
    shared: dict[str, str] = field(default_factory=dict)
    tied: dict[str, list[str]] = field(default_factory=dict)
    varying: frozenset[Node] = frozenset()
    users: dict[Node, list[Node]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    fingerprints: dict[str, int] = field(default_factory=dict)

    def shape(self, node: Node) -> tuple[int, ...]:
        """Shape of a node's value, with the batch size of the captured example."""
        return tuple(_concrete(size) for size in node.meta["val"].shape)

    @property
    def device(self) -> torch.device:
        """Device of the model's tensors; literals in forward() may be on another one."""
        own = (tensor.device for name, tensor in self.tensors.items() if name not in self.constants)
        return next(own, torch.device("cpu"))

    @property
    def batch(self) -> int:
        """Batch size of the captured example, as in ``shape``."""
        return self.shape(self.inputs[0])[0]

    def changed(self, model: nn.Module) -> str | None:
        """Name of a tensor that was replaced, moved or written to since the capture; None if all are as they were."""
        own = tensors_of(model)
        for name, version in self.versions.items():
            now, then = own.get(name), self.tensors[name]
            if now is None or now.data_ptr() != then.data_ptr() or now._version != version:
                return name
        written = (name for name, found in self.fingerprints.items() if fingerprint_of(self.tensors[name]) != found)
        return next(written, None)

    def digest(self) -> str:
        """SHA-256 of the operators and their arguments; parameter values do not enter."""
        lines = []
        for node in self.nodes:  # the type of a device enters, its index does not
            given = tree_map_only(torch.device, lambda device: device.type, (node.args, node.kwargs))
            lines.append(f"{node.name} {node.target} {given}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def readers(self, name: str) -> list[Node]:
        """The operators that read a tensor, under whichever of its names."""
        names = self.tied.get(name, [name])
        return [user for node, own in self.parameters.items() if own in names for user in self.users.get(node, [])]

    def aliases(self, name: str) -> list[str]:
        """All names of a tensor, where operators read it under that name alone; else none."""
        names = self.tied.get(name, [name])
        read = {own for node, own in self.parameters.items() if own in names and self.users.get(node)}
        shapes = {tuple(self.tensors[own].shape) for own in names if own in self.tensors}
        return names if read <= {name} and len(shapes) == 1 and all(own in self.tensors for own in names) else []

    def parameter_of(self, argument: object) -> str | None:
        """Qualified name of the parameter that an argument stands for, or None."""
        return self.parameters.get(argument) if isinstance(argument, Node) else None


def is_dynamic(size: int | torch.SymInt) -> bool:
    """Whether a size depends on the number of images."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _concrete(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def is_tensor(value: object) -> bool:
    """True for a node that stands for one tensor."""
    return isinstance(value, Node) and isinstance(value.meta.get("val"), Tensor)


def capture(model: nn.Module, inputs: Inputs) -> Graph:
    """Capture a model as a graph, by ``torch.export`` with a dynamic first axis of every input.

    Args:
        model: Module in eval mode; not changed.
        inputs: One batch of positional tensors or keyword tensors, each (batch, ...).

    Raises:
        CaptureError: torch.export refuses the model, the model fixes its batch size, or an in-place operator has no
            functional form.
    """
    with TURNS.alone():
        program = export(with_plain_attention(model), inputs)
        inline_blocks(program)
        products_as_layers(program)
        inputs_as_layers(program)
        rewritten = _mutates_views(program.graph.nodes)
        if rewritten:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = program.run_decompositions({})
    signature = program.graph_signature
    kinds = {spec.arg.name: spec for spec in signature.input_specs}
    state = {**program.state_dict, **program.constants}
    graph = Graph([], [], [], {}, {}, frozenset())
    alive = _alive(program.graph.nodes)
    for node in program.graph.nodes:
        if node.op == "call_function" and node not in alive:
            continue  # such as the weights of attention, which modules return and nobody takes
        if node.op == "placeholder":
            spec = kinds[node.name]
            if spec.kind == InputKind.USER_INPUT:
                graph.inputs += [node] if is_tensor(node) else []  # else a constant, which the operators hold
            else:
                name = str(spec.target)
                graph.parameters[node] = name
                graph.tensors[name] = state[name].detach()
        elif node.op == "call_function" and operator_name(node) == "contiguous":
            node.replace_all_uses_with(node.args[0])  # torch.export drops it itself where there is a single channel
        elif node.op == "call_function":
            _make_functional(node)
            node.meta["in_place"] |= rewritten  # decompositions hide which operators were in place
            node.meta["order"] = len(graph.nodes)
            graph.nodes.append(node)
            for argument in dict.fromkeys(node.all_input_nodes):
                graph.users.setdefault(argument, []).append(node)
        elif node.op == "output":
            returned = zip(node.args[0], signature.output_specs, strict=True)
            wanted = [value for value, spec in returned if spec.kind == OutputKind.USER_OUTPUT]
            graph.outputs = [value for value in wanted if is_tensor(value)]
    graph.trained = frozenset(str(s.target) for s in signature.input_specs if s.kind == InputKind.PARAMETER)
    _use_live_tensors(graph, model)
    graph.varying = frozenset(varying(graph.inputs, graph.nodes))
    _check_batch(graph, program)
    return graph


def _check_batch(graph: Graph, program: torch.export.ExportedProgram) -> None:
    """Refuse a model that takes one number of images only, or does other things with more of them."""
    for node in graph.inputs:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not is_dynamic(value.shape[0]):
            raise CaptureError(
                f"forward() fixes the batch size at {value.shape[0]} (input {node.name!r}): write "
                "it for any batch size, for instance x.view(x.shape[0], ...) or x.flatten(1)"
            )
    for numbers in program.range_constraints.values():
        if numbers.upper < _MANY_IMAGES:
            text = f"forward() does something else with more than {numbers.upper} images: let it do the same with any"
            raise CaptureError(text)


def _mutates_views(nodes: Iterable[Node]) -> bool:
    for node in nodes:
        if node.op == "call_function" and _is_in_place(node):
            changed = node.args[0]
            if not isinstance(changed, Node) or changed.op == "placeholder":
                return True
            users = [user for user in changed.users if user is not node]
            if operator_name(changed) in VIEWS or any(operator_name(r) in VIEWS for r in users):
                return True
    return False


def _alive(nodes: Iterable[Node]) -> set[Node]:
    """The nodes that an output depends on, and those that read parameters, which must keep fitting what they meet."""
    ends = [node for node in nodes if node.op == "output" or any(x.op == "placeholder" for x in node.all_input_nodes)]
    return ancestors(ends)


def _make_functional(node: Node) -> None:
    """Replace ``relu_`` by ``relu`` and mark it; replace ``view`` by ``reshape``, which takes any memory format."""
    node.meta["in_place"] = _is_in_place(node)
    if node.target in _VIEWED:
        node.target = _RESHAPE
    elif node.meta["in_place"]:
        packet = getattr(torch.ops.aten, operator_name(node), None)
        overload = getattr(node.target, "_overloadname", "default")
        if packet is None or overload not in packet.overloads():
            raise CaptureError(f"operator {node.target} changes its input in place and has no functional form")
        node.target = getattr(packet, overload)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by qualified name, including tied ones and those that a state dict omits."""
    own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    own.update(model.named_buffers(remove_duplicate=False))
    return own


def _use_live_tensors(graph: Graph, model: nn.Module) -> None:
    own = tensors_of(model)
    for name in graph.tensors:
        if name in own:
            graph.tensors[name] = own[name].detach()
            graph.versions[name] = own[name]._version
    graph.constants = frozenset(name for name in graph.tensors if name not in own)
    holders: dict[int, list[str]] = {}
    for name, tensor in own.items():
        if tensor.numel():
            holders.setdefault(tensor.data_ptr(), []).append(name)
    for node, name in graph.parameters.items():
        users = [user.name for user in graph.users.get(node, [])]
        names = holders.get(graph.tensors[name].data_ptr(), [name])
        if len(names) > 1:
            graph.tied[name] = names
        if len(names) > 1 or len(users) > 1:
            graph.shared[name] = " and ".join(names if len(names) > 1 else users)
