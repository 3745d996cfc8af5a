"""Two processes, talking by gloo on the CPU, make the plan and the network that one process makes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from graphs import coupled, lively
from measures import by_weights
from processes import spawn
from safetensors.torch import load_file
from test_pro import count_runs
from torch import Tensor, nn
from torch.multiprocessing import ProcessExitedException

import reapx
import reapx.planning.pipeline
from reapx.calibration.images import share_of
from reapx.calibration.processes import Processes
from reapx.capture.graph import capture
from reapx.cli.main import main

CPU = torch.device("cpu")

SIZES, FIRST = (30, 20, 13, 20, 25), 2
"""Images in each batch; so many batches are rank 0's."""

ROUNDING = 1e-9
"""Float64 sums of some 1e4 terms in another order differ by 1e-12; solves make more of it."""

WEIGHTS = 1e-5
"""Fitted weights are stored as float32."""

CASES: dict[str, dict[str, Any]] = {
    "pro": {"rounds": 2, "points": 2},
    "memory": {"points": 1},
    "a process without groups": {"exclude": ["stem", "a1", "b2"], "output_error": "kl"},
    "uniform": {"allocation": "uniform", "streams": True, "positions": 5, "swaps": 2},
    "removed": {"allocation": "uniform", "selection": "nu", "reconstruct": False},
}


def residual() -> nn.Module:
    torch.manual_seed(0)
    return lively(coupled.CASES["residual"].build())


def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(size, *coupled.CASES["residual"].shape) for size in SIZES]


def share(rank: int) -> list[Tensor]:
    return batches()[:FIRST] if rank == 0 else batches()[FIRST:]


def pruned(images: list[Tensor], **options: Any) -> dict[str, Any]:
    budget = reapx.MACs(0.8 if "exclude" in options else 0.5)
    result = reapx.prune(residual(), images, budget=budget, **options)
    return {
        "removed": {entry.group.name: entry.removed.tolist() for entry in result.plan.groups},
        "errors": [error for entry in result.plan.groups for error in (entry.error, entry.output_error)],
        "fits": [error for fit in result.fits for error in (fit.error, fit.before)],
        "proof": [result.gap, result.change],
        "weights": result.model.state_dict(),
    }


