"""What reapx.kernels refuses: each error names the argument, the value and the cure."""

from __future__ import annotations

import pytest
import torch

import reapx
from reapx.kernels import gram_matrix, least_squares, pair_errors, reap_path, zero_rows

X, GRAM, WEIGHT = torch.randn(20, 4), torch.eye(4), torch.ones(3, 4)
IMAGES = torch.randn(2, 4, 5, 5)
SINGULAR = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
NAN = torch.full((4, 4), torch.nan)

REFUSED = {
    "x a list": (lambda: gram_matrix([[1.0]]), "x: give images.*not list"),  # type: ignore[arg-type]
    "x of tokens": (lambda: gram_matrix(torch.randn(2, 3, 4)), r"float32 of shape \(2, 3, 4\); tokens are rows"),
    "x float64": (lambda: gram_matrix(X.double()), r"x is torch.float64: give float32, x.float\(\)"),
    "x strided": (lambda: gram_matrix(X.T), r"x is not contiguous.*x.contiguous\(\)"),
    "kernel on rows": (lambda: gram_matrix(X, 3), "x is a matrix"),
    "kernel too large": (lambda: gram_matrix(IMAGES, 7), r"kernel_size=\(7, 7\).*does not fit into x's \(5, 5\)"),
    "stride 0": (lambda: gram_matrix(IMAGES, stride=0), "stride=0: give a whole number from 1"),
    "padding same": (lambda: gram_matrix(IMAGES, 3, padding="same"), "padding='same'"),  # type: ignore[arg-type]
    "groups of channels": (lambda: gram_matrix(IMAGES, groups=3), "groups=3: x has 4 channels"),
    "groups of outputs": (
        lambda: gram_matrix(IMAGES, groups=2, target=torch.randn(2, 3, 5, 5)),
        "groups=2: target has 3 outputs",
    ),
    "target of another size": (
        lambda: gram_matrix(IMAGES, 3, target=torch.randn(2, 3, 5, 5)),
        r"target has shape \(2, 3, 5, 5\): for this x and kernel give \(2, outputs, 3, 3\)",
    ),
    "target of other rows": (lambda: gram_matrix(X, target=torch.randn(21, 1)), r"give \(20, outputs\)"),
    "gram a list": (lambda: reap_path([[1.0]], WEIGHT), "gram: give a tensor"),  # type: ignore[arg-type]
    "gram not square": (lambda: reap_path(WEIGHT, WEIGHT), r"gram: give a tensor \(D, D\).*\(3, 4\)"),
    "gram half": (lambda: reap_path(GRAM.half(), WEIGHT), r"gram is torch.float16: give float32 or float64"),
    "gram of groups": (lambda: reap_path(GRAM[None], WEIGHT), "one matrix for each conv group"),
    "gram a triangle": (lambda: reap_path((GRAM + 1).triu(), WEIGHT), "gram is not symmetric.*differ by up to 1"),
    "gram negative": (lambda: reap_path(-GRAM, WEIGHT), "gram has -1 on its diagonal"),
    "taps": (lambda: reap_path(GRAM, WEIGHT, 3), "taps=3: gram has 4 columns"),
    "taps 0": (lambda: pair_errors(GRAM, WEIGHT, 0), "taps=0: give a whole number from 1"),
    "weight of a convolution": (lambda: reap_path(GRAM, WEIGHT[:, :, None, None]), r"weight.flatten\(1\)"),
    "weight of other columns": (lambda: pair_errors(GRAM, WEIGHT[:, 1:]), r"weight: give a tensor \(outputs, 4\)"),
    "neither": (lambda: reap_path(GRAM), "neither weight nor cross"),
    "square alone": (lambda: reap_path(GRAM, WEIGHT, target_square=1.0), "target_square.*no cross"),
    "square of other outputs": (
        lambda: reap_path(GRAM, cross=WEIGHT, target_square=torch.ones(4)),
        r"target_square: give ‖Y‖².*\(3,\)",
    ),
    "square negative": (lambda: reap_path(GRAM, cross=WEIGHT, target_square=-1.0), "target_square adds up to -1.0"),
    "cross of other outputs": (lambda: reap_path(GRAM, WEIGHT, cross=WEIGHT[:2]), r"cross: give a tensor \(3, 4\)"),
    "steps": (lambda: reap_path(GRAM, WEIGHT, steps=5), "steps=5: there are only 4 units"),
    "steps of taps": (lambda: reap_path(GRAM, WEIGHT, 2, steps=-1), "steps=-1: give a whole number from 0"),
    "first too many": (lambda: reap_path(GRAM, WEIGHT, steps=1, first=[0, 1]), "first names 2 units, but steps=1"),
    "first outside": (lambda: reap_path(GRAM, WEIGHT, 2, first=[2]), "first names 2: give indices from 0 to 1"),
    "damping": (lambda: reap_path(GRAM, WEIGHT, damping=-0.1), "damping=-0.1: give a number from 0"),
    "damping NaN": (lambda: least_squares(GRAM, WEIGHT, damping=float("nan")), "damping=nan"),
    "count": (lambda: reap_path(GRAM, WEIGHT, steps=2).weights(3), "count=3: this path has 2 removals"),
    "count negative": (lambda: reap_path(GRAM, WEIGHT).kept(-1), "count=-1"),
    "kept twice": (lambda: least_squares(GRAM, WEIGHT, [1, 1]), "kept names 1 twice"),
    "kept a mask": (lambda: least_squares(GRAM, WEIGHT, GRAM[0] > 0), r"kept: give.*mask.nonzero\(\).flatten\(\)"),
    "kept outside": (lambda: least_squares(GRAM, WEIGHT, [-1]), "kept names -1"),
    "reference": (lambda: least_squares(GRAM, WEIGHT, reference=GRAM), r"reference: give a tensor \(3, 4\)"),
    "zero rows of a vector": (lambda: zero_rows(GRAM[0]), "weight: give a tensor of two axes or more"),
    "zero rows of float64": (lambda: zero_rows(GRAM.double()), "weight is torch.float64"),
    "zero rows strided": (lambda: zero_rows(WEIGHT.T), "weight is not contiguous"),
    "tolerance": (lambda: zero_rows(GRAM, -1.0), "tolerance=-1.0"),
    "moments of other features": (lambda: gram_matrix(X) + gram_matrix(X[:, :2].contiguous()), "gram is.*in one"),
    "moments without target": (lambda: gram_matrix(X) + gram_matrix(X, target=X), "cross is missing in one"),
    "moments about the mean": (lambda: gram_matrix(X).centred() + gram_matrix(X), r"then call .centred\(\)"),
}

