"""The axes of an evaluation: what is asked of whom, and under which name it is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import OutputError, SettingsError
from pipelines.evaluation import whole
from pipelines.evaluation.grid import Arm, Sampling, asked_of, cells
from pipelines.evaluation.prompt_sets import Prompt
from pipelines.evaluation.states import CHOICE, AskedRun, State, name_runs, parse_selections

SAMPLINGS = (Sampling("own", 20, 3.0), Sampling("DDIM", 20, 3.0))
BASE = Arm("base", None, 1.0, "base")
LORA = Arm("lora", State(10, None), 1.0, "base")
TI = Arm("ti", State(10, None), 1.0, "base")
CAPTIONS = {"lora": ("sf_warp", "sf_weft"), "ti": ("a <dry>",)}


def test_every_run_is_asked_its_own_captions_and_the_base_all_of_them() -> None:
    prompts = [Prompt("{caption}", "learnt"), Prompt("a star", "class", 0)]
    asked = asked_of(prompts, CAPTIONS, {"ti": {"a <dry>": "a slice"}})
    assert [each.text for each in asked] == ["sf_warp", "sf_weft", "a <dry>", "a star"]
    found = cells(asked, (LORA, TI, BASE), SAMPLINGS[:1], (0, 1))
    texts = {arm.run: [cell.text for cell in found if cell.arm == arm and cell.seed == 0] for arm in (BASE, LORA, TI)}
    assert texts == {
        "base": ["sf_warp", "sf_weft", "a slice", "a star"],
        "lora": ["sf_warp", "sf_weft", "a star"],
        "ti": ["a <dry>", "a star"],
    }
    assert len(found) == 2 * (4 + 3 + 2)
    assert [cell.arm.is_base for cell in found] == sorted((cell.arm.is_base for cell in found), reverse=True)


def test_a_caption_that_two_runs_share_is_asked_once_and_a_literal_one_is_known_as_caption() -> None:
    both = {"a": ("sf_warp",), "b": ("sf_warp",)}
    (shared,) = asked_of([Prompt("{caption}", "learnt")], both, {})
    assert shared.runs == shared.caption_of == frozenset({"a", "b"})
    (literal,) = asked_of([Prompt("sf_warp", "learnt")], {"a": ("sf_warp",), "b": ()}, {})
    assert literal.runs is None
    assert literal.caption_of == frozenset({"a"})


@pytest.mark.parametrize("prompt", ["{caption}", "a <dry>"])
def test_the_base_is_asked_what_each_run_began_its_word_from(prompt: str) -> None:
    """Two runs of one new word from different words: neither's base depends on the other."""
    captions = {"one": ("a <dry>",), "two": ("a <dry>",), "again": ("a <dry>",)}
    began = {"one": {"a <dry>": "a slice"}, "two": {"a <dry>": "a cloth"}, "again": {"a <dry>": "a slice"}}
    asked = asked_of([Prompt(prompt, "learnt")], captions, began)
    assert [(each.text, each.base_text, each.runs, each.caption_of) for each in asked] == [
        ("a <dry>", "a slice", frozenset({"one", "again"}), frozenset({"one", "again"})),
        ("a <dry>", "a cloth", frozenset({"two"}), frozenset({"two"})),
    ]
    arms = [BASE, *(replace(TI, run=run) for run in captions)]
    found = cells(asked, arms, SAMPLINGS[:1], (0,))
    assert [(cell.arm.run, cell.asked, cell.text) for cell in found] == [
        ("base", 0, "a slice"), ("base", 1, "a cloth"), ("one", 0, "a <dry>"), ("two", 1, "a <dry>"),
        ("again", 0, "a <dry>"),
    ]  # fmt: skip


def test_the_run_itself_says_what_its_base_is_asked(tmp_path: Path) -> None:
    runs = [
        AskedRun(tmp_path, label, {"base_prompts": {"a <dry>": said}, "data": {"wording": {"dry": ["a <dry>"]}}})
        for label, said in (("one", "a slice"), ("two", "a cloth"))
    ]
    asked = whole._asked([Prompt("{caption}", "learnt")], [(run, ()) for run in runs])
    assert [(each.base_text, each.runs) for each in asked] == [
        ("a slice", frozenset({"one"})), ("a cloth", frozenset({"two"}))
    ]  # fmt: skip


def test_a_ring_is_asked_as_it_stands_of_all() -> None:
    began = {"one": {"a <dry>": "a slice"}, "two": {"a <dry>": "a cloth"}}
    (asked,) = asked_of([Prompt("a <dry>", "class", 0)], {"one": ("a <dry>",), "two": ()}, began)
    assert (asked.base_text, asked.runs, asked.caption_of) == ("a <dry>", None, frozenset({"one"}))


