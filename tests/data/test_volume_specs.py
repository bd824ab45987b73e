from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import SettingsError
from data.volume_specs import VolumeError, VolumeSpec, read_volume_specs

MAP = {"thickness": 0, "warp": 1, "weft": 2}


def test_specs_have_defaults_and_need_no_file(tmp_path: Path) -> None:
    specs = read_volume_specs(tmp_path)
    assert {state: spec.path.name for state, spec in specs.items()} == {
        "dry": "dry.tif",
        "compacted": "dry_compacted.tif",
        "injected": "injected.tif",
    }
    assert specs["dry"] == VolumeSpec("dry", tmp_path / "dry.tif", MAP, planes_are_declared=False)


def test_volumes_yaml_overrides_only_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "volumes.yaml").write_text(
        "dry: {file: scans/scan7.tif, planes: {thickness: 0, warp: 2, weft: 1}, voxel_size_um: [40, 40.5, 41],\n"
        "      window: [1200, 52000], shape: [359, 702, 970], accept_warnings: true}\n"
        "compacted: {file: slices/}\n"
        "injected:\n"
    )
    specs = read_volume_specs(tmp_path)
    assert specs["dry"] == VolumeSpec(
        "dry",
        tmp_path / "scans/scan7.tif",
        {"thickness": 0, "warp": 2, "weft": 1},
        (40.0, 40.5, 41.0),
        (1200.0, 52000.0),
        (359, 702, 970),
        accept_warnings=True,
    )
    assert specs["compacted"] == VolumeSpec("compacted", tmp_path / "slices", MAP, planes_are_declared=False)
    assert specs["injected"] == VolumeSpec("injected", tmp_path / "injected.tif", MAP, planes_are_declared=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dyr: {}", "'dyr' is not a state. Did you mean dry"),
        ("dry: {plane: {}}", "dry.plane is not a key. Did you mean planes"),
        ("dry: {planes: {thickness: 0, warp: 1, wefft: 2}}", "Did you mean weft"),
        ("dry: {planes: {thickness: 0, warp: 1}}", "each of thickness, warp and weft"),
        ("dry: {planes: {thickness: 0, warp: 1, weft: 1}}", "each of thickness, warp and weft"),
        ("dry: {planes: {thickness: 0, warp: 1, weft: 3}}", "less than or equal to 2"),
        ("dry: {window: [5, 5]}", "low < high"),
        ("dry: {window: [.nan, 5]}", "finite"),
        ("dry: {window: 5}", "dry.window: found 5"),
        ("dry: {voxel_size_um: [40, 40, 0]}", "greater than 0"),
        ("dry: {voxel_size_um: [40, 40]}", "voxel_size_um"),
        ("dry: {voxel_size_um: [40, 40, true]}", "valid number"),
        ("dry: {shape: [359, 702, 970.5]}", "valid integer"),
        ("dry: {shape: [359, -702, 970]}", "greater than 0"),
        ("dry: {file: ../scan.tif}", "inside the data root"),
        ("dry: {file: /scans/scan.tif}", "inside the data root"),
        ("dry: {file: 'C:\\scan.tif'}", "inside the data root"),
        ("dry: {file: 7}", "valid string"),
        ("dry: {file: ''}", "at least 1"),
        ("dry: {accept_warnings: 1}", "valid boolean"),
        ("dry: scan.tif", "expected a mapping"),
        ("[dry, injected]", "expected one mapping"),
        ("dry: {file: a.tif}\ninjected: {file: a.tif}", "injected and dry are both read from a.tif"),
        ("dry: {file: injected.tif}", "injected and dry are both read from injected.tif"),
        ("dry: {file: [", "line 1: not readable as YAML"),
        ("dry: 2024-13-01", "dry: found '2024-13-01', expected a mapping"),
        ("[" * 1_000, "is nested more than"),
        ("dry: {file: a.tif}\ndry: {file: b.tif}", "line 2: dry: stands there twice, first in line 1"),
        ("dry: {file: a.tif, file: b.tif}", "line 1: file: stands there twice"),
    ],
)
def test_mistakes_in_volumes_yaml_are_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "volumes.yaml").write_text(text)
    with pytest.raises(SettingsError) as refusal:
        read_volume_specs(tmp_path)
    assert words in str(refusal.value)
    assert str(tmp_path / "volumes.yaml") in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_all_mistakes_in_volumes_yaml_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "volumes.yaml").write_text(
        "dyr: {}\ndry: {window: [9, 1], shape: [1, 2], files: x}\ninjected: {voxel_size_um: [0, 1, 1]}"
    )
    with pytest.raises(SettingsError) as refusal:
        read_volume_specs(tmp_path)
    assert len(refusal.value.problems) == 5


def test_a_data_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="is not a folder"):
        read_volume_specs(tmp_path / "nowhere")
