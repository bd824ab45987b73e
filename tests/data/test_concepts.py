from pathlib import Path

import pytest

from data.concepts import Cell, Concept, concept_names, load_concept
from data.dtd import CLASSES
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
TEXTURES = "textures: all\nclass_noun: texture\n"
GOOD = "states: [dry]\nplanes: [warp]\nclass_noun: slice\n"


def loaded(text: str | bytes, folder: Path) -> Concept:
    (folder / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_concept("mine", folder)


def test_the_shipped_files_are_the_sixteen_volume_concepts_and_dtd() -> None:
    files = sorted(path.name for path in SHIPPED.rglob("*") if path.is_file())
    assert files == sorted(f"{name}.yaml" for name in (*CAPTIONS, "dtd"))
    assert len(files) == 17


def test_the_names_are_those_of_the_files_and_of_each_texture() -> None:
    textures = [f"dtd_{name}" for name in CLASSES]
    assert concept_names(SHIPPED) == tuple(sorted([*CAPTIONS, "dtd", *textures]))
    assert len(concept_names(SHIPPED)) == 16 + 1 + 47


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_shipped_concept_has_its_captions(name: str) -> None:
    concept = load_concept(name, SHIPPED)
    assert concept.name == name
    assert concept.captions == CAPTIONS[name]
    assert len(concept.cells) == len(CAPTIONS[name])
    assert concept.class_noun == "slice"


@pytest.mark.parametrize("name", [*CAPTIONS, "dtd"])
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


def test_dtd_is_all_classes_and_no_cell() -> None:
    concept = load_concept("dtd", SHIPPED)
    assert concept == Concept("dtd", (), "texture", CLASSES)
    assert concept.captions == tuple(f"dtd_{name}" for name in CLASSES)
    assert "dtd_polka-dotted" in concept.captions


@pytest.mark.parametrize("texture", CLASSES)
def test_each_texture_is_a_concept_of_its_own(texture: str) -> None:
    concept = load_concept(f"dtd_{texture}", SHIPPED)
    assert concept == Concept(f"dtd_{texture}", (), "texture", (texture,))
    assert concept.captions == (f"dtd_{texture}",)


def test_some_textures_in_the_order_of_the_file(tmp_path: Path) -> None:
    concept = loaded("textures: [woven, polka-dotted, banded]\nclass_noun: fabric\n", tmp_path)
    assert concept.textures == ("woven", "polka-dotted", "banded")
    assert concept.class_noun == "fabric"
    assert concept_names(tmp_path) == ("mine", "mine_banded", "mine_polka-dotted", "mine_woven")
    assert load_concept("mine_polka-dotted", tmp_path).captions == ("dtd_polka-dotted",)
    with pytest.raises(SettingsError, match="no concept 'mine_striped'"):
        load_concept("mine_striped", tmp_path)


def test_a_file_comes_before_a_class_of_another_file(tmp_path: Path) -> None:
    (tmp_path / "mine_woven.yaml").write_text(GOOD)
    loaded(TEXTURES, tmp_path)
    assert load_concept("mine_woven", tmp_path).captions == DRY[1:2]
    assert concept_names(tmp_path).count("mine_woven") == 1


def test_a_wrong_file_of_textures_is_named_where_one_of_its_classes_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TEXTURES.replace("all", "every"))
    (tmp_path / "good.yaml").write_text(GOOD)
    with pytest.raises(SettingsError, match="textures: found 'every'") as refusal:
        load_concept("mine_woven", tmp_path)
    assert refusal.value.where == str(tmp_path / "mine.yaml")
    assert concept_names(tmp_path) == ("good", "mine")


@pytest.mark.parametrize("name", ["sf_dry_woven", "dtd_", "dtd_all", "dtd_dtd_woven", "woven"])
def test_only_a_file_of_textures_has_classes(name: str) -> None:
    with pytest.raises(SettingsError, match=f"no concept '{name}'"):
        load_concept(name, SHIPPED)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["found nothing"]),
        ("- dry\n", ["found list, expected the keys states, planes, class_noun"]),
        ("just words", ["found str"]),
        ("states: [dry\n", ["not readable as YAML"]),
        ("states: 2024-13-01\n", ["states: found '2024-13-01', expected a list"]),
        ("? [a, b]\n: c\n", ["line 1: found a list or a mapping as a key"]),
        (b"\xff\xfe", ["is UTF-16, expected UTF-8"]),
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
        ("class_noun: slice\n", ["found neither states, planes nor textures, expected states and planes, or else"]),
        (GOOD + "textures: all\n", ["found both states or planes and textures, expected states and planes, or else"]),
        ("planes: [warp]\n" + TEXTURES, ["found both states or planes and textures"]),
        ("texture: all\nclass_noun: texture\n", ["texture: unknown key. Did you mean textures?", "found neither"]),
        (TEXTURES + "plane: warp\n", ["plane: unknown key. Known: class_noun, textures."]),
        (TEXTURES.replace("all", "[]"), ["textures: found [], expected all, or a list of one or more of banded,"]),
        (TEXTURES.replace("all", "[all]"), ["textures: unknown texture 'all'."]),
        (TEXTURES.replace("all", "[zigzaged]"), ["textures: unknown texture 'zigzaged'. Did you mean zigzagged"]),
        (TEXTURES.replace("all", "[woven, woven]"), ["textures: woven is listed 2 times"]),
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


def test_an_unknown_texture_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"no concept 'dtd_zigzaged'.* Did you mean dtd_zigzagged"):
        load_concept("dtd_zigzaged", SHIPPED)


def test_a_folder_without_concepts_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no concept at all"):
        load_concept("sf_dry", tmp_path / "nowhere")


def test_files_whose_name_is_no_concept_name_are_not_listed(tmp_path: Path) -> None:
    for file in ("good.yaml", "not good.yaml", "note.txt"):
        (tmp_path / file).write_text(GOOD)
    assert concept_names(tmp_path) == ("good",)
