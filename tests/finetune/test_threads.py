"""Threads of a run: what a launcher left unsaid, a choice, and a GPU."""

import pytest
import torch

from finetune.core.threads import num_launched_threads, use_threads

LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({**LAUNCHED, "OMP_NUM_THREADS": "1"}, 8),
        ({**LAUNCHED, "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, 4),
        ({**LAUNCHED, "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "16"}, 1),
        ({**TORCHRUN, "OMP_NUM_THREADS": "1"}, 4),
        ({**LAUNCHED, "OMP_NUM_THREADS": "3"}, None),
        ({**TORCHRUN, "OMP_NUM_THREADS": "3"}, None),
        ({"OMP_NUM_THREADS": "1"}, None),
        ({}, None),
    ],
    ids=[
        *("unsaid", "two processes", "more processes than cores", "torchrun", "a choice", "a choice under torchrun"),
        *("not launched", "plain python"),
    ],
)
def test_threads_of_a_launched_process_on_eight_cores(environment: dict[str, str], expected: int | None) -> None:
    assert num_launched_threads(environment, 8) == expected


@pytest.mark.parametrize(
    ("num_threads", "device", "expected"), [(3, "cpu", 3), (3, "cuda", 3), (None, "cpu", 5), (None, "cuda", 2)]
)
def test_threads_by_device(
    num_threads: int | None, device: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**LAUNCHED, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("finetune.core.threads.num_cores", lambda: 5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        use_threads(num_threads, torch.device(device))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
