"""Values inside both networks that can be compared: what the same layer reads in each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..surgery.cut import origin_of

MOST = 10
"""Number of layers whose inputs are compared; all 55 of ResNet-56 took half as long again and gained nothing."""

_Reader = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclass(frozen=True)
class _Compared:
    """A layer of the pruned network, the same layer of the original, and which of its input channels to look at."""

    name: str
    pruned: _Reader
    original: _Reader
    positions: Tensor | None

    def error(self, found: Tensor, wanted: Tensor) -> Tensor | None:
        """Squared difference as a share of the variance; None where the inputs have different shapes after all."""
        wanted = wanted.detach().float()
        if self.positions is not None:
            axis = -1 if isinstance(self.pruned, nn.Linear) else 1
            wanted = wanted.index_select(axis, self.positions.to(wanted.device))
        if wanted.shape != found.shape:
            return None
        return (found.float() - wanted).square().mean() / wanted.var().clamp(min=1e-12)


class Features:
    """The inputs of some layers of the original, and of the same layers of the pruned network, while both run.

    Of the original's channels, those count that the pruned network has kept.
    """

    def __init__(self, pruned: nn.Module, original: nn.Module) -> None:
        self._compared = _spread(_comparable(pruned, original))
        self._found: dict[str, list[Tensor]] = {}
        self._wanted: dict[str, list[Tensor]] = {}
        self._hooks = []
        for each in self._compared:
            self._hooks.append(each.pruned.register_forward_pre_hook(_keeping(self._found, each.name)))
            self._hooks.append(each.original.register_forward_pre_hook(_keeping(self._wanted, each.name)))

    def close(self) -> None:
        """Stop looking."""
        for hook in self._hooks:
            hook.remove()

    def forget(self) -> None:
        """Drop what was seen."""
        self._found.clear()
        self._wanted.clear()

    def error(self) -> Tensor | None:
        """Mean error over the layers that both networks have run since values were forgotten; None without any."""
        errors = []
        for each in self._compared:
            pairs = zip(self._found.get(each.name, []), self._wanted.get(each.name, []), strict=False)
            errors += [error for pair in pairs if (error := each.error(*pair)) is not None]
        self.forget()
        return torch.stack(errors).mean() if errors else None


def _keeping(values: dict[str, list[Tensor]], name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
    def keep(module: nn.Module, inputs: tuple[object, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            values.setdefault(name, []).append(inputs[0])

    return keep


def _comparable(pruned: nn.Module, original: nn.Module) -> list[_Compared]:
    theirs = dict(original.named_modules())
    found = []
    for name, module in pruned.named_modules():
        other = theirs.get(name)
        if isinstance(module, _Reader) and isinstance(other, _Reader) and type(module) is type(other):
            same, positions = _positions(module, other)
            if same:
                found.append(_Compared(name, module, other, positions))
    return found[1:]  # the first one reads the images


def _spread(readers: list[_Compared]) -> list[_Compared]:
    """At most ``MOST`` of them, evenly spread, the last one among them."""
    count = min(MOST, len(readers))
    return [readers[(k + 1) * len(readers) // count - 1] for k in range(count)]


def _positions(pruned: _Reader, original: _Reader) -> tuple[bool, Tensor | None]:
    """Whether the inputs of a layer can be compared, and which of the original's channels the pruned layer reads.

    Both may have been cut before; positions count in the first original, of which the original may be a part.
    """
    if getattr(pruned, "groups", 1) > 1:
        return pruned.weight.shape == original.weight.shape, None
    size, whole = pruned.weight.shape[1], original.weight.shape[1]
    ours, theirs = (origin_of(module).get("weight", {}).get(1) for module in (pruned, original))
    if size == whole:
        return True, None
    if ours is None or len(ours) != size:
        return False, None
    if theirs is None:
        return int(ours.max()) < whole, ours
    places = torch.searchsorted(theirs, ours).clamp(max=len(theirs) - 1)
    return len(theirs) == whole and torch.equal(theirs[places], ours), places
