"""Errors name what the user wrote, and say what to give instead."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.ao.quantization import default_qconfig, get_default_qat_qconfig, prepare, prepare_qat
from torch.nn.utils import prune, spectral_norm, weight_norm

import reapx

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
HALF = reapx.MACs(0.5)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, a: Tensor, b: Tensor, flag: bool = False) -> Tensor:
        return self.net(a + b)


class Pair(Two):
    def forward(self, ab: list[Tensor]) -> Tensor:  # type: ignore[override]
        return self.net(ab[0] + ab[1])


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize(
    ("model", "images", "words"),
    [
        (embedding, torch.randint(0, 9, (8, 5)).to(torch.uint8), "token ids are an int64 tensor (sentences, length)"),
        (Two, (IMAGES, IMAGES), "images=[{'a': ..., 'b': ...}, ...]"),
        (Two, [{"a": IMAGES, "c": IMAGES}], "images=[{'a': ..., 'b': ...}, ...]"),
        (
            Two,
            [{"a": IMAGES, "b": IMAGES, "flag": object()}],
            "a value of type object: give tensors, in lists",
        ),
        (
            Two,
            [{"a": IMAGES, "b": IMAGES[:4]}],
            "'b' of batch 0 has 4 rows, 'a' has 16: the first axis of every tensor",
        ),
        (Two, [{"a": IMAGES, "b": torch.tensor(1.0)}], "'b' of batch 0 has no axis, 'a' has 16"),
        (Two, [{"a": IMAGES, "b": IMAGES, "flag": f} for f in (True, False)], "holds False where batch 0 has True"),
        (Pair, [[[IMAGES, IMAGES]], [[IMAGES]]], "batch 1 holds other lists, dicts or tensors than batch 0"),
        (embedding, [torch.ones(4, n, dtype=torch.int64) for n in (5, 6)], "pad or cut sentences to one length"),
        (net, {"input": IMAGES}, "which is one batch: put it in a list, images=[batch]"),
        (net, list(IMAGES), "torch.stack(images) makes a batch"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)), list(IMAGES[:, :1]), "torch.stack(images)"),
        (Pair, [["text"]], "batch 0 holds no tensor"),
    ],
)
def test_inputs_of_another_form(model: Callable[[], nn.Module], images: object, words: str) -> None:
    with pytest.raises(reapx.InputError, match=re.escape(words)) as caught:
        reapx.inspect(model().eval(), images)
    assert "must be normalised" not in str(caught.value)


def test_ids_by_name_are_taken() -> None:
    found = reapx.inspect(embedding(), [{"input": torch.randint(0, 9, (8, 5))}])
    assert [group.name for group in found.groups] == ["1"]


def masked() -> nn.Module:
    model = net()
    prune.ln_structured(model[0], "weight", 0.5, n=2, dim=0)
    return model


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = net()
    norm(model[2])
    model(IMAGES[:2])
    return model


def locked() -> nn.Module:
    model = net()
    model[0].lock = threading.Lock()  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (masked, "torch.nn.utils.prune.remove(model.get_submodule('0'), 'weight')"),
        (lambda: normed(weight_norm), "torch.nn.utils.remove_weight_norm(model.get_submodule('2'), 'weight')"),
        (lambda: normed(spectral_norm), "torch.nn.utils.remove_spectral_norm(model.get_submodule('2'), 'weight')"),
        (locked, "its attribute 0.lock is of type lock"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("function", [lambda model: reapx.inspect(model, IMAGES), reapx.zero_nodes, reapx.compact])
def test_models_that_cannot_be_copied(
    model: Callable[[], nn.Module], words: str, function: Callable[[nn.Module], object]
) -> None:
    with pytest.raises(reapx.InputError, match=re.escape(words)) as caught:
        function(model())
    assert "cannot be copied" in str(caught.value)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_data_parallel(alone: None) -> None:
    with pytest.raises(reapx.InputError, match=re.escape("it wraps, model.module")):
        reapx.plan(nn.parallel.DistributedDataParallel(net()).eval(), IMAGES, budget=HALF)


def quantization_aware() -> nn.Module:
    model = net().train()
    model.qconfig = get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    return prepare_qat(model).eval()


def observed() -> nn.Module:
    model = net()
    model.qconfig = default_qconfig  # type: ignore[assignment]
    return prepare(model)


def data_parallel() -> nn.Module:
    """On a machine without a device, whatever device other tests pretend."""
    with mock.patch("torch.nn.parallel.data_parallel._get_available_device_type", lambda: None):
        return nn.DataParallel(net()).eval()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (data_parallel, "the module that it wraps, model.module"),
        (lambda: torch.jit.trace(net(), IMAGES[:2]), "that was traced or scripted"),
        (lambda: torch.jit.script(net()), "that was traced or scripted"),
        (lambda: torch.export.export(net(), (IMAGES[:2],)), "the torch.nn.Module that was exported"),
        (lambda: torch.export.export(net(), (IMAGES[:2],)).module(), "the torch.nn.Module that was exported"),
        (lambda: net().state_dict(), "model.load_state_dict(state)"),
        (lambda: net().forward, "give the module itself, not a method"),
        (lambda: torch.relu, "calls the function in its forward()"),
        (lambda: Two, "give an instance of the class"),
        (lambda: "model.pt", "build it, then load its weights"),
        (lambda: None, "does the function that builds it return it?"),
        (lambda: 3, "model is of type int: give a torch.nn.Module"),
        (quantization_aware, "prune before quantization"),
        (observed, "prune before quantization"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        lambda model: reapx.plan(model, IMAGES, budget=HALF, exclude=[nn.ReLU()]),
        lambda model: reapx.serialize(model, IMAGES),
        lambda model: reapx.behaviors(model, IMAGES, layer="0"),
        reapx.compact,
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_is_no_module_to_prune(
    model: Callable[[], nn.Module], words: str, function: Callable[[nn.Module], object]
) -> None:
    with pytest.raises(reapx.InputError, match=re.escape(words)):
        function(model())


def test_paths_and_models_of_saved_results(tmp_path: Path) -> None:
    plan = reapx.plan(net(), IMAGES, budget=HALF, allocation="uniform", selection="magnitude")
    result = plan.apply()
    for path in ("", None, 3, b"folder"):
        for function in (plan.save, result.save, lambda path: reapx.load(net(), path)):
            with pytest.raises(reapx.InputError, match=re.escape(f"folder={path!r}: give a path")):
                function(path)  # type: ignore[arg-type]
        with pytest.raises(reapx.InputError, match=re.escape(f"folder={path!r}: give a path")):
            reapx.load_plan(net(), IMAGES, path)  # type: ignore[arg-type]
        with pytest.raises(reapx.InputError, match=re.escape(f"path={path!r}: give a path")):
            reapx.write_report(plan, path)  # type: ignore[arg-type]
    with pytest.raises(reapx.InputError, match="model is of type str"):
        reapx.load(str(tmp_path), net())  # type: ignore[arg-type]
    with pytest.raises(reapx.InputError, match="result is of type int"):
        reapx.write_report(3, tmp_path / "page.html")  # type: ignore[arg-type]


def test_arguments_of_other_functions_are_checked() -> None:
    with pytest.raises(reapx.InputError, match=r"points=1000000000: give a whole number from 1 to 10,000"):
        reapx.plan(net(), IMAGES, budget=HALF, points=10**9)
    with pytest.raises(reapx.InputError, match="memory='1GB'"):
        reapx.serialize(net(), IMAGES, memory="1GB")  # type: ignore[arg-type]
    with pytest.raises(reapx.InputError, match="inplace='yes'"):
        reapx.compact(net(), inplace="yes")  # type: ignore[arg-type]


def test_deeply_nested_pages_are_damaged(tmp_path: Path) -> None:
    deep = "[" * 100_000
    plan = reapx.plan(net(), IMAGES, budget=HALF, selection="magnitude", resume=tmp_path / "measured")
    plan.save(tmp_path / "plan")
    (tmp_path / "plan" / "reapx-plan.json").write_text(deep)
    with pytest.raises(reapx.CheckpointError, match="damaged"):
        reapx.load_plan(net(), IMAGES, tmp_path / "plan")
    for page in (tmp_path / "measured").glob("*.json"):
        page.write_text(deep)
    with pytest.raises(reapx.CheckpointError, match="damaged"):
        reapx.plan(net(), IMAGES, budget=HALF, selection="magnitude", resume=tmp_path / "measured")


class Chain(nn.Module):
    """Three convolutions; ``between`` stands in the user's forward()."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.three(torch.relu(self.two(self.between(self.one(x)))))


