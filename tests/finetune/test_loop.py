"""The training loop on a toy: what it promises to any method."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image
from torch import Tensor, nn

from data.dataset import Sample
from data.errors import NonFiniteError, Stopped
from data.randomness import permuted_index
from finetune.core import draws
from finetune.core.checkpoint import CheckpointStore, RunLock
from finetune.core.loop import _norm, train
from finetune.core.method import Batch, Method
from finetune.core.settings import LoopSettings
from finetune.core.tracking import Tracker
from finetune.core.trainables import WholeModule


class Points:
    """A dozen vectors of four numbers as images; the sample at one position may hold a value that is not finite."""

    captions = ("point",)

    def __init__(self, poisoned: int | None = None) -> None:
        self.values = np.random.default_rng(7).standard_normal((12, 1, 2, 2)).astype(np.float32)
        self.poisoned = poisoned

    def __len__(self) -> int:
        return len(self.values)

    def sample(self, position: int) -> Sample:
        index = permuted_index(0, position, len(self))
        pixels = self.values[index] * (np.nan if position == self.poisoned else 1)
        return Sample(pixels, "point", False, f"point {index} at {position}")

    def manifest(self) -> dict[str, object]:
        return {}


class Denoising:
    """A linear map is to predict the noise; dropout and keyed noise make every source of randomness count."""

    def __init__(self, module: nn.Module, scale: float = 1.0) -> None:
        self.module, self.scale = module, scale

    def losses(self, batch: Batch) -> Tensor:
        x0 = batch.pixels.flatten(1).to(next(self.module.parameters()).dtype)
        noise = draws.normal(0, "noise", batch.positions, (4,)).to(x0.dtype)
        return self.scale * (self.module(x0 + noise) - noise).square().mean(1).float()


def _module(dropout: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 4)).to(dtype)


def _run(
    folder: Path,
    *,
    dropout: float = 0.1,
    scale: float = 1.0,
    poisoned: int | None = None,
    resume: bool = False,
    last_step: int | None = None,
    shown_in: Sequence[Any] = (),
    **options: object,
) -> dict[str, Tensor]:
    """Train the toy and return its weights and their average."""
    folder.mkdir(exist_ok=True)
    settings = LoopSettings.model_validate(
        {"max_train_steps": 7, "train_batch_size": 2, "learning_rate": 0.05, "logging_steps": 1, **options}
    )
    module = _module(dropout)
    part = WholeModule("toy", module, ema_decay=0.9)
    method = Method(
        name="toy",
        dataset=Points(poisoned),
        objective=Denoising(module, scale),
        trainables=(part,),
        export=lambda _: [],
        preview=lambda path: Image.new("RGB", (3, 2)).save(path),
        manifest={},
    )
    (folder / "samples").mkdir(exist_ok=True)
    with RunLock(folder):
        store = CheckpointStore(folder, "run")
        resume_from = store.find_latest() if resume else None
        tracker = Tracker(
            folder,
            first_step=resume_from.step if resume_from else 0,
            last_step=7,
            images_per_step=2,
            shown_in=shown_in,
        )
        train(
            method,
            settings,
            max_train_steps=last_step or 7,
            accelerator=Accelerator(cpu=True, mixed_precision="no"),
            store=store,
            tracker=tracker,
            resume_from=resume_from,
        )
        tracker.close()
    return {name: tensor.clone() for name, tensor in part.state().items()}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stop", range(1, 7))
@pytest.mark.parametrize("accumulation", [1, 2])
def test_resume_equals_straight_run(stop: int, accumulation: int, tmp_path: Path) -> None:
    """At every step, mid-epoch too (12 points, batches of 2 or 4), with dropout, average and a falling rate."""
    options = {"gradient_accumulation_steps": accumulation, "lr_scheduler": "cosine"}
    straight = _run(tmp_path / "straight", **options)
    # the schedule is that of the whole run; only the loop is cut short
    torch.manual_seed(99)
    _stopped(tmp_path / "resumed", stop, **options)
    torch.manual_seed(5)
    resumed = _run(tmp_path / "resumed", resume=True, **options)
    assert _equal(straight, resumed)
    assert _metrics(tmp_path / "straight") == _metrics(tmp_path / "resumed")


def _stopped(folder: Path, stop: int, **options: object) -> None:
    """Run to a step and die there: a checkpoint at each step, then a fault."""
    poisoned = stop * 2 * int(str(options.get("gradient_accumulation_steps", 1)))
    with pytest.raises(NonFiniteError):
        _run(folder, poisoned=poisoned, checkpointing_steps=1, **options)


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 0.04}, {"dropout": 0.2}, {"train_batch_size": 3}])
def test_what_should_matter_matters(change: dict[str, float], tmp_path: Path) -> None:
    """The negative controls of the tests above and below."""
    assert not _equal(_run(tmp_path / "a"), _run(tmp_path / "b", **change))


@pytest.mark.parametrize("change", [{"checkpointing_steps": 1}, {"logging_steps": 3}, {"dataloader_num_workers": 2}])
def test_saving_logging_and_workers_change_nothing(change: dict[str, int], tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = _run(tmp_path / "a")
    torch.manual_seed(4)
    assert _equal(plain, _run(tmp_path / "b", **change))


def test_a_batch_of_four_equals_four_accumulated_batches_of_one(tmp_path: Path) -> None:
    whole = _run(tmp_path / "a", dropout=0.0, train_batch_size=4)
    parts = _run(tmp_path / "b", dropout=0.0, train_batch_size=1, gradient_accumulation_steps=4)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-5)


def test_gradient_clipping_clips_every_parameter(tmp_path: Path) -> None:
    """diffusers' text-to-image LoRA script hands a used-up iterator to the clipping, which then clips nothing."""
    gradients: list[float] = []
    original = torch.optim.AdamW.step

    def spied(self: torch.optim.AdamW, *arguments: object, **options: object) -> object:
        every = [p.grad.norm() for group in self.param_groups for p in group["params"]]
        gradients.append(float(torch.stack(every).norm()))
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spied)
        _run(tmp_path / "a", scale=1e4, max_grad_norm=0.5)
    logged = [line["grad_norm"] for line in _metrics(tmp_path / "a")]
    assert min(logged) > 10
    assert len(gradients) == 7
    assert max(gradients) == pytest.approx(0.5, rel=1e-3)


