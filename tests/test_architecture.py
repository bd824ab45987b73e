"""The shape of the project: imports go one way, and no file hides a library."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data", "pipelines", "finetune")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# which of our packages a layer may import: data <- pipelines <- finetune.core <- finetune/*.py
ALLOWED = {
    "data": {"data"},
    "pipelines": {"data", "pipelines"},
    "finetune.core": {"data", "pipelines", "finetune.core"},
    "finetune": {"data", "pipelines", "finetune.core"},
}


def _layer(module: str) -> str:
    parts = module.split(".")
    return "finetune.core" if parts[:2] == ["finetune", "core"] else parts[0]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    layer = _layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
    ours = {_layer(name) for name in _imports(path) if name.split(".")[0] in PACKAGES}
    assert ours <= ALLOWED[layer], f"{layer} imports {ours - ALLOWED[layer]}"


def test_there_are_files_in_every_layer() -> None:
    layers = {_layer(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in FILES}
    assert layers == set(ALLOWED)


@pytest.mark.parametrize("folder", ["finetune", "pipelines", "data"])
def test_no_script_folder_hides_a_library(folder: str) -> None:
    """A script's own folder comes first on Python's path: finetune/datasets.py would be everybody's `datasets`."""
    known = set(sys.stdlib_module_names) | set(packages_distributions())
    ours = {path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not (ours - {"__init__", "__pycache__"}) & known


def test_scripts_select_and_are_imported_by_nobody() -> None:
    scripts = {f"finetune.{path.stem}" for path in (ROOT / "finetune").glob("*.py") if path.stem != "__init__"}
    assert {"finetune.lora", "finetune.autoencoder", "finetune.latent_diffusion"} <= scripts
    for path in FILES:
        assert not {".".join(name.split(".")[:2]) for name in _imports(path)} & scripts, path


def test_every_yaml_file_can_be_read() -> None:
    files = [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "accelerate_configs").glob("*.yaml")]
    assert len(files) >= 20
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path


def test_a_foreign_package_of_the_same_name_is_named(tmp_path: Path) -> None:
    """`data` is a common name: one in the working directory is harmless, one earlier on the path is told."""
    decoy = tmp_path / "data"
    decoy.mkdir()
    (decoy / "__init__.py").write_text("")
    command = [sys.executable, str(ROOT / "finetune" / "lora.py"), "--help"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    beside = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert beside.returncode == 0, beside.stderr
    environment["PYTHONPATH"] = str(tmp_path)
    before = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert before.returncode != 0
    assert f"found in {decoy}" in before.stderr
    assert "pip install -e" in before.stderr
