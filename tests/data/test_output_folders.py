"""A folder that cannot be written is refused by name, before any work; one that can is left as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from data.errors import OutputError
from data.output_folders import refuse_unwritable


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    new = tmp_path / "runs" / "a" / "b"
    assert refuse_unwritable(new) == new
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").write_text("kept")
    refuse_unwritable(new)
    refuse_unwritable(tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


def test_what_another_command_has_put_there_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access

    def meanwhile(path: Path, mode: int) -> bool:
        (path / "theirs").write_text("kept")
        return access(path, mode)

    monkeypatch.setattr(os, "access", meanwhile)
    refuse_unwritable(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "theirs").read_text() == "kept"


@pytest.mark.parametrize("name", ["file", "file/below", "file/far/below", "link"])
def test_a_file_in_the_way_is_told_with_the_option(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputError) as caught:
        refuse_unwritable(tmp_path / name, "--output")
    assert str(caught.value) == (
        f"{tmp_path / name}: is a file, or goes through one; expected a folder. Choose another --output."
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_what_the_system_forbids_is_told_and_nothing_stays(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidden, mkdir = tmp_path / "new" / "folder", Path.mkdir

    def refusing(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if path == forbidden and path.parent.exists():
            raise OSError(number, os.strerror(number), str(path))
        mkdir(path, mode, parents, exist_ok)

    forbidden.parent.mkdir()
    monkeypatch.setattr(Path, "mkdir", refusing)
    with pytest.raises(OutputError) as caught:
        refuse_unwritable(forbidden)
    assert str(caught.value) == f"{forbidden}: cannot be written ({os.strerror(number)}). Choose another --output_dir."
    assert not list(forbidden.parent.iterdir())


def test_a_folder_that_is_there_but_closed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _, mode: mode & os.W_OK == 0)
    with pytest.raises(OutputError, match="Permission denied"):
        refuse_unwritable(tmp_path)
    with pytest.raises(OutputError, match="Permission denied"):
        refuse_unwritable(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_stays_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space left"):
        refuse_unwritable(tmp_path / "new")
