"""Layers that are called several times: cut once, and fitted once to all their calls."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from graphs.called_again import NETWORKS, Head, network
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import reapx

IMAGES = torch.randn(60, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_cut_once_and_proved(name: str) -> None:
    model = network(name)
    before = copy.deepcopy(model.state_dict())
    found = reapx.inspect(model, IMAGES)
    assert [group.name for group in found.groups] == NETWORKS[name][1]
    plan = reapx.plan(model, IMAGES, budget=reapx.MACs(0.6), progress=False)
    result = plan.apply()
    assert result.gap < 1e-12 and all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with FlopCounterMode(display=False) as counter:
        result.model(IMAGES[:1])
    assert counter.get_total_flops() == 2 * plan.macs[1] <= 1.2 * plan.macs[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_loaded_and_in_place(name: str, tmp_path: Path) -> None:
    model = network(name)
    adam = torch.optim.Adam(model.parameters())
    torch.cat([value.flatten() for value in _list(model(IMAGES))]).square().mean().backward()
    adam.step()
    plan = reapx.plan(model, IMAGES, budget=reapx.MACs(0.6), progress=False)
    result = plan.apply()
    result.save(tmp_path / "saved")
    loaded = reapx.load(network(name), tmp_path / "saved")
    plan.apply(inplace=True)
    for other in (loaded, model):
        for one, two in zip(_list(other(IMAGES)), _list(result.model(IMAGES)), strict=True):
            assert torch.equal(one, two)
    for one, two in zip(
        *(dict(x.named_parameters(remove_duplicate=False)).items() for x in (model, network(name))), strict=True
    ):
        assert one[0] == two[0]
    assert len(list(model.parameters())) == len(list(network(name).parameters())), "ties were cut apart"
    assert len(list(loaded.parameters())) == len(list(result.model.parameters())) == len(list(model.parameters()))


def _list(value: Tensor | tuple[Tensor, ...] | list[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def test_optimizer_state_is_carried() -> None:
    model = network("head with two names")
    adam = torch.optim.Adam(model.parameters())
    torch.cat([value.flatten() for value in model(IMAGES)]).square().mean().backward()
    adam.step()
    result = reapx.prune(model, IMAGES, budget=reapx.MACs(0.6), progress=False)
    carried = reapx.carry_state(adam, result)
    weight = result.model.head[1].weight
    assert carried.state[weight]["exp_avg"].shape == weight.shape
    before = weight.detach().clone()
    torch.cat([value.flatten() for value in result.model(IMAGES)]).square().mean().backward()
    carried.step()
    assert not torch.equal(before, weight) and result.model.other[1].weight is weight


def test_one_fit_for_all_calls() -> None:
    """The residuals of all calls together are orthogonal to what the layer reads; those of each call are not."""
    model = network("head")
    plan = reapx.plan(model, IMAGES, budget=reapx.MACs(0.6), progress=False)
    pruned = plan.apply(damping=1e-10, rectify=0).model
    products, sizes = [], []
    for own, ours, theirs in zip(_reads(pruned), pruned(IMAGES), model(IMAGES), strict=True):
        patches = F.unfold(own, 3, padding=1).mT.flatten(0, 1).double()
        residual = (theirs - ours).double().permute(0, 2, 3, 1).flatten(0, 2)
        products.append(patches.T @ residual)
        sizes.append(patches.norm() * residual.norm())
    apart, together = max(p.abs().max() / s for p, s in zip(products, sizes, strict=True)), sum(products)
    assert together.abs().max() / sum(sizes) < 2e-6 < 1e-3 < apart


@pytest.mark.parametrize("name", ["levels", "dilated", "update", "attention", "tied", "deep", "sums", "crossed"])
def test_later_layers_are_fitted_to_what_they_read(name: str) -> None:
    """The last layer's residuals are orthogonal to what it reads in the smaller network, not to values of a network
    whose shared layer was refitted later."""
    model = network(name)
    plan = reapx.plan(model, IMAGES, budget=reapx.MACs(0.6), progress=False)
    pruned = plan.apply(damping=1e-10, rectify=0).model
    product, size = torch.zeros(()), 0.0
    pairs = zip(_reads(pruned, pruned.last), _list(pruned(IMAGES)), _list(model(IMAGES)), strict=True)
    for own, ours, theirs in pairs:
        channels = 1 if own.dim() == 4 else -1
        residual, rows = (x.detach().double().movedim(channels, -1).flatten(0, -2) for x in (theirs - ours, own))
        product, size = product + rows.T @ residual, size + float(rows.norm() * theirs.detach().norm())
    assert product.abs().max() / size < 16 * torch.finfo(torch.float32).eps


def _reads(model: nn.Module, layer: nn.Module | None = None) -> list[Tensor]:
    """What a layer, by default the last one of the head, reads in each call."""
    found: list[Tensor] = []
    layer = model.head[1] if layer is None else layer
    hook = layer.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    model(IMAGES)
    hook.remove()
    return found


def test_moments_are_sums_over_calls() -> None:
    model = network("head")
    found = reapx.inspect(model, IMAGES)
    (own,) = reapx.measure(found, ["head.0.0"], progress=False)["head.1.weight"]
    patches = torch.cat([F.unfold(x, 3, padding=1).mT.flatten(0, 1) for x in _reads(model)]).double()
    assert own.rows == len(patches) == len(IMAGES) * (36 + 9)
    assert torch.allclose(own.gram, patches.T @ patches, rtol=1e-5) and torch.allclose(own.total, patches.sum(0))


def test_random_positions_are_those_of_every_run() -> None:
    found = reapx.inspect(network("head"), IMAGES)
    first, second = (reapx.measure(found, ["head.0.0"], positions=4, progress=False) for _ in range(2))
    assert first["head.1.weight"][0].rows == 8 * len(IMAGES)
    assert torch.equal(first["head.1.weight"][0].gram, second["head.1.weight"][0].gram)


def test_a_recurrent_layer_is_fitted_to_the_original() -> None:
    """Nothing before it is refitted, so only the original network's values can be what it reads in its last call."""
    model = network("update")
    allocation = {"start.0": 8, "read.0": 6, "update.0": 7}
    plan = reapx.plan(model, IMAGES, allocation=allocation, progress=False)
    result = plan.apply(damping=1e-10, rectify=0)
    seen: list[Tensor] = []
    model.update[2].register_forward_hook(lambda _, args, value: seen.extend([args[0], value]))
    model(IMAGES)
    kept = result.kept["update.2.weight"][1]
    rows = [F.unfold(x[:, kept], 3, padding=1).mT.flatten(0, 1).double() for x in seen[::2]]
    patches = torch.cat([torch.cat(rows), torch.ones(sum(map(len, rows)), 1)], 1)
    wanted = torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2).double() for x in seen[1::2]])
    exact = torch.linalg.lstsq(patches, wanted).solution.T
    weight, bias = result.model.update[2].weight.double().flatten(1), result.model.update[2].bias.double()
    assert torch.allclose(torch.cat([weight, bias[:, None]], 1), exact, atol=1e-4)