def test_the_norm_of_many_gradients_is_their_euclidean_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for shape in ((3000, 1001), (7,), (64, 64, 3, 3))]
    exact = float(torch.stack([gradient.double().norm() for gradient in gradients]).norm())
    assert float(_norm(gradients)) == pytest.approx(exact, rel=1e-5)
    assert float(_norm([gradient.bfloat16() for gradient in gradients])) == pytest.approx(exact, rel=0.02)
    assert float(_norm([])) == 0
    assert math.isnan(_norm([torch.tensor([1.0, math.nan])]))
    assert float(_norm([torch.tensor([math.inf])])) == math.inf


def test_scale_lr_multiplies_by_the_images_of_a_step(tmp_path: Path) -> None:
    _run(tmp_path / "a", scale_lr=True, gradient_accumulation_steps=3, learning_rate=0.001)
    assert _metrics(tmp_path / "a")[0]["lr"] == pytest.approx(0.006)


def test_the_rate_follows_its_schedule(tmp_path: Path) -> None:
    _run(tmp_path / "a", lr_scheduler="linear", lr_warmup_steps=2)
    rates = [line["lr"] for line in _metrics(tmp_path / "a")]
    assert rates == pytest.approx([0.05 * f for f in (0, 0.5, 1, 0.8, 0.6, 0.4, 0.2)])


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_polynomial_course_goes_with_any_optimizer(optimizer: str, tmp_path: Path) -> None:
    """diffusers reads its start from the optimizer's defaults, where Adafactor has none."""
    _run(tmp_path / "a", optimizer=optimizer, lr_scheduler="polynomial", lr_power=2.0)
    rates = [line["lr"] for line in _metrics(tmp_path / "a")]
    assert rates == pytest.approx([0.05 * (1 - step / 7) ** 2 for step in range(7)], rel=1e-2)


def _in_parts(
    folder: Path, scale: dict[str, float], spans: dict[str, tuple[float, float]], **options: object
) -> list[dict[str, float]]:
    """Train the toy's two layers as parts of their own, four steps at 0.05, and return what was logged."""
    module = _module(0.0)
    layers = [layer for layer in module.children() if isinstance(layer, nn.Linear)]
    method = Method(
        name="toy",
        dataset=Points(),
        objective=Denoising(module),
        trainables=tuple(WholeModule(name, layer) for name, layer in zip(("first", "last"), layers, strict=True)),
        export=lambda _: [],
        learning_rate_scale=scale,
        spans=spans,
        manifest={},
    )
    with RunLock(folder):
        train(
            method,
            LoopSettings.model_validate({"max_train_steps": 4, "learning_rate": 0.05, "logging_steps": 1, **options}),
            max_train_steps=4,
            accelerator=Accelerator(cpu=True, mixed_precision="no"),
            store=CheckpointStore(folder, "run"),
            tracker=Tracker(folder, first_step=0, last_step=4, images_per_step=8),
            resume_from=None,
        )
    return [{name: value for name, value in line.items() if name.startswith("lr")} for line in _metrics(folder)]


