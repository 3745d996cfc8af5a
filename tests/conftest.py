"""Fixtures that every test file may use.

Torch has one thread: nearly every test is made of tiny operations, which more threads only slow down, and tests run
side by side (``make test``). A test about threads sets their number itself, and it is one again afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import kernels
import pytest
import torch


def _named_devices() -> list[str]:
    """The devices in REAPX_TEST_DEVICES (comma-separated, default "cpu"); all must exist."""
    for name in kernels.DEVICES:
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise pytest.UsageError(
                f"REAPX_TEST_DEVICES names '{name}', which this machine does not have: {error}"
            ) from error
    return kernels.DEVICES


def pytest_configure(config: pytest.Config) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    torch.set_num_threads(1)
    config.stash[_devices_key] = _named_devices()


_devices_key = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def devices(request: pytest.FixtureRequest) -> list[str]:
    """The devices to test on."""
    return request.config.stash[_devices_key]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets and pretrained weights beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data beside the checkout, which is not there")
    return folder


@pytest.fixture(autouse=True)
def _fixed_seed_and_one_thread() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)
