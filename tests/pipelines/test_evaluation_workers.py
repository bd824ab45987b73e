"""Drawing by several processes: the images of one, its errors here, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from data.errors import SettingsError
from pipelines.evaluation import workers
from pipelines.evaluation.bases import BaseModel
from pipelines.evaluation.drawing import LARGEST_DIFFERENCE, Drawing, Keyed, batches
from pipelines.evaluation.grid import Arm, Sampling, asked_of, cells
from pipelines.evaluation.plan import Axes, make_plan
from pipelines.evaluation.prompt_sets import Prompt
from pipelines.evaluation.store import ImageStore
from pipelines.evaluation.workers import IMAGES_WORTH_A_PROCESS, draw_in_processes, num_workers
from pipelines.runs import BaseNeed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> BaseModel:
    return BaseModel.load("base", BaseNeed(str(tiny_base_dir)), "cpu")


def _keyed(num_steps: int, num_seeds: int) -> list[Keyed]:
    asked = asked_of([Prompt("a red slice", "s"), Prompt("striped", "s")], {}, {})
    arms = (Arm("base", None, 1.0, "base"),)
    found = cells(asked, arms, (Sampling("own", num_steps, 3.0),), tuple(range(num_seeds)))
    return [(cell.key(base_identity="b", arm_digest="", size_px=32), cell) for cell in found]


def test_processes_draw_what_one_draws(base: BaseModel, tmp_path: Path) -> None:
    keyed, counts = _keyed(3, 5), list[int]()
    one, shared = ImageStore(tmp_path / "one"), ImageStore(tmp_path / "shared")
    drawing = Drawing(one, {"base": base}, {}, size_px=32, device="cpu")
    for batch in batches(keyed, 4):
        drawing.draw(batch)
    draw_in_processes(
        batches(keyed, 4), shared.folder, {"base": base}, {}, size_px=32, num_processes=2, progress=counts.append
    )
    assert sorted(counts) == [2, 4, 4]
    for key, _ in keyed:
        assert np.abs(shared.read(key).astype(int) - one.read(key)).max() <= LARGEST_DIFFERENCE


def test_an_error_of_a_process_is_raised_here(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="found 31 px"):
        draw_in_processes(
            batches(_keyed(1, 1), 4), tmp_path, {"base": base}, {}, size_px=31, num_processes=2, progress=print
        )


def test_as_many_processes_as_threads_memory_and_images_allow(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    many = 100 * IMAGES_WORTH_A_PROCESS
    assert num_workers({"base": base}, many) == 4
    assert num_workers({"base": base}, 2 * IMAGES_WORTH_A_PROCESS) == 2
    assert num_workers({"base": base}, 0) == 1
    memory = type("Memory", (), {"available": 3.9e9})
    monkeypatch.setattr("pipelines.evaluation.workers.psutil.virtual_memory", memory)
    assert num_workers({"base": base}, many) == 2
    memory.available = 0
    assert num_workers({"base": base}, many) == 1


def test_a_gpu_draws_alone_and_a_cpu_by_as_many_processes_as_are_asked_for(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_of([Prompt("a red slice", "s")], {}, {})
    axes = Axes((1.0,), (Sampling("own", 1, 3.0),), tuple(range(IMAGES_WORTH_A_PROCESS)), 32)
    plan = make_plan(asked, axes, {"base": base}, [])
    shared: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(workers, "draw_in_processes", lambda *_, num_processes, **__: shared.append(num_processes))
    monkeypatch.setattr(Drawing, "draw", lambda *_: None)
    parts = batches(list(plan.keyed().items()), 16)
    found = [
        workers.draw_batches(parts, plan, ImageStore(tmp_path), torch.device(device), num_processes=n, progress=print)
        for device, n in (("cpu", 3), ("cpu", 9), ("cpu", 1), ("cpu", None), ("meta", 3))
    ]
    assert found == [3, 4, 1, 1, 1]  # four batches, and images that are worth one process
    assert shared == [3, 4]
    assert (
        workers.draw_batches([], plan, ImageStore(tmp_path), torch.device("cpu"), num_processes=3, progress=print) == 1
    )


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.pipelines import test_evaluation_workers as here
from pipelines.evaluation.bases import BaseModel
from pipelines.evaluation.drawing import batches
from pipelines.evaluation.workers import draw_in_processes
from pipelines.runs import BaseNeed
if __name__ == "__main__":
    base = BaseModel.load("base", BaseNeed(sys.argv[1]), "cpu")
    draw_in_processes(batches(here._keyed(40, 100), 2), Path(sys.argv[2]), {"base": base}, {}, size_px=32,
                      num_processes=2, progress=print)
"""


def test_no_process_outlives_a_killed_one(tiny_base_dir: Path, tmp_path: Path) -> None:
    script, folder = tmp_path / "killed.py", tmp_path / "images"
    script.write_text(KILLED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tiny_base_dir), str(folder), str(ROOT)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert _eventually(lambda: len(list(folder.rglob("*.png"))) >= 4, 120)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert _eventually(lambda: not any(worker.is_running() for worker in children), 20)
    assert len(list(folder.rglob("*.png"))) < 200


def _eventually(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False
