"""Checkpoints survive every crash; the run folder, its lock and its status tell the truth."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from data.errors import DiskError, OutputError
from finetune.core import files
from finetune.core.checkpoint import (
    Checkpoint,
    CheckpointStore,
    RunLock,
    RunStatus,
    prepare_run_folder,
    read_manifest,
)

ROOT = Path(__file__).parents[2]
RUN = "a1b2"


def _writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        files.write_bytes(folder / "weights.bin", f"weights {text}".encode())
        files.make_folder(folder / "unet")
        files.write_json(folder / "unet" / "config.json", {"content": text})

    return write


def _publish(run_dir: Path, *steps: int, run_id: str = RUN) -> CheckpointStore:
    store = CheckpointStore(run_dir, run_id)
    for step in steps:
        store.publish(step, _writer(str(step)))
    return store


def _steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in run_dir.glob("checkpoint-*"))


def _content(checkpoint: Checkpoint | None) -> str | None:
    return checkpoint and json.loads((checkpoint.folder / "unet" / "config.json").read_bytes())["content"]


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


# a disk that forgets: the operations of files.py, replayed on a model of what lies in memory and what on the disk


@dataclass
class _File:
    data: bytes = b""
    durable: bytes | None = None


@dataclass
class _Folder:
    entries: dict[str, _File | _Folder] = field(default_factory=dict)
    durable: dict[str, _File | _Folder] = field(default_factory=dict)


@dataclass(frozen=True)
class _Operation:
    """One call: its name, the paths it names relative to the run folder, and what it wrote."""

    name: str
    paths: tuple[str, ...]
    data: bytes = b""


class _Disk:
    """A run folder of which the kernel has seen some operations and the disk perhaps fewer."""

    def __init__(self, root: _Folder) -> None:
        self.root = root

    @classmethod
    def of(cls, folder: Path) -> _Disk:
        return cls(_read_tree(folder))

    def apply(self, operation: _Operation, *, cut: bool = False) -> None:
        """Do an operation; cut: only the first half of what it writes or removes."""
        parent, name = self._locate(operation.paths[0])
        match operation.name:
            case "make_folder":
                parent.entries[name] = _Folder()
            case "write_bytes":
                file = parent.entries.setdefault(name, _File())
                assert isinstance(file, _File)
                file.data = operation.data[: len(operation.data) // 2] if cut else operation.data
            case "sync_file":
                file = parent.entries[name]
                assert isinstance(file, _File)
                file.durable = file.data
            case "sync_folder":
                folder = self.root if operation.paths[0] == "." else parent.entries[name]
                assert isinstance(folder, _Folder)
                folder.durable = dict(folder.entries)
            case "rename":
                target_parent, target_name = self._locate(operation.paths[1])
                target_parent.entries[target_name] = parent.entries.pop(name)
            case "remove_tree":
                entry = parent.entries[name]
                if cut and isinstance(entry, _Folder):
                    for inner in list(entry.entries)[: len(entry.entries) // 2]:
                        del entry.entries[inner]
                        entry.durable.pop(inner, None)
                else:
                    del parent.entries[name]
            case other:
                raise AssertionError(f"the model knows no {other}")

    def write_to(self, folder: Path, what: str) -> None:
        """Write what is found after a kill, or after a power cut that lost contents, halves of them, or names too."""
        _write_tree(self.root, folder, what)

    def _locate(self, path: str) -> tuple[_Folder, str]:
        *parents, name = path.split("/")
        folder = self.root
        for parent in parents:
            inner = folder.entries[parent]
            assert isinstance(inner, _Folder)
            folder = inner
        return folder, name


def _read_tree(path: Path) -> _Folder:
    entries: dict[str, _File | _Folder] = {
        entry.name: _read_tree(entry) if entry.is_dir() else _File(entry.read_bytes(), entry.read_bytes())
        for entry in path.iterdir()
    }
    return _Folder(entries, dict(entries))


def _write_tree(node: _File | _Folder, path: Path, what: str) -> None:
    if isinstance(node, _File):
        durable = node.data if node.durable == node.data else node.durable or b""
        half = durable if durable == node.data else node.data[: len(node.data) // 2]
        path.write_bytes(
            {"killed": node.data, "contents lost": durable, "contents cut": half, "names lost": durable}[what]
        )
        return
    path.mkdir()
    for name, entry in (node.durable if what == "names lost" else node.entries).items():
        _write_tree(entry, path / name, what)


POWER_CUTS = ("killed", "contents lost", "contents cut", "names lost")


def _recorded(run_dir: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[_Operation]:
    """Return the operations on a run folder in the order in which they were done."""
    trace: list[_Operation] = []
    with monkeypatch.context() as patch:
        for name in ("make_folder", "write_bytes", "sync_file", "sync_folder", "rename", "remove_tree"):
            original = getattr(files, name)

            def record(*arguments: object, name: str = name, original: Callable[..., None] = original) -> None:
                original(*arguments)
                paths = tuple(path.relative_to(run_dir).as_posix() for path in arguments if isinstance(path, Path))
                data = b"".join(value for value in arguments if isinstance(value, bytes))
                trace.append(_Operation(name, paths, data))

            patch.setattr(files, name, record)
        work()
    return trace


def _states(before: _Disk, trace: list[_Operation], scratch: Path) -> Iterator[tuple[int, Path]]:
    """Give every folder that a crash can leave, with the number of operations that were done whole."""
    for done in range(len(trace) + 1):
        for cut in (False, True):
            if cut and (done == len(trace) or trace[done].name not in ("write_bytes", "remove_tree")):
                continue
            disk = copy.deepcopy(before)
            for operation in trace[:done]:
                disk.apply(operation)
            if cut:
                disk.apply(trace[done], cut=True)
            for what in POWER_CUTS:
                folder = scratch / f"{done}-{cut}-{what}"
                disk.write_to(folder, what)
                yield done, folder


def _index(trace: list[_Operation], name: str, *paths: str) -> int:
    """Return after how many operations the one with these paths (beginnings of them) is done."""
    return 1 + next(
        number
        for number, operation in enumerate(trace)
        if operation.name == name
        and all(path.startswith(start) for path, start in zip(operation.paths, paths, strict=True))
    )


def test_a_crash_at_any_operation_of_a_save_leaves_the_newest_complete_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, scratch = tmp_path / "run", tmp_path / "scratch"
    run_dir.mkdir()
    scratch.mkdir()
    store = _publish(run_dir, 1)
    before = _Disk.of(run_dir)
    trace = _recorded(run_dir, monkeypatch, lambda: store.publish(2, _writer("2")))
    named = _index(trace, "rename", ".tmp-2-", "checkpoint-2")
    durable = named + _index(trace[named:], "sync_folder", ".")
    assert [operation.name for operation in trace].count("sync_file") == 3
    states = list(_states(before, trace, scratch))
    assert len(states) > 4 * len(trace) >= 48
    for done, folder in states:
        found = CheckpointStore(folder, RUN).find_latest()
        assert found is not None, folder.name
        assert _content(found) == str(found.step)
        if done < named:
            assert found.step == 1, folder.name
        elif done >= durable or not folder.name.endswith("names lost"):
            assert found.step == 2, folder.name


def test_a_crash_at_any_operation_of_save_and_rotation_keeps_a_valid_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, scratch = tmp_path / "run", tmp_path / "scratch"
    run_dir.mkdir()
    scratch.mkdir()
    store = _publish(run_dir, 1, 2, 3)
    before = _Disk.of(run_dir)

    def save() -> None:
        store.publish(4, _writer("4"))
        store.rotate(2)

    trace = _recorded(run_dir, monkeypatch, save)
    assert _steps(run_dir) == [3, 4]
    named = _index(trace, "rename", ".tmp-4-", "checkpoint-4")
    durable = named + _index(trace[named:], "sync_folder", ".")
    assert all(operation.name != "remove_tree" for operation in trace[:durable])
    for done, folder in _states(before, trace, scratch):
        found = CheckpointStore(folder, RUN).find_latest()
        assert found is not None, folder.name
        assert found.step == (4 if done >= durable else found.step)
        assert found.step >= 3
        assert _content(found) == str(found.step)


def test_a_crash_while_the_only_checkpoint_is_replaced_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, scratch = tmp_path / "run", tmp_path / "scratch"
    run_dir.mkdir()
    scratch.mkdir()
    store = _publish(run_dir, 1)
    before = _Disk.of(run_dir)
    trace = _recorded(run_dir, monkeypatch, lambda: store.publish(1, _writer("again")))
    moved = _index(trace, "rename", "checkpoint-1", ".trash-")
    for done, folder in _states(before, trace, scratch):
        with RunLock(folder):
            store = CheckpointStore(folder, RUN)
            store.clean()
            found = _content(store.find_latest())
        assert found in ({"1"} if done < moved - 1 else {"1", "again"}), folder.name
        if done >= moved and not folder.name.endswith("names lost"):
            assert found == "again", folder.name
        assert [path.name for path in folder.glob(".t*-*")] == []


# real kills

_SAVES = """
import sys
from pathlib import Path
from finetune.core import files
from finetune.core.checkpoint import CheckpointStore, RunLock

