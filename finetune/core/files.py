"""The operations by which a run folder is changed: everything that a run writes goes through them.

They are few and small, so that a test can stop a run at each one of them: when the environment variable
FILROUGE_CRASH_AT holds "<operation>:<n>" (the name of a function below, n = 1, 2, ...), the process kills itself with
SIGKILL when that operation begins for the n-th time. It is for tests of crash safety only.

A disk that is full or failing becomes DiskError, a path that must not be written becomes OutputError.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import stat
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from data.errors import DiskError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

CRASH_VARIABLE = "FILROUGE_CRASH_AT"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FAILING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}
# a file system that cannot sync a folder says so by one of these
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}

_calls: Counter[str] = Counter()


def make_folder(path: Path) -> None:
    """Make a folder that does not exist yet, and the missing ones above it."""
    _crash_point("make_folder")
    with writing(path):
        path.mkdir(parents=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in place: killed half-way, it is left half written."""
    _crash_point("write_bytes")
    _refuse_special(path)
    with writing(path, num_bytes=len(data)):
        path.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON in UTF-8, in place. Numbers in it are finite."""
    write_bytes(path, json_bytes(value))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader finds the old content or the new one, also after a crash or a power cut."""
    _refuse_special(path)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        write_bytes(temporary, data)
        sync_file(temporary)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    rename(temporary, path)
    sync_folder(path.parent)


def write_json_atomic(path: Path, value: object) -> None:
    """Write a value as JSON so that a reader finds the old content or the new one."""
    write_bytes_atomic(path, json_bytes(value))


def overwrite(path: Path, data: bytes) -> None:
    """Write a small file that exists over in place, which takes no new space: for what must be said on a full disk.

    Killed half-way, it leaves a mixture of both.
    """
    _crash_point("overwrite")
    _refuse_special(path)
    with writing(path, num_bytes=len(data)), path.open("r+b") as file:
        file.write(data)
        file.truncate()


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, whole, or not at all where the disk does not take it.

    A last line that a crash has torn is ended first, so that it spoils no other.
    """
    assert "\n" not in line, "one line at a time"
    _crash_point("append_line")
    _refuse_special(path)
    data = line.encode() + b"\n"
    with writing(path, num_bytes=len(data)), path.open("a+b", buffering=0) as file:
        size = file.tell()
        if size > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                data = b"\n" + data
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on disk."""
    _crash_point("sync_file")
    with writing(path), _descriptor(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk, where the file system can promise that."""
    _crash_point("sync_folder")
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folder
        return
    with writing(path), _descriptor(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name on the same disk, at once. A folder never replaces one with content."""
    _crash_point("rename")
    with writing(target):
        source.rename(target)


def remove_tree(path: Path) -> None:
    """Remove a folder with its content, a file, or a link (never what the link points to)."""
    _crash_point("remove_tree")
    with writing(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Save tensors as safetensors; the file appears whole or not at all.

    Equal tensors and metadata give equal bytes, and the file gets the mode of any other new file (safetensors 0.8
    writes metadata in random order, and mode 0600). Tensors must not share memory.
    """
    from safetensors.torch import save_file

    _crash_point("save_tensors")
    _refuse_special(path)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with writing(path, num_bytes=num_bytes):
            temporary.unlink(missing_ok=True)
            # the kernel applies the umask to a new file; asking for the umask itself would change it for a moment
            with _descriptor(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
                mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            contiguous = {name: tensor.detach().contiguous() for name, tensor in sorted(tensors.items())}
            # safetensors 0.8 writes a file that it cannot read when there is neither a tensor nor metadata
            save_file(contiguous, temporary, metadata=dict(metadata) or None)
            _sort_metadata(temporary)
            temporary.chmod(mode)
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU, independent of the file.

    Raises OutputError for a file that is missing or is not safetensors.
    """
    from safetensors.torch import load_file

    try:
        # the default, mmap, would fault in the middle of training when the file is cut
        loaded: dict[str, Tensor] = load_file(path, backend="pread")
    except (OSError, SafetensorError) as error:
        raise OutputError(
            str(path), f"{error}; expected a safetensors file. Restore the file, or go on from another checkpoint."
        ) from error
    return loaded


def json_bytes(value: object) -> bytes:
    """Return a value as indented JSON in UTF-8, with a newline at the end. Equal values give equal bytes."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n").encode()


def free_bytes(path: Path) -> int:
    """Return how many bytes the disk that holds an existing folder still takes."""
    return shutil.disk_usage(path).free


@contextmanager
def writing(path: Path, *, num_bytes: int | None = None) -> Iterator[None]:
    """Turn what a disk or a file system refuses into a named error; for library calls that write, too.

    path: what is written. num_bytes: how much, where known. A disk that is full or failing raises DiskError; a path
    that may not be written, or goes through a file, raises OutputError. Any other error passes.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _errno(error)
        if number in _FULL:
            raise DiskError(str(path), _full(path, number, num_bytes)) from error
        if number in _FAILING:
            raise DiskError(
                str(path), f"{os.strerror(number)}: the disk does not answer as it should. Check it, then resume."
            ) from error
        if number in _REFUSED:
            raise OutputError(
                str(path), f"cannot be written ({os.strerror(number)}). Change its permissions or choose another path."
            ) from error
        if number == errno.ENOTDIR:
            raise OutputError(
                str(path), "a part of this path is a file; expected folders. Choose another one."
            ) from error
        raise


def _full(path: Path, number: int, num_bytes: int | None) -> str:
    needed = "" if num_bytes is None else f"{num_bytes} bytes are needed, "
    parent = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path())
    return (
        f"{os.strerror(number)}: {needed}{free_bytes(parent)} bytes are free, or a limit on files or on your share of "
        "the disk is reached. Free space, raise the limit, or choose a folder on another disk."
    )


def _errno(error: Exception) -> int:
    """Return the error number, which safetensors gives only as text: "... (os error 28)"."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


def _refuse_special(path: Path) -> None:
    """Raise OutputError unless a path is a regular file or nothing: links and devices are never written."""
    with writing(path), suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise OutputError(
                str(path), f"found {_kind(mode)}, expected a regular file or nothing. Remove it or choose another name."
            )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


@contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sort_metadata(path: Path) -> None:
    """Write the header of a safetensors file again with its metadata in order; its length stays the same."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        if "__metadata__" not in header:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        sorted_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(sorted_header) <= length, "both writers spell JSON alike"
        file.seek(8)
        file.write(sorted_header.ljust(length))


def _crash_point(operation: str) -> None:
    point = os.environ.get(CRASH_VARIABLE)
    if point is None:
        return
    _calls[operation] += 1
    if point == f"{operation}:{_calls[operation]}":
        os.write(2, f"crash point {point}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
