"""What every test runs under: no network, one thread; and the tiny base model."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is imported; sums in another order are other numbers

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Fail the test that connects to anything but this machine."""

    def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
        def connect_here(self: socket.socket, address: Any) -> Any:
            if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
                pytest.fail(f"a test may not use the network, and this one connects to {address}")
            return connect(self, address)

        return connect_here

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield


@pytest.fixture(scope="session")
def make_tiny_base() -> Callable[..., Path]:
    """Return `tiny_base(folder, cross_attention_dim=32, prediction_type="epsilon", seed=0) -> Path`."""
    from tests.tiny import tiny_base

    return tiny_base


@pytest.fixture(scope="session")
def tiny_base_dir(make_tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Stable Diffusion that predicts epsilon. Shared: nothing may be written in it."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))
