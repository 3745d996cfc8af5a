"""REAP: each step removes the channel whose removal costs least after least-squares reconstruction.

With P = (G + λI)⁻¹, the Gram matrix of the biorthogonal basis, the exact cost of removing unit u is
s_u = Σ_j α_j tr(W_u^jᵀ (P_uu^j)⁻¹ W_u^j), summed over the consumers j.

Source: K. Kamma and T. Wada, "REAP: A Method for Pruning Convolutional Neural Networks with
Performance Preservation", IEICE Trans. Inf. & Syst. E104-D(1), 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from .. import _native
from ..errors import NumericalError
from ..moments.moments import damp
from .paths.channel_grams import inner_products
from .paths.consumers import MeasuredConsumer
from .paths.path import Path
from .swap import swap_units


@dataclass(frozen=True)
class PathRequest:
    """The path of one group, to be solved.

    Attributes:
        name: Name of the group, for error messages.
        consumers: The group's consumers, with moments.
        steps: Number of removals.
        order: (steps,) int64, units in the order in which they must leave; None to find REAP's order.
    """

    name: str
    consumers: Sequence[MeasuredConsumer]
    steps: int
    order: Tensor | None = None


def reap_paths(requests: Sequence[PathRequest], damping: float, swaps: int = 0) -> list[Path]:
    """Paths of several groups in one native call; see ``solve_paths``.

    Each path's ``final`` is undamped.

    Args:
        requests: One for each group.
        damping: λ as a fraction of the mean diagonal of each Gram matrix; 0 for none.
        swaps: Largest number of exchanges after the last step. With exchanges only the set of removed units is defined,
            not their order.

    Raises:
        NumericalError: a Gram matrix is singular at this damping; the message names the group.
    """
    paths = []
    for request, solved in zip(requests, solve_paths(requests, damping), strict=True):
        task = solved.task
        changes = [consumer.residual.T @ consumer.factor for consumer in task.consumers]
        final = _final_error(request, task, changes) / max(len(changes), 1)
        path = Path(solved.order, solved.errors, final)
        paths.append(_swapped(request, task, path, swaps) if swaps else path)
    return paths


@dataclass(frozen=True)
class SolvedPath:
    """A solved path, with the factors that give its weights at any cut.

    Attributes:
        task: Order, errors, and each consumer's factor and residual.
        ridges: Absolute damping of each consumer.
    """

    task: _native.PathTask
    ridges: Sequence[float]

    @property
    def order(self) -> Tensor:
        """(steps,) int64 units, on the CPU."""
        return self.task.order.cpu()

    @property
    def errors(self) -> Tensor:
        """(steps,) float64, increase of the damped error at each removal, averaged over consumers; on the CPU."""
        return self.task.errors.cpu().clamp(min=0) / max(len(self.task.consumers), 1)


def solve_paths(requests: Sequence[PathRequest], damping: float) -> list[SolvedPath]:
    """Solve the paths of several groups in one native call.

    Errors are those of the damped problem, ‖X(W - W₀)‖² + λ‖W - W₀‖², and bound the undamped errors from above.

    Args:
        requests: One for each group; ``steps`` is at most the number of the group's units.
        damping: λ as a fraction of the mean diagonal of each Gram matrix; 0 for none.

    Raises:
        NumericalError: a Gram matrix is singular at this damping, or the remaining channels become linearly dependent;
            the message names the group.
    """
    found = _tasks(requests, damping)
    _native.path_eliminate([solved.task for solved in found])
    for request, solved in zip(requests, found, strict=True):
        step = int(solved.task.status)
        if step >= 0:
            raise NumericalError(
                f"{request.name}: the channels that remain after {step} removals are linearly dependent up to "
                "rounding: raise damping (default 1e-2)"
            )
    return found


def _swapped(request: PathRequest, task: _native.PathTask, path: Path, swaps: int) -> Path:
    """The path with its set of removed units refined by exchanges, if that lowers the undamped error too."""
    units, weights = swap_units(task.consumers, path.order, swaps)
    changes = [consumer.weight - weight for consumer, weight in zip(task.consumers, weights, strict=True)]
    final = _final_error(request, task, changes) / max(len(weights), 1)
    return Path(units, torch.full_like(path.errors, torch.nan), final) if final < path.final else path


def _tasks(requests: Sequence[PathRequest], damping: float) -> list[SolvedPath]:
    """Tasks for the kernel, with the biorthogonal bases of all consumers, inverted in one native call.

    The consumers of all requests stand in one flat list, so that one call inverts them all. Results come back in the
    same order and are dealt out by iterators that can be read once: each request takes as many as it has consumers.
    For requests with 2 and 1 consumers, ``moments`` is [a0, a1, b0] and ``inverted`` yields (basis, pivot) of a0, a1
    and b0; ``islice(inverted, 2)`` takes a0 and a1 for the first request and leaves b0 for the second.
    """
    moments = [measured.known_moments for request in requests for measured in request.consumers]
    bases = [torch.empty_like(own.gram) for own in moments]
    used = [0.0] * len(moments)

    def invert(indices: list[int], ridges: list[float]) -> list[int]:  # ``damp`` repeats it with larger ridges
        for index, ridge in zip(indices, ridges, strict=True):
            used[index] = ridge
        return _native.basis_compute([moments[i].gram for i in indices], ridges, [bases[i] for i in indices])

    inverted = zip(bases, damp(moments, damping, invert), strict=True)
    each_ridge = iter(used)
    return [
        SolvedPath(
            _task(request, damping, list(islice(inverted, len(request.consumers)))),
            list(islice(each_ridge, len(request.consumers))),
        )
        for request in requests
    ]


def _task(request: PathRequest, damping: float, inverted: Sequence[tuple[Tensor, int]]) -> _native.PathTask:
    """The task of one request, from each consumer's basis and its failed pivot (-1 if none failed)."""
    consumers = []
    for measured, (basis, pivot) in zip(request.consumers, inverted, strict=True):
        if pivot >= 0:
            unit = (measured.columns == pivot).any(1).nonzero()
            which = f"channel {int(unit[0])}" if len(unit) else f"feature {pivot}"
            raise NumericalError(
                f"{request.name}: the Gram matrix of its consumer's input is singular at {which} (dead, or a "
                f"combination of others) at damping={damping}: raise it (default 1e-2), or give more images"
            )
        consumers.append(_consumer(measured, basis, request.steps))
    device = request.consumers[0].weight.device
    forced = redundant_units(request.consumers)[: request.steps] if request.order is None else request.order
    return _native.PathTask(
        consumers=consumers,
        forced=forced.to(device),
        order=torch.empty(request.steps, dtype=torch.int64, device=device),
        errors=torch.empty(request.steps, dtype=torch.float64, device=device),
        status=torch.empty(1, dtype=torch.int64, device=device),
    )


