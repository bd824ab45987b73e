"""finetune/lora.py through its real command line, on a tiny base and small volumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from data.tif.writer import write_stack
from finetune.core.threads import num_cores

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's data root: three volumes of smooth noise, (40, 44, 130) voxels."""
    from scipy.ndimage import gaussian_filter

    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(5)
    for name in ("dry", "dry_compacted", "injected"):
        field = gaussian_filter(rng.standard_normal((40, 44, 130)), (1.0, 2.0, 3.0))
        grey = (20000 + 40000 * (field - field.min()) / np.ptp(field)).clip(0, 65535).astype(np.uint16)
        write_stack(folder / f"{name}.tif", grey, (40.0, 40.0, 40.0))
    return folder


@pytest.fixture
def command(tiny_base_dir: Path, volumes: Path, tmp_path: Path) -> list[str]:
    return [
        *(str(ROOT / "finetune/lora.py"), "--concept", "sf_dry", "--data_root", str(volumes)),
        *("--pretrained_model_name_or_path", str(tiny_base_dir), "--num_threads", "1"),
        *("--train_batch_size", "2", "--max_train_steps", "6", "--checkpointing_steps", "2"),
        *("--num_validation_images", "1", "--logging_steps", "1"),
        *("--learning_rate", "1e-4", "--lr_scheduler", "constant", "--output_dir", str(tmp_path / "run")),
    ]


def _run(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_run_leaves_an_adapter_that_plain_diffusers_draws_the_same_image_with(
    command: list[str], tmp_path: Path, tiny_base_dir: Path
) -> None:
    run = tmp_path / "run"
    result = _run([*command, "--rank", "4", "--lora_alpha", "8"])
    assert result.returncode == 0, result.stderr
    assert f"pipe.load_lora_weights({str(run)!r})" in result.stdout
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 and line["lr"] == 1e-4 for line in steps)
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert (run / "samples" / "step-000006.png").exists()

    # what a user's script does, with torch and diffusers only
    final = json.loads((run / "final.json").read_text())
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    arguments = {key: final[key] for key in ("prompt", "num_inference_steps", "guidance_scale")}

    def draw() -> np.ndarray:
        return np.asarray(pipe(**arguments, generator=torch.Generator().manual_seed(final["seed"])).images[0], int)

    base = draw()
    pipe.load_lora_weights(str(run))
    drawn = np.asarray(Image.open(run / "final.png"), int)
    assert np.abs(draw() - drawn).max() < 2
    pipe.set_adapters(pipe.get_active_adapters(), [0.0])
    assert np.array_equal(draw(), base)


def test_rank_and_alpha_survive_the_export(command: list[str], tmp_path: Path) -> None:
    assert _run([*command, "--rank", "4", "--lora_alpha", "8", "--max_train_steps", "1"]).returncode == 0
    with safe_open(tmp_path / "run" / WEIGHTS, framework="pt") as file:
        stored = json.loads(file.metadata()["lora_adapter_metadata"])
        assert {stored["unet.r"], stored["unet.lora_alpha"]} == {4, 8.0}
        ranks = {file.get_slice(key).get_shape()[0] for key in file.keys() if "lora_A" in key}  # noqa: SIM118
        assert ranks == {4}


def _kill_at(command: list[str], point: str) -> None:
    result = _run(command, FILROUGE_CRASH_AT=point)
    assert result.returncode == -signal.SIGKILL
    assert f"crash point {point}" in result.stderr


@pytest.mark.parametrize("point", ["append_line:3", "save_tensors:3"])
def test_a_killed_and_resumed_run_exports_the_same_bytes_as_an_uninterrupted_one(
    command: list[str], tmp_path: Path, point: str
) -> None:
    """append_line:3 strikes between two checkpoints, save_tensors:3 inside the second one."""
    straight = _run([*command[:-1], str(tmp_path / "straight")])
    assert straight.returncode == 0, straight.stderr
    _kill_at(command, point)
    assert not (tmp_path / "run" / WEIGHTS).exists()
    resumed = _run([*command, "--resume_from_checkpoint", "latest"])
    assert resumed.returncode == 0, resumed.stderr
    for name in (WEIGHTS, "metrics.jsonl", "final.png"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_another_seed_gives_other_bytes(command: list[str], tmp_path: Path) -> None:
    """The negative control of the test above."""
    for seed in ("0", "1"):
        assert _run([*command[:-1], str(tmp_path / seed), "--seed", seed, "--max_train_steps", "1"]).returncode == 0
    assert (tmp_path / "0" / WEIGHTS).read_bytes() != (tmp_path / "1" / WEIGHTS).read_bytes()


def test_sigterm_saves_and_says_how_to_go_on(command: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    long = [*command, "--max_train_steps", "100000", "--checkpointing_steps", "100000"]
    process = subprocess.Popen(
        [sys.executable, *long], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "--resume_from_checkpoint latest" in errors
    assert "Traceback" not in errors
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["status"] == "stopped"
    saved = json.loads((tmp_path / "run" / f"checkpoint-{status['last_durable_step']}" / "state.json").read_text())
    assert saved["step"] == status["last_durable_step"] > 2


def test_accelerate_launch_is_the_same_job(command: list[str], tmp_path: Path) -> None:
    plain = _run([*command[:-1], str(tmp_path / "plain")])
    launched = _run(["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml", *command])
    assert (plain.returncode, launched.returncode) == (0, 0), launched.stderr
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (tmp_path / "plain" / WEIGHTS).read_bytes()


def test_accelerate_launch_leaves_no_core_idle(command: list[str]) -> None:
    """Without a configuration the launcher gives a run one thread of however many cores."""
    at = command.index("--num_threads")
    untold = [*command[:at], *command[at + 2 :]]
    planned = _run(["-m", "accelerate.commands.launch", *untold, "--dry_run"])
    assert planned.returncode == 0, planned.stderr
    assert f"precision no, {num_cores()} threads" in planned.stdout


def test_two_processes_train_the_same_adapter_as_one(command: list[str], tmp_path: Path) -> None:
    """Twice the processes, half the batch: the same samples and noise, summed in another order.

    The large epsilon keeps Adam from turning the last bits of tiny gradients into whole steps.
    """
    command = [*command[:-2], "--adam_epsilon", "0.001", "--learning_rate", "0.01", *command[-2:]]
    one = _run([*command[:-1], str(tmp_path / "one")])
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command]
    two = _run([*arguments, "--train_batch_size", "1"], ACCELERATE_USE_CPU="true")
    assert "2 processes" in two.stdout
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    with safe_open(tmp_path / "one" / WEIGHTS, "pt") as a, safe_open(tmp_path / "run" / WEIGHTS, "pt") as b:
        for key in a.keys():  # noqa: SIM118
            torch.testing.assert_close(a.get_tensor(key), b.get_tensor(key), rtol=1e-3, atol=1e-6)


def test_dry_run_prints_the_plan_and_writes_nothing(command: list[str], tmp_path: Path) -> None:
    result = _run([*command, "--dry_run"])
    assert result.returncode == 0, result.stderr
    for word in ("images", "steps", "epochs", "parameters", "MiB", "checkpoints"):
        assert word in result.stdout
    assert not (tmp_path / "run").exists()


def test_help_answers_without_loading_torch() -> None:
    result = _run(["-X", "importtime", "finetune/lora.py", "--help"])
    assert result.returncode == 0
    assert "--concept" in result.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "numpy", "diffusers", "transformers", "accelerate", "PIL"}
