"""Errors at the outputs, against running the whole module with other tensors."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import coupled, lively
from torch import Tensor, nn

import reapx
import reapx.allocation.output_errors
from reapx.allocation.output_errors import output_errors
from reapx.calibration.checkpoint import Checkpoint
from reapx.inspection.inspection import Inspection


class Branches(nn.Module):
    """Two outputs behind a softmax and one without, that of a layer of its own, and one of whole numbers."""

    def __init__(self, softmax: bool = True) -> None:
        super().__init__()
        self.softmax = softmax
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.left, self.right, self.map = nn.Linear(6, 5), nn.Linear(6, 4), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.norm(self.stem(x)))
        pooled = x.mean((2, 3))
        left, right, dense = self.left(pooled), self.right(pooled), self.map(x)
        if not self.softmax:
            return left, right, dense
        return F.log_softmax(left, 1), right, left.argmax(1), dense.softmax(1)


SIZES = (30, 20, 7)


def inspected(memory: int | None = None) -> tuple[Inspection, Tensor]:
    torch.manual_seed(0)
    model, images = lively(Branches()), torch.randn(57, 3, 6, 6)

    def batches() -> Iterator[Tensor]:
        yield from images.split(SIZES)

    return reapx.inspect(model, batches(), **({} if memory is None else {"memory": memory})), images


def moved(found: Inspection, *names: str, by: float = 0.1) -> dict[str, Tensor]:
    tensors = found._graph.tensors
    return {name: tensors[name] + by * torch.randn(tensors[name].shape) for name in names}


def replacements_of(found: Inspection) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [
        moved(found, "stem.weight"),
        moved(found, "norm.running_mean", "left.weight"),
        moved(found, "left.bias", by=3.0),
        moved(found, "map.weight", "right.bias"),
        {},
        {"stem.weight": found._graph.tensors["stem.weight"].clone()},
    ]


def rerun(found: Inspection, images: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Float64 outputs before a softmax."""
    plain = Branches(softmax=False).eval()
    everything = {name: value.double() for name, value in {**found._graph.tensors, **tensors}.items()}
    with torch.no_grad():
        result: tuple[Tensor, ...] = torch.func.functional_call(plain.double(), everything, (images.double(),))
    return result