def refusals(rank: int, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What goes wrong in the second process only, or is only wrong with several."""
    images, second = share(rank), rank == 1
    go = partial(reapx.plan, budget=reapx.MACs(0.5), distributed=True)
    other = residual()
    if second:
        with torch.no_grad():
            other.head.bias.add_(1)
    yield "the model's tensors are not those of rank 0", lambda: go(other, images)
    smaller = [batch[..., :6, :6] for batch in images] if second else images
    yield r"images have shape \(3, 6, 6\).*, those of rank 0 shape \(3, 8, 8\)", lambda: go(residual(), smaller)
    yield "no images", lambda: go(residual(), [] if second else images)
    bad = [*images[:-1], images[-1] * torch.nan] if second else images
    yield "images of batch 2 contain NaN", lambda: go(residual(), bad)
    huge = [*images[:-1], images[-1] * 1e20] if second else images
    large = residual()
    with torch.no_grad():
        large.stem[0].weight.mul_(1e20)
        large.stem[1].weight.mul_(1e-20)
    yield r"NaN or Inf in an activation at layer .* \(batch 2\)", lambda: go(large, huge)
    yield "called with other arguments", lambda: go(residual(), images, points=1 + rank)
    yield "points=0: give a whole number", lambda: go(residual(), images, points=1 - rank)
    planned = go(residual(), images, allocation="uniform")
    yield "called with other arguments", lambda: planned.apply(rectify=rank)
    if second:
        (folder / "blocked" / "rank-1").mkdir(parents=True)
        (folder / "blocked" / "rank-1" / "key.json").write_text("{")
    yield "is damaged or truncated", lambda: go(residual(), images, resume=folder / "blocked")


def refused(call: Callable[[], object]) -> str:
    try:
        call()
    except reapx.ReapxError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def joined(rank: int, folder: Path, meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / meeting}", rank=rank, world_size=2)


def is_killed(rank: int, folder: Path) -> None:
    """The second process, as its second batch of moments is on the disk."""
    joined(rank, folder, "first")
    place = os.replace
    stored = 0

    def replace(source: Path, target: Path) -> None:
        nonlocal stored
        place(source, target)
        stored += target.name.startswith("moments")
        if rank == 1 and stored == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace  # type: ignore[assignment]
    reapx.planning.pipeline.Checkpoint = partial(reapx.planning.pipeline.Checkpoint, interval=0)  # type: ignore[assignment,misc]
    pruned(share(rank), distributed=True, resume=folder / "stored", **CASES["pro"])


def works(rank: int, folder: Path) -> None:
    joined(rank, folder, "second")
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        runs = count_runs(patch)
        found["pro"] = pruned(share(rank), distributed=True, resume=folder / "stored", **CASES["pro"])
        found["runs"] = runs.count("moments")
        patch.setattr(reapx.calibration.images, "MEMORY", (2**29, 60_000)[rank])  # as if a GPU had less that is free
        found["memory"] = pruned(share(rank), distributed=True, **CASES["memory"])
    for name in list(CASES)[2:]:
        found[name] = pruned(share(rank), distributed=True, **CASES[name])
    fast = reapx.prune(
        residual(), share(rank), budget=reapx.Latency(0.9, measure=by_weights), points=1, distributed=True
    )
    found["latency"] = [fast.plan.latency, fast.latency, [entry.removed.tolist() for entry in fast.plan.groups]]
    found["refusals"] = [(words, refused(call)) for words, call in refusals(rank, folder)]
    processes = Processes(rank, 2)
    processes.sum(total := torch.tensor([[1, 2], [3, 4]]).T, None)
    found["sum"] = total
    found["shared"] = processes.share(torch.tensor([rank == 1, True]), source=1)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what they found; before that, one of them was killed."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        spawn(is_killed, (folder,), 2)
    spawn(works, (folder,), 2)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_find_what_one_finds(found: list[dict[str, Any]], name: str) -> None:
    alone = pruned(batches(), **CASES[name])
    for own in (found[0][name], found[1][name]):
        assert own["removed"] == alone["removed"]
        for part in ("errors", "fits", "proof"):
            assert own[part] == pytest.approx(alone[part], rel=ROUNDING, abs=1e-15, nan_ok=True)
        assert own["weights"].keys() == alone["weights"].keys()
        for key, value in alone["weights"].items():
            torch.testing.assert_close(own["weights"][key], value, rtol=WEIGHTS, atol=WEIGHTS)
    assert all(torch.equal(value, found[1][name]["weights"][key]) for key, value in found[0][name]["weights"].items())


def test_one_tensor_of_few_batches_is_shared_by_images() -> None:
    whole = torch.arange(90.0).reshape(45, 2)  # one batch
    given = [share_of(whole, CPU, rank, 4) for rank in range(4)]
    assert [len(batch) for own in given for batch in own] == [11, 11, 11, 12]
    assert torch.equal(torch.cat([batch for own in given for batch in own]), whole)  # type: ignore[misc]
    with pytest.raises(reapx.InputError, match="images: 1, processes: 2"):
        share_of(whole[:1], CPU, 0, 2)


def test_a_network_is_the_same_on_all_gpus() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(x.shape[1], device=x.device)

    graph = capture(Net().eval(), (torch.randn(2, 3),))
    digests = set()
    for device in (torch.device("cuda", 0), torch.device("cuda", 1), CPU):
        for node in graph.nodes:
            node.kwargs = {**node.kwargs, **({"device": device} if "device" in node.kwargs else {})}
        digests.add(graph.digest())
    assert len(digests) == 2


def test_images_of_all_count(found: list[dict[str, Any]]) -> None:
    half = pruned(share(0), **CASES["uniform"])
    assert half["errors"] != pytest.approx(found[0]["uniform"]["errors"], rel=1e-3, nan_ok=True)


def test_what_a_killed_process_had_measured_is_not_measured_again(found: list[dict[str, Any]]) -> None:
    assert found[1]["runs"] == len(SIZES) - FIRST - 2


def test_another_number_of_processes_cannot_resume(found: list[dict[str, Any]], folder: Path) -> None:
    with pytest.raises(reapx.InputError, match="processes is 1, it was measured with 2"):
        reapx.plan(residual(), batches(), budget=reapx.MACs(0.5), resume=folder / "stored")


def test_an_error_of_one_process_is_raised_by_all(found: list[dict[str, Any]]) -> None:
    for (words, one), (_, other) in zip(found[0]["refusals"], found[1]["refusals"], strict=True):
        assert one == other
        assert re.search(f"^(Input|Numerical|Checkpoint)Error: rank 1.*{words}", one)


def test_milliseconds_are_those_of_the_first_process(found: list[dict[str, Any]]) -> None:
    assert found[0]["latency"] == found[1]["latency"]


def test_sums_and_shares_of_any_dtype_and_stride(found: list[dict[str, Any]]) -> None:
    for own in found:
        assert torch.equal(own["sum"], torch.tensor([[2, 6], [4, 8]]))
        assert own["shared"].tolist() == [True, True]


def test_without_a_group_it_says_what_to_do() -> None:
    with pytest.raises(reapx.InputError, match=r"torchrun.*init_process_group\('gloo'\)"):
        reapx.plan(residual(), batches(), budget=reapx.MACs(0.5), distributed=True)


@pytest.mark.parametrize("known", [True, False])
def test_shares_are_contiguous_and_complete(known: bool) -> None:
    whole = torch.arange(90).reshape(45, 2).split(4)
    given = [share_of(list(whole) if known else iter(whole), CPU, rank, 5) for rank in range(5)]
    assert torch.equal(torch.cat([batch for own in given for batch in own]), torch.cat(whole))  # type: ignore[misc]
    with pytest.raises(reapx.InputError, match=r"images: 12, processes: 13.*start at most 12"):
        share_of(whole, CPU, 0, 13)


MODEL = """
import torch
from graphs import coupled, lively
from processes import spawn
def build():
    torch.manual_seed(0)
    return lively(coupled.CASES["residual"].build())
def images():
    torch.manual_seed(1)
    return [torch.randn(size, 3, 8, 8) for size in (30, 20, 13, 20, 25)]
"""


def test_the_command_line_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    Path("usermodel.py").write_text(MODEL)
    words = ["prune", "usermodel.py:build", "--images", "usermodel:images", "--budget", "macs=0.5", "--out"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "reapx"]
    run = subprocess.run([*launch, *words, "two"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Plan: MACs") == run.stdout.count("Pruned: MACs") == 1
    assert main([*words, "one"]) == 0
    one, two = (load_file(f"{name}/weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=WEIGHTS, atol=WEIGHTS)


@pytest.mark.parametrize(
    ("device", "environment", "message"),
    [
        ("gpu", {}, "--device gpu: choose cpu, cuda"),
        ("cuda:x", {}, "--device cuda:x: choose cpu, cuda"),
        ("cuda:99", {}, "torch sees"),
        ("cuda:1", {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, "want a GPU each"),
        ("cuda", {"RANK": "0"}, "WORLD_SIZE=2, but no LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start with torchrun"),
        ("cpu", {"RANK": "0"}, "unset WORLD_SIZE"),
    ],
)
def test_devices_and_launches_that_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: str,
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in ({"WORLD_SIZE": "2", **environment} if environment else {}).items():
        monkeypatch.setenv(name, value)
    words = ["prune", "none.py:build", "--images", "none.npy", "--budget", "macs=0.5", "--out", "x"]
    assert main([*words, "--device", device]) == 1
    assert message in capsys.readouterr().err
