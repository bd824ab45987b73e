"""Prompt files and seed lists: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import SettingsError
from pipelines.prompts import file_stem, parse_seeds, read_prompts


def test_prompts_are_lines_without_blanks_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffsf_dry sf_warp\r\n\n# a comment\n  étoile <b>  \n".encode())
    assert read_prompts(path) == ["sf_dry sf_warp", "étoile <b>"]


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"caf\xe9", "byte 3 is not UTF-8"), (b"# only\n\n", "no prompt"), (b"a\0b", "NUL"), (None, "No such file")],
)
def test_prompt_files_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes | None, word: str) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=word):
        read_prompts(path)


def test_seeds_are_ranges_and_numbers_each_once() -> None:
    assert parse_seeds("0-3") == [0, 1, 2, 3]
    assert parse_seeds("7, 2-4,3") == [7, 2, 3, 4]


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1.5", "0-99999999", "1,,2", "99999999999999999999"])
def test_seed_lists_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "a/b\\c", "C:\\x", "\0", "", "." * 300, "é漢字", "CON"])
def test_file_stems_stay_in_their_folder(prompt: str) -> None:
    stem = file_stem(3, prompt)
    assert stem.startswith("003")
    assert all(c.isascii() and (c.isalnum() or c in "_-") for c in stem)
    assert len(stem) <= 44