run_dir, last_step = Path(sys.argv[1]), int(sys.argv[2])
with RunLock(run_dir):
    store = CheckpointStore(run_dir, "a1b2")
    store.clean()
    latest = store.find_latest()
    state = int((latest.folder / "state").read_bytes()) if latest else 1
    for step in range(latest.step if latest else 0, last_step):
        state = state * 6364136223846793005 % 2**64 + 1
        def write(folder):
            files.write_bytes(folder / "state", str(state).encode())
            files.write_bytes(folder / "weights", bytes(1000))
        store.publish(step + 1, write)
        store.rotate(2)
print(state)
"""


def _child(code: str, *arguments: str, crash_at: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if crash_at is not None:
        environment[files.CRASH_VARIABLE] = crash_at
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("crash_at", "latest"),
    [("write_bytes:5", 1), ("rename:2", 1), ("sync_folder:4", 2), ("remove_tree:1", 3)],
)
def test_a_killed_save_leaves_the_newest_complete_checkpoint(tmp_path: Path, crash_at: str, latest: int) -> None:
    killed = _child(_SAVES, str(tmp_path), "4", crash_at=crash_at)
    assert killed.returncode == -signal.SIGKILL
    assert f"crash point {crash_at}" in killed.stderr
    found = CheckpointStore(tmp_path, RUN).find_latest()
    assert found is not None
    assert found.step == latest
    with RunLock(tmp_path):
        stale = CheckpointStore(tmp_path, RUN).clean()
    # after the renaming nothing is half-done; before it a complete checkpoint gets its name
    assert len(stale) == (1 if crash_at in ("write_bytes:5", "remove_tree:1") else 0)
    assert _steps(tmp_path)[-1] == (2 if crash_at == "rename:2" else latest)


def test_a_run_killed_five_times_ends_like_one_that_never_was(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "straight").mkdir()
    for crash_at in ("write_bytes:4", "rename:2", "sync_file:5", "remove_tree:2", "sync_folder:6"):
        killed = _child(_SAVES, str(tmp_path / "killed"), "12", crash_at=crash_at)
        assert killed.returncode == -signal.SIGKILL
        assert f"crash point {crash_at}" in killed.stderr
    ends = [_child(_SAVES, str(tmp_path / name), "12") for name in ("killed", "straight")]
    assert [end.returncode for end in ends] == [0, 0], ends
    assert ends[0].stdout == ends[1].stdout != ""
    for name in ("checkpoint-11", "checkpoint-12"):
        manifests = [(tmp_path / folder / name / "manifest.json").read_bytes() for folder in ("killed", "straight")]
        assert manifests[0] == manifests[1]
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [".lock", "checkpoint-11", "checkpoint-12"]


# disk full


@contextmanager
def _file_size_limit(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


_FULL_DISK = """
import resource, sys
from pathlib import Path
from data.errors import DiskError
from finetune.core import files
from finetune.core.checkpoint import CheckpointStore