def test_a_text_is_the_caption_of_no_run_that_is_not_asked_it() -> None:
    """ "a sf_dry" is made of the caption of the one, and is the caption of the other, which is asked something else."""
    captions = {"one": ("sf_dry",), "other": ("a sf_dry",)}
    asked = asked_of([Prompt("a {caption}", "learnt")], captions, {})
    assert [(each.text, each.runs, each.caption_of) for each in asked] == [
        ("a sf_dry", frozenset({"one"}), frozenset()),
        ("a a sf_dry", frozenset({"other"}), frozenset()),
    ]


def test_the_axes_multiply_and_a_prompt_may_have_options_of_its_own() -> None:
    prompts = [Prompt("a", "s"), Prompt("b", "s", seeds=(9,), num_inference_steps=5, guidance_scale=1.0)]
    found = cells(asked_of(prompts, {}, {}), (BASE, LORA, replace(LORA, weight=0.5)), SAMPLINGS, (0, 1, 2))
    assert len(found) == 3 * 2 * (3 + 1)
    own = {cell.sampling for cell in found if cell.text == "b"}
    assert own == {Sampling("own", 5, 1.0), Sampling("DDIM", 5, 1.0)}
    assert {cell.seed for cell in found if cell.text == "b"} == {9}


def test_a_name_changes_with_everything_that_the_image_depends_on() -> None:
    (cell,) = cells(asked_of([Prompt("a", "s")], {}, {}), (LORA,), SAMPLINGS[:1], (0,))
    known = {"base_identity": "b", "arm_digest": "d", "size_px": 64}
    changed = [
        replace(cell, text="b"),
        replace(cell, negative="n"),
        replace(cell, seed=1),
        replace(cell, arm=replace(LORA, weight=0.5)),
        *(
            replace(cell, sampling=sampling)
            for sampling in (Sampling("DDIM", 20, 3.0), Sampling("own", 21, 3.0), Sampling("own", 20, 3.5))
        ),
    ]
    keys = [each.key(**known) for each in (cell, *changed)]  # type: ignore[arg-type]
    keys += [
        cell.key(**{**known, name: value})
        for name, value in (("base_identity", "c"), ("arm_digest", "e"), ("size_px", 72))
    ]  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys) == 11
    # neither its place in the file nor the label of the run is part of the image
    assert replace(cell, asked=7, place=3, arm=replace(LORA, run="other")).key(**known) == keys[0]  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> AskedRun:
    folder = tmp_path / "run"
    for step in (5, 10, 20):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
    (folder / "checkpoint-x").mkdir()
    (folder / "status.json").write_text('{"last_durable_step": 20}')
    return AskedRun.read(folder, "run")


def test_the_states_of_a_run_are_its_checkpoints_and_its_result_once(run: AskedRun) -> None:
    states = run.states("all")
    assert [state.step for state in states] == [5, 10, 20]
    assert [state.folder and state.folder.name for state in states] == ["checkpoint-5", "checkpoint-10", None]
    assert run.states([20, "last", 5]) == (states[0], states[2])


def test_best_is_what_an_evaluation_chose(run: AskedRun) -> None:
    with pytest.raises(SettingsError, match=r"--checkpoints all"):
        run.state("best")
    (run.path / CHOICE).write_text(json.dumps({"step": 10}))
    assert run.state("best") == run.state(10)
    (run.path / CHOICE).write_text(json.dumps({"step": 20}))
    assert run.state("best") == run.result


def test_a_step_without_a_checkpoint_names_those_there_are(run: AskedRun) -> None:
    with pytest.raises(SettingsError, match=r"no checkpoint-7\. Checkpoints there: 5, 10, 20"):
        run.state(7)


def test_a_damaged_checkpoint_is_named(run: AskedRun) -> None:
    folder = run.checkpoints[5]
    (run.path / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    with pytest.raises(OutputError, match="is missing; expected that of a checkpoint"):
        run.digest(run.state(5))
    (folder / "unet_lora.safetensors").write_bytes(b"torn")
    (folder / "manifest.json").write_text(json.dumps({"files": {"unet_lora.safetensors": {"sha256": "0" * 64}}}))
    with pytest.raises(OutputError, match="not what was written"):
        run.digest(run.state(5))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "lora").mkdir(parents=True)
    runs = name_runs([tmp_path / "a" / "lora", tmp_path / "b" / "lora"])
    assert [run.label for run in runs] == ["a/lora", "b/lora"]
    with pytest.raises(SettingsError, match="given twice"):
        name_runs([tmp_path / "a" / "lora", tmp_path / "b" / ".." / "a" / "lora"])
    with pytest.raises(SettingsError, match="does not exist"):
        name_runs([tmp_path / "c"])


def test_selections_are_read_as_written() -> None:
    assert parse_selections("all") == "all"
    assert parse_selections("last, best,300") == ["last", "best", 300]
    for text in ("", "al", "-3", "1.5", "٣", "best,"):
        with pytest.raises(SettingsError, match="checkpoints"):
            parse_selections(text)
