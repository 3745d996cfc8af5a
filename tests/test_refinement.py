"""Refinement: a pruned network follows the original more closely, never less, with the same bits after a kill."""

from __future__ import annotations

import html
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from graphs import lively
from processes import exit_code, spawn
from torch import Tensor, nn

import reapx
from reapx.refinement.augmentation import varied
from reapx.refinement.features import Features
from reapx.report.page import write_report

OPTIONS: dict[str, Any] = {"steps": 80, "learning_rate": 1e-3, "precision": "float32", "batch": 32}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(64, 5),
    ]  # fmt: skip
    return lively(nn.Sequential(*layers))


def pictures(count: int, seed: int) -> Tensor:
    coarse = torch.randn(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=8, mode="bilinear")


def pruned(**options: Any) -> tuple[nn.Module, reapx.Result]:
    model = network()
    return model, reapx.prune(model, pictures(120, 1), budget=reapx.MACs(0.3), allocation="uniform", **options)


def change(model: nn.Module, original: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        wanted = original(images)
        return float((model(images) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_outputs_come_closer_on_images_that_nothing_has_seen() -> None:
    model, result = pruned()
    before = {name: value.clone() for name, value in result.model.state_dict().items()}
    fresh, judged = pictures(400, 2), pictures(300, 3)
    found = reapx.refine(result.model, model, fresh, **OPTIONS)
    assert change(found.model, model, judged) < 0.9 * change(result.model, model, judged)
    assert change(found.model, model, fresh[11::12]) == pytest.approx(found.after, rel=1e-4)
    assert change(result.model, model, fresh[11::12]) == pytest.approx(found.before, rel=1e-4)
    assert found.after == min(value for _, value in found.points)
    assert found.images == (367, 33) and found.points[-1][0] == found.steps <= 80
    assert all(torch.equal(value, before[name]) for name, value in result.model.state_dict().items())
    assert all(not module.training for module in found.model.modules())
    names = {name for name, _ in found.model.named_buffers()}
    assert all(torch.equal(found.model.state_dict()[name], before[name]) for name in names)  # norms stay in eval mode


def test_a_result_is_refined_saved_loaded_and_reported(tmp_path: Path) -> None:
    model, result = pruned()
    refined = result.refine(pictures(400, 2), **OPTIONS)
    assert refined.change < result.change and refined.refinement is not None
    assert refined.change == refined.refinement.after
    refined.save(tmp_path / "saved")
    assert equal(reapx.load(network(), tmp_path / "saved"), refined.model)
    page = write_report(refined, tmp_path / "page.html").read_text()
    assert "Refinement" in page and html.escape(str(refined.refinement)) in page
    assert str(refined.refinement) in str(refined)
    assert equal(model, network())


def test_images_of_the_plan_are_judged_by_those_that_judged_the_plan() -> None:
    model, result = pruned()
    refined = result.refine(steps=10, learning_rate=1e-3)
    assert refined.refinement is not None
    with torch.no_grad():
        rows = pictures(120, 1)[11::12]
        assert refined.refinement.images == (110, 10)
        assert refined.refinement.before == pytest.approx(change(result._judged, model, rows), rel=1e-4)
    assert refined.refinement.after <= refined.refinement.before


def test_what_is_no_closer_is_not_taken() -> None:
    model, result = pruned()
    worse = result.refine(pictures(100, 2), **{**OPTIONS, "learning_rate": 10.0, "steps": 4})
    assert worse.model is result.model and worse.refinement is not None
    assert worse.change == result.change and worse.refinement.before == worse.refinement.after
    assert "stays as it was" in str(worse.refinement)
    found = reapx.refine(model, model, pictures(40, 2), **OPTIONS)
    assert found.after == 0 and equal(found.model, model)


def test_it_ends_early_where_nothing_is_gained() -> None:
    _, result = pruned()
    refined = result.refine(pictures(100, 2), **{**OPTIONS, "learning_rate": 1.0, "steps": 200})
    assert refined.refinement is not None and refined.refinement.steps < 200


@pytest.mark.parametrize("where", ["images", "batches", "loader", "names"])
def test_images_come_in_any_form(where: str) -> None:
    class Named(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, picture: Tensor) -> dict[str, Tensor]:
            return {"logits": self.body(picture)}

    model, result = pruned()
    images = pictures(60, 2)
    batches = {"images": images, "batches": list(images.split(7)), "loader": ((x, 0) for x in images.split(16)),
               "names": [{"picture": x} for x in images.split(9)]}[where]  # fmt: skip
    networks = [Named(result.model).eval(), Named(model).eval()] if where == "names" else [result.model, model]
    found = reapx.refine(*networks, batches, **{**OPTIONS, "steps": 3})
    assert found.images == (55, 5)


def _killed(folder: Path, step: int) -> None:
    model, result = pruned()

    def stop(_: str, done: int, total: int) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    import reapx.calibration.checkpoint as checkpoint

    checkpoint.Checkpoint.__init__.__defaults__ = (0.0,)  # type: ignore[misc]  # stores at every judgement
    reapx.refine(result.model, model, pictures(100, 2), resume=folder, on_progress=stop, **OPTIONS)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    model, result = pruned()
    whole = reapx.refine(result.model, model, pictures(100, 2), **OPTIONS)
    code, _ = exit_code(_killed, tmp_path, 47)
    assert code == -signal.SIGKILL
    stepped = []
    again = reapx.refine(
        result.model, model, pictures(100, 2), resume=tmp_path, on_progress=lambda *x: stepped.append(x[1]), **OPTIONS
    )
    assert 0 < min(stepped) <= 47
    assert again.points == whole.points and equal(again.model, whole.model)
    done = reapx.refine(result.model, model, pictures(100, 2), resume=tmp_path, **OPTIONS)
    assert done.points == whole.points and equal(done.model, whole.model)
    with pytest.raises(reapx.InputError, match="learning_rate"):
        reapx.refine(result.model, model, pictures(100, 2), resume=tmp_path, **{**OPTIONS, "learning_rate": 2e-3})


def _in_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, result = pruned()
    own = pictures(200, 2).split(100)[rank]
    found = reapx.refine(result.model, model, own, distributed=True, resume=folder / "state", **OPTIONS)
    torch.save({"state": found.model.state_dict(), "after": found.after, "before": found.before}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    spawn(_in_two, (tmp_path,), 2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one["after"] == other["after"] < one["before"] == other["before"]
    assert all(torch.equal(value, other["state"][name]) for name, value in one["state"].items())


def test_features_are_those_of_the_channels_that_stayed() -> None:
    """Cut without a refit, a network reads exactly what the original's kept channels are in its second layer."""
    model, result = pruned(reconstruct=False)
    layer = result.model[3]
    assert isinstance(layer, nn.Conv2d) and layer.in_channels < 16
    features = Features(nn.Sequential(*list(result.model)[:4]), nn.Sequential(*list(model)[:4]))
    images = pictures(5, 2)
    with torch.no_grad():
        for each in (result.model, model):
            nn.Sequential(*list(each)[:4])(images)
        error = features.error()
    assert error is not None and float(error) < 1e-10
    again = reapx.prune(result.model, pictures(120, 1), budget=reapx.MACs(0.5), allocation="uniform", reconstruct=False)
    features = Features(nn.Sequential(*list(again.model)[:4]), nn.Sequential(*list(result.model)[:4]))
    with torch.no_grad():
        for each in (again.model, result.model):
            nn.Sequential(*list(each)[:4])(images)
        error = features.error()
    assert error is not None and float(error) < 1e-10


def test_variants_are_mixtures_of_shifted_pictures() -> None:
    torch.manual_seed(0)
    flat = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 3, 16, 16)
    found = varied(flat)
    assert found.shape == flat.shape and bool((found.std((1, 2, 3)) < 1e-6).all())
    assert float(found.min()) >= 0 and float(found.max()) <= 5 and not torch.equal(found, flat)


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one, self.two = nn.Embedding(20, 8), nn.Linear(8, 24), nn.Linear(24, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(self.embed(ids)))).mean(1)


def test_token_ids_are_not_varied() -> None:
    torch.manual_seed(0)
    model, ids = Text().eval(), torch.randint(20, (120, 6))
    result = reapx.prune(model, [{"ids": ids}], budget=reapx.MACs(0.3), allocation="uniform")
    refined = result.refine(**{**OPTIONS, "steps": 20, "learning_rate": 1e-2})
    assert refined.change < result.change


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, "steps=0: give a whole number from 1"),
        ({"minutes": -1.0}, "minutes=-1.0: give a number above 0"),
        ({"steps": 3, "minutes": 1.0}, "give one of them"),
        ({"learning_rate": 0}, "learning_rate=0: give a number above 0"),
        ({"augment": 3}, "augment=3: give a function"),
        ({"augment": lambda x: x[:1]}, "return images of the same shape"),
        ({"augment": lambda x: (x, x)}, "augment returned 2 tensors"),
        ({"precision": "int8"}, "choose one of float32, bfloat16"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], text: str) -> None:
    model, result = pruned()
    with pytest.raises(reapx.InputError, match=text):
        reapx.refine(result.model, model, pictures(20, 2), **options)


def test_networks_that_do_not_fit_are_refused() -> None:
    model, result = pruned()
    with pytest.raises(reapx.InputError, match="outputs have shape"):
        reapx.refine(result.model, nn.Sequential(*list(model)[:-1]).eval(), pictures(20, 2), steps=2)
    with pytest.raises(reapx.InputError, match="train mode"):
        reapx.refine(result.model, network().train(), pictures(20, 2), steps=2)
    with pytest.raises(reapx.NumericalError, match="smaller learning_rate"):
        reapx.refine(result.model, model, pictures(64, 2), **{**OPTIONS, "learning_rate": 1e30})
    inplace = reapx.prune(model, pictures(120, 1), budget=reapx.MACs(0.3), allocation="uniform", inplace=True)
    with pytest.raises(reapx.InputError, match="the original is gone"):
        inplace.refine(steps=2)
    with pytest.raises(reapx.InputError, match="needs the original"):
        reapx.prune(network(), pictures(20, 1), budget=reapx.MACs(0.5), inplace=True, refine=True)
