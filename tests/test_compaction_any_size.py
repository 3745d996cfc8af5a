"""What forward() computes from sizes, or from the number of images, is no constant; the proof looks at other sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compacting import compacted, gone, kill
from graphs import lively
from torch import Tensor, nn

import reapx


class Sized(nn.Module):
    """A function of a feature map and of the images between a layer and its consumer."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.function = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function(F.relu(self.one(x)), x))


ZERO_STAYS = {3}
"""Node 3 hands on zeros, which stay zeros when they are multiplied."""
SIZES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], set[int]]] = {
    "multiplied": (lambda y, x: y * y.shape[-1] ** -0.5, ZERO_STAYS),
    "divided": (lambda y, x: y / y.shape[-1], ZERO_STAYS),
    "added": (lambda y, x: y + y.shape[-1] / 100, set()),
    "compared": (lambda y, x: y * (1 + (y.shape[-1] > 10)), ZERO_STAYS),
    "branched_on": (lambda y, x: y * 2 if y.shape[-1] > 10 else y, ZERO_STAYS),
    "clamped": (lambda y, x: (y * y.shape[-1]).clamp(max=1.0), ZERO_STAYS),
    "as_a_tensor": (lambda y, x: y * torch.tensor(float(y.shape[-1])), ZERO_STAYS),
    "filled": (lambda y, x: y + torch.full((1,), float(y.shape[-1])), set()),
    "positions": (lambda y, x: y + torch.arange(y.shape[-1]) / 10, set()),
    "number_multiplied": (lambda y, x: y * x.shape[0] ** -0.5, ZERO_STAYS),
    "number_divided": (lambda y, x: y / x.shape[0], ZERO_STAYS),
    "number_added": (lambda y, x: y + x.shape[0], set()),
    "sum_over_size": (lambda y, x: y.sum((2, 3), keepdim=True) / (y.shape[2] * y.shape[3]), ZERO_STAYS),
    "mean_of_a_view": (lambda y, x: y.view(y.shape[0], -1, y.shape[2] * y.shape[3]).mean(2)[:, :, None, None], {2, 3}),
    "zeros_of_a_size": (lambda y, x: y + torch.zeros(y.shape[2], y.shape[3]), {2, 3}),
}


@pytest.mark.parametrize("name", SIZES)
def test_what_is_computed_from_sizes_is_no_constant(name: str) -> None:
    function, leaving = SIZES[name]
    model = lively(Sized(function))
    kill(model.one, 2, 0.9)
    kill(model.one, 3, -1.0)
    done = compacted(model, torch.randn(4, 3, 8, 8), (3, 8, 8), (3, 16, 16), (3, 6, 6), (3, 25, 25))
    assert set(gone(done).get("one", [])) == leaving
    with torch.no_grad():
        for count in (1, 7):
            x = torch.randn(count, 3, 8, 8)
            torch.testing.assert_close(done.model(x), model(x), rtol=1e-5, atol=1e-6)


def test_the_number_of_images_that_changes_what_is_done_is_refused() -> None:
    model = lively(Sized(lambda y, x: y * (1 + (x.shape[0] > 3))))
    with pytest.raises(reapx.CaptureError, match="something else with more than 3 images"):
        reapx.zero_nodes(model, torch.randn(8, 3, 8, 8))


def test_the_sizes_of_the_proof_are_told() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)))
    flat = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 6)))
    images = torch.randn(400, 3, 8, 8)
    for built, shapes in ((model, ((3, 8, 8), (3, 4, 4), (3, 16, 16))), (flat, ((3, 8, 8),))):
        result = reapx.prune(built, images, budget=reapx.MACs(0.8))
        done = reapx.zero_nodes(built, images).remove()
        assert result.proof.shapes == done.proof.shapes == shapes
        assert result.proof.dtype == done.proof.dtype == torch.float64
        for text in (str(result), str(done)):
            assert "in float64, on images of (3, 8, 8)" in text
            assert ("only size tried that the model takes" in text) == (built is flat)


def test_a_module_that_is_right_at_one_size_only_is_refused() -> None:
    """Surgery that is wrong at another size is seen there."""
    from reapx.surgery.proof import difference_elsewhere, prove

    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)))
    found = reapx.inspection.inspection.examine(model, torch.randn(6, 3, 8, 8))
    other = lively(nn.Sequential(model[0], nn.AvgPool2d(6)))
    graph, images = found._graph, found._images
    assert prove(other, graph, graph.tensors, images).gap < 1e-12
    with pytest.raises(reapx.ProofError, match=r"on images of shape \(3, 4, 4\), which the original takes"):
        prove(other, graph, graph.tensors, images, model=model)
    assert difference_elsewhere(model, model, graph.tensors, images).gap == 0  # type: ignore[union-attr]


class Cast(nn.Module):
    """Casts that forward() writes down, one of them a constant's, and a size that is multiplied in."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.one, self.two, self.wrong = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), wrong

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32) * torch.tensor([1.0, 2.0, 0.5]).to(x.dtype).view(1, 3, 1, 1)
        y = F.relu(self.one(x)).float()
        return self.two(y + 1e-4 * y.shape[1] if self.wrong else y + torch.zeros(8 - 7, dtype=torch.float32))


def test_casts_leave_the_proof_in_float64() -> None:
    """In float32, whose limit is 1e-3, the number of channels in forward() would pass."""
    images = torch.randn(40, 3, 8, 8)
    result = reapx.prune(lively(Cast(False)), images, budget=reapx.MACs(0.7))
    assert result.proof.dtype == torch.float64 and result.gap < 1e-12
    with pytest.raises(reapx.InputError, match=r"forward\(\) does not work with fewer"):
        reapx.inspect(lively(Cast(True)), images)


def test_constants_that_are_cast_in_a_model_of_float64() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x * torch.tensor([1.0, 2.0, 0.5]).to(x.dtype).view(1, 3, 1, 1)
            return self.two(F.relu(self.one(x)))

    model, images = lively(Scaled()).double(), torch.randn(40, 3, 8, 8, dtype=torch.float64)
    assert reapx.prune(model, images, budget=reapx.MACs(0.7)).proof.dtype == torch.float64
    kill(model.one, 2, 0.9)
    assert gone(compacted(model, images)) == {"one": [2]}