class WritesSlice(Chain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x[:, :4] = torch.relu(x[:, :4])
        return self.three(torch.relu(self.two(x)))


class HardSplit(Chain):
    def forward(self, x: Tensor) -> Tensor:
        first, second = self.one(x).split(4, 1)
        return self.three(torch.relu(self.two(torch.cat([first.tanh(), second], 1))))


class HardView(Chain):
    def between(self, x: Tensor) -> Tensor:
        return x.view(-1, 8, 6, 6)


class Attention(nn.Module):
    """As timm's: queries, keys and values from one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(count, tokens, width))


def reasons_of(model: nn.Module, images: Tensor = IMAGES) -> dict[str, str]:
    return {entry.layer: entry.reason for entry in reapx.inspect(model.eval(), images).frozen}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            WritesSlice,
            r"written down as a number, perhaps in `x\[:, :4\] = torch.relu\(x\[:, :4\]\)` \(test_messages.py:\d+",
        ),
        (
            HardSplit,
            r"written down as a number, perhaps in `first, second = self.one\(x\).split\(4, 1\)` \(test",
        ),
        (HardView, r"fewer of these channels: `return x.view\(-1, 8, 6, 6\)` \(test_messages.py:\d+\): shape '\[-1, 8"),
    ],
)
def test_reasons_quote_the_users_line(model: Callable[[], nn.Module], words: str) -> None:
    assert re.search(words, reasons_of(model())["one"])


def test_reasons_of_attention_quote_its_line_and_name_its_module() -> None:
    model = nn.Sequential(nn.Linear(5, 16), Attention(), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    reasons = reasons_of(model, torch.randn(8, 4, 5))
    assert re.search(r"fewer .* channels: 1 \(Attention\) at `q, k, v = self.qkv\(x\)", reasons["1.qkv"])
    assert re.search(r"fewer of these channels: 1 \(Attention\) at `return self.proj", reasons["0"])


def test_one_unit_of_several_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    entry = next(entry for entry in reapx.inspect(model.eval(), IMAGES).frozen if entry.layer == "2")
    assert (entry.channels, entry.reason) == (4, "it is one unit of 4 channels")


class Cached(nn.Module):
    """As a language model: it also returns a cache, which is no tensor, unless its settings forbid that."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.config = net(), SimpleNamespace(use_cache=True)

    def forward(self, x: Tensor) -> tuple[object, ...]:
        value = self.net(x)
        return (value, SimpleNamespace(keys=value)) if self.config.use_cache else (value,)


def test_a_cache_is_named() -> None:
    model = Cached().eval()
    with pytest.raises(reapx.CaptureError, match=r"What to do: set model.config.use_cache = False"):
        reapx.inspect(model, IMAGES)
    model.config.use_cache = False
    assert reapx.inspect(model, IMAGES).groups


class Branching(Chain):
    def between(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Loud(Chain):
    def between(self, x: Tensor) -> Tensor:
        logging.getLogger("torch.fx").warning("a warning of torch")
        print("forward() runs", file=sys.stderr)
        return x


def test_what_torch_export_prints_is_logged(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, "reapx"),
        pytest.raises(reapx.CaptureError, match=r"`return x if x.sum\(\) > 0 else -x` .*setLevel\(logging.DEBUG\)"),
    ):
        reapx.inspect(Branching().eval(), IMAGES)
    assert capfd.readouterr().err == ""
    assert any("torch.export printed" in text and "torch.ops.aten.conv2d" in text for text in caplog.messages)


def test_what_forward_prints_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    reapx.inspect(Loud().eval(), IMAGES)
    assert "forward() runs" in capsys.readouterr().err


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.last(x)


@pytest.mark.parametrize("options", [{"bounds": {"blocks.2": (0.9, 0.2)}}, {"allocation": {"blocks.2": 99}}])
def test_a_layer_inside_a_stream_is_named_as_the_user_did(options: dict[str, object]) -> None:
    words = "for blocks.2, which has 8 channels and belongs to the residual stream conv1 + 5 more: give"
    with pytest.raises(reapx.InputError, match=re.escape(words)):
        reapx.plan(Residual().eval(), IMAGES, budget=HALF, **options)  # type: ignore[arg-type]
