import numpy as np
import pytest

from data.captions import STATES, cell_caption, dropped
from data.volume_specs import PLANES, STATE_FILES

POSITIONS = 4000


@pytest.mark.parametrize(
    ("state", "plane", "caption"),
    [
        ("dry", "thickness", "sf_dry sf_thickness"),
        ("dry", "warp", "sf_dry sf_warp"),
        ("dry", "weft", "sf_dry sf_weft"),
        ("compacted", "thickness", "sf_dry sf_compacted sf_thickness"),
        ("compacted", "warp", "sf_dry sf_compacted sf_warp"),
        ("compacted", "weft", "sf_dry sf_compacted sf_weft"),
        ("injected", "thickness", "sf_injected sf_thickness"),
        ("injected", "warp", "sf_injected sf_warp"),
        ("injected", "weft", "sf_injected sf_weft"),
    ],
)
def test_each_cell_has_its_words(state: str, plane: str, caption: str) -> None:
    assert cell_caption(state, plane) == caption


def test_every_state_that_can_be_opened_has_words() -> None:
    assert set(STATES) == set(STATE_FILES)


def test_no_two_cells_share_their_words() -> None:
    assert len({cell_caption(state, plane) for state in STATES for plane in PLANES}) == 9


@pytest.mark.parametrize("proportion", [0.1, 0.5, 0.9])
def test_the_proportion_of_empty_captions_is_the_one_asked_for(proportion: float) -> None:
    empty = [dropped("words", proportion=proportion, seed=3, position=p) == "" for p in range(POSITIONS)]
    spread = np.sqrt(proportion * (1 - proportion) / POSITIONS)
    assert abs(np.mean(empty) - proportion) < 4 * spread


@pytest.mark.parametrize(("proportion", "caption"), [(0.0, "words"), (1.0, "")])
def test_a_proportion_of_0_or_1_leaves_nothing_to_chance(proportion: float, caption: str) -> None:
    assert {dropped("words", proportion=proportion, seed=3, position=p) for p in range(200)} == {caption}


def test_a_larger_proportion_drops_the_same_captions_and_more() -> None:
    few, many = (
        {p for p in range(500) if dropped("words", proportion=proportion, seed=3, position=p) == ""}
        for proportion in (0.2, 0.6)
    )
    assert few < many


def test_dropping_depends_on_the_seed() -> None:
    one, other = ([dropped("words", proportion=0.5, seed=seed, position=p) for p in range(64)] for seed in (1, 2))
    assert one != other
