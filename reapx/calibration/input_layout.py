"""How a batch becomes the arguments of forward(): which tensors it holds, and what stands beside them."""

from __future__ import annotations

import inspect
from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import InputError

CONSTANTS = (bool, int, float, str, type(None))
"""What may stand beside tensors; the same in every batch, since a captured network fixes it."""


@dataclass(frozen=True)
class InputLayout:
    """The arguments of one call, with gaps for tensors.

    Attributes:
        names: Keyword of each argument, or None where there is one, given by position.
        labels: What to call each tensor in a message, such as ``"images"`` or ``"'masks'[0]"``.
        spec: Structure of the arguments.
        leaves: Everything in them, in order, with None for tensors.
        places: Index in ``leaves`` of each tensor.
    """

    names: tuple[str, ...] | None
    labels: tuple[str, ...]
    spec: pytree.TreeSpec
    leaves: tuple[object, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, arguments: object, names: tuple[str, ...] | None) -> tuple[InputLayout, tuple[Tensor, ...]]:
        """The layout of the arguments, a value or a dict by the ``names``, and the tensors in them."""
        pairs, spec = pytree.tree_flatten_with_path(arguments)
        tensors = [(index, path, leaf) for index, (path, leaf) in enumerate(pairs) if isinstance(leaf, Tensor)]
        leaves = tuple(None if isinstance(leaf, Tensor) else leaf for _, leaf in pairs)
        labels = tuple(_label(path, names) for _, path, _ in tensors)
        layout = cls(names, labels, spec, leaves, tuple(index for index, _, _ in tensors))
        return layout, tuple(leaf for _, _, leaf in tensors)

    def arguments(self, tensors: tuple[Tensor, ...]) -> tuple[Any, ...] | dict[str, Any]:
        """The arguments with these tensors: a tuple of one by position, or a dict by keyword."""
        leaves = list(self.leaves)
        for place, value in zip(self.places, tensors, strict=True):
            leaves[place] = value
        whole = pytree.tree_unflatten(leaves, self.spec)
        return (whole,) if self.names is None else dict(whole)

    def key(self) -> str:
        """Text that is equal for equal layouts only; that of plain dicts and tensors is their keywords'."""
        plain = len(self.leaves) == len(self.places) and not any("[" in label for label in self.labels)
        return repr(self.names) if plain else repr((self.names, self.labels, self.leaves))

    def difference(self, other: InputLayout) -> str | None:
        """What is not as in another batch, in words; None where both are alike."""
        if self.names != other.names:
            return f"has keys {_listed(self.names)}, batch 0 has {_listed(other.names)}"
        if self.spec != other.spec or self.places != other.places:
            return "holds other lists, dicts or tensors than batch 0"
        for mine, theirs in zip(self.leaves, other.leaves, strict=True):
            if type(mine) is not type(theirs) or mine != theirs:
                return f"holds {mine!r} where batch 0 has {theirs!r}: what is no tensor must be the same in all batches"
        return None


ONE = InputLayout(None, ("images",), pytree.tree_structure(0), (None,), (0,))
"""One tensor by position."""


_ONLY_TENSORS = (
    "give tensors, in lists and dicts if forward() takes them so, with numbers, strings, booleans and None beside them "
    "(torch.from_numpy makes a tensor of an array)"
)


def read_batch(
    batch: object, model: nn.Module | None, known: InputLayout | None, where: str
) -> tuple[InputLayout, tuple[Tensor, ...]]:
    """The layout of a batch and its tensors.

    A tensor is the one argument. A mapping holds arguments by keyword. Of a tuple or list, the first items are the
    arguments that forward() requires, and what follows are labels.

    Args:
        model: Says what forward() requires; None for one argument.
        known: Layout of the first batch; None for that batch itself.
        where: Name of the batch for messages.

    Raises:
        InputError: the batch holds no tensor, or something else beside tensors than constants, has another layout than
            the first one, or its tensors have other numbers of rows.
    """
    given, names = _arguments_of(batch, model, where)
    if names is not None and known is not None and known.names is not None and set(names) == set(known.names):
        assert isinstance(given, dict)
        names, given = known.names, {name: given[name] for name in known.names}
    layout, tensors = InputLayout.of(given, names)
    odd = next((leaf for leaf in layout.leaves if not isinstance(leaf, CONSTANTS)), None)
    if odd is not None or not tensors:
        what = "no tensor" if odd is None else f"a value of type {type(odd).__name__}"
        raise InputError(f"{where} holds {what}: {_ONLY_TENSORS}")
    fault = None if known is None else layout.difference(known)
    if fault is not None:
        raise InputError(f"{where} {fault}")
    for label, value in zip(layout.labels, tensors, strict=True):
        if value.dim() == 0 or len(value) != len(tensors[0]):
            rows = "no axis" if value.dim() == 0 else f"{len(value)} rows"
            raise InputError(
                f"{label} of {where} has {rows}, {layout.labels[0]} has {len(tensors[0])}: the first axis of every "
                "tensor counts images. Turn it there by transpose(0, 1), and back in a module that calls yours; make a "
                "tensor that all images share a buffer of that module"
            )
    return layout, tensors


def _arguments_of(batch: object, model: nn.Module | None, where: str) -> tuple[object, tuple[str, ...] | None]:
    """The arguments that a batch stands for, and their keywords if it gives them by keyword."""
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping | UserDict):
        named = {str(name): value for name, value in batch.items()}
        return named, tuple(named)
    if isinstance(batch, list | tuple) and batch:
        needed = _required(model)
        if 1 < len(needed) <= len(batch):
            return dict(zip(needed, batch, strict=False)), needed
        return batch[0], None
    raise InputError(
        f"{where} is a {type(batch).__name__}{' without items' if isinstance(batch, list | tuple) else ''}: give a "
        "tensor, a tuple whose first item is the input tensor, or a dict of tensors (torch.from_numpy makes one of an "
        "array)"
    )


def _required(model: nn.Module | None) -> tuple[str, ...]:
    """Names of the arguments that forward() cannot do without, if all of them can be given by keyword."""
    if model is None:
        return ()
    parameters = inspect.signature(model.forward).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return tuple(p.name for p in needed) if all(p.kind != p.POSITIONAL_ONLY for p in needed) else ()


def _label(path: tuple[Any, ...], names: tuple[str, ...] | None) -> str:
    if names is None:
        return f"images{pytree.keystr(path)}"
    return f"{path[0].key!r}{pytree.keystr(path[1:])}"


def _listed(names: tuple[str, ...] | None) -> str:
    return "none" if names is None else str(sorted(names))
