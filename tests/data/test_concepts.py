from pathlib import Path

import pytest

from data.concepts import Cell, Concept, concept_names, load_concept
from data.errors import SettingsError

SHIPPED = Path(__file__).parents[2] / "configs" / "concepts"
DRY = ("sf_dry sf_thickness", "sf_dry sf_warp", "sf_dry sf_weft")
COMPACTED = ("sf_dry sf_compacted sf_thickness", "sf_dry sf_compacted sf_warp", "sf_dry sf_compacted sf_weft")
INJECTED = ("sf_injected sf_thickness", "sf_injected sf_warp", "sf_injected sf_weft")
CAPTIONS = {
    "composites": DRY + COMPACTED + INJECTED,
    "sf_dry": DRY,
    "sf_compacted": COMPACTED,
    "sf_injected": INJECTED,
    "sf_thickness": (DRY[0], COMPACTED[0], INJECTED[0]),
    "sf_warp": (DRY[1], COMPACTED[1], INJECTED[1]),
    "sf_weft": (DRY[2], COMPACTED[2], INJECTED[2]),
    "sf_dry_thickness": DRY[:1],
    "sf_dry_warp": DRY[1:2],
    "sf_dry_weft": DRY[2:],
    "sf_compacted_thickness": COMPACTED[:1],
    "sf_compacted_warp": COMPACTED[1:2],
    "sf_compacted_weft": COMPACTED[2:],
    "sf_injected_thickness": INJECTED[:1],
    "sf_injected_warp": INJECTED[1:2],
    "sf_injected_weft": INJECTED[2:],
}
GOOD = "states: [dry]\nplanes: [warp]\nclass_noun: slice\n"


def loaded(text: str | bytes, folder: Path) -> Concept:
    (folder / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_concept("mine", folder)


def test_the_shipped_files_are_the_sixteen_volume_concepts() -> None:
    files = sorted(path.name for path in SHIPPED.rglob("*") if path.is_file())
    assert files == sorted(f"{name}.yaml" for name in CAPTIONS)
    assert len(files) == 16
    assert concept_names(SHIPPED) == tuple(sorted(CAPTIONS))


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_shipped_concept_has_its_captions(name: str) -> None:
    concept = load_concept(name, SHIPPED)
    assert concept.name == name
    assert concept.captions == CAPTIONS[name]
    assert len(concept.cells) == len(CAPTIONS[name])
    assert concept.class_noun == "slice"


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_shipped_file_says_first_what_it_is(name: str) -> None:
    first, *rest = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    assert first.endswith(".")
    assert not any(line.startswith("#") for line in rest)


def test_cells_go_through_the_planes_of_each_state(tmp_path: Path) -> None:
    concept = loaded("states: [injected, dry]\nplanes: [weft, warp]\nclass_noun: ' scan '\n", tmp_path)
    pairs = [("injected", "weft"), ("injected", "warp"), ("dry", "weft"), ("dry", "warp")]
    assert concept.cells == tuple(Cell(state, plane) for state, plane in pairs)
    assert concept.class_noun == "scan"


def test_a_caption_shared_by_cells_stands_once() -> None:
    assert Concept("twice", (Cell("dry", "warp"),) * 2, "slice").captions == ("sf_dry sf_warp",)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["found nothing"]),
        ("- dry\n", ["found list, expected the keys states, planes, class_noun"]),
        ("just words", ["found str"]),
        ("states: [dry\n", ["not readable as YAML"]),
        ("states: 2024-13-01\n", ["not readable as YAML"]),
        ("? [a, b]\n: c\n", ["not readable as YAML"]),
        (b"\xff\xfe", ["byte 0 is not UTF-8"]),
        (GOOD + "states: [injected]\n", ["states: stands there twice"]),
        (GOOD + "plane: warp\n", ["plane: unknown key. Did you mean planes?"]),
        (GOOD + "7: warp\n", ["7: unknown key. Known: class_noun, planes, states."]),
        (GOOD.replace("[dry]", "[]"), ["states: found [], expected a list"]),
        (GOOD.replace("[dry]", "dry"), ["states: found 'dry', expected a list"]),
        (GOOD.replace("[warp]", "[[warp]]"), ["planes: unknown plane ['warp']"]),
        (GOOD.replace("[dry]", "[no]"), ["states: unknown state False"]),
        (GOOD.replace("[dry]", "[dry, dry]"), ["states: dry is listed 2 times"]),
        (GOOD.replace("[warp]", "[wrap]"), ["planes: unknown plane 'wrap'. Did you mean warp?"]),
        (GOOD.replace("slice", "3"), ["class_noun: found 3, expected a word"]),
        (GOOD.replace("slice", "' '"), ["class_noun: found ' ', expected a word"]),
        ("planes: [warp]\nclass_noun: slice\n", ["states: missing, expected a list"]),
        (
            "states: [dri]\nplans: [warp]\nclass_noun:\n",
            [
                "states: unknown state 'dri'. Did you mean dry?",
                "plans: unknown key. Did you mean planes?",
                "planes: missing",
                "class_noun: found None",
            ],
        ),
    ],
)
def test_a_wrong_file_is_refused_with_all_that_is_wrong(text: str | bytes, problems: list[str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refusal:
        loaded(text, tmp_path)
    assert refusal.value.where == str(tmp_path / "mine.yaml")
    for problem in problems:
        assert problem in str(refusal.value)


def test_a_file_that_is_wrong_in_three_places_names_three_problems(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refusal:
        loaded("states: [wet]\nplanes: []\nclass_nuon: slice\n", tmp_path)
    assert len(refusal.value.problems) == 4  # the misspelt key is unknown, and the right one is missing


@pytest.mark.parametrize("name", ["", "../secret", "a/b", "a.b", "a b", "x" * 65, "dry\n", "é"])
def test_a_name_that_could_leave_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected 1 to 64 of the letters"):
        load_concept(name, tmp_path)


def test_an_unknown_concept_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"no concept 'sf_dyr'.* Did you mean .*sf_dry"):
        load_concept("sf_dyr", SHIPPED)


def test_a_folder_without_concepts_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no concept at all"):
        load_concept("sf_dry", tmp_path / "nowhere")


def test_files_whose_name_is_no_concept_name_are_not_listed(tmp_path: Path) -> None:
    for file in ("good.yaml", "not good.yaml", "note.txt"):
        (tmp_path / file).write_text(GOOD)
    assert concept_names(tmp_path) == ("good",)