@pytest.mark.parametrize(
    ("scale", "spans", "expected"),
    [
        ({}, {}, [{"lr": 0.05}] * 4),
        ({"first": 2.0}, {"first": (0, 0.5), "last": (0.5, 1)}, [{"lr": 0.1}] * 2 + [{"lr": 0.05}] * 2),
        ({"last": 2.0}, {"last": (0.5, 1)}, [{"lr": 0.05}] * 2 + [{"lr": 0.05, "lr_last": 0.1}] * 2),
    ],
    ids=["one rate", "one after the other", "a part that joins later"],
)
def test_the_rate_that_is_logged_is_that_of_the_parts_that_train(
    scale: dict[str, float],
    spans: dict[str, tuple[float, float]],
    expected: list[dict[str, float]],
    tmp_path: Path,
) -> None:
    assert _in_parts(tmp_path, scale, spans) == expected


def test_a_rate_of_its_own_is_logged_where_it_is_zero_too(tmp_path: Path) -> None:
    logged = _in_parts(tmp_path, {"last": 2.0}, {}, lr_scheduler="constant_with_warmup", lr_warmup_steps=2)
    assert logged == [pytest.approx({"lr": rate, "lr_last": 2 * rate}) for rate in (0.0, 0.025, 0.05, 0.05)]


def test_an_interrupt_from_the_terminal_ends_with_a_checkpoint_though_processes_read_the_images(tmp_path: Path) -> None:
    """A terminal sends it to every process; the images of the step that is being made are far from all read."""

    def trained() -> None:
        os.setpgrp()  # what a shell does for the job in the foreground
        with pytest.raises(Stopped) as caught:
            _run(tmp_path, dataloader_num_workers=1, gradient_accumulation_steps=300, last_step=1000)
        sys.exit(caught.value.exit_code)

    process = multiprocessing.get_context("fork").Process(target=trained)
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "metrics.jsonl").exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGINT)
    process.join(timeout=60)
    assert process.exitcode == 130
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{_metrics(tmp_path)[-1]['step']}"]


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step_and_names_the_image(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step 4.*checkpoint-3.*nonfinite-0.json"):
        _run(tmp_path / "a", poisoned=6, checkpointing_steps=1)
    report = json.loads((tmp_path / "a" / "nonfinite-0.json").read_text())
    assert report["positions"] == [6, 7]
    assert any(source.endswith("at 6") for source in report["sources"])
    good = _run(tmp_path / "b", last_step=3)
    with RunLock(tmp_path / "a"):
        checkpoint = CheckpointStore(tmp_path / "a", "run").find_latest()
    assert checkpoint is not None
    from finetune.core.files import load_tensors

    assert _equal(load_tensors(checkpoint.folder / "toy.safetensors"), good)


def test_old_checkpoints_go_only_as_the_limit_says(tmp_path: Path) -> None:
    _run(tmp_path / "a", checkpointing_steps=1, checkpoints_total_limit=2)
    assert sorted(path.name for path in (tmp_path / "a").glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-7"]


class Seen(GeneralTracker):
    """A tracker that keeps what it is shown."""

    name, requires_logging_directory = "seen", False

    def __init__(self) -> None:
        self.numbers: dict[int, dict[str, float]] = {}
        self.pictures: dict[int, tuple[int, int]] = {}
        self.is_closed = False
        super().__init__()

    @property
    def tracker(self) -> Seen:
        return self

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        assert step is not None
        self.numbers[step] = dict(values)

    def log_images(self, values: dict[str, list[Image.Image]], step: int) -> None:
        (picture,) = values["samples"]
        self.pictures[step] = picture.size

    def finish(self) -> None:
        self.is_closed = True


def test_a_tracker_is_shown_what_metrics_hold_and_every_sheet(tmp_path: Path) -> None:
    seen = Seen()
    _run(tmp_path / "a", shown_in=[seen], validation_steps=3)
    assert seen.numbers == {line.pop("step"): line for line in _metrics(tmp_path / "a")}
    assert seen.pictures == dict.fromkeys((3, 6, 7), (3, 2))
    assert seen.is_closed


def test_a_torn_last_line_of_metrics_is_dropped_on_resume(tmp_path: Path) -> None:
    _stopped(tmp_path / "a", 4)
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    _run(tmp_path / "a", resume=True)
    assert [line["step"] for line in _metrics(tmp_path / "a")] == list(range(1, 8))