store = CheckpointStore(Path(sys.argv[1]), "a1b2")
for step in (1, 2):
    store.publish(step, lambda folder: files.write_bytes(folder / "weights", bytes(9000)))
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
try:
    # a library that writes on its own
    store.publish(3, lambda folder: (folder / "weights").write_bytes(bytes(9000)))
except DiskError as error:
    print(error)
try:
    store.publish(3, lambda folder: files.write_bytes(folder / "weights", bytes(9000)))
except DiskError as error:
    sys.exit(error.exit_code)
"""


def test_a_disk_that_fills_up_leaves_all_old_checkpoints_and_no_new_one(tmp_path: Path) -> None:
    child = _child(_FULL_DISK, str(tmp_path))
    assert child.returncode == 7, child.stderr
    assert "File too large" in child.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    store = CheckpointStore(tmp_path, RUN)
    assert [store.resolve(f"checkpoint-{step}").step for step in (1, 2)] == [1, 2]


def test_tensors_that_do_not_fit_leave_the_old_checkpoint(tmp_path: Path) -> None:
    store = _publish(tmp_path, 1)
    with (
        _file_size_limit(2000),
        pytest.raises(
            DiskError, match=r"weights\.safetensors: File too large: 40000 bytes are needed, \d+ bytes are free"
        ),
    ):
        store.publish(
            2, lambda folder: files.save_tensors(folder / "weights.safetensors", {"a": torch.ones(10_000)}, {})
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1"]
    assert _content(store.find_latest()) == "1"


def test_nothing_is_written_when_the_free_space_is_below_1_2_times_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, RUN)
    store.publish(1, lambda folder: files.write_bytes(folder / "weights", bytes(1000)))
    monkeypatch.setattr(files, "free_bytes", lambda _: 1199)
    called: list[Path] = []
    with pytest.raises(DiskError, match=r"1200 bytes are needed .* 1199 are free"):
        store.publish(2, called.append)
    assert called == []
    monkeypatch.setattr(files, "free_bytes", lambda _: 1200)
    store.publish(2, lambda folder: files.write_bytes(folder / "weights", bytes(1000)))
    assert _steps(tmp_path) == [1, 2]


def test_an_error_of_the_writer_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    store = _publish(tmp_path, 1)

    def write(folder: Path) -> None:
        files.write_bytes(folder / "half", b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.publish(2, write)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


# what is in a checkpoint, and what is found


def test_a_checkpoint_holds_what_was_written_and_a_manifest_of_it(tmp_path: Path) -> None:
    _publish(tmp_path, 500)
    manifest = json.loads((tmp_path / "checkpoint-500" / "manifest.json").read_bytes())
    assert manifest["step"] == 500
    assert manifest["run_id"] == RUN
    assert manifest["files"]["weights.bin"] == {
        "size": 11,
        "sha256": hashlib.sha256(b"weights 500").hexdigest(),
    }
    assert set(manifest["files"]) == {"weights.bin", "unet/config.json"}


def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(tmp_path: Path) -> None:
    store = _publish(tmp_path, 1, 2)
    folder = tmp_path / "checkpoint-2"
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert sorted(names) == ["manifest.json", "unet/config.json", "weights.bin"]
    for name in names:
        for bit in range(0, 8 * (folder / name).stat().st_size, 9):  # each byte, each of the eight bits in turn
            _flip(folder / name, bit)
            with pytest.raises(OutputError, match="must be intact") as caught:
                store.resolve("checkpoint-2")
            assert f"{name}: " in str(caught.value)
            if bit % 99 == 0:
                found = store.resolve("latest")
                assert found.step == 1
                assert len(store.warnings) == 1
                assert name in store.warnings[0]
            _flip(folder / name, bit)
    assert store.resolve("latest").step == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "weights.bin").unlink(), r"weights\.bin: is missing"),
        (lambda folder: os.truncate(folder / "weights.bin", 3), r"weights\.bin: has 3 bytes, expected 9"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json: No such file"),
        (lambda folder: (folder / "manifest.json").write_bytes(b""), r"manifest\.json: is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"[1]"), r"manifest\.json: is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), r"manifest\.json: is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b'{"step":1,"run_id":2,"files":3}'), "is damaged"),
        (lambda folder: shutil.rmtree(folder / "unet"), "unet/config.json: is missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_named_and_kept(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    store = _publish(tmp_path, 8, 9)
    damage(tmp_path / "checkpoint-9")
    found = store.find_latest()
    assert found is not None
    assert found.step == 8
    assert len(store.warnings) == 1
    with pytest.raises(OutputError, match=words):
        store.resolve("checkpoint-9")
    store.rotate(2)
    assert _steps(tmp_path) == [8, 9]


def test_a_manifest_never_leads_out_of_its_checkpoint(tmp_path: Path) -> None:
    from finetune.core.checkpoint import FileRecord, _manifest_bytes

    (tmp_path / "secret").write_bytes(b"")
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    for name in ("../secret", str(tmp_path / "secret"), "a\0b"):
        (folder / "manifest.json").write_bytes(_manifest_bytes(1, RUN, {name: FileRecord(0, "0" * 64)}))
        with pytest.raises(OutputError, match="not a path inside the checkpoint"):
            read_manifest(folder)


def test_the_highest_step_wins_whatever_the_clock_and_the_names_order_say(tmp_path: Path) -> None:
    store = _publish(tmp_path, 9, 10, 100)
    for seconds, name in enumerate(("checkpoint-100", "checkpoint-10", "checkpoint-9")):
        for path in (tmp_path / name, *(tmp_path / name).iterdir()):
            os.utime(path, (seconds * 1e6, seconds * 1e6))
    found = store.find_latest()
    assert found is not None
    assert found.step == 100
    assert found.size_bytes == sum(
        path.stat().st_size for path in found.folder.rglob("*.*") if "manifest" not in path.name
    )
    # the step is that of the manifest, not of the name
    (tmp_path / "checkpoint-9").rename(tmp_path / "checkpoint-900")
    found = store.find_latest()
    assert found is not None
    assert found.step == 100


def test_names_that_only_resemble_a_checkpoint_are_ignored(tmp_path: Path) -> None:
    store = _publish(tmp_path, 5)
    for name in (".tmp-9-a1b2-00", "checkpoint-9.tmp", "checkpoint-9-backup", "checkpoint-", "xcheckpoint-9"):
        shutil.copytree(tmp_path / "checkpoint-5", tmp_path / name)
    (tmp_path / "checkpoint-77").write_bytes(b"a file")
    (tmp_path / "checkpoint-88").symlink_to(tmp_path / "checkpoint-5")
    found = store.find_latest()
    assert found is not None
    assert found.folder.name == "checkpoint-5"
    assert store.warnings == []


def test_without_a_checkpoint_none_is_found_and_latest_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, RUN)
    assert store.find_latest() is None
    with pytest.raises(OutputError, match=r"no checkpoint to resume from\. There is none"):
        store.resolve("latest")
    _publish(tmp_path, 3)
    _flip(tmp_path / "checkpoint-3" / "weights.bin", 0)
    with pytest.raises(OutputError, match="There are: checkpoint-3") as caught:
        store.resolve("latest")
    assert "weights.bin: its content is not what was written" in str(caught.value)


def test_a_checkpoint_is_resolved_by_its_name_or_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "runs" / "one"
    run_dir.mkdir(parents=True)
    store = _publish(run_dir, 500, 600)
    monkeypatch.chdir(tmp_path)
    for name in (
        "checkpoint-500",
        str(run_dir / "checkpoint-500"),
        "runs/one/checkpoint-500",
        "runs/../runs/one/checkpoint-500/",
    ):
        assert store.resolve(name).step == 500


@pytest.mark.parametrize(
    "name",
    ["checkpoint-7", "checkpoint-x", "../two/checkpoint-5", "/etc", "", ".", "checkpoint-500/unet", ".tmp-1-a-b"],
)
def test_a_name_that_is_not_there_or_leads_elsewhere_is_refused_with_a_list(tmp_path: Path, name: str) -> None:
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
    _publish(tmp_path / "two", 5)
    store = _publish(tmp_path / "one", 500)
    with pytest.raises(OutputError, match=r"There are: checkpoint-500\."):
        store.resolve(name)


def test_a_higher_checkpoint_of_another_run_is_reported_and_never_chosen_or_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _publish(tmp_path, 9000, run_id="other")
    store = _publish(tmp_path, 1, 2, 3)
    found = store.find_latest()
    assert found is not None
    assert found.step == 3
    expected = "checkpoint-9000 was written by another run (other) and is left alone."
    assert store.warnings == [expected]
    assert caplog.text.count(expected) == 1
    store.rotate(2)
    assert _steps(tmp_path) == [2, 3, 9000]
    assert store.resolve("checkpoint-9000").run_id == "other"
    assert store.warnings == ["checkpoint-9000 was written by another run (other, this is a1b2)."]


# reaching a step again


def test_an_equal_checkpoint_of_the_same_step_is_kept_as_it_is(tmp_path: Path) -> None:
    store = _publish(tmp_path, 1)
    inode = (tmp_path / "checkpoint-1").stat().st_ino
    assert store.publish(1, _writer("1")) == tmp_path / "checkpoint-1"
    assert (tmp_path / "checkpoint-1").stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("damaged", [False, True])
def test_another_or_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path, damaged: bool) -> None:
    store = _publish(tmp_path, 1)
    if damaged:
        _flip(tmp_path / "checkpoint-1" / "weights.bin", 5)
    content = "1" if damaged else "again"
    store.publish(1, _writer(content))
    assert _content(store.find_latest()) == content
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_checkpoint_of_another_run_is_moved_aside_not_removed(tmp_path: Path) -> None:
    _publish(tmp_path, 1, run_id="other")
    store = _publish(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aside-1-checkpoint-1", "checkpoint-1"]
    assert read_manifest(tmp_path / "aside-1-checkpoint-1").run_id == "other"
    found = store.find_latest()
    assert found is not None
    assert found.run_id == RUN


def test_a_checkpoint_that_reads_back_differently_is_an_error_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _publish(tmp_path, 1)
    original = files.rename

    def rename(source: Path, target: Path) -> None:
        original(source, target)
        if target.name == "checkpoint-2":
            _flip(target / "weights.bin", 3)

    monkeypatch.setattr(files, "rename", rename)
    with pytest.raises(DiskError, match=r"checkpoint-2: reads back differently.*weights\.bin"):
        store.publish(2, _writer("2"))
    assert _content(store.find_latest()) == "1"


# rotation


@pytest.mark.parametrize(
    ("keep", "left"),
    [(None, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 5]), (3, [3, 4, 5]), (2, [4, 5]), (1, [4, 5]), (0, [4, 5])],
)
def test_rotation_keeps_the_newest_and_never_fewer_than_two(tmp_path: Path, keep: int | None, left: list[int]) -> None:
    store = _publish(tmp_path, 1, 2, 3, 4, 5)
    store.rotate(keep)
    assert _steps(tmp_path) == left
    assert len(list(tmp_path.iterdir())) == len(left)


@pytest.mark.parametrize("same_process", [True, False])
def test_rotation_counts_and_removes_intact_checkpoints_only(tmp_path: Path, same_process: bool) -> None:
    store = _publish(tmp_path, 1, 2, 3, 4, 5)
    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    for step in (5, 4, 1):
        _flip(tmp_path / f"checkpoint-{step}" / "weights.bin", 1)
    if not same_process:
        store = CheckpointStore(tmp_path, RUN)
    store.rotate(2)
    assert _steps(tmp_path) == [1, 2, 3, 4, 5]
    _publish(tmp_path, 6).rotate(2)
    assert _steps(tmp_path) == [1, 3, 4, 5, 6]
    assert _content(CheckpointStore(tmp_path, RUN).find_latest()) == "6"


def test_rotation_never_removes_what_was_just_published_for_higher_steps_of_an_earlier_course(tmp_path: Path) -> None:
    _publish(tmp_path, 500, 1000, 1500)
    store = CheckpointStore(tmp_path, RUN)
    for step in (600, 700, 800):
        store.publish(step, _writer(str(step)))
        store.rotate(2)
    assert _steps(tmp_path) == [700, 800, 1000, 1500]


# leftovers


def test_leftovers_are_ignored_then_named_and_removed_under_the_lock(tmp_path: Path) -> None:
    store = _publish(tmp_path, 1)
    half = tmp_path / ".tmp-2-a1b2-0000"
    half.mkdir()
    (half / "weights.bin").write_bytes(b"half")
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / ".trash-checkpoint-0-a1b2-0000")
    (tmp_path / ".tmp-status.json").write_bytes(b"{")
    (tmp_path / "samples").mkdir()
    found = store.find_latest()
    assert found is not None
    assert found.step == 1
    with pytest.raises(AssertionError, match="holder of the lock"):
        store.clean()
    with RunLock(tmp_path):
        assert store.clean() == [".tmp-2-a1b2-0000", ".tmp-status.json", ".trash-checkpoint-0-a1b2-0000"]
        assert store.clean() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoint-1", "samples"]


@pytest.mark.parametrize(
    ("run_id", "damaged", "finished"), [(RUN, False, True), (RUN, True, False), ("x", False, False)]
)
def test_a_complete_checkpoint_without_its_name_gets_it(
    tmp_path: Path, run_id: str, damaged: bool, finished: bool
) -> None:
    store = _publish(tmp_path, 1)
    _publish(tmp_path, 2, run_id=run_id)
    (tmp_path / "checkpoint-2").rename(tmp_path / ".tmp-2-a1b2-0000")
    if damaged:
        _flip(tmp_path / ".tmp-2-a1b2-0000" / "weights.bin", 0)
    with RunLock(tmp_path):
        assert store.clean() == ([] if finished else [".tmp-2-a1b2-0000"])
    assert _steps(tmp_path) == ([1, 2] if finished else [1])
    assert len(store.warnings) == finished


def test_files_of_a_checkpoint_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        _writer("1")(folder)
        files.save_tensors(folder / "weights.safetensors", {"a": torch.ones(2)}, {})

    before = os.umask(0o027)
    try:
        folder = CheckpointStore(tmp_path, RUN).publish(1, write)
        RunStatus(tmp_path).write("running", last_durable_step=1, reason="")
    finally:
        os.umask(before)
    written = [path for path in (*folder.rglob("*"), tmp_path / "status.json") if path.is_file()]
    assert len(written) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o666 & ~0o027}


# the lock

_HOLD = """
import sys, time
from pathlib import Path
from finetune.core.checkpoint import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
_FORK_AND_HOLD = _HOLD.replace(
    '    print("held"',
    """    import os
    running, told = os.pipe()
    child = os.fork()
    os.read(running, 1) if child else os.write(told, b"1")  # the child has left the fork, and its handlers
    if child: print(child, end=" ")
    if child: print("held\"""",
)
_TRY = """
import sys
from pathlib import Path
from data.errors import OutputError
from finetune.core.checkpoint import RunLock
try:
    with RunLock(Path(sys.argv[1])):
        print("taken")
except OutputError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@contextmanager
def _running(code: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_refused_at_once_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    with _running(_HOLD, str(tmp_path)) as (holder, line):
        assert line == "held\n"
        started = time.monotonic()
        with pytest.raises(OutputError, match=f"in use by process {holder.pid} on {os.uname().nodename}"):
            RunLock(tmp_path).__enter__()
        assert time.monotonic() - started < 1
        second = _child(_TRY, str(tmp_path))
        assert second.returncode == 4
        assert f"process {holder.pid} on " in second.stdout
    # it was killed, and the lock went with it
    assert _child(_TRY, str(tmp_path)).stdout == "taken\n"


def test_a_killed_holder_leaves_no_lock_with_the_processes_it_forked(tmp_path: Path) -> None:
    with _running(_FORK_AND_HOLD, str(tmp_path)) as (holder, line):
        worker, held = line.split()
        assert held == "held"
        with pytest.raises(OutputError, match="in use"):
            RunLock(tmp_path).__enter__()
        holder.kill()
        holder.wait()
        try:
            os.kill(int(worker), 0)  # it lives
            with RunLock(tmp_path):
                pass
        finally:
            os.kill(int(worker), signal.SIGKILL)


def test_a_lock_is_held_once_and_released_after_an_error(tmp_path: Path) -> None:
    def fail_while_holding() -> None:
        with RunLock(tmp_path):
            assert RunLock.is_held(tmp_path)
            with pytest.raises(OutputError, match=f"process {os.getpid()}"):
                RunLock(tmp_path).__enter__()
            with RunLock(tmp_path, enabled=False):  # of a process that does not write
                pass
            assert RunLock.is_held(tmp_path)
            raise ZeroDivisionError

    assert not RunLock.is_held(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fail_while_holding()
    with RunLock(tmp_path):
        pass
    assert not RunLock.is_held(tmp_path)


# the run folder


def test_a_new_run_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "a" / "b" / "c"
    prepare_run_folder(run_dir, overwrite=False, resume=False)
    assert run_dir.is_dir()
    prepare_run_folder(run_dir, overwrite=False, resume=False)  # still empty
    with RunLock(run_dir):  # a lock is no content
        pass
    prepare_run_folder(run_dir, overwrite=False, resume=False)


def test_a_folder_with_content_is_refused_renamed_or_gone_on_with(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_bytes(b"1")
    with pytest.raises(OutputError, match=r"has content already \(metrics\.jsonl\).*--overwrite_output_dir"):
        prepare_run_folder(run_dir, overwrite=False, resume=False)
    prepare_run_folder(run_dir, overwrite=False, resume=True)
    assert (run_dir / "metrics.jsonl").read_bytes() == b"1"
    for k in (1, 2, 3):
        prepare_run_folder(run_dir, overwrite=True, resume=False)
        assert list(run_dir.iterdir()) == []
        (run_dir / "metrics.jsonl").write_bytes(str(k + 1).encode())
    for k in (1, 2, 3):
        assert (tmp_path / f"run.old-{k}" / "metrics.jsonl").read_bytes() == str(k).encode()
    prepare_run_folder(tmp_path / "fresh", overwrite=True, resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "run", "run.old-1", "run.old-2", "run.old-3"]


def test_overwriting_through_a_link_renames_the_folder_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "disk" / "run" / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    prepare_run_folder(tmp_path / "link", overwrite=True, resume=False)
    assert list((tmp_path / "link").iterdir()) == []
    assert (tmp_path / "disk" / "run.old-1" / "file").read_bytes() == b"1"


def test_a_folder_that_is_in_use_is_not_overwritten(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "file").write_bytes(b"1")
    with RunLock(run_dir), pytest.raises(OutputError, match="in use"):
        prepare_run_folder(run_dir, overwrite=True, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@contextmanager
def _ordinary_user() -> Iterator[None]:
    """Be a user whom permissions stop, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("case", "resume", "words"),
    [
        ("file", False, "is a file; expected a folder"),
        ("file", True, "is a file; expected a folder"),
        ("file/below", False, "part of this path is a file"),
        ("missing", True, "does not exist, so there is nothing to resume"),
        ("dangling", False, "is a link to nothing"),
        ("loop", False, "is a link to nothing"),
        ("readonly", False, "cannot be written"),
        ("readonly/below/it", False, "cannot be written .Permission denied"),
        ("closed/inside", False, "cannot be written .Permission denied"),
        ("x" * 300, False, "cannot be written .File name too long"),
    ],
)
def test_a_path_that_cannot_hold_a_run_is_refused(case: str, resume: bool, words: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        base = Path(name)
        base.chmod(0o755)
        (base / "file").write_bytes(b"1")
        (base / "dangling").symlink_to(base / "nowhere")
        (base / "loop").symlink_to(base / "loop")
        (base / "readonly").mkdir(mode=0o555)
        (base / "closed").mkdir(mode=0o000)
        with pytest.raises(OutputError, match=words), _ordinary_user():
            prepare_run_folder(base / case, overwrite=False, resume=resume)
        (base / "closed").chmod(0o700)


def test_resuming_and_overwriting_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Choose one of the two"):
        prepare_run_folder(tmp_path, overwrite=True, resume=True)


def test_the_status_is_replaced_whole(tmp_path: Path) -> None:
    status = RunStatus(tmp_path)
    status.write("running", last_durable_step=None, reason="")
    status.write("stopped", last_durable_step=40, reason="SIGTERM", exit_code=143)
    assert json.loads((tmp_path / "status.json").read_bytes()) == {
        "status": "stopped",
        "last_durable_step": 40,
        "reason": "SIGTERM",
        "exit_code": 143,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