def _final_error(request: PathRequest, task: _native.PathTask, changes: Sequence[Tensor]) -> float:
    """Σ_j α_j ‖X_j Δ_jᵀ‖², the undamped error of weight changes Δ_j."""
    total = 0.0
    for measured, consumer, change in zip(request.consumers, task.consumers, changes, strict=True):
        total += consumer.scale * float(((change @ measured.known_moments.gram) * change).sum())
    return max(total, 0.0)


def _consumer(measured: MeasuredConsumer, basis: Tensor, steps: int) -> _native.PathConsumer:
    features, outputs = len(basis), len(measured.weight)
    rows = steps * measured.columns.shape[1]
    return _native.PathConsumer(
        basis=basis,
        weight=measured.weight.contiguous(),
        columns=measured.columns.contiguous(),
        scale=measured.scale,
        factor=basis.new_empty(rows, features),
        residual=basis.new_empty(rows, outputs),
    )


def redundant_units(consumers: Sequence[MeasuredConsumer], tolerance: float = 1e-8) -> Tensor:
    """Units whose removal costs nothing: dead units, and multiples of an earlier unit that is not dead.

    Args:
        consumers: All consumers of one group, with moments. A unit must be redundant in each of them.
        tolerance: Share of the mean energy up to which a unit is dead; relative distance from exact multiples.

    Returns:
        (count,) int64 units, dead ones first.
    """
    if not consumers:
        return torch.empty(0, dtype=torch.int64)
    units, device = len(consumers[0].columns), consumers[0].columns.device
    dead = torch.ones(units, dtype=torch.bool, device=device)
    alike = torch.ones(units, units, dtype=torch.bool, device=device)
    for measured in consumers:
        gram = measured.known_moments.gram
        energy = gram.diagonal()[measured.columns].sum(1)
        own_dead = energy <= tolerance * energy.mean()
        inner = inner_products(gram, measured.columns)
        multiples = inner**2 >= (1 - tolerance) * torch.outer(energy, energy)
        dead &= own_dead
        alike &= multiples | own_dead | own_dead[:, None]
    living = ~dead
    copies = torch.tril(alike & living & living[:, None], -1).any(1)
    return torch.cat([dead.nonzero().flatten(), copies.nonzero().flatten()])
