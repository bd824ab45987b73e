"""What several results say of themselves in one, whatever their order, and what a whole model says of itself."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from data.errors import SettingsError
from pipelines.components import load_components
from pipelines.embeddings import export_embeddings
from pipelines.runs import FACTS_NAME, combined_facts, open_tuned, read_facts
from tests.tiny_adapters import tiny_adapter

WINDOW = {"window": [100.0, 900.0], "dtype": "uint16"}
DRY = {"base": "b", "prediction_type": "epsilon", "um_per_px": 40.0, "grey_values": {"dry": WINDOW}}
WET = {"base": "b", "prediction_type": "epsilon", "um_per_px": 80.0, "grey_values": {"wet": WINDOW}}
DTD: dict[str, Any] = {"base": "b", "prediction_type": "epsilon", "um_per_px": None, "grey_values": {}}
FOREIGN: dict[str, Any] = {}


def combined(*said: dict[str, Any], base: str | None = None) -> tuple[dict[str, Any], tuple[str, ...]]:
    return combined_facts([Path(str(number)) for number in range(len(said))], said, base=base)


@pytest.mark.parametrize("said", list(permutations([DRY, WET, DTD])))
def test_every_caption_keeps_the_pixel_scale_of_its_own_run(said: tuple[dict[str, Any], ...]) -> None:
    facts, notes = combined(*said)
    assert facts["grey_values"] == {"dry": {"um_per_px": 40.0, **WINDOW}, "wet": {"um_per_px": 80.0, **WINDOW}}
    assert "um_per_px" not in facts  # there is no one scale
    assert notes == ()


def test_one_caption_at_two_scales_is_told_and_has_the_first() -> None:
    coarse = {**DRY, "um_per_px": 80.0}
    facts, notes = combined(DRY, coarse, {**DRY, "grey_values": {"dry": {**WINDOW, "window": [0.0, 1.0]}}}, DRY)
    assert facts["grey_values"] == {"dry": {"um_per_px": 40.0, **WINDOW}}
    assert [note.partition(":")[0] for note in notes] == ["1", "2"]
    assert all("another window or pixel scale" in note and "on dry;" in note for note in notes)


def test_a_scale_that_is_told_with_a_caption_comes_first() -> None:
    """As in a model merged of adapters, whose file holds what `combined_facts` gave."""
    facts, _ = combined(DRY, WET)
    assert combined(facts) == (facts, ())


@pytest.mark.parametrize("said", list(permutations([DRY, FOREIGN, {"prediction_type": "epsilon", "grey_values": {}}])))
def test_a_result_that_says_nothing_contradicts_none(said: tuple[dict[str, Any], ...]) -> None:
    facts, notes = combined(*said)
    assert (facts["base"], facts["prediction_type"], list(facts["grey_values"])) == ("b", "epsilon", ["dry"])
    assert notes == (f"{said.index(FOREIGN)}: says nothing of grey values, so no tif stack is written of its captions",)


@pytest.mark.parametrize("said", list(permutations([DRY, FOREIGN, {**WET, "base": "c"}])))
def test_two_names_of_a_base_need_the_base_to_be_given(said: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(SettingsError, match=r"expected adapters of one base, found .*pretrained_model_name_or_path"):
        combined(*said)
    facts, _ = combined(*said, base="d")
    assert set(facts["grey_values"]) == {"dry", "wet"}


@pytest.mark.parametrize(
    ("key", "values"), [("prediction_type", ("epsilon", "sample")), ("zero_terminal_snr", (False, True))]
)
def test_what_was_trained_otherwise_is_refused_with_every_base(key: str, values: tuple[object, object]) -> None:
    first, second = ({**DRY, key: value} for value in values)
    with pytest.raises(SettingsError, match=rf"--adapter: expected adapters of one {key}, found \S+ \(0\), \S+ \(1\)"):
        combined(first, second, base="d")


def test_an_adapter_made_elsewhere_is_combined_in_either_order(tiny_base_dir: Path, tmp_path: Path) -> None:
    fingerprint = load_components(str(tiny_base_dir)).fingerprint
    facts = {"base": str(tiny_base_dir), "base_fingerprint": fingerprint, "um_per_px": 40.0, "grey_values": {}}
    ours = tiny_adapter(tiny_base_dir, tmp_path / "ours", facts)
    foreign = tiny_adapter(tiny_base_dir, tmp_path / "foreign", None, seed=1)
    for paths in ([ours, foreign], [foreign, ours]):
        model = open_tuned(paths)
        assert model.components.source == str(tiny_base_dir)
        assert [note.partition(":")[0] for note in model.notes] == [str(foreign)]
        assert len(model.pipeline.get_active_adapters()) == 2


def test_results_under_two_names_of_one_base_are_combined_where_it_is_given(
    tiny_base_dir: Path, tmp_path: Path
) -> None:
    components = load_components(str(tiny_base_dir))
    said = {"base_fingerprint": components.fingerprint, "prediction_type": "epsilon"}
    paths = [tiny_adapter(tiny_base_dir, tmp_path / "a", {**said, "base": "here"})]
    header = {"filrouge": json.dumps({**said, "base": "there"})}
    rows = components.text_encoder.get_input_embeddings().weight[:1]
    paths.append(export_embeddings(tmp_path / "b", "<dry>", rows, header))
    with pytest.raises(SettingsError, match="expected adapters of one base, found here"):
        open_tuned(paths)
    assert open_tuned(paths, base=str(tiny_base_dir)).base == str(tiny_base_dir)


def _whole(folder: Path, content: bytes | None) -> Path:
    (folder / "model_index.json").write_text("{}")
    if content is not None:
        (folder / FACTS_NAME).write_bytes(content)
    return folder


def test_a_whole_model_says_of_itself_what_its_file_holds(tmp_path: Path) -> None:
    assert read_facts(_whole(tmp_path, None)) == {}
    assert read_facts(_whole(tmp_path, json.dumps(DRY).encode())) == DRY


@pytest.mark.parametrize(("content", "said"), [(b"{", "is not JSON"), (b"\xff", "is not JSON"), (b"[]", "is no table")])
def test_facts_that_cannot_be_read_are_told(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{FACTS_NAME}: .*{said}"):
        read_facts(_whole(tmp_path, content))
