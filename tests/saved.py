"""Saved results to damage: their pages rewritten, with checksums that hold or none at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from reapx.files.sealed_folder import sealed

Page = dict[str, Any]


def rewrite(folder: Path, change: Callable[[Page], object], form: int = 2) -> None:
    """Change what plan.json says, as if it had been saved so; format 1 has no checksums."""
    page = json.loads((folder / "plan.json").read_text())
    del page["digest"]
    change(page)
    if form == 1:
        del page["weights"]
        (folder / "plan.json").write_text(json.dumps({**page, "format": 1}, indent=1) + "\n")
    else:
        (folder / "plan.json").write_text(sealed(page))


def rewrite_weights(folder: Path, change: Callable[[dict[str, Tensor]], object], form: int = 2) -> None:
    """Change the saved tensors, as if they had been saved so."""
    tensors = load_file(folder / "weights.safetensors")
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "weights.safetensors")
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    rewrite(folder, lambda page: page.update(weights=digest), form)
