"""Hostile and odd YAML, through the reader and through all that use it: refused in words, in bounded time."""

from __future__ import annotations

import math
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.concepts import load_concept
from data.errors import FilrougeError, SettingsError
from data.strict_yaml import LARGE, MOST_DEPTH, SMALL, read_yaml
from data.volume_specs import read_volume_specs
from finetune.core.cli import load_settings
from finetune.core.setting_changes import refuse_changes
from finetune.core.settings import LoraSettings
from pipelines.evaluation.prompt_sets import read_prompt_file
from pipelines.studies.study import read_study

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE: dict[str, tuple[str | bytes, str]] = {  # content, what is said of it
    "an alias bomb": (BOMB, r"line 2: \*a is an alias, which is not read"),
    "an alias of itself": ("a: &a [*a]\n", r"line 1: \*a is an alias"),
    "a mapping that merges itself": ("a: &a\n  <<: *a\n", "is an alias"),
    "a merge key": ("a: {x: 1}\nb: {<<: {x: 2}}\n", "<< merges another mapping in"),
    "5,000 brackets": ("[" * 5000, f"is nested more than {MOST_DEPTH} deep"),
    "5,000 braces": ("{a: " * 5000, f"is nested more than {MOST_DEPTH} deep"),
    "5,000 dashes": ("- " * 5000 + "a", f"is nested more than {MOST_DEPTH} deep"),
    "a repeated key": ("a: 1\nb: 2\na: 3\n", "line 3: a: stands there twice, first in line 1"),
    "a repeated key further down": ("a:\n  b: 1\n  b: 1\n", "line 3: b: stands there twice"),
    "two spellings of one key": ("1: a\n0x1: b\n", "stands there twice"),
    "a list as a key": ("? [1, 2]\n: 3\n", "found a list or a mapping as a key"),
    "a tag": ("a: !!python/object/apply:os.system ['true']\n", "tags are not read"),
    "a set": ("a: !!set {x, y}\n", "tags are not read"),
    "two documents": ("a: 1\n---\nb: 2\n", "a second document begins there"),
    "a number of 5,000 digits": (f"a: {'9' * 5000}\n", "a number of 5000 digits"),
    "too many bytes": ("a: " + "x" * LARGE, "has more than"),
    "too many values": ("a: [" + "," * 200_000 + "]", r"has more than|not readable|more than 100,000 values"),
    "a NUL": ("a: \0\n", r"line 1: holds the character U\+0000"),
    "half a character": ('a: "\\ud800"\n', "half a character"),
    "a character beyond Unicode": ('a: "\\UFFFFFFFF"\n', "out of range|not readable"),
    "Latin-1": (b"a: tiss\xe9\n", "line 1: byte 7 is not UTF-8"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "is UTF-16, expected UTF-8"),
    "a tab": ("a:\n\t- b\n", "line 2: not readable as YAML"),
    "no YAML": ("a: [1, 2\nb: {", "not readable as YAML"),
    "a bracket too many": ("a: ]\n", "line 1: not readable as YAML"),
}


def _volumes(path: Path) -> object:
    path.rename(path.parent / "volumes.yaml")
    return read_volume_specs(path.parent)


def _concept(path: Path) -> object:
    path.rename(path.parent / "mine.yaml")
    return load_concept("mine", path.parent)


def _settings(path: Path) -> object:
    return load_settings(LoraSettings, "lora", ["--config", str(path)], Path(__file__).resolve().parents[2] / "configs")


READERS: dict[str, Callable[[Path], object]] = {
    "any file": lambda path: read_yaml(path, "anything", most_bytes=SMALL),
    "volumes.yaml": _volumes,
    "prompts": read_prompt_file,
    "study": read_study,
    "concept": _concept,
    "settings": _settings,
    "settings of a run": lambda path: refuse_changes(path, LoraSettings(concept="sf_dry")),
}


@pytest.fixture
def _little_memory() -> Iterator[None]:
    """An address space that grows by 512 MiB at most: a bomb would need more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (512 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("reader", READERS)
def test_hostile_yaml_is_refused_in_words_by_all_that_read_it(tmp_path: Path, reader: str) -> None:
    for name, (content, words) in HOSTILE.items():
        path = tmp_path / f"{name.replace(' ', '_').replace(',', '')}.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(FilrougeError) as caught:
            READERS[reader](path)
        assert caught.value.exit_code in (2, 4), (name, caught.value)
        said = str(caught.value)
        if reader == "settings":  # mine.yaml:3 …
            said = re.sub(r"\.yaml:([0-9]+) ", r".yaml: line \1: ", said)
        assert re.search(words, said), (name, said)
        assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-13-45", "2024-13-45"),
        ("2024-10-30", "2024-10-30"),
        ("2024-10-30 25:61:00", "2024-10-30 25:61:00"),
        ("12:30:45", "12:30:45"),
        ("007", "007"),
        ("1e400", "1e400"),
        ("1.5", 1.5),
        ("-1.5e+3", -1500.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("1_000", 1000),
        ("0x1F", 31),
        ("-12", -12),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("null", None),
        ("'12'", "12"),
        ("'no'", "no"),
        ("y", "y"),
        ("=", "="),
        ("[1, two, {a: b}]", [1, "two", {"a": "b"}]),
        ("|\n  one\n  two\n", "one\ntwo\n"),
        ("# nothing", None),
    ],
)
def test_plain_words_are_values_only_where_they_look_like_it(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "a.yaml").write_text(f"a: {text}" if not text.startswith("#") else text)
    found = read_yaml(tmp_path / "a.yaml", "anything")
    assert found == ({"a": value} if not text.startswith("#") else value)
    if isinstance(found, dict):
        assert type(found["a"]) is type(value)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "found a folder, expected a recipe"),
        (tmp_path / "none.yaml", "No such file"),
        (Path("/dev/zero"), "found a pipe, a device or the like"),
        (Path("a\0b"), "is no name of a file"),
    ):
        with pytest.raises(SettingsError, match=words):
            read_yaml(path, "a recipe")


def test_every_line_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &x 1\nb: *x\na: 2\nc: !t 3\n")
    with pytest.raises(SettingsError) as caught:
        read_yaml(tmp_path / "a.yaml", "anything")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["line 2", "line 3", "line 4"]


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_SCALARS = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | _TEXT
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(value=_VALUES)
def test_what_a_writer_wrote_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    """Dates and the like are never written for these values, so that the reader must give back what was written."""
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8", newline="")
    assert repr(read_yaml(path, "anything", most_bytes=LARGE)) == repr(value)
