"""What each method of selection does to the layers behind: errors on the moments of the original network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from timing import HOST, Target
from torch import Tensor

import reapx

ERRORS = ("removed", "bias", "own", "fitted")
"""Only removed; removed, the mean of what is lost in the bias; what the method itself does; least squares."""
Groups = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Group name -> method -> kind of error -> error."""
ROUNDING = 1e-9
"""Share by which an error may be above another and still count as equal."""
MEMORY = 2**29
"""Bytes of moments that are measured in one pass."""


def compare(plan: reapx.Plan, target: Target = HOST) -> dict[str, Any]:
    """All methods on the layers and at the widths of one plan, all on the same moments.

    Returns:
        ``measure_seconds``: of the moments, which all share. ``select_seconds``: by method, the choice of units and
        their least squares, given the moments, over all groups. ``few_rows``: names of groups with a consumer that has
        seen fewer rows than it has features, where fits look better than they are. ``groups``: group name -> method ->
        errors, shares of the variance of the consumers' outputs, averaged over consumers, none of them damped (the
        fits are); NU's have the ``sum`` of what it says its steps add, too.
    """
    inspection = plan.inspection
    steps = {entry.group.name: len(entry.removed) for entry in plan.groups}
    groups: dict[str, dict[str, dict[str, float]]] = {name: {} for name, count in steps.items() if count}
    seconds = dict.fromkeys(reapx.SELECTIONS, 0.0)
    measure_seconds, few_rows = 0.0, []
    for part in _parts([entry.group for entry in plan.groups if entry.group.name in groups]):
        start = target.now()
        moments = reapx.measure(inspection, part, progress=False)
        measure_seconds += target.now() - start
        for group in part:
            consumers = reapx.measured_consumers(inspection, group, moments)
            if any(own.known_moments.rows < len(own.known_moments.gram) for own in consumers):
                few_rows.append(group.name)
            for selection in reapx.SELECTIONS:
                start = target.now()
                path = reapx.find_path(inspection, group, moments, selection=selection, steps=steps[group.name])
                seconds[selection] += target.now() - start
                errors = _errors(group, consumers, moments, path)
                if selection == "nu":
                    errors["sum"] = float(path.own_changes.errors.sum())
                groups[group.name][selection] = {**errors, "fitted": path.error(len(path.order))}
    return {"measure_seconds": measure_seconds, "select_seconds": seconds, "few_rows": few_rows, "groups": groups}


def _parts(groups: Sequence[reapx.Group]) -> Iterator[list[reapx.Group]]:
    """Groups whose Gram matrices fit into ``MEMORY`` together."""
    part: list[reapx.Group] = []
    used = 0
    for group in groups:
        size = sum(8 * consumer.layer.features**2 for consumer in group.consumers)
        if part and used + size > MEMORY:
            yield part
            part, used = [], 0
        part.append(group)
        used += size
    if part:
        yield part


def _errors(
    group: reapx.Group,
    consumers: Sequence[reapx.MeasuredConsumer],
    moments: Mapping[str, list[reapx.Moments]],
    path: reapx.Path,
) -> dict[str, float]:
    """The errors that need no fit."""
    own, order = path.own_changes, path.order
    found = {"removed": 0.0, "bias": 0.0}
    if own is not None:
        found["own"] = 0.0
    for index, (consumer, measured) in enumerate(zip(group.consumers, consumers, strict=True)):
        scale = measured.scale / len(consumers)
        gone = measured.columns[order].flatten()
        lost = measured.weight[:, gone]
        raw = moments[consumer.layer.weight][consumer.conv_group].gram
        found["removed"] += scale * _square(lost, raw[gone][:, gone])
        found["bias"] += scale * _square(lost, measured.known_moments.gram[gone][:, gone])
        if own is not None:
            change = own.weights(index, [len(order)])[0] - measured.weight
            found["own"] += scale * _square(change, measured.known_moments.gram)
    return found


def _square(change: Tensor, gram: Tensor) -> float:
    """tr(Δ G Δᵀ)."""
    return max(float(((change @ gram) * change).sum()), 0.0)


def means(groups: Groups) -> dict[str, dict[str, float]]:
    """Method -> kind of error -> its mean over groups."""
    found: dict[str, dict[str, float]] = {}
    for selection in reapx.SELECTIONS:
        each = [methods[selection] for methods in groups.values()]
        found[selection] = {kind: sum(e[kind] for e in each) / len(each) for kind in ERRORS if kind in each[0]}
    return found


def orders(groups: Groups) -> dict[str, Any]:
    """In how many groups what theory says, or reports say, of the errors holds.

    ``nu own = sum``: what NU says its steps add is the error of the weights they end in. ``as published`` compares
    what the methods are in the reports: REAP and CP fit least squares, NU only folds, ThiNet only scales.
    """
    fitted = [{name: own["fitted"] for name, own in methods.items()} for methods in groups.values()]
    unified = [methods["nu"] for methods in groups.values()]
    published = [
        (m["reap"]["fitted"], m["lasso"]["fitted"], m["nu"]["own"], m["thinet"]["own"]) for m in groups.values()
    ]
    mean = {name: sum(own[name] for own in fitted) / len(fitted) for name in reapx.SELECTIONS}
    return {
        "groups": len(groups),
        "reap <= lasso": sum(_rises(own["reap"], own["lasso"]) for own in fitted),
        "lasso <= thinet": sum(_rises(own["lasso"], own["thinet"]) for own in fitted),
        "reap <= lasso <= thinet": sum(_rises(own["reap"], own["lasso"], own["thinet"]) for own in fitted),
        "in the mean": _rises(mean["reap"], mean["lasso"], mean["thinet"]),
        "as published": sum(_rises(*own) for own in published),
        "as published, in the mean": _rises(*(sum(each) for each in zip(*published, strict=True))),
        "reap best": sum(_rises(own["reap"], min(own.values())) for own in fitted),
        "nu fitted <= own": sum(_rises(own["fitted"], own["own"]) for own in unified),
        "nu own = sum": sum(_rises(own["own"], own["sum"], own["own"]) for own in unified),
    }


def _rises(*errors: float) -> bool:
    """Whether none is larger than the next, but for rounding."""
    return all(left <= right * (1 + ROUNDING) + ROUNDING**2 for left, right in itertools.pairwise(errors))