def test_zero_nodes_of_shared_layers_stay() -> None:
    model = network("head")
    model.head[0][0].weight.data[3] = 0
    assert reapx.compact(model, IMAGES).head[0][0].out_channels == 10


def test_other_readers_keep_a_shared_weight() -> None:
    class Penalised(Head):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            one, two = super().forward(x)
            return one + self.head[1].weight.square().mean(), two

    with pytest.raises(reapx.InputError, match="share the parameter head"):
        reapx.inspect(Penalised().eval(), IMAGES, exclude=["a.0"])


@pytest.mark.parametrize("groups", [8, 4])
def test_a_recurrent_layer_of_few_channels(groups: int) -> None:
    """One channel of a depthwise layer stays: that it was one does not show in the smaller network."""
    torch.manual_seed(0)
    update = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.ReLU(), nn.Conv2d(8, 8, 1))

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.update, self.last = nn.Conv2d(3, 8, 1), update, nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            return self.last(torch.tanh(self.update(torch.tanh(self.update(x)))))

    model = Loop().eval()
    fewest = 1 if groups == 8 else 4
    result = reapx.plan(model, IMAGES, allocation={"first": fewest}, progress=False).apply(damping=1e-10)
    assert result.gap < 1e-12 and {fit.layer for fit in result.fits} == {"update.0", "update.2", "last"}
    fits = {fit.layer: fit.error for fit in result.fits}
    assert fits["update.0" if groups == 8 else "update.2"] < 1e-6, "its inputs are the original's, and all there"
