"""The tested environment: every package pinned, with the hash of each of its files, and all that is asked for in it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FILES = (ROOT / "requirements.txt", ROOT / "requirements-torch.txt")
OPTIONAL = {"xformers"}  # for GPUs, where its users choose it


def _pins() -> dict[str, tuple[Version, set[str]]]:
    """Return version and hashes of each package in the files."""
    found = {}
    text = "\n".join(file.read_text(encoding="utf-8") for file in FILES)
    for entry in re.split(r"\n(?=\S)", text.replace("\\\n", " ")):
        if entry.startswith("#") or not entry.strip():
            continue
        requirement, *hashes = entry.split()
        name, version = requirement.split("==")
        found[canonicalize_name(name)] = (Version(version), set(hashes))
    return found


def test_every_package_has_one_version_and_hashes_of_its_files() -> None:
    pins = _pins()
    assert len(pins) > 80
    for name, (_, hashes) in pins.items():
        assert hashes, name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), name


def test_all_that_the_project_asks_for_is_there_in_a_version_that_it_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    asked += [each for group in project["project"]["optional-dependencies"].values() for each in group]
    pins = _pins()
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name not in {"filrouge", *OPTIONAL}:
            assert name in pins, name
            assert pins[name][0] in requirement.specifier, name


def test_what_is_installed_is_what_is_pinned() -> None:
    installed = {canonicalize_name(each.metadata["Name"]): Version(each.version) for each in distributions()}
    differing = {
        name: f"pinned {version}, installed {installed[name]}"
        for name, (version, _) in _pins().items()
        if name in installed and installed[name].public != version.public
    }
    assert differing == {}


def test_the_file_names_no_place_to_fetch_from() -> None:
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert "://" not in text
        assert "index-url" not in text


def test_the_environment_is_installed_with_hashes() -> None:
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--require-hashes --no-deps --requirement requirements.txt" in made
    assert "--require-hashes --no-deps --no-index --find-links .venv/torch" in made
    assert [line for line in made.splitlines() if "pip install" in line and "--require-hashes" not in line] == [
        '\t$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"'
    ]
