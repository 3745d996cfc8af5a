"""Seconds and memory of well-known networks at their own image sizes, from capture to the pruned network.

    python benchmarks/scale.py [--quick] [--json FILE] [--only NAME ...]

Random weights, 64 images, MACs x0.5 with the defaults; each network in a process of its own, for at most half an hour.
It writes docs/scale.md as well. A network that is in the file already is not run again. It needs timm.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
import time
import warnings
from typing import Any

import torch
from networks import BUILDERS
from timing import RESULTS, ROOT, known_rows, parser, write

import reapx

LIMIT, IMAGES = 1800, 64
NAMES = [
    f"timm/{name}"
    for name in """resnet18 resnet50 vgg16 mobilenetv2_100 efficientnet_b0 densenet121 convnext_tiny regnety_008
    vit_base_patch16_224 swin_tiny_patch4_window7_224""".split()
]


def attempt(name: str) -> dict[str, object]:
    """One row."""
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    package, _, own = name.partition("/")
    model, _ = BUILDERS[package](own)
    model.eval()
    images = torch.randn(IMAGES, 3, 224, 224)
    loaded = _peak()
    start = time.perf_counter()
    plan = reapx.plan(model, images, budget=reapx.MACs(0.5))
    planned = time.perf_counter()
    result = plan.apply()
    end = time.perf_counter()
    return {
        "work": "scale",
        "case": name,
        "macs": plan.macs,
        "params": plan.params,
        "plan_seconds": round(planned - start, 1),
        "apply_seconds": round(end - planned, 1),
        "megabytes_loaded": loaded,
        "megabytes_peak": _peak(),
        "gap": float(f"{result.gap:.0e}"),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def in_process(name: str) -> dict[str, object]:
    """The same in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name], capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"work": "scale", "case": name, "why": f"longer than {LIMIT} s"}
    if done.returncode:
        return {"work": "scale", "case": name, "why": (done.stderr.strip().splitlines() or ["?"])[-1][:200]}
    row: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return row


def page(rows: list[dict[str, Any]]) -> str:
    """docs/scale.md."""
    lines = [
        "# Seconds and memory",
        "",
        f"Written by `benchmarks/scale.py`: random weights, {IMAGES} images of 224 x 224 pixels, MACs ×0.5, defaults,",
        "two threads. Memory is the largest resident set of the process; before reapx started, it held torch, the",
        "network and the images.",
        "",
        "| network | MACs | plan | apply | memory before | at most |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "why" in row:
            lines.append(f"| {row['case']} |  | {row['why']} |  |  |  |")
            continue
        lines.append(
            f"| {row['case']} | {row['macs'][0] / 1e6:.0f} M | {row['plan_seconds']} s | {row['apply_seconds']} s | "
            f"{row['megabytes_loaded']} MB | {row['megabytes_peak']} MB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is not known yet."""
    arguments = parser(__doc__, "nothing is measured")
    arguments.add_argument("--only", nargs="*", default=NAMES)
    arguments.add_argument("--one", help="run one network in this process")
    options = arguments.parse_args()
    if options.one is not None:
        print(json.dumps(attempt(options.one)))
        return
    if options.quick or importlib.util.find_spec("timm") is None:
        print("skipped: nothing to measure quickly" if options.quick else "skipped: timm is not installed")
        return
    path = options.json or RESULTS / "scale.json"
    rows = known_rows(path)
    for name in options.only:
        if any(row["case"] == name for row in rows):
            continue
        rows = [*rows, in_process(name)]
        write("scale", rows, path)
        print(rows[-1], flush=True)
        if options.json is None:
            (ROOT / "docs" / "scale.md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
