"""Concepts: which cells of the grid state x plane are trained on, and the class noun they belong to.

A concept is a YAML file, `configs/concepts/<name>.yaml`:

    states: [dry, compacted]       # of data.captions.STATES
    planes: [warp]                 # of data.volumes.PLANES
    class_noun: slice
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data.captions import STATES, cell_caption
from data.errors import SettingsError, nearest
from data.volumes import PLANES

CONCEPTS = Path(__file__).resolve().parents[1] / "configs" / "concepts"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a file name that cannot lead out of its folder
_KEYS = ("states", "planes", "class_noun")


@dataclass(frozen=True)
class Cell:
    """One state seen along one plane: all slices that have the same words."""

    state: str
    plane: str

    @property
    def caption(self) -> str:
        return cell_caption(self.state, self.plane)


@dataclass(frozen=True)
class Concept:
    """The cells that one training run is about, and the noun of the class they belong to."""

    name: str
    cells: tuple[Cell, ...]
    class_noun: str

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions, in the order of the cells."""
        return tuple(dict.fromkeys(cell.caption for cell in self.cells))


def concept_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the concepts that a folder describes, sorted; empty where there is no such folder."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml") if _NAME.fullmatch(path.stem)))


def load_concept(name: str, folder: Path) -> Concept:
    """Return the concept that `folder/<name>.yaml` describes.

    Raises SettingsError for a name that is no concept, and for a file in which anything is wrong, with all of it.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(
            "--concept", f"found {name!r}, expected 1 to 64 of the letters A-Z a-z 0-9 _ and -. Give a concept's name."
        )
    path = folder / f"{name}.yaml"
    known = concept_names(folder)
    if name not in known:
        advice = nearest(name, known) if known else " That folder holds no concept at all."
        raise SettingsError("--concept", f"no concept {name!r} in {folder}.{advice}")
    content = _read_mapping(path)
    problems = [f"{key}: unknown key.{nearest(str(key), _KEYS)}" for key in content if key not in _KEYS]
    states = _names_of(content, "states", STATES, problems)
    planes = _names_of(content, "planes", PLANES, problems)
    noun = content.get("class_noun")
    if not isinstance(noun, str) or not noun.strip():
        problems.append(f"class_noun: {_found(content, 'class_noun')}, expected a word, as in `class_noun: slice`.")
    if problems:
        raise SettingsError(str(path), *problems)
    assert isinstance(noun, str)
    return Concept(name, tuple(Cell(state, plane) for state in states for plane in planes), noun.strip())


def _read_mapping(path: Path) -> dict[object, object]:
    """Return the mapping of keys to values that a YAML file holds; raise SettingsError for any other file."""
    try:
        text = path.read_bytes().decode("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(str(path), f"cannot be read: {error.strerror}. Check the file and its rights.") from error
    except UnicodeDecodeError as error:
        message = f"byte {error.start} is not UTF-8 text. Save the file as UTF-8."
        raise SettingsError(str(path), message) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-01
        message = f"not readable as YAML: {' '.join(str(error).split())}. Correct the syntax there."
        raise SettingsError(str(path), message) from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise SettingsError(str(path), f"found {found}, expected the keys {', '.join(_KEYS)}. See the other concepts.")
    assert isinstance(node, yaml.MappingNode)
    repeated = [key for key, count in Counter(key.value for key, _ in node.value).items() if count > 1]
    if repeated:  # yaml would silently keep the last
        raise SettingsError(str(path), *[f"{key}: stands there twice. Keep one of the two." for key in repeated])
    return content


def _names_of(content: dict[object, object], key: str, known: Sequence[str], problems: list[str]) -> tuple[str, ...]:
    """Return the known names listed under a key; add what is wrong with the list to the problems."""
    names = content.get(key)
    example = f"expected a list of one or more of {', '.join(known)}, as in `{key}: [{known[0]}]`."
    if not isinstance(names, list) or not names:
        problems.append(f"{key}: {_found(content, key)}, {example}")
        return ()
    for name in names:
        if name not in known:
            problems.append(f"{key}: unknown {key[:-1]} {name!r}.{nearest(str(name), known)}")
        elif names.count(name) > 1:
            problems.append(f"{key}: {name} is listed {names.count(name)} times. List it once.")
    return tuple(dict.fromkeys(name for name in names if name in known))


def _found(content: dict[object, object], key: str) -> str:
    return f"found {content[key]!r}" if key in content else "missing"