FAILED = {
    "x": (lambda: gram_matrix(NAN), "x has NaN, Inf, or values too large"),
    "x too large": (lambda: gram_matrix(X * 1e30), "too large to be squared in float32"),
    "x of one channel": (
        lambda: gram_matrix(torch.ones(3, 4).index_fill(1, torch.tensor([3]), torch.inf), groups=2),
        "read by feature 1 of group 1",
    ),
    "target": (lambda: gram_matrix(X[:4].contiguous(), target=NAN), "target has NaN, Inf.*in output 0"),
    "gram": (lambda: pair_errors(NAN, WEIGHT), r"gram\[0, 0\] is nan"),
    "weight": (lambda: reap_path(GRAM, NAN), r"weight\[0, 0\] is nan"),
    "a combination": (lambda: reap_path(SINGULAR, WEIGHT), "column 1, which is a combination of others"),
    "a combination of taps": (lambda: reap_path(SINGULAR, WEIGHT, 2), r"singular at unit 0 \(column 1\).*damping=0.0"),
    "a dead unit": (lambda: reap_path(torch.diag(torch.tensor([1.0, 1, 0, 0])), WEIGHT, 2), "unit 1.*zero in X"),
    "a solve": (lambda: least_squares(SINGULAR, WEIGHT, [3, 1, 0]), "singular at column 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(reapx.InputError, match=message):
        call()


@pytest.mark.parametrize("case", FAILED)
def test_numerical_failures(case: str) -> None:
    call, message = FAILED[case]
    with pytest.raises(reapx.NumericalError, match=message):
        call()


def test_tensors_without_kernels_are_refused() -> None:
    meta = torch.empty(4, 4, device="meta")
    for call in (lambda: gram_matrix(meta), lambda: reap_path(meta, meta), lambda: zero_rows(meta)):
        with pytest.raises(reapx.BackendError, match="'meta'"):
            call()
    with pytest.raises(reapx.InputError, match="gram is on cpu but weight is on meta"):
        reap_path(GRAM, meta)
