"""Concepts: which images are trained on, and the class noun they belong to.

A concept is a YAML file, `configs/concepts/<name>.yaml`, which selects either cells of the grid state x plane

    states: [dry, compacted]       # of data.captions.STATES
    planes: [warp]                 # of data.volume_specs.PLANES
    class_noun: slice

or classes of textures, and then each class is a concept too, named <name>_<class>:

    textures: all                  # or a list of data.dtd.CLASSES
    class_noun: texture
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.captions import STATES, cell_caption
from data.dtd import CLASSES
from data.errors import SettingsError, nearest
from data.strict_yaml import read_yaml
from data.volume_specs import PLANES

CONCEPTS = Path(__file__).resolve().parents[1] / "configs" / "concepts"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a file name that cannot lead out of its folder
_KEYS = ("states", "planes", "class_noun")
_TEXTURE_KEYS = ("textures", "class_noun")


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
    """What one training run is about, cells or else classes of textures, and the noun of the class they belong to."""

    name: str
    cells: tuple[Cell, ...]
    class_noun: str
    textures: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions, in the order of the cells or textures."""
        cells = [cell.caption for cell in self.cells]
        return tuple(dict.fromkeys(cells + [texture_caption(name) for name in self.textures]))


def texture_caption(name: str) -> str:
    """Return the word for images of one class of textures, as "dtd_polka-dotted"."""
    assert name in CLASSES, f"texture {name!r} is none of DTD's"
    return f"dtd_{name}"


def concept_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the concepts that a folder describes, sorted; empty where there is no such folder.

    A file of textures stands for itself and for each of its classes. A file that cannot be used is listed by its own
    name only: what is wrong with it is told when it is loaded.
    """
    files = _file_names(folder)
    return tuple(sorted({*files, *_texture_names(files, folder)}))


def load_concept(name: str, folder: Path) -> Concept:
    """Return the concept that `folder/<name>.yaml` describes, or one class of a file of textures.

    Raises SettingsError for a name that is no concept, and for a file in which anything is wrong, with all of it.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(
            "--concept", f"found {name!r}, expected 1 to 64 of the letters A-Z a-z 0-9 _ and -. Give a concept's name."
        )
    files = _file_names(folder)
    if name in files:  # a file of its own comes before a class of another
        return _read_concept(name, folder)
    for file in files:
        texture = name.removeprefix(f"{file}_")
        if texture != name and texture in CLASSES:
            concept = _read_concept(file, folder)
            if texture in concept.textures:
                return replace(concept, name=name, textures=(texture,))
    known = concept_names(folder)
    advice = nearest(name, known) if known else " That folder holds no concept at all."
    raise SettingsError("--concept", f"no concept {name!r} in {folder}.{advice}")


def _file_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.yaml") if _NAME.fullmatch(path.stem)))


def _texture_names(files: Sequence[str], folder: Path) -> list[str]:
    """Return the names of the single classes of all files of textures that can be used."""
    names = []
    for file in files:
        try:
            concept = _read_concept(file, folder)
        except SettingsError:
            continue
        names += [f"{file}_{texture}" for texture in concept.textures]
    return names


def _read_concept(name: str, folder: Path) -> Concept:
    """Return the concept of one file; raise SettingsError with everything that is wrong in it."""
    path = folder / f"{name}.yaml"
    content = _read_mapping(path)
    has_cells, has_textures = "states" in content or "planes" in content, "textures" in content
    keys = [*_KEYS, "textures"]
    if has_cells != has_textures:
        keys = list(_TEXTURE_KEYS if has_textures else _KEYS)
    problems = [f"{key}: unknown key.{nearest(str(key), keys)}" for key in content if key not in keys]
    states: tuple[str, ...] = ()
    planes: tuple[str, ...] = ()
    textures: tuple[str, ...] = ()
    if has_cells:
        states = _names_of(content, "states", STATES, problems)
        planes = _names_of(content, "planes", PLANES, problems)
    if has_textures:
        textures = CLASSES if content["textures"] == "all" else _names_of(content, "textures", CLASSES, problems)
    if has_cells == has_textures:
        found = "found both states or planes and textures" if has_cells else "found neither states, planes nor textures"
        problems.append(f"{found}, expected states and planes, or else textures. Keep one kind in a file.")
    noun = content.get("class_noun")
    if not isinstance(noun, str) or not noun.strip():
        problems.append(f"class_noun: {_found(content, 'class_noun')}, expected a word, as in `class_noun: slice`.")
    if problems:
        raise SettingsError(str(path), *problems)
    assert isinstance(noun, str)
    return Concept(name, tuple(Cell(state, plane) for state in states for plane in planes), noun.strip(), textures)


def _read_mapping(path: Path) -> dict[object, object]:
    """Return the mapping of keys to values that a YAML file holds; raise SettingsError for any other file."""
    content = read_yaml(path, f"the keys {', '.join(_KEYS)}")
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise SettingsError(str(path), f"found {found}, expected the keys {', '.join(_KEYS)}. See the other concepts.")
    return content


def _names_of(content: dict[object, object], key: str, known: Sequence[str], problems: list[str]) -> tuple[str, ...]:
    """Return the known names listed under a key; add what is wrong with the list to the problems."""
    names = content.get(key)
    every = "all, or " if key == "textures" else ""
    example = f"expected {every}a list of one or more of {', '.join(known)}, as in `{key}: [{known[0]}]`."
    if not isinstance(names, list) or not names:
        problems.append(f"{key}: {_found(content, key)}, {example}")
        return ()
    counts = Counter(name for name in names if name in known)
    problems += [
        f"{key}: unknown {key[:-1]} {name!r}.{nearest(str(name), known)}" for name in names if name not in known
    ]
    problems += [f"{key}: {name} is listed {count} times. List it once." for name, count in counts.items() if count > 1]
    return tuple(counts)


def _found(content: dict[object, object], key: str) -> str:
    return f"found {content[key]!r}" if key in content else "missing"
