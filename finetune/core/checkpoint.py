"""Checkpoints of a run: published whole or not at all, verified, found, rotated; the run's folder, lock and status.

    run/.lock  run/status.json
    run/checkpoint-<step>/   the files of the checkpoint, and manifest.json with their sizes and sha256, written last
    run/.tmp-*  run/.trash-*   a checkpoint that is being written or removed

A checkpoint is written under a temporary name, synced, and renamed when it is complete: a process that is killed at
any instruction, or a power cut where the disk honours fsync, leaves the newest complete checkpoint to be found.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import ClassVar, Literal, Self, TypeVar

from filelock import FileLock, Timeout

from data.errors import DiskError, OutputError
from data.json_files import parsed
from finetune.core import files

_log = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MANIFEST = "manifest.json"
_LOCK = ".lock"
_STALE = (".tmp-", ".trash-")
_FEWEST_KEPT = 2
_SPACE_FACTOR = 1.2
_NUM_READERS = 4  # files of a checkpoint that are read at once

Name = TypeVar("Name")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FileRecord:
    """What a manifest says of one file: its size in bytes and its sha256 as 64 hexadecimal digits."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been compared with its manifest.

    folder: where it lies. step: after how many optimizer steps it was written. run_id: by which run.
    files: the record of each file by its path inside the folder, with forward slashes.
    """

    folder: Path
    step: int
    run_id: str
    files: Mapping[str, FileRecord]

    @property
    def size_bytes(self) -> int:
        return sum(record.size for record in self.files.values())


class CheckpointStore:
    """The checkpoints of one run in its folder. One process writes, and it holds the folder's RunLock.

    run_dir: an existing folder. run_id: letters, digits, ".", "_" and "-", at most 64; the same when a run goes on.
    on_published: called with the step of each checkpoint that is complete and verified. warnings: what the last
    find_latest, resolve, rotate or publish met and left alone; it is logged, too.

    A checkpoint of another run id is never found as the latest, rotated or removed, whatever its step: it is reported
    in the warnings and left where it is.
    """

    def __init__(self, run_dir: Path, run_id: str, on_published: Callable[[int], object] = lambda _: None) -> None:
        assert _RUN_ID.fullmatch(run_id), f"{run_id!r} cannot be part of a folder's name"
        self.run_dir, self.run_id = run_dir, run_id
        self._on_published = on_published
        self.warnings: list[str] = []
        # what each checkpoint's files looked like when this process last read and compared them
        self._compared: dict[str, tuple[object, ...]] = {}
        self._last_published: int | None = None
        self._logged: set[str] = set()

    def publish(self, step: int, write: Callable[[Path], None]) -> Path:
        """Return the folder of a new checkpoint, complete, synced, and read back.

        step: how many optimizer steps are done. write: puts the files (regular ones, subfolders too) into the empty
        folder that it is given.

        A checkpoint of this step that is equal file by file is kept as it is; another one of this run, or one that
        is corrupt, is replaced; one of another run is renamed to aside-<k>-checkpoint-<step>. When writing fails,
        all earlier checkpoints are as they were.

        Raises DiskError when the disk has less than 1.2 times the last checkpoint's size free (nothing is written
        then), when it fills up, or when the checkpoint reads back differently.
        """
        assert step >= 0
        self.warnings = []
        self._require_space()
        target = self.run_dir / f"checkpoint-{step}"
        temporary = self.run_dir / f".tmp-{step}-{self.run_id}-{secrets.token_hex(4)}"
        replaced: Path | None = None
        try:
            files.make_folder(temporary)
            with files.writing(temporary):
                write(temporary)
            records = self._seal(temporary, step)
            if target.exists():
                if self._holds(target, records):
                    files.remove_tree(temporary)
                    self._last_published = step
                    self._on_published(step)
                    return target
                replaced = self._move_aside(target)
            files.rename(temporary, target)
        except BaseException:
            with suppress(OSError, DiskError, OutputError):
                files.remove_tree(temporary)
            raise
        files.sync_folder(self.run_dir)
        try:
            self._compare(read_manifest(target))
        except OutputError as error:
            raise DiskError(
                str(target),
                f"reads back differently from what was written: {'; '.join(error.problems)}. Check the disk.",
            ) from error
        self._last_published = step
        self._on_published(step)
        if replaced is not None:
            files.remove_tree(replaced)
        return target

    def rotate(self, keep: int | None) -> None:
        """Remove the oldest checkpoints of this run beyond the `keep` newest; None keeps all of them.

        Fewer than 2 are never kept. Only checkpoints that have been compared with their manifest count and are
        removed; corrupt ones and those of other runs stay. So do those beyond the step published last: they are of
        an earlier course of this run, and must not push out its present one.
        """
        self.warnings = []
        if keep is None:
            return
        valid = [
            candidate
            for candidate in self._candidates()
            if (self._last_published is None or candidate.step <= self._last_published)
            and (self._is_as_compared(candidate) or self._is_intact(candidate))
        ]
        for checkpoint in valid[max(keep, _FEWEST_KEPT) :]:
            trash = self._trash_name(checkpoint.folder)
            files.rename(checkpoint.folder, trash)
            # the name goes before the content does, also in a power cut
            files.sync_folder(self.run_dir)
            files.remove_tree(trash)

    def find_latest(self) -> Checkpoint | None:
        """Return the checkpoint of this run with the highest step in its manifest whose files are intact, or None.

        Sizes, names and manifests of all are looked at; the files are read from the highest step downwards, until
        one is intact. What is passed over (corrupt, of another run) is named in the warnings and kept.
        """
        self.warnings = []
        return next((candidate for candidate in self._candidates() if self._is_intact(candidate)), None)

    def newest_or_none(self) -> Checkpoint | None:
        """Return what `resolve` gives for "latest", or None where there is no checkpoint at all.

        Raises OutputError where there are some and none of them can be gone on from.
        """
        return self.resolve("latest") if _checkpoint_folders(self.run_dir) else None

    def resolve(self, name: str) -> Checkpoint:
        """Return the checkpoint that a user names: "latest", "checkpoint-500", or the path of one in the run folder.

        "latest" passes over corrupt checkpoints, with a warning; one that is named must be intact. One of another
        run can be had by its name only, and gives a warning.

        Raises OutputError, which lists the checkpoints there are.
        """
        if name == "latest":
            found = self.find_latest()
            if found is None:
                raise OutputError(str(self.run_dir), *self.warnings, f"no checkpoint to resume from. {self._listing()}")
            return found
        self.warnings = []
        folder = self._named(name)
        if not folder.is_dir():
            raise OutputError(str(folder), f"no such checkpoint. {self._listing()}")
        try:
            checkpoint = read_manifest(folder)
            self._compare(checkpoint)
        except OutputError as error:
            raise OutputError(
                error.where, *error.problems, f"A checkpoint that is named must be intact. {self._listing()}"
            ) from error
        if checkpoint.run_id != self.run_id:
            self._warn(f"{folder.name} was written by another run ({checkpoint.run_id}, this is {self.run_id}).")
        return checkpoint

    def clean(self) -> list[str]:
        """Remove what a killed process left half-done, and return the names of what was removed.

        The caller holds the RunLock, so nobody is at work on these folders. A checkpoint of this run that was
        complete but for its last renaming gets its name, with a warning.
        """
        assert RunLock.is_held(self.run_dir), "only the holder of the lock may clean"
        self.warnings = []
        stale = sorted(entry for entry in self.run_dir.iterdir() if entry.name.startswith(_STALE))
        removed = []
        for entry in stale:
            if entry.name.startswith(".tmp-") and self._finish(entry):
                continue
            files.remove_tree(entry)
            removed.append(entry.name)
        if stale:
            files.sync_folder(self.run_dir)
        return removed

    def _require_space(self) -> None:
        last = next(self._candidates(), None)
        self.warnings = []
        if last is None:
            return
        needed, free = math.ceil(_SPACE_FACTOR * last.size_bytes), files.free_bytes(self.run_dir)
        if free < needed:
            raise DiskError(
                str(self.run_dir),
                f"{needed} bytes are needed for a checkpoint ({_SPACE_FACTOR} times {last.folder.name}), {free} are "
                "free. Free space, or keep fewer checkpoints (--checkpoints_total_limit).",
            )

    def _seal(self, folder: Path, step: int) -> Mapping[str, FileRecord]:
        """Sync all files of a folder, write its manifest last, and return the files' records."""
        names, subfolders = [], []
        for path in sorted(folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                subfolders.append(path)
                continue
            assert stat.S_ISREG(path.lstat().st_mode), f"{path} is not a regular file"
            names.append(path.relative_to(folder).as_posix())
        assert names, "a checkpoint holds files"
        assert _MANIFEST not in names, f"{_MANIFEST} is written here"
        for name in names:
            files.sync_file(folder / name)
        records = dict(zip(names, _side_by_side(lambda name: _record(folder / name), names), strict=True))
        files.write_bytes(folder / _MANIFEST, _manifest_bytes(step, self.run_id, records))
        files.sync_file(folder / _MANIFEST)
        for subfolder in (*reversed(subfolders), folder):
            files.sync_folder(subfolder)
        return records

    def _holds(self, folder: Path, records: Mapping[str, FileRecord]) -> bool:
        """Return whether a folder is an intact checkpoint of this run with exactly these files."""
        try:
            present = read_manifest(folder)
            if present.run_id != self.run_id or present.files != records:
                return False
            self._compare(present)
        except OutputError:
            return False
        return True

    def _move_aside(self, target: Path) -> Path | None:
        """Free a checkpoint's name; return what may be removed once the name is taken again."""
        with suppress(OutputError):
            present = read_manifest(target)
            if present.run_id != self.run_id:
                aside = next(
                    path
                    for k in range(1, 1_000_000)
                    if not (path := self.run_dir / f"aside-{k}-{target.name}").exists()
                )
                self._warn(f"{target.name} was written by another run ({present.run_id}); it is now {aside.name}.")
                files.rename(target, aside)
                return None
        self._warn(f"{target.name} differs from the one that this run has now written; it is replaced.")
        trash = self._trash_name(target)
        files.rename(target, trash)
        return trash

    def _finish(self, temporary: Path) -> bool:
        """Give a complete checkpoint its name where that is free; return whether it was."""
        try:
            checkpoint = read_manifest(temporary)
            target = self.run_dir / f"checkpoint-{checkpoint.step}"
            if checkpoint.run_id != self.run_id or target.exists():
                return False
            _compare_hashes(checkpoint)
        except OutputError:
            return False
        files.rename(temporary, target)
        self._warn(f"{target.name} was complete but not yet named when its process ended; it has its name now.")
        return True

    def _candidates(self) -> Iterator[Checkpoint]:
        """Give the checkpoints of this run whose manifest is intact, the newest first; warn of all others."""
        found = []
        for folder in _checkpoint_folders(self.run_dir):
            try:
                checkpoint = read_manifest(folder)
            except OutputError as error:
                self._warn(f"{folder.name} is corrupt and left alone: {'; '.join(error.problems)}")
                continue
            if checkpoint.run_id != self.run_id:
                self._warn(f"{folder.name} was written by another run ({checkpoint.run_id}) and is left alone.")
                continue
            found.append(checkpoint)
        # of two copies of one step, the one that carries its name comes first
        found.sort(key=lambda c: (c.step, c.folder.name == f"checkpoint-{c.step}"), reverse=True)
        return iter(found)

    def _is_intact(self, checkpoint: Checkpoint) -> bool:
        try:
            self._compare(checkpoint)
        except OutputError as error:
            self._warn(f"{checkpoint.folder.name} is corrupt and left alone: {'; '.join(error.problems)}")
            return False
        return True

    def _is_as_compared(self, checkpoint: Checkpoint) -> bool:
        """Return whether the files look as they did when this process compared them, without reading them again."""
        return self._compared.get(checkpoint.folder.name) == _appearance(checkpoint)

    def _compare(self, checkpoint: Checkpoint) -> None:
        before = _appearance(checkpoint)
        _compare_hashes(checkpoint)
        self._compared[checkpoint.folder.name] = before

    def _named(self, name: str) -> Path:
        given = Path(name)
        folder = (self.run_dir / given if len(given.parts) == 1 else given).absolute()
        inside = folder.parent.resolve() == self.run_dir.resolve()
        if not inside or not _CHECKPOINT.fullmatch(folder.name):
            raise OutputError(
                name, f'expected "latest", or a folder checkpoint-<step> in {self.run_dir}. {self._listing()}'
            )
        return self.run_dir / folder.name

    def _listing(self) -> str:
        names = [folder.name for folder in _checkpoint_folders(self.run_dir)]
        return f"There are: {', '.join(names)}." if names else "There is none."

    def _trash_name(self, folder: Path) -> Path:
        return self.run_dir / f".trash-{folder.name}-{self.run_id}-{secrets.token_hex(4)}"

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        if text not in self._logged:
            self._logged.add(text)
            _log.warning("%s: %s", self.run_dir, text)


def read_manifest(folder: Path) -> Checkpoint:
    """Return what a checkpoint's manifest says, after its own digest and the sizes of all files have been checked.

    Raises OutputError, which names every file that is missing, has another size, or is not a regular file.
    """
    try:
        raw = (folder / _MANIFEST).read_bytes()
    except OSError as error:
        raise OutputError(str(folder), f"{_MANIFEST}: {error.strerror}; it is written last.") from error
    try:
        content = parsed(raw)
        step, run_id = content["step"], content["run_id"]
        records = {str(name): FileRecord(**record) for name, record in content["files"].items()}
        intact = type(step) is int and raw == _manifest_bytes(step, run_id, records)
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise OutputError(str(folder), f"{_MANIFEST}: is damaged.")
    problems = [problem for name, record in records.items() if (problem := _size_problem(folder, name, record))]
    if problems:
        raise OutputError(str(folder), *problems)
    return Checkpoint(folder=folder, step=step, run_id=run_id, files=records)


def _manifest_bytes(step: int, run_id: str, records: Mapping[str, FileRecord]) -> bytes:
    content: dict[str, object] = {
        "step": step,
        "run_id": run_id,
        "files": {name: asdict(record) for name, record in records.items()},
    }
    # the manifest's own digest: a flipped bit in it must not pass for another step or run
    content["sha256"] = hashlib.sha256(files.json_bytes(content)).hexdigest()
    return files.json_bytes(content)


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(size=os.fstat(file.fileno()).st_size, sha256=digest)


def _side_by_side(work: Callable[[Name], Result], items: Iterable[Name]) -> list[Result]:
    """Return the results for all items, in their order; hashing and reading leave the interpreter to the others."""
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return list(pool.map(work, items))


def _size_problem(folder: Path, name: str, record: FileRecord) -> str | None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name:
        return f"{name!r}: is not a path inside the checkpoint."
    path = folder / name
    if not path.is_file() or path.is_symlink():
        return f"{name}: is missing."
    size = path.stat().st_size
    return None if size == record.size else f"{name}: has {size} bytes, expected {record.size}."


def _compare_hashes(checkpoint: Checkpoint) -> None:
    """Raise OutputError, which names every file whose content is not that of the manifest."""

    def problem(name: str) -> str | None:
        try:
            same = _record(checkpoint.folder / name) == checkpoint.files[name]
        except OSError as error:
            return f"{name}: {error.strerror}."
        return None if same else f"{name}: its content is not what was written (sha256)."

    problems = [found for found in _side_by_side(problem, checkpoint.files) if found is not None]
    if problems:
        raise OutputError(str(checkpoint.folder), *problems)


def _appearance(checkpoint: Checkpoint) -> tuple[object, ...]:
    """Return what changes when a checkpoint's files are replaced or written to."""
    try:
        stats = [(checkpoint.folder / name).stat() for name in checkpoint.files]
    except OSError:
        return ()
    return (tuple(checkpoint.files.items()), *((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats))


def _checkpoint_folders(run_dir: Path) -> list[Path]:
    """Return the folders named checkpoint-<number>, by number."""
    numbered = [
        (int(match[1]), path)
        for path in run_dir.iterdir()
        if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    ]
    return [path for _, path in sorted(numbered)]


class RunLock:
    """The right to write into a run folder, for as long as the context lasts or the process lives.

    A lock of the system (filelock), so a killed process leaves none, nor do processes that it has forked.

    enabled: False for the processes of a run that do not write; they take no lock.

    Raises OutputError at once when another process (or another RunLock of this one) holds it, naming host and
    process, and when the file system knows no locks.
    """

    _held: ClassVar[set[Path]] = set()  # of the process, as the locks are

    def __init__(self, run_dir: Path, *, enabled: bool = True) -> None:
        self._folder, self._enabled = run_dir.resolve(), enabled
        self._path = self._folder / _LOCK
        # not the fallback to a file that only exists: a killed process would leave it behind
        self._lock = FileLock(self._path, blocking=False, fallback_to_soft=False)

    def __enter__(self) -> Self:
        if not self._enabled:
            return self
        if RunLock.is_held(self._folder):
            raise self._in_use()
        with files.writing(self._path):
            self._take()
        RunLock._held.add(self._folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._enabled or not RunLock.is_held(self._folder):  # or a forked process
            return
        RunLock._held.discard(self._folder)
        with suppress(OSError):
            self._path.write_bytes(b"")
        self._lock.release()

    @classmethod
    def is_held(cls, run_dir: Path) -> bool:
        """Return whether this process holds the lock of a run folder."""
        return run_dir.resolve() in cls._held

    def _take(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            raise self._in_use() from None
        except OSError as error:
            if error.errno not in {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}:
                raise
            raise OutputError(
                str(self._folder), f"its file system has no locks ({error.strerror}). Choose a folder on another disk."
            ) from error
        holder = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n"
        try:
            self._path.write_bytes(holder.encode())
        except BaseException:
            self._lock.release()
            raise

    def _in_use(self) -> OutputError:
        return OutputError(
            str(self._folder),
            f"is in use by {_holder(self._path)}. Wait until it ends, stop it, or choose another --output_dir.",
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=RunLock._held.clear)


def _holder(path: Path) -> str:
    try:
        holder = parsed(path.read_bytes())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just started or is just ending
        return "another process"


def prepare_run_folder(run_dir: Path, *, overwrite: bool, resume: bool) -> None:
    """Make the folder of a run, or make sure that an existing one may be used; call it before RunLock.

    overwrite: a folder with content is renamed to <name>.old-<k>, the first k that is free; nothing is deleted.
    resume: the folder must exist.

    Raises OutputError when the folder has content and neither is asked for (or both are), when it is a file, cannot
    be written, or (with overwrite) is in use by another process.
    """
    where = str(run_dir)
    if overwrite and resume:
        raise OutputError(where, "asked to resume and to overwrite. Choose one of the two.")
    with files.writing(run_dir):  # looking may be refused, too
        exists = run_dir.exists()
        if run_dir.is_symlink() and not exists:
            raise OutputError(where, "is a link to nothing. Remove it or choose another --output_dir.")
        if exists and not run_dir.is_dir():
            raise OutputError(where, "is a file; expected a folder. Choose another --output_dir.")
        if not exists and resume:
            raise OutputError(where, "does not exist, so there is nothing to resume. Check --output_dir.")
        content = sorted(path.name for path in run_dir.iterdir() if path.name != _LOCK) if exists else []
    if exists and not os.access(run_dir, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise OutputError(where, "cannot be written. Change its permissions or choose another --output_dir.")
    if content and not resume:
        if not overwrite:
            shown = ", ".join(content[:5]) + (", ..." if len(content) > 5 else "")
            raise OutputError(
                where,
                f"has content already ({shown}); expected an empty folder or none. Go on with "
                "--resume_from_checkpoint latest, replace it with --overwrite_output_dir (the old one is renamed, "
                "not deleted), or choose another --output_dir.",
            )
        run_dir = run_dir.resolve()  # of a link, the folder that it leads to
        with RunLock(run_dir):
            files.rename(run_dir, _free_name(run_dir))
        exists = False
    if not exists:
        missing = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
        files.make_folder(run_dir)
        for folder in missing:
            files.sync_folder(folder.parent)


def _free_name(run_dir: Path) -> Path:
    k = 1
    while (path := run_dir.with_name(f"{run_dir.name}.old-{k}")).exists() or path.is_symlink():
        k += 1
    return path


RunState = Literal["running", "done", "stopped", "failed"]
_LONGEST_REASON = 2000


class RunStatus:
    """How a run stands, told to others in status.json of its folder."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "status.json"

    def write(
        self, status: RunState, *, last_durable_step: int | None, reason: str, exit_code: int | None = None
    ) -> None:
        """Write status.json; a reader finds the old one or this one, also after a crash.

        last_durable_step: the step of the last checkpoint that is on disk, None before the first one. reason: why
        the run stands as it does, empty while it is running. exit_code: of the process, None while it is running; a
        launcher ends with another one.
        On a full disk the old file is written over in place, which takes no space, and a reason beyond 2,000 characters
        is cut. Raises DiskError or OutputError where that is not possible either.
        """
        content = {
            "status": status,
            "last_durable_step": last_durable_step,
            "reason": reason[:_LONGEST_REASON],
            "exit_code": exit_code,
        }
        try:
            files.write_json_atomic(self._path, content)
        except DiskError:
            if not self._path.is_file():
                raise
            files.overwrite(self._path, files.json_bytes(content))

    def settle(self) -> None:
        """Take back that a run is running, as a process that was killed leaves it. The caller holds the RunLock."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads(self._path.read_bytes())
            if content["status"] == "running":
                reason = "its process was killed or has crashed"
                self.write("failed", last_durable_step=content["last_durable_step"], reason=reason)
