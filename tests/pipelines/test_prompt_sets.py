"""Prompt files: what they give, and every mistake in one message."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data.concepts import CONCEPTS, load_concept
from data.errors import SettingsError
from pipelines.evaluation.asked_claims import AskedClaim
from pipelines.evaluation.prompt_sets import MOST_PROMPTS, Prompt, read_prompt_file

ROOT = Path(__file__).resolve().parents[2]


def _yaml(folder: Path, text: str) -> Path:
    path = folder / "prompts.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_text_file_has_one_prompt_in_each_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\n\na red circle\n  été\na red circle\n", encoding="utf-8")
    file = read_prompt_file(path)
    assert file.prompts == (Prompt("a red circle", "prompts"), Prompt("été", "prompts"))
    assert file.num_repeated == 1
    assert not file.has_rings


def test_sets_rings_and_options_of_a_prompt(tmp_path: Path) -> None:
    path = _yaml(
        tmp_path,
        """
negative_prompt: blurry
sets:
  learnt:
    - "{caption}"
    - {prompt: a slice, negative_prompt: "", seeds: 3-5, num_inference_steps: 40, guidance_scale: 0}
    - {prompt: between, between: [one, " other"]}
rings:
  unrelated: [a horse]
  class: [a texture]
""",
    )
    file = read_prompt_file(path)
    assert file.prompts == (
        Prompt("{caption}", "learnt", negative="blurry"),
        Prompt("a slice", "learnt", seeds=(3, 4, 5), num_inference_steps=40, guidance_scale=0.0),
        Prompt("between", "learnt", negative="blurry", between=("one", "other")),
        Prompt("a horse", "unrelated", 2, "blurry"),
        Prompt("a texture", "class", 0, "blurry"),
    )
    assert file.has_rings


def test_a_template_gives_every_combination_of_its_words_and_concepts(tmp_path: Path) -> None:
    path = _yaml(
        tmp_path,
        "sets: {s: [{template: 'a {colour} {concept}, {caption}', over: {colour: [red, 1]}, concepts: [sf_dry]}]}",
    )
    captions = load_concept("sf_dry", CONCEPTS).captions
    assert len(captions) == 3
    texts = [prompt.text for prompt in read_prompt_file(path).prompts]
    assert texts == [f"a {colour} {caption}, {{caption}}" for colour in ("red", "1") for caption in captions]


def test_claims_stand_beside_the_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("sets: {a: [x]}\nclaims: [{text: t, measure: skill, greater: run, than: 0.5}]\n")
    assert read_prompt_file(path).claims == (AskedClaim("t", "skill", "run", 0.5),)


def test_braces_of_a_plain_prompt_are_kept(tmp_path: Path) -> None:
    assert read_prompt_file(_yaml(tmp_path, "sets: {s: ['a {b} {{c}}']}")).prompts[0].text == "a {b} {{c}}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sets: {a: [x]}\nring: {}", ("ring: unknown key", "rings")),
        ("rings: {klass: [x]}", ("rings.klass: unknown ring", "class")),
        ("rings: {class: ['{caption}']}", ("rings.class[0]", "{caption}")),
        ("sets: {../../etc: [x]}", ("sets.../../etc", "expected a name")),
        ("sets: {a: x}", ("sets.a: found 'x'", "list")),
        ("sets: {a: []}", ("sets.a", "one or more")),
        ("sets: [x]", ("sets: found list",)),
        ("sets: {a: [3]}", ("sets.a[0]: found 3",)),
        ("sets: {a: ['']}", ("sets.a[0]", "empty")),
        ("sets: {a: [{prompt: x, template: y}]}", ("sets.a[0]", "either prompt or template")),
        ("sets: {a: [x]}\nclaims: [{text: t, measure: skil}]", ("claims[0].measure: found 'skil'", "skill")),
        (
            "sets: {a: [x]}\nclaims: [{text: t, measure: skill, data: d, greater: a, than: 0}]",
            ("claims: t: one evaluation is of one data",),
        ),
        ("sets: {a: [{prompt: x, sedes: 1}]}", ("sets.a[0].sedes: unknown key", "seeds")),
        ("sets: {a: [{prompt: x, seeds: 7-3}]}", ("sets.a[0].seeds", "7-3")),
        ("sets: {a: [{prompt: x, num_inference_steps: 0}]}", ("num_inference_steps", "a number from 1 to 1000")),
        ("sets: {a: [{prompt: x, num_inference_steps: 1.5}]}", ("num_inference_steps: found 1.5",)),
        ("sets: {a: [{prompt: x, guidance_scale: -1}]}", ("guidance_scale: found -1",)),
        ("sets: {a: [{prompt: x, guidance_scale: .inf}]}", ("guidance_scale: found inf",)),
        ("sets: {a: [{prompt: x, guidance_scale: true}]}", ("guidance_scale: found True",)),
        ("sets: {a: [{prompt: x, between: [y]}]}", ("sets.a[0].between: found ['y'], expected two captions",)),
        ("sets: {a: [{prompt: x, between: [y, 3]}]}", ("expected two captions",)),
        ("sets: {a: [{prompt: x, between: [y, y]}]}", ("found 'y' twice",)),
        ("sets: {a: [{prompt: x, over: {b: [c]}}]}", ("Write template",)),
        ("sets: {a: [{template: 'x {b}'}]}", ("{b} has no words",)),
        ("sets: {a: [{template: x, over: {b: [c]}}]}", ("holds no {b}",)),
        ("sets: {a: [{template: '{b}', over: {b: c}}]}", (".over",)),
        ("sets: {a: [{template: '{concept}', concepts: [sf_dri]}]}", ("no concept 'sf_dri'", "sf_dry")),
        ("sets: {a: [x]}\nsets: {b: [y]}", ("sets: stands there twice",)),
        ("sets: {a: [x], a: [y]}", ("a: stands there twice",)),
        ("negative_prompt: [x]\nsets: {a: [x]}", ("negative_prompt",)),
        ("{}", ("holds no prompt",)),
        ("", ("found nothing",)),
        ("- a\n- b", ("expected the keys", ".txt")),
        ("sets: {a: [x", ("not readable as YAML",)),
    ],
)
def test_mistakes_are_named(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read_prompt_file(_yaml(tmp_path, text))
    for word in words:
        assert word in str(caught.value)
    assert "prompts.yaml" in str(caught.value)


def test_two_mistakes_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="2 problems") as caught:
        read_prompt_file(_yaml(tmp_path, "sets: {a: [{prompt: x, sedes: 1}, '']}"))
    assert "sedes" in str(caught.value)
    assert "empty" in str(caught.value)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.yaml", "prompts.YML"])
def test_a_file_that_is_missing_or_not_utf8_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(SettingsError, match=r"prompts\.\w+: No such file"):
        read_prompt_file(path)
    path.write_bytes("sets: {a: [tissé]}".encode("latin-1"))
    with pytest.raises(SettingsError, match="byte 15 is not UTF-8"):
        read_prompt_file(path)
    path.write_bytes(b"")
    with pytest.raises(SettingsError, match=r"holds no prompt|found nothing"):
        read_prompt_file(path)


def test_thousands_of_lines_are_read_and_more_than_can_be_drawn_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"prompt {n}" for n in range(5000)))
    assert len(read_prompt_file(path).prompts) == 5000
    path.write_text("\n".join(f"prompt {n}" for n in range(MOST_PROMPTS + 1)))
    with pytest.raises(SettingsError, match=f"holds {MOST_PROMPTS + 1} prompts"):
        read_prompt_file(path)
    over = ", ".join(f"{field}: [{', '.join('abcdefghij')}]" for field in "vwxyz")
    template = f"sets: {{a: [{{template: '{{v}}{{w}}{{x}}{{y}}{{z}}', over: {{{over}}}}}]}}"
    with pytest.raises(SettingsError, match="gives 100000 prompts"):
        read_prompt_file(_yaml(tmp_path, template))


@pytest.mark.parametrize("name", ["composites.yaml", "textures.yaml"])
def test_the_shipped_files_ask_for_captions_and_have_three_rings(name: str) -> None:
    file = read_prompt_file(ROOT / "configs" / "prompts" / name)
    assert file.prompts[0].text == "{caption}"
    rings = [prompt.ring for prompt in file.prompts if prompt.ring is not None]
    assert [rings.count(ring) for ring in (0, 1, 2)] == [4, 4, 4]
    assert file.num_repeated == 0


def test_the_rings_of_the_shipped_files_are_in_the_words_of_the_embedded_base() -> None:
    """What a base has never seen it cannot forget."""
    from pipelines.base_folders import SWATCH

    vocabulary = (SWATCH / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    for name in ("composites.yaml", "textures.yaml"):
        for prompt in read_prompt_file(ROOT / "configs" / "prompts" / name).prompts:
            if prompt.ring is not None:
                for word in re.findall("[a-z]+", prompt.text):
                    assert f'"{word}</w>"' in vocabulary, word
