"""The operations that change a run folder: what they leave behind when they end, fail or are killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from data.errors import DiskError, OutputError
from finetune.core import files

ROOT = Path(__file__).parents[2]

WRITERS: dict[str, Callable[[Path], None]] = {
    "write_bytes": lambda path: files.write_bytes(path, b"new"),
    "write_json": lambda path: files.write_json(path, {"new": 1}),
    "write_json_atomic": lambda path: files.write_json_atomic(path, {"new": 1}),
    "append_line": lambda path: files.append_line(path, "new"),
    "save_tensors": lambda path: files.save_tensors(path, {"new": torch.zeros(2)}, {}),
}


def _child(code: str, *arguments: str, crash_at: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if crash_at is not None:
        environment[files.CRASH_VARIABLE] = crash_at
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


def test_importing_files_does_not_import_torch() -> None:
    child = _child("import sys, finetune.core.files, finetune.core.checkpoint; print('torch' in sys.modules)")
    assert child.stdout.strip() == "False", child.stderr


def test_tensors_and_their_bits_survive_saving(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "float": torch.randn(3, 4, generator=generator),
        "half": torch.randn(5, generator=generator).half(),
        "brain": torch.randn(5, generator=generator).bfloat16(),
        "count": torch.tensor(7, dtype=torch.int64),
        "not_a_number": torch.tensor([float("nan"), float("inf"), -0.0]),
        "transposed": torch.randn(2, 6, generator=generator).T,
        "empty": torch.zeros(0, 3),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    path = tmp_path / "tensors.safetensors"
    files.save_tensors(path, tensors, {"rank": "4"})
    loaded = files.load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        bits = [t.detach().contiguous().view(torch.uint8) if t.dim() else t.view(1) for t in (loaded[name], tensor)]
        assert torch.equal(*bits)


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    files.save_tensors(path, {"a": torch.arange(100_000)}, {})
    loaded = files.load_tensors(path)["a"]
    with path.open("r+b") as file:  # in place: a mapped file would show it
        file.write(bytes(path.stat().st_size))
    assert int(loaded.sum()) == 100_000 * 99_999 // 2


@pytest.mark.parametrize("metadata", [{}, {"a": "b"}])
def test_no_tensors_at_all_are_a_readable_file(tmp_path: Path, metadata: dict[str, str]) -> None:
    files.save_tensors(tmp_path / "none.safetensors", {}, metadata)
    assert files.load_tensors(tmp_path / "none.safetensors") == {}


def test_equal_tensors_and_metadata_give_equal_bytes(tmp_path: Path) -> None:
    metadata = {f"key {number}": f'é "quoted" \n\t\x01 \\ {number}' for number in range(8)}
    contents = set()
    for order in (1, -1, 1, -1):
        path = tmp_path / "tensors.safetensors"
        tensors = {"a": torch.ones(3), "b": torch.zeros(2)}
        files.save_tensors(path, dict([*tensors.items()][::order]), dict([*metadata.items()][::order]))
        contents.add(path.read_bytes())
    assert len(contents) == 1
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == metadata
        assert torch.equal(opened.get_tensor("a"), torch.ones(3))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o000])
@pytest.mark.parametrize("writer", WRITERS)
def test_new_files_have_the_mode_that_the_umask_leaves(tmp_path: Path, writer: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        WRITERS[writer](tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("writer", WRITERS)
def test_links_folders_and_pipes_are_never_written(tmp_path: Path, writer: str) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, kind in {
        "link": "a symbolic link",
        "dangling": "a symbolic link",
        "folder": "a folder",
        "pipe": "a pipe",
    }.items():
        with pytest.raises(OutputError, match=f"{name}: found {kind}, expected a regular file"):
            WRITERS[writer](tmp_path / name)
    assert target.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "folder", "link", "pipe", "target"]


def test_json_is_the_same_for_equal_values_and_refuses_what_is_not_finite(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": "é"})
    files.write_json_atomic(tmp_path / "b.json", {"a": "é", "b": (1, 2.5)})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": "é", "b": [1, 2.5]}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json_atomic(tmp_path / "b.json", {"a": float("nan")})
    assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))["a"] == "é"


def test_a_file_is_on_disk_before_it_takes_the_name_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    for name in ("write_bytes", "sync_file", "rename", "sync_folder"):
        original = getattr(files, name)

        def record(path: Path, *rest: object, name: str = name, original: Callable[..., None] = original) -> None:
            calls.append((name, path.name))
            original(path, *rest)

        monkeypatch.setattr(files, name, record)
    files.write_bytes_atomic(tmp_path / "file", b"new")
    temporary = ".tmp-file"
    assert calls == [
        ("write_bytes", temporary),
        ("sync_file", temporary),
        ("rename", temporary),
        ("sync_folder", tmp_path.name),
    ]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_appended_lines_follow_each_other_and_never_join_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, "one")
    files.append_line(path, "two é")
    assert path.read_text(encoding="utf-8") == "one\ntwo é\n"
    os.truncate(path, path.stat().st_size - 2)
    files.append_line(path, "three")
    assert path.read_bytes() == b"one\ntwo \xc3\nthree\n"


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"1")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "inner").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "single").write_bytes(b"1")
    for name in ("gone", "link", "single"):
        files.remove_tree(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").read_bytes() == b"1"


def test_a_folder_is_never_renamed_onto_one_with_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"1")
    with pytest.raises(OSError, match="not empty"):
        files.rename(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "b").exists()


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (OSError(errno.ENOSPC, "x"), DiskError, r"No space left on device: 123 bytes are needed, \d+ bytes are free"),
        (OSError(errno.EDQUOT, "x"), DiskError, r"quota exceeded: 123 bytes are needed, \d+ bytes are free"),
        (OSError(errno.EFBIG, "x"), DiskError, r"File too large: 123 bytes are needed, \d+ bytes are free"),
        (SafetensorError("Error while serializing: I/O error: x (os error 28)"), DiskError, "No space left .* 123"),
        (SafetensorError("Error while serializing: I/O error: x (os error 27)"), DiskError, "File too large.* 123"),
        (SafetensorError("Error while serializing: I/O error: x (os error 122)"), DiskError, "quota exceeded.* 123"),
        (SafetensorError("Error while serializing: I/O error: x (os error 13)"), OutputError, "Permission denied"),
        (OSError(errno.EIO, "x"), DiskError, "does not answer"),
        (OSError(errno.EROFS, "x"), OutputError, "Read-only file system"),
        (OSError(errno.ENOTDIR, "x"), OutputError, "part of this path is a file"),
        (OSError(errno.EEXIST, "x"), FileExistsError, "x"),
        (SafetensorError("an error of another kind"), SafetensorError, "another kind"),
    ],
)
def test_what_a_disk_refuses_is_named(tmp_path: Path, error: Exception, expected: type[Exception], words: str) -> None:
    with pytest.raises(expected, match=words) as caught, files.writing(tmp_path / "no" / "file", num_bytes=123):
        raise error
    if isinstance(caught.value, DiskError):
        assert str(tmp_path / "no" / "file") in str(caught.value)


_FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from data.errors import DiskError
from finetune.core import files

folder = Path(sys.argv[1])
files.save_tensors(folder / "old.safetensors", {"a": torch.ones(10)}, {})
files.write_json_atomic(folder / "old.json", {"old": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
for write in (
    lambda: files.save_tensors(folder / "old.safetensors", {"a": torch.zeros(9000)}, {}),
    lambda: files.save_tensors(folder / "new.safetensors", {"a": torch.zeros(9000)}, {}),
    lambda: files.write_json_atomic(folder / "old.json", {"new": "x" * 9000}),
):
    try:
        write()
    except DiskError as error:
        print(error.exit_code, error)
"""


