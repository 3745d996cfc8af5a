"""Which numbers of its modules count a group's attention heads: what forward() calls ``num_heads`` and the like.

They are found by name and value, and the dry run says whether they were the right ones.
"""

from __future__ import annotations

from torch import nn

from ..capture.graph import Graph, calling_module
from ..groups.channel_groups import Group

_SIZES = ("dim", "size", "width", "group", "channel", "scale", "index", "layer")
"""Parts of names that count something else than heads."""
_HEADS_TOGETHER = ("head", "attn", "attention", "inner", "qkv")
"""Parts of names of widths that hold all heads side by side."""

_TRIED = 4
"""So many numbers without a telling name are tried one by one."""

Names = tuple[tuple[str, str], ...]
"""(module path, attribute) of some numbers."""


def candidates(model: nn.Module, graph: Graph, group: Group) -> list[Names]:
    """Sets of numbers that may count a group's heads, the likeliest first; the last is empty."""
    if not group.attention:
        return [()]
    heads = {group.size, *(count * group.size for count in group.attention.values())}
    layers = [*group.producers, *(consumer.layer for consumer in group.consumers)]
    widths = {group.cuts[layer.weight, layer.out_axis].size for layer in group.producers}
    widths |= {consumer.channels.size for consumer in group.consumers}
    counts: list[tuple[str, str]] = []
    named: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    nameless: list[tuple[str, str]] = []
    for path in _paths(group, [layer.name for layer in layers]):
        for name, value in vars(model.get_submodule(path)).items():
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            if value in heads and "head" in name.lower() and not any(part in name.lower() for part in _SIZES):
                counts.append((path, name))
            elif value in widths:
                (named if any(part in name.lower() for part in _HEADS_TOGETHER) else others).append((path, name))
            elif value in heads and not any(part in name.lower() for part in _SIZES):
                nameless.append((path, name))  # such as self.h
    likely = (*counts, *named)
    sets = [likely, tuple(counts), (*likely, *others), (*likely, *nameless), (*likely, *nameless, *others)]
    sets += [(*likely, one) for one in nameless[:_TRIED]]  # a size such as self.d_k may equal the number of heads
    sets.append(())
    return list(dict.fromkeys(sets))


def kind_of(model: nn.Module, group: Group, sets: list[Names]) -> object:
    """Equal for groups of modules that do the same with the same numbers."""
    owners = tuple(type(model.get_submodule(calling_module(node)[0])) for node in group.attention)
    names = tuple(tuple(name for _, name in found) for found in sets)
    return owners, names, group.size, tuple(where.shape for where in group.cuts.values())


def _paths(group: Group, layers: list[str]) -> list[str]:
    """The modules whose forward() computes the attention, and those around them that hold nothing but these layers."""
    found: dict[str, None] = {}
    common = _common(layers)
    for node in group.attention:
        owner, _ = calling_module(node)
        found[owner] = None
        while (common and owner.startswith(f"{common}.")) or owner == common != "":
            found[owner] = None
            if owner == common:
                break
            owner = owner.rpartition(".")[0]
    return list(found)


def _common(names: list[str]) -> str:
    """The longest path that all names lie in."""
    parts = [name.split(".")[:-1] for name in names]
    found: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        found.append(level[0])
    return ".".join(found)
