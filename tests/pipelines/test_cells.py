"""Cells of a table: made once, found again, and never mixed with those of other settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.errors import OutputError
from pipelines.diffusion.cells import Cell, Cells


def test_a_cell_is_made_once_and_found_as_it_was(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> Cell:
        made.append("cell")
        return Cell({"value": 0.5, "none": None}, {"draws": np.arange(3.0), "shown": np.full((2, 2), 7, np.uint8)})

    first = Cells(tmp_path / "table", {"num_images": 4}).cell("10 steps, eta 0.5", make)
    again = Cells(tmp_path / "table", {"num_images": 4}).cell("10 steps, eta 0.5", make)
    assert made == ["cell"]
    assert first.record == again.record == {"value": 0.5, "none": None}
    assert again.arrays["shown"].dtype == np.uint8
    np.testing.assert_array_equal(again.arrays["draws"], [0.0, 1.0, 2.0])


def test_a_cell_that_failed_is_made_again(tmp_path: Path) -> None:
    cells = Cells(tmp_path, {})

    def fail() -> Cell:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cells.cell("a", fail)
    assert cells.cell("a", lambda: Cell({"value": 1}, {})).record == {"value": 1}


def test_cells_of_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    Cells(tmp_path, {"num_images": 4, "fingerprint": "a", "same": 1})
    with pytest.raises(OutputError) as caught:
        Cells(tmp_path, {"num_images": 5, "fingerprint": "a", "same": 1, "judged": "kind by kind"})
    assert caught.value.problems[:2] == (
        "judged: its cells have None, asked for is 'kind by kind'.",
        "num_images: its cells have 4, asked for is 5.",
    )