def test_a_full_disk_keeps_the_old_files_and_says_what_is_needed(tmp_path: Path) -> None:
    child = _child(_FULL_DISK, str(tmp_path))
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["7", "7", "7"]
    assert "old.safetensors: File too large: 36000 bytes are needed" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.json", "old.safetensors"]
    assert torch.equal(files.load_tensors(tmp_path / "old.safetensors")["a"], torch.ones(10))
    assert json.loads((tmp_path / "old.json").read_bytes()) == {"old": 1}


def test_a_pickle_is_not_loaded_whatever_it_is_called(tmp_path: Path) -> None:
    fired = tmp_path / "fired"
    path = tmp_path / "tensors.safetensors"
    # the pickle of an object whose loading makes a file: protocol 0 of os.mkdir(fired)
    path.write_bytes(f"cos\nmkdir\n(V{fired}\ntR.".encode())
    with pytest.raises(OutputError, match=r"tensors\.safetensors: .*expected a safetensors file"):
        files.load_tensors(path)
    assert not fired.exists()


def test_the_pickle_of_the_test_above_is_a_live_one(tmp_path: Path) -> None:
    fired = tmp_path / "fired"
    code = "import sys, pickle; pickle.loads(sys.argv[1].encode())"
    _child(code, f"cos\nmkdir\n(V{fired}\ntR.")
    assert fired.is_dir()


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, None])
def test_a_damaged_or_missing_tensor_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tensors.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OutputError, match=r"tensors\.safetensors"):
        files.load_tensors(path)


_THREE_LINES = """
import sys
from pathlib import Path
from finetune.core import files
for line in ("one", "two", "three"):
    files.append_line(Path(sys.argv[1]), line)
"""


@pytest.mark.parametrize(("crash_at", "text"), [("append_line:1", None), ("append_line:3", "one\ntwo\n")])
def test_the_crash_point_kills_before_the_named_call(tmp_path: Path, crash_at: str, text: str | None) -> None:
    path = tmp_path / "lines"
    child = _child(_THREE_LINES, str(path), crash_at=crash_at)
    assert child.returncode == -signal.SIGKILL
    assert f"crash point {crash_at}" in child.stderr
    assert (path.read_text() if path.exists() else None) == text


def test_a_crash_point_that_is_not_reached_changes_nothing(tmp_path: Path) -> None:
    child = _child(_THREE_LINES, str(tmp_path / "lines"), crash_at="append_line:4")
    assert child.returncode == 0
    assert (tmp_path / "lines").read_text() == "one\ntwo\nthree\n"
