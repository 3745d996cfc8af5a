"""Networks of timm, torchvision and transformers with random weights: what can be pruned, what is refused and why.

    python benchmarks/networks.py [--quick] [--json FILE] [--only NAME ...]

Each runs in a process of its own, on one thread, for at most three minutes: inspected, pruned to a budget half way to
the smallest network that can be reached, and proved. It writes a table into docs/networks.md as well. A network that is
in the file already is not run again.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from timing import RESULTS, ROOT, known_rows, parser, write
from torch import Tensor, nn

import reapx

LIMIT, IMAGES = 180, 4
"""Seconds for one network, and calibration images."""

TIMM = """resnet18 resnet50 resnext50_32x4d wide_resnet50_2 resnetv2_50 seresnet50 skresnet18 res2net50_26w_4s
resnest14d densenet121 vgg11_bn mobilenetv2_100 mobilenetv3_large_100 efficientnet_b0 efficientnet_lite0 mnasnet_100
ghostnet_100
regnetx_008 regnety_008 rexnet_100 hardcorenas_a dla34 dpn68 cspresnet50 cspdarknet53 darknet53 repvgg_a0
convnext_tiny convnextv2_atto inception_v3 xception41 nfnet_l0 ecaresnet50t fbnetc_100 tinynet_a lcnet_100 semnasnet_075
vit_tiny_patch16_224 deit_tiny_patch16_224 beit_base_patch16_224 eva02_tiny_patch14_224 swin_tiny_patch4_window7_224
levit_128s cait_xxs24_224 pit_ti_224 mixer_s32_224 poolformer_s12 coatnet_0_224 convit_tiny""".split()
TORCHVISION = """alexnet squeezenet1_1 googlenet shufflenet_v2_x1_0 maxvit_t swin_v2_t""".split()
TRANSFORMERS = ("Bert", "Roberta", "DistilBert", "Llama", "GPT2", "ViT", "T5Encoder")
NAMES = [*(f"timm/{n}" for n in TIMM), *(f"torchvision/{n}" for n in TORCHVISION)]
NAMES += [f"transformers/{n}" for n in TRANSFORMERS]


def _of_timm(name: str) -> tuple[nn.Module, object]:
    import timm

    model = timm.create_model(name, pretrained=False)
    size = model.default_cfg["input_size"][1] if model.default_cfg.get("fixed_input_size") else 128
    return model, torch.randn(IMAGES, 3, size, size)


def _of_torchvision(name: str) -> tuple[nn.Module, object]:
    import torchvision

    options: dict[str, Any] = {"init_weights": True} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **options), torch.randn(IMAGES, 3, 224, 224)


def _of_transformers(name: str) -> tuple[nn.Module, object]:
    import transformers

    ids: dict[str, Tensor] = {"input_ids": torch.randint(2, 100, (IMAGES, 16))}
    small = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "ViT":
        config = transformers.ViTConfig(**{k: v for k, v in small.items() if k != "vocab_size"}, intermediate_size=128)
        return transformers.ViTModel(config), [{"pixel_values": torch.randn(IMAGES, 3, 224, 224)}]
    if name == "GPT2":
        config = transformers.GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4, use_cache=False)
        return transformers.GPT2Model(config), [ids]
    if name == "T5Encoder":
        config = transformers.T5Config(vocab_size=100, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
        return transformers.T5EncoderModel(config), [ids]
    if name == "DistilBert":
        config = transformers.DistilBertConfig(vocab_size=100, dim=64, n_layers=2, n_heads=4, hidden_dim=128)
    elif name == "Llama":
        config = transformers.LlamaConfig(**small, num_key_value_heads=2, intermediate_size=128, use_cache=False)
    else:
        config = getattr(transformers, f"{name}Config")(**small, intermediate_size=128)
    return getattr(transformers, f"{name}Model")(config), [ids]


BUILDERS: dict[str, Callable[[str], tuple[nn.Module, object]]] = {
    "timm": _of_timm,
    "torchvision": _of_torchvision,
    "transformers": _of_transformers,
}


def attempt(name: str) -> dict[str, object]:
    """One row: what happened to one network."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    package, _, own = name.partition("/")
    start = time.perf_counter()
    model, images = BUILDERS[package](own)
    model.eval()
    row: dict[str, object] = {"work": "network", "case": name}
    start = time.perf_counter()
    try:
        found = reapx.inspect(model, images)
        row["inspect_seconds"] = round(time.perf_counter() - start, 1)
        least = {group.name: 0 if group.name in found.droppable else 1 for group in found.groups}
        floor = found.costs.macs(least) / found.costs.macs()
        row |= {"macs": found.costs.macs(), "floor": round(floor, 4)}
        row["heads"] = sum(group.size for group in found.groups if group.kind == "heads")
        result = reapx.prune(model, images, budget=reapx.MACs((1 + floor) / 2), streams=True, allocation="uniform")
        row |= {"outcome": "proved", "reached": round(result.plan.macs[1] / result.plan.macs[0], 4)}
        row["gap"] = float(f"{result.gap:.0e}")
    except reapx.ReapxError as error:
        row |= {"outcome": "refused", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def in_process(name: str) -> dict[str, object]:
    """The same in a process of its own, whatever happens to it."""
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {"work": "network", "case": name, "outcome": f"longer than {LIMIT} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"work": "network", "case": name, "outcome": "crashed", "why": last[0][:200]}
    row: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return row


def page(rows: list[dict[str, Any]]) -> str:
    """The table for docs/networks.md."""
    lines = [
        "# Networks that were tried",
        "",
        "Written by `benchmarks/networks.py`: random weights, 4 images, one thread of a machine that did other work.",
        "*Smallest* is the share of the MACs that is left where every group keeps one unit, or none where it may leave",
        "as a whole. Each network was then pruned half way there (one ratio for all groups) and proved in float64.",
        "",
        "| network | MACs | smallest | heads | outcome | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        macs = f"{row['macs'] / 1e6:.0f} M" if "macs" in row else ""
        floor = f"×{row['floor']:.2f}" if "floor" in row else ""
        outcome = f"proved at ×{row['reached']:.2f}" if row["outcome"] == "proved" else row["outcome"]
        why = f" ({row['why']})" if "why" in row else ""
        cells = [row["case"], macs, floor, str(row.get("heads") or ""), outcome + why.replace("|", "/")]
        lines.append(f"| {' | '.join(cells)} | {row.get('seconds', '')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the networks."""
    arguments = parser(__doc__, "one small network")
    arguments.add_argument("--only", nargs="*", default=NAMES)
    arguments.add_argument("--one", help="run this network here, and print its row")
    options = arguments.parse_args()
    if options.one:
        print(json.dumps(attempt(options.one)))
        return
    names = ["transformers/Bert"] if options.quick else options.only
    path = options.json or RESULTS / "networks.json"
    rows = [] if options.quick else known_rows(path)
    for name in names:
        if importlib.util.find_spec(name.partition("/")[0]) is None:
            print(f"skipped: {name.partition('/')[0]} is not installed")
            continue
        if any(row["case"] == name for row in rows):
            continue
        rows.append(in_process(name))
        print({key: rows[-1][key] for key in rows[-1] if key != "work"}, flush=True)
        if not options.quick:
            write("networks", rows, path)
            (ROOT / "docs" / "networks.md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