def slow_error(found: Inspection, images: Tensor, tensors: Mapping[str, Tensor], measure: str) -> float:
    shares = []
    for wanted, got in zip(rerun(found, images, {}), rerun(found, images, tensors), strict=True):
        if measure == "kl":
            divergence = F.kl_div(got.log_softmax(1), wanted.log_softmax(1), reduction="none", log_target=True)
            shares.append(divergence.sum(1).mean())
        else:
            shares.append((got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())
    return float(sum(shares) / len(shares))


@pytest.mark.parametrize("measure", ["squared", "kl"])
@pytest.mark.parametrize("with_base", [False, True])
def test_errors_are_those_of_a_rerun(measure: str, with_base: bool) -> None:
    found, images = inspected()
    base = moved(found, "stem.bias", "left.weight", by=0.2) if with_base else None
    replacements = replacements_of(found)
    errors = output_errors(found._graph, found._images, replacements, base=base, measure=measure)
    for replacement, error in zip(replacements, errors, strict=True):
        expected = slow_error(found, images, {**(base or {}), **replacement}, measure)
        assert error == pytest.approx(expected, rel=1e-4, abs=1e-10)
    if not with_base:
        assert errors[4] == errors[5] == 0.0


def test_an_output_that_does_not_depend_on_the_edit_keeps_its_error() -> None:
    """Without a base none at all: the other outputs' error is shared out among three."""
    found, images = inspected()
    replacement = moved(found, "left.weight", by=0.5)
    wanted, got = rerun(found, images, {})[0], rerun(found, images, replacement)[0]
    alone = float((got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())
    assert output_errors(found._graph, found._images, [replacement])[0] == pytest.approx(alone / 3, rel=1e-4)


@pytest.mark.parametrize("name", ["residual", "gate", "split", "attention", "two_outputs"])
def test_the_suffix_alone_gives_what_the_whole_network_gives(name: str) -> None:
    """Every tensor of networks with joins, gates and views; the original's outputs for no replacement are exact."""
    case = coupled.CASES[name]
    model = lively(case.build())
    images = torch.randn(20, *case.shape)
    found = reapx.inspect(model, list(images.split(8)))
    names = sorted(found._graph.trained)
    replacements = [moved(found, name) for name in names]
    with torch.no_grad():
        wanted = reapx.surgery.proof.tensors_in(model(images))
        for replacement, error in zip(
            replacements, output_errors(found._graph, found._images, replacements), strict=True
        ):
            got = reapx.surgery.proof.tensors_in(torch.func.functional_call(model, replacement, (images,)))
            shares = [
                float((a - b).square().sum() / (b - b.mean(0)).square().sum()) for a, b in zip(got, wanted, strict=True)
            ]
            assert error == pytest.approx(sum(shares) / len(shares), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("measure", ["squared", "kl"])
def test_values_on_disk_give_the_same_bits(measure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    results = []
    for memory in (None, 3000, 0):
        found, _ = inspected(memory)
        base = {"left.weight": found._graph.tensors["left.weight"] * 1.1}
        results.append(output_errors(found._graph, found._images, replacements_of(found), base=base, measure=measure))
    assert results[0] == results[1] == results[2]
    gc.collect()  # an inspection that is no longer used, whose graph has circles
    # Of what was spilled for a batch nothing is left; the images themselves are the inspection's.
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("count", "each"), [(None, 10), (100, 10), (500, 10), (3, 1), (20, 2), (26, 3), (49, 5)])
def test_a_count_takes_images_of_every_batch(count: int | None, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    images = torch.randn(100, 4)
    found = reapx.inspect(model, list(images.split(10)))
    taken: list[Tensor] = []
    real = reapx.allocation.output_errors.run

    def noted(graph: Any, inputs: Any, *rest: Any) -> Any:
        taken.append(inputs[0])
        return real(graph, inputs, *rest)

    monkeypatch.setattr(reapx.allocation.output_errors, "run", noted)
    replacement = moved(found, "2.weight")
    error = output_errors(found._graph, found._images, [replacement], count=count)[0]
    chosen = torch.cat([batch[:each] for batch in images.split(10)])
    assert torch.equal(torch.cat(taken), chosen)
    with torch.no_grad():
        wanted, got = model(chosen), torch.func.functional_call(model, replacement, (chosen,))
    assert error == pytest.approx(float((got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()))


def test_what_is_stored_is_found_again_and_other_edits_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = inspected()
    replacements = replacements_of(found)
    whole = output_errors(found._graph, found._images, replacements, checkpoint=Checkpoint(tmp_path, {}))
    runs: list[int] = []
    real = reapx.allocation.output_errors.run
    monkeypatch.setattr(reapx.allocation.output_errors, "run", lambda *given: (runs.append(1), real(*given))[1])
    assert output_errors(found._graph, found._images, replacements, checkpoint=Checkpoint(tmp_path, {})) == whole
    assert not runs
    for options in ({"measure": "kl"}, {"base": moved(found, "map.bias")}, {"count": 20}):
        runs.clear()
        output_errors(found._graph, found._images, replacements, checkpoint=Checkpoint(tmp_path, {}), **options)
        assert runs
    runs.clear()
    output_errors(found._graph, found._images, replacements[::-1], checkpoint=Checkpoint(tmp_path, {}))
    assert len(runs) == len(SIZES)


class Odd(nn.Module):
    """Outputs whose first axis is not that of the images."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.two(F.relu(self.one(x)))
        if self.kind == "scalar first":
            return x.square().mean(), x
        if self.kind == "tokens first":
            return x.transpose(0, 1)
        if self.kind == "rows":
            return x.flatten(0, 1)
        return x.argmax(-1)


@pytest.mark.parametrize("kind", ["scalar first", "tokens first", "rows"])
def test_outputs_of_other_shapes_are_compared_image_by_image(kind: str) -> None:
    model = Odd(kind).eval()
    images = torch.randn(40, 5, 6) + 1
    found = reapx.inspect(model, list(images.split(16)))
    replacement = moved(found, "two.weight")
    with torch.no_grad():
        values = [functional_value(model, tensors, images, kind) for tensors in ({}, replacement)]
    wanted, got = values
    expected = float((got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())
    assert output_errors(found._graph, found._images, [replacement])[0] == pytest.approx(expected, rel=1e-3)


def functional_value(model: nn.Module, tensors: Mapping[str, Tensor], images: Tensor, kind: str) -> Tensor:
    value = torch.func.functional_call(model, dict(tensors), (images,))
    if kind == "scalar first":
        return value[1]  # type: ignore[no-any-return]
    return value.transpose(0, 1) if kind == "tokens first" else value


def test_outputs_that_cannot_be_compared_are_refused() -> None:
    images = torch.randn(40, 5, 6)
    with pytest.raises(reapx.InputError, match=r"no floating-point output .* allocation='uniform'"):
        reapx.plan(Odd("argmax").eval(), images, budget=reapx.MACs(0.6))
    assert reapx.plan(Odd("argmax").eval(), images, budget=reapx.MACs(0.6), allocation="uniform").macs[1] > 0
    one = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    for model in (one, nn.Sequential(*one, nn.Flatten(0)).eval()):
        with pytest.raises(reapx.InputError, match=r"output_error='kl' .* use 'squared'"):
            reapx.plan(model, torch.randn(40, 6), budget=reapx.MACs(0.6), output_error="kl")
        assert reapx.plan(model, torch.randn(40, 6), budget=reapx.MACs(0.6)).macs[1] > 0


def test_an_output_that_never_varies_does_not_drown_the_others() -> None:
    """One image: its outputs' squares stand in for their variance."""
    torch.manual_seed(0)
    model, image = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(1, 6)
    found = reapx.inspect(model, image)
    replacement = moved(found, "2.weight")
    with torch.no_grad():
        wanted, got = model(image), torch.func.functional_call(model, replacement, (image,))
    expected = float((got - wanted).square().sum() / wanted.square().sum())
    assert output_errors(found._graph, found._images, [replacement])[0] == pytest.approx(expected, rel=1e-4)
