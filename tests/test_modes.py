"""What surrounds a call, and what happens beside it: autocast, inference mode, threads, changes of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reapx
from reapx.capture.precision import exact

CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "data": lambda net: net[0].weight.data.mul_(2),
    "one value": lambda net: net[3].bias.data.view(-1)[1:2].add_(1e-3),
    "buffer": lambda net: net[1].running_var.data.add_(0.1),
    "replaced": lambda net: setattr(net[3].weight, "data", net[3].weight.data + 1),
    "in place": lambda net: nn.init.zeros_(net[3].bias),
    "through numpy": lambda net: net[0].weight.detach().numpy().fill(1),
}


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    return nn.Sequential(*layers).eval(), torch.randn(40, 3, 8, 8)


@pytest.mark.parametrize("name", CHANGES)
def test_a_plan_of_other_weights_is_refused(name: str) -> None:
    """Also where torch counts no write: nothing is as it was measured."""
    net, images = network()
    plan = reapx.plan(net, images, budget=reapx.MACs(0.6))
    CHANGES[name](net)
    with pytest.raises(reapx.InputError, match="has changed since the plan was made: plan again"):
        plan.apply()


def test_zero_nodes_of_other_weights_are_refused() -> None:
    net, images = network()
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0, 0
    nodes = reapx.zero_nodes(net, images)
    net[0].bias.data[2] = 1
    with pytest.raises(reapx.InputError, match="has changed since the nodes were"):
        nodes.remove()


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES)
def test_the_callers_modes_change_nothing(mode: str) -> None:
    """Not one bit of plan, weights and figures; and the result can be trained."""
    net, images = network()
    wanted = reapx.prune(net, images, budget=reapx.MACs(0.6))
    with MODES[mode]():
        found = reapx.prune(net, images, budget=reapx.MACs(0.6))
        assert torch.is_autocast_enabled("cpu") == (mode == "autocast")
        assert torch.is_inference_mode_enabled() == (mode == "inference_mode")
    assert (found.change, found.gap) == (wanted.change, wanted.gap)
    assert [fit.error for fit in found.fits] == [fit.error for fit in wanted.fits]
    pairs = zip(found.model.parameters(), wanted.model.parameters(), strict=True)
    assert all(torch.equal(value, other) for value, other in pairs)
    found.model(images).sum().backward()


def test_settings_of_the_process_are_set_back_by_the_last_thread() -> None:
    """The second begins within the first and ends after it, so that each by itself would set back the wrong ones."""
    before, found = torch.backends.cudnn.deterministic, []
    steps = Barrier(2, timeout=60)

    def first() -> None:
        with exact():
            steps.wait()
            steps.wait()
        steps.wait()

    def second() -> None:
        steps.wait()
        with exact():
            steps.wait()
            steps.wait()
            found.append(torch.backends.cudnn.deterministic)

    threads = [Thread(target=first), Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] and torch.backends.cudnn.deterministic == before


def test_threads_prune_side_by_side() -> None:
    """torch.export works on one network at a time; eight threads get what one gets."""
    net, images = network()
    wanted = reapx.prune(net, images, budget=reapx.MACs(0.6)).model.state_dict()
    found: list[dict[str, Tensor]] = []

    def prune() -> None:
        own = copy.deepcopy(net)
        found.append(reapx.prune(own, images, budget=reapx.MACs(0.6), progress=False).model.state_dict())

    threads = [Thread(target=prune) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(value, own[name]) for own in found for name, value in wanted.items())
