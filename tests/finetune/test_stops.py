"""Every way a run is stopped or dies, on a toy: it says so, and goes on as if nothing had been."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

from data.dataset import Sample
from data.errors import Abandoned, DataError, FilrougeError, Interrupted, OutputError, ProcessError, Stopped
from data.exits import PARENT_VARIABLE, exit_code
from finetune.core import files, loader, stops
from finetune.core.method import Method
from finetune.core.run import run
from finetune.core.settings import LoopSettings
from finetune.core.trainables import WholeModule
from pipelines.studies.training import _environment
from tests.finetune.test_loop import Denoising, Points

Hook = Callable[..., Any]
FORK = multiprocessing.get_context("fork")


def _nothing(*_: object) -> None:
    """Nothing happens here."""


class Images(Points):
    """The toy's images, with something that happens when one is read. at: the position."""

    def __init__(self, at: int | None, happens: Hook) -> None:
        super().__init__()
        self.at, self.happens = at, happens

    def sample(self, position: int) -> Sample:
        if position == self.at:
            self.happens()
        return super().sample(position)


def _train(
    folder: Path,
    *,
    at: int | None = None,
    reading: Hook = _nothing,
    hooks: dict[str, Hook] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Run the toy and return its weights.

    reading: happens when the image at position `at` is read; hooks: when it is built, prepares, validates, previews,
    exports.
    """
    happens = dict.fromkeys(("build", "prepare", "validate", "preview", "export"), _nothing) | (hooks or {})
    values = {"max_train_steps": 6, "train_batch_size": 2, "checkpointing_steps": 100, "logging_steps": 1, **options}
    settings = LoopSettings.model_validate(
        {"output_dir": folder, "num_threads": 1, "learning_rate": 0.05, "validation_steps": 2, **values}
    )
    weights: dict[str, Tensor] = {}

    def build(_: LoopSettings, accelerator: Accelerator) -> Method:
        happens["build"]()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)).to(accelerator.device)
        part = WholeModule("toy", module, ema_decay=0.9)

        def validate() -> dict[str, float]:
            with stops.at_once():
                happens["validate"]()
            return {"weight": float(module[0].weight.detach().sum())}

        def preview(path: Path) -> None:
            with stops.at_once():
                happens["preview"]()
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (3, 2)).save(path)

        def prepare(_: object) -> dict[str, int]:
            happens["prepare"]()
            return {}

        def export(_: Path) -> list[str]:
            happens["export"]()
            weights.update({name: tensor.clone() for name, tensor in part.state().items()})
            return []

        images = Images(at, reading)
        return Method(
            name="toy",
            dataset=images,
            objective=Denoising(module),
            trainables=(part,),
            export=export,
            manifest={},
            prepare=prepare,
            validate=validate,
            preview=preview,
        )

    run(settings, build, default_dir="unused")
    return weights


def _status(folder: Path) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return status


def _told(folder: Path) -> tuple[str, int, int | None]:
    status = _status(folder)
    return status["status"], status["last_durable_step"], status["exit_code"]


def _signalled(number: int) -> Hook:
    """Return what sends a signal to this process, once, and then takes far too long."""
    sent: list[int] = []

    def send(*_: object) -> None:
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
            time.sleep(120)

    return send


# a request to stop, wherever it comes


@pytest.mark.parametrize(
    ("place", "saved", "logged"),
    [
        ("build", None, 0),
        ("prepare", 0, 0),
        ("validate", 2, 1),
        ("preview", 3, 3),
        ("export", 6, 6),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_request_to_stop_acts_at_once_wherever_no_step_is_made(
    place: str, saved: int | None, logged: int, number: signal.Signals, tmp_path: Path
) -> None:
    """The status is true, and a continuation is the uninterrupted run: weights and metrics."""
    straight = _train(tmp_path / "straight")
    before = time.monotonic()
    with pytest.raises(Stopped) as caught:
        _train(tmp_path / "run", hooks={place: _signalled(number)})
    assert time.monotonic() - before < 60, "it was left at once"
    assert caught.value.exit_code == 128 + number
    metrics = tmp_path / "run" / "metrics.jsonl"
    if saved is None:
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    else:
        assert _told(tmp_path / "run") == ("stopped", saved, 128 + number)
        assert (metrics.read_text() if metrics.exists() else "").count("\n") == logged
    if place == "validate":  # and once more, while the continuation measures what was left out
        with pytest.raises(Stopped):
            _train(tmp_path / "run", resume_from_checkpoint="latest", hooks={place: _signalled(number)})
        assert _told(tmp_path / "run") == ("stopped", saved, 128 + number)
    resumed = _train(tmp_path / "run", resume_from_checkpoint="auto")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())
    assert metrics.read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()
    assert _told(tmp_path / "run") == ("done", 6, 0)


def test_a_request_while_a_run_goes_on_loading_leaves_its_status_true(tmp_path: Path) -> None:
    """As it does after a kill, which leaves "running" behind."""
    _train(tmp_path, max_train_steps=2)
    status = _status(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps({**status, "status": "running"}))
    with pytest.raises(Stopped):
        _train(tmp_path, resume_from_checkpoint="latest", hooks={"build": _signalled(signal.SIGTERM)})
    assert _status(tmp_path) == {
        "status": "failed",
        "last_durable_step": 2,
        "reason": "its process was killed or has crashed",
        "exit_code": None,
    }


def test_the_status_tells_the_last_checkpoint_while_the_run_goes_on(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    _train(tmp_path, checkpointing_steps=2, hooks={"preview": lambda: told.append(_told(tmp_path))})
    assert told == [("running", 2, None), ("running", 4, None), ("running", 6, None)]


def test_a_second_request_ends_the_run_without_another_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(stops, "_SAME_REQUEST_S", 0.05)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(120)

    with pytest.raises(Abandoned) as caught:
        _train(tmp_path, at=8, reading=twice, checkpointing_steps=3)
    assert "checkpoint-3 holds the run so far" in caught.value.__notes__[0]
    assert _told(tmp_path) == ("stopped", 3, 143)


def test_a_repetition_within_a_second_is_the_same_request(tmp_path: Path) -> None:
    """`timeout` sends a signal to a process and then to its group."""

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    with pytest.raises(Stopped):
        _train(tmp_path, at=4, reading=twice)
    assert _told(tmp_path) == ("stopped", 3, 143)


def test_a_closed_terminal_stops_a_run_unless_it_was_started_with_nohup(tmp_path: Path) -> None:
    def hang_up() -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may have been started with nohup
    try:
        with pytest.raises(Stopped) as caught:
            _train(tmp_path / "a", at=4, reading=hang_up)
        assert caught.value.exit_code == 129
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _train(tmp_path / "b", at=4, reading=hang_up)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_those_from_before_when_a_run_has_ended(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in stops.SIGNALS]
    _train(tmp_path, max_train_steps=1)
    assert [signal.getsignal(number) for number in stops.SIGNALS] == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def _child(work: Callable[[], object]) -> Any:
    """Start a process that works, and exits as a script does."""

    def ended() -> None:
        os.setpgrp()  # what a shell does for the job in the foreground
        sys.exit(exit_code(lambda: [work(), None][1], "toy"))

    process = FORK.Process(target=ended)
    process.start()
    return process


def _wait_for(path: Path, process: Any) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


def test_a_run_that_waits_in_a_library_is_ended_by_a_second_request(tmp_path: Path) -> None:
    def wait_in_a_library() -> None:
        (tmp_path / "waits").touch()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # no Python code runs meanwhile

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stops, "_SAME_REQUEST_S", 0.1)
            patch.setattr(stops, "_GRACE_S", 0.5)
            _train(tmp_path / "run", at=8, reading=wait_in_a_library, checkpointing_steps=3)

    process = _child(work)
    _wait_for(tmp_path / "waits", process)
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.5)
    process.join(60)
    assert process.exitcode == 143
    assert _told(tmp_path / "run") == ("stopped", 3, 143)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_every_process_of_a_run_ends_with_a_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    """A terminal, torchrun and job schedulers send it so; the images of the step are far from all read."""
    long = {"gradient_accumulation_steps": 200, "max_train_steps": 1000, "validation_steps": 999}

    def work() -> None:
        signal.signal(number, signal.SIG_DFL)  # the tests may have been started with nohup
        _train(tmp_path, dataloader_num_workers=2, **long)

    process = _child(work)
    _wait_for(tmp_path / "metrics.jsonl", process)
    os.killpg(process.pid, number)
    process.join(timeout=60)
    assert process.exitcode == 128 + number
    status, step, _ = _told(tmp_path)
    assert status == "stopped"
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    assert step == len((tmp_path / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize("variable", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", PARENT_VARIABLE])
def test_a_run_whose_launcher_is_gone_saves_and_ends(variable: str, tmp_path: Path) -> None:
    """SIGKILL to the launcher, or to a study, which can tell nobody."""
    assert _environment(1)[PARENT_VARIABLE]

    def launch() -> None:
        os.environ[variable] = "no"

        def work() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stops, "PARENT_PID", os.getppid())
                _train(tmp_path / "run", max_train_steps=10**6, validation_steps=10**6)

        process = _child(work)
        (tmp_path / "pid").write_text(str(process.pid))
        process.join()

    launcher = FORK.Process(target=launch)
    launcher.start()
    _wait_for(tmp_path / "run" / "metrics.jsonl", launcher)
    launcher.kill()
    launcher.join()
    deadline = time.monotonic() + 60
    while _told(tmp_path / "run")[0] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _told(tmp_path / "run")[::2] == ("stopped", 143)


# processes that read images, and other processes of the run


def _in_a_worker(what: Hook) -> Hook:
    def happens() -> None:
        assert multiprocessing.parent_process() is not None, "it was to happen in a process that reads images"
        what()

    return happens


@pytest.mark.parametrize(
    ("dies", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by signal: Killed"),
        (lambda: os._exit(1), "exited unexpectedly with code 1"),
        (lambda: time.sleep(600), "timed out after 2 seconds"),
    ],
    ids=["killed", "died", "hung"],
)
def test_a_lost_process_that_reads_images_is_named_with_the_last_position(
    dies: Hook, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "WORKER_TIMEOUT_S", 2)
    with pytest.raises(DataError, match=words) as caught:
        _train(tmp_path, at=9, reading=_in_a_worker(dies), dataloader_num_workers=1, checkpointing_steps=1)
    assert "positions " in str(caught.value)
    status, step, code = _told(tmp_path)
    assert (status, code) == ("failed", 3)
    assert f"checkpoint-{step} holds the run so far" in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [ConnectionResetError, FileNotFoundError, EOFError, RuntimeError])
def test_a_process_that_dies_while_it_hands_a_batch_over_is_named(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is then wrong with the connection depends on the moment, and is no error of the images."""

    def killed(*_: object, **__: object) -> None:
        for process in multiprocessing.active_children():
            process.kill()
        raise error("of the connection")

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data", killed)
    with pytest.raises(DataError, match=r"killed by signal: Killed.*positions "):
        _train(tmp_path, dataloader_num_workers=2)
    assert _told(tmp_path)[::2] == ("failed", 3)
    assert not multiprocessing.active_children()


def test_an_error_of_the_system_in_a_living_process_stays_what_it_is(tmp_path: Path) -> None:
    def fault() -> None:
        raise OSError("no such disk")

    with pytest.raises(OSError, match="no such disk"):
        _train(tmp_path, at=4, reading=_in_a_worker(fault), dataloader_num_workers=1)


def test_a_fault_that_a_worker_finds_is_told_as_if_there_was_none(tmp_path: Path) -> None:
    def fault() -> None:
        raise DataError("a.png", "is damaged.", "And so is b.png.")

    told = []
    for workers in (0, 1):
        with pytest.raises(DataError) as caught:
            _train(tmp_path / str(workers), at=4, reading=fault, dataloader_num_workers=workers)
        told.append(str(caught.value))
    assert told[0] == told[1]


def _pair(folder: Path, work: Callable[[int], object]) -> list[int]:
    """Work as two processes that a launcher has started, and return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def ranked(rank: int) -> None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"})
        AcceleratorState._reset_state(True)
        code = exit_code(lambda: [work(rank), None][1], "toy")
        (folder / f"code-{rank}").write_text(str(code))
        os._exit(code)  # without waiting for a partner that is gone

    processes = [FORK.Process(target=ranked, args=(rank,)) for rank in (0, 1)]
    for process in processes:
        process.start()
    processes[0].join(120)
    if processes[1].is_alive():
        processes[1].join(5)
        processes[1].kill()
    processes[1].join()
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("dies", [lambda: os._exit(1), lambda: time.sleep(600)], ids=["died", "hung"])
def test_a_process_that_is_alone_ends_with_one_sentence(
    dies: Hook, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(rank: int) -> None:
        _train(
            tmp_path / "run",
            at=10 if rank == 1 else None,  # of the third step
            reading=dies,
            train_batch_size=2,
            checkpointing_steps=1,
            ddp_timeout_minutes=0.1,
            hooks={},
        )

    codes = _pair(tmp_path, work)
    assert codes[0] == ProcessError.exit_code
    printed = capfd.readouterr().err
    assert "another process of the run has ended" in printed
    assert "checkpoint-2 holds the run so far" in printed
    assert "Traceback" not in printed
    assert _told(tmp_path / "run") == ("failed", 2, 9)


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        def interrupt() -> None:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        _train(tmp_path / "run", at=6, reading=interrupt, max_train_steps=50)

    assert _pair(tmp_path, work) == [143, 143]
    assert _told(tmp_path / "run") == ("stopped", 2, 143)


# memory that does not suffice


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["GPU", "torch", "Python"],
)
def test_memory_that_runs_out_leaves_the_checkpoints_and_is_told(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out() -> None:
        raise error

    code = exit_code(lambda: [_train(tmp_path, at=6, reading=run_out, checkpointing_steps=2), None][1], "toy")
    assert code == 6
    assert _told(tmp_path) == ("failed", 2, 6)
    assert "checkpoint-2 holds the run so far" in capsys.readouterr().err
    straight = _train(tmp_path / "straight")
    resumed = _train(tmp_path, resume_from_checkpoint="latest")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())


# disks that do not take what is written


@contextmanager
def _full_disk(is_full: Callable[[], bool]) -> Iterator[None]:
    """Refuse every new byte of files, from a moment on; writing over what is there takes no space."""
    import errno

    real = files._crash_point

    def refuse(operation: str) -> None:
        real(operation)
        if is_full() and operation in ("save_tensors", "write_bytes", "append_line", "make_folder"):
            with files.writing(Path()):
                raise OSError(errno.ENOSPC, "no space left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_crash_point", refuse)
        yield


@pytest.mark.parametrize("number", [0, signal.SIGTERM], ids=["alone", "with SIGTERM"])
def test_a_full_disk_leaves_a_true_status_and_names_the_checkpoint(number: int, tmp_path: Path) -> None:
    """The status was "running" at step 0, and the message named a side file."""
    full: list[bool] = []

    def fill() -> None:
        full.append(True)
        if number:
            os.kill(os.getpid(), number)

    with _full_disk(lambda: bool(full)), pytest.raises(FilrougeError) as caught:
        _train(tmp_path, at=6, reading=fill, checkpointing_steps=2)
    assert caught.value.exit_code == 7
    assert "checkpoint-2 holds the run so far" in caught.value.__notes__[0]
    assert _told(tmp_path) == ("failed", 2, 7)
    straight = _train(tmp_path / "straight")
    resumed = _train(tmp_path, resume_from_checkpoint="latest")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())


def test_a_run_may_go_on_over_a_disk_that_is_full_for_a_while(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = _train(tmp_path / "straight", checkpointing_steps=1)
    events: list[str] = []
    with _full_disk(lambda: "fill" in events and events.count("preview") < 2):
        trained = _train(
            tmp_path / "run",
            at=2,  # of the second step; the second sheet is drawn after the fourth
            reading=lambda: events.append("fill"),
            hooks={"preview": lambda: events.append("preview")},
            checkpointing_steps=1,
            on_save_error="warn",
        )
    assert all(torch.equal(trained[name], tensor) for name, tensor in straight.items())
    said = capsys.readouterr().err
    assert [step for step in range(1, 7) if f"warning: step {step} is not saved" in said] == [2, 3, 4]
    for name in ("metrics.jsonl", "status.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


@pytest.mark.parametrize(("steps", "warned"), [(20, [2, 3, 4]), (3, [2])], ids=["a fourth time", "the last step"])
def test_a_run_does_not_go_on_for_ever_without_saving(
    steps: int, warned: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with _full_disk(lambda: (tmp_path / "checkpoint-1").exists()), pytest.raises(FilrougeError) as caught:
        _train(tmp_path, checkpointing_steps=1, on_save_error="warn", max_train_steps=steps, validation_steps=99)
    assert caught.value.exit_code == 7
    said = capsys.readouterr().err
    assert [step for step in range(1, steps + 1) if f"warning: step {step} is not saved" in said] == warned
    assert _told(tmp_path) == ("failed", 1, 7)


# going on where there is something


def test_auto_goes_on_where_there_is_a_checkpoint_and_begins_anew_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    straight = _train(tmp_path / "straight")
    with pytest.raises(Stopped):
        _train(folder, resume_from_checkpoint="auto", at=4, reading=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert "the run begins anew" in capsys.readouterr().out
    resumed = _train(folder, resume_from_checkpoint="auto")
    assert "the run begins anew" not in capsys.readouterr().out
    assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())


def test_auto_neither_takes_a_foreign_folder_nor_forgets_damaged_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="has content already"):
        _train(tmp_path / "other", resume_from_checkpoint="auto")
    _train(tmp_path / "run", max_train_steps=1)
    (tmp_path / "run" / "checkpoint-1" / "toy.safetensors").write_bytes(b"")
    with pytest.raises(OutputError, match="no checkpoint to resume from"):
        _train(tmp_path / "run", resume_from_checkpoint="auto")


def test_outside_of_a_run_nothing_listens() -> None:
    assert stops.requested() == 0
    with stops.at_once(), stops.deferred():
        pass
    assert issubclass(Interrupted, KeyboardInterrupt)
