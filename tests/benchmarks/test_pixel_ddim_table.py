"""The table of steps and eta: every cell is judged kind by kind, kept, and read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import pixel_ddim_table
from data.errors import FilrougeError, OutputError, SettingsError
from pipelines.diffusion import judgement
from pipelines.diffusion.drawing import Way
from tests.tiny_pixels import LABELS, tiny_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")  # its use of numpy
OPTIONS = ["--steps", "1", "2", "--eta", "0", "0.5", "--num_images", "8"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tiny_run(tmp_path_factory.mktemp("labelled"), labels=True, grey=True, size_px=32)
    pixel_ddim_table.main(["--model", str(run), *OPTIONS])
    return run


def test_every_cell_is_judged_kind_by_kind(labelled: Path) -> None:
    record = json.loads((labelled / "ddim-table" / "ddim_table.json").read_text())
    assert list(record["cells"]) == [
        *("1 steps, eta 0", "1 steps, eta 0.5", "1 steps, larger variance"),
        *("2 steps, eta 0", "2 steps, eta 0.5", "2 steps, larger variance"),
    ]
    for cell in record["cells"].values():
        assert cell["num_images"] == dict.fromkeys(LABELS, 4)
        assert cell["distance"]["low"] <= cell["distance"]["high"]
        assert cell["distance"]["value"] > record["real_versus_real"]["high"]  # of a model that has learnt nothing
        assert 0 < cell["num_measured"] < cell["num_descriptors"]
        assert cell["slice_ratio"]["value"] > 1
        assert cell["naming"] == ""
    table = (labelled / "ddim-table" / "ddim_table.md").read_text().splitlines()
    value = record["cells"]["2 steps, eta 0.5"]["distance"]["value"]
    row = next(line for line in table if line.startswith("| eta 0.5 |"))
    assert row.split(" | ")[2].startswith(f"{value:.4f} [")
    assert "mean over bars, spots, each held against its own held-out pictures" in "\n".join(table)
    assert (labelled / "ddim-table" / "ddim_table.png").stat().st_size > 1000


def test_the_same_command_draws_nothing_again(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (labelled / "ddim-table" / "ddim_table.json").read_bytes()
    monkeypatch.setattr(pixel_ddim_table, "draw_in_turn", None)
    pixel_ddim_table.main(["--model", str(labelled), *OPTIONS])
    assert (labelled / "ddim-table" / "ddim_table.json").read_bytes() == before


def test_cells_of_another_number_of_pictures_are_refused(labelled: Path) -> None:
    with pytest.raises(OutputError, match="num_images: its cells have 8, asked for is 6"):
        pixel_ddim_table.main(["--model", str(labelled), *OPTIONS[:-1], "6"])


def test_without_labels_the_kinds_that_are_drawn_too_rarely_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judgement, "FEWEST_OF_A_KIND", 6)  # an untrained model draws one kind alone
    run = tiny_run(tmp_path, size_px=32)
    pixel_ddim_table.main(["--model", str(run), "--steps", "2", "--eta", "0", "--num_images", "8"])
    record = json.loads((run / "ddim-table" / "ddim_table.json").read_text())
    cell = record["cells"]["2 steps, eta 0"]
    (missing,) = set(LABELS) - set(cell["num_images"])
    assert "a classifier of training pictures" in cell["naming"]
    assert cell["slice_ratio"] is None  # colour
    assert f"], without {missing} |" in (run / "ddim-table" / "ddim_table.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "21"], "--steps: found 21, expected 1 to 20"),
        (["--eta", "1.5"], "--eta: found 1.5, expected 0 to 1"),
        (["--num_images", "1"], "expected 2 or more"),
        (["--num_images", "3"], "expected two or more of each"),
    ],
)
def test_wrong_options_are_refused(options: list[str], said: str, labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(FilrougeError, match=said):
        pixel_ddim_table.main(["--model", str(labelled), "--steps", "2", "--output_dir", str(tmp_path / "o"), *options])


def test_ways_have_the_variance_of_their_name() -> None:
    ways = pixel_ddim_table.ways_of([3], [0.0, 1.0], 20)
    assert ways == {
        "3 steps, eta 0": Way("ddim", 3),
        "3 steps, eta 1": Way("ddim", 3, eta=1.0),
        "3 steps, larger variance": Way("ancestral", 3, variance="large"),
    }
    with pytest.raises(SettingsError) as caught:
        pixel_ddim_table.ways_of([0, 21], [-0.1], 20)
    assert len(caught.value.problems) == 3
