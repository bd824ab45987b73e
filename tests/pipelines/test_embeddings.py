"""A placeholder is found where it is meant and nowhere else; its file restores it, in plain diffusers too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from data.errors import SettingsError
from pipelines.components import Components, build_pipeline, load_components
from pipelines.conditioning import TextConditioner
from pipelines.embeddings import (
    add_placeholder,
    export_embeddings,
    load_embeddings,
    nearest_words,
    placeholder_tokens,
    readable,
    token_problems,
)

FILE = "learned_embeds.safetensors"
PROMPTS = ["a <dry-slice> texture", "a photo of a dry composite", "<dry-slice>, red"]


@pytest.fixture
def base(tiny_base_dir: Path) -> Components:
    return load_components(str(tiny_base_dir))


def random_rows(num_vectors: int, width: int = 32, seed: int = 3) -> torch.Tensor:
    return torch.randn(num_vectors, width, generator=torch.Generator().manual_seed(seed))


def table_of(components: Components | StableDiffusionPipeline) -> torch.Tensor:
    return components.text_encoder.get_input_embeddings().weight.detach().clone()


@torch.no_grad()
def encoded(pipeline: StableDiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    return torch.cat([pipeline.encode_prompt(p, torch.device("cpu"), 1, False)[0] for p in prompts])


def test_several_vectors_are_named_as_diffusers_names_them() -> None:
    assert placeholder_tokens("<x>", 1) == ("<x>",)
    assert placeholder_tokens("<x>", 3) == ("<x>", "<x>_1", "<x>_2")


@pytest.fixture(scope="module")
def used_tokenizer(tiny_base_dir: Path) -> CLIPTokenizer:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base_dir / "tokenizer")
    tokenizer.add_tokens(["<taken>", "<taken>_1", "<Cased>", "<part>_1"])
    return tokenizer


@pytest.mark.parametrize(
    ("token", "num_vectors", "expected"),
    [
        ("", 1, ["empty"]),
        ("dry", 1, ["'dry' can be a part of an ordinary word.*Write <dry>"]),
        ("W17h", 1, ["can be a part.*Write <w17h>"]),
        ("<a<b>", 1, ["between < and >"]),
        ("<>", 1, ["between < and >"]),
        ("<dry slice>", 1, ["holds spaces"]),
        ("<dry\tslice>", 1, ["holds spaces"]),
        ("<dry\u00a0slice>", 1, ["holds spaces"]),
        ("<dry\u200bslice>", 1, ["control characters"]),
        ("<Dry>", 1, ["reads '<Dry>' as '<dry>'.*Write <dry>"]),
        ("<e\u0301>", 1, ["as '<\u00e9>'"]),
        ("<" + "x" * 63 + ">", 1, ["65 characters, expected at most 64"]),
        ("<x>", 0, ["found 0 vectors, expected 1 to 75"]),
        ("<x>", 76, ["found 76 vectors, expected 1 to 75"]),
        ("<|endoftext|>", 1, [r"holds <\|endoftext\|> already"]),
        ("<taken>", 1, ["holds <taken> already"]),
        ("<TAKEN>", 1, ["as '<taken>'", "holds <taken> already"]),
        ("<taken>_1", 1, ["between < and >", "holds <taken>_1 already"]),
        ("<cased>", 1, ["holds <cased> already"]),
        ("<part>", 2, ["holds <part>_1 already. Give"]),
        ("<part>", 1, ["holds <part>_1 already, which would be taken for one more vector of <part>"]),
        ("A b", 99, ["99 vectors", "holds spaces"]),
    ],
)
def test_a_placeholder_that_would_not_be_found_alone_is_refused(
    used_tokenizer: CLIPTokenizer, token: str, num_vectors: int, expected: list[str]
) -> None:
    problems = token_problems(used_tokenizer, token, num_vectors)
    assert len(problems) == len(expected), problems
    for problem, pattern in zip(problems, expected, strict=True):
        assert re.search(pattern, problem)


def test_an_added_token_is_found_inside_words_and_in_either_case(base: Components) -> None:
    """Why names stand in brackets and in lower case: the tokenizer (transformers 5) looks for them everywhere."""
    assert "ruc" not in base.tokenizer.tokenize("structure")
    base.tokenizer.add_tokens(["ruc", "<Dry>"])
    assert "ruc" in base.tokenizer.tokenize("structure")
    assert base.tokenizer("<dry>").input_ids == base.tokenizer("<Dry>").input_ids
    base.tokenizer.add_tokens(["<dry>"])  # now either text leads to the same of the two rows
    assert base.tokenizer("<dry>").input_ids == base.tokenizer("<Dry>").input_ids


def test_several_vectors_of_a_capital_name_are_not_found(base: Components) -> None:
    """Why diffusers' own `load_textual_inversion` is not enough: it adds them, and a prompt reads the first alone."""
    base.tokenizer.add_tokens(["<D>", "<D>_1"])
    ids = TextConditioner(base.tokenizer, base.text_encoder).token_ids(["<D>"])[0].tolist()
    assert base.tokenizer.convert_tokens_to_ids("<D>") in ids
    assert base.tokenizer.convert_tokens_to_ids("<D>_1") not in ids


@pytest.mark.parametrize("token", ["<dry-slice>", "<x>", "<w17h3r>", "<\u00e9toffe>"])
def test_a_placeholder_in_brackets_is_accepted_and_found(base: Components, token: str) -> None:
    assert token_problems(base.tokenizer, token, 12) == []
    placeholder = add_placeholder(base.tokenizer, base.text_encoder, token, "texture", 12)
    ids = TextConditioner(base.tokenizer, base.text_encoder).token_ids([f"a {token}, red"])[0].tolist()
    start = ids.index(placeholder.ids[0])
    assert ids[start : start + 12] == list(placeholder.ids)


def test_rows_start_as_the_initializer_and_the_others_keep_their_bits(base: Components) -> None:
    before, state = table_of(base), torch.random.get_rng_state()
    id_of = base.tokenizer.convert_tokens_to_ids
    placeholder = add_placeholder(base.tokenizer, base.text_encoder, "<x>", "texture", 2)
    after = table_of(base)
    assert placeholder.tokens == ("<x>", "<x>_1")
    assert placeholder.ids == (len(before), len(before) + 1)
    assert torch.equal(after[:-2], before)
    expected = before[id_of("texture</w>")].expand(2, -1)
    assert torch.equal(after[-2:], expected)
    assert torch.equal(placeholder.initial, expected)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert base.text_encoder.config.vocab_size == len(after)


def test_an_initializer_of_several_pieces_starts_as_their_mean(base: Components) -> None:
    table = table_of(base)
    ids = base.tokenizer("dry texture", add_special_tokens=False).input_ids
    assert len(ids) == 2
    placeholder = add_placeholder(base.tokenizer, base.text_encoder, "<x>", "dry texture", 1)
    torch.testing.assert_close(placeholder.initial[0], (table[ids[0]] + table[ids[1]]) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [True, False])
def test_the_table_keeps_precision_and_mode(base: Components, dtype: torch.dtype, trained: bool) -> None:
    encoder = base.text_encoder.to(dtype).requires_grad_(trained).train(trained)
    placeholder = add_placeholder(base.tokenizer, encoder, "<x>", "texture", 1)
    embedding = encoder.get_input_embeddings()
    assert embedding.weight.dtype == dtype
    assert placeholder.initial.dtype == torch.float32
    assert embedding.weight.requires_grad == trained
    assert embedding.training == trained


def test_a_table_with_spare_rows_does_not_shrink(base: Components) -> None:
    base.text_encoder.resize_token_embeddings(len(base.tokenizer) + 5, mean_resizing=False)
    before = table_of(base)
    placeholder = add_placeholder(base.tokenizer, base.text_encoder, "<x>", "texture", 2)
    after = table_of(base)
    assert after.shape == before.shape
    changed = (after != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == list(placeholder.ids)


@pytest.mark.parametrize(
    ("token", "initializer", "words"),
    [
        ("<x>", "", ["initializer '' is no token"]),
        ("<x>", "  ", ["is no token"]),
        ("<x>", "<|endoftext|>", ["does not know or keeps for itself"]),
        ("dry", "", ["can be a part", "is no token"]),
    ],
)
def test_what_cannot_be_added_changes_nothing(base: Components, token: str, initializer: str, words: list[str]) -> None:
    before, size = table_of(base), len(base.tokenizer)
    with pytest.raises(SettingsError) as caught:
        add_placeholder(base.tokenizer, base.text_encoder, token, initializer, 1)
    assert len(caught.value.problems) == len(words)
    assert all(word in str(caught.value) for word in words)
    assert len(base.tokenizer) == size
    assert torch.equal(table_of(base), before)


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_plain_diffusers_and_load_embeddings_read_the_same(
    tiny_base_dir: Path, tmp_path: Path, num_vectors: int
) -> None:
    rows = random_rows(num_vectors)
    path = export_embeddings(tmp_path, "<dry-slice>", rows, {"base": "tiny"})
    assert path == tmp_path / FILE
    plain = StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None)
    untouched = encoded(plain, PROMPTS[1:2])
    plain.load_textual_inversion(str(tmp_path), weight_name=FILE, local_files_only=True)
    ours = build_pipeline(load_components(str(tiny_base_dir)))
    before = table_of(ours)
    assert load_embeddings(ours, tmp_path) == placeholder_tokens("<dry-slice>", num_vectors)
    assert torch.equal(table_of(ours)[len(before) :], rows)
    assert torch.equal(table_of(ours)[: len(before)], before)
    assert torch.equal(encoded(ours, PROMPTS), encoded(plain, PROMPTS))
    assert torch.equal(encoded(ours, PROMPTS[1:2]), untouched)
    # and the token says something
    assert not torch.equal(encoded(ours, ["a <dry-slice> texture"]), encoded(ours, ["a texture"]))


def test_the_file_is_float32_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    rows, metadata = random_rows(2).to(torch.bfloat16), {"b": "1", "a": "2", "c": "3"}
    paths = [export_embeddings(tmp_path / name, "<x>", rows.clone(), metadata) for name in "pq"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert load_file(paths[0])["<x>"].dtype == torch.float32
    assert torch.equal(load_file(paths[0])["<x>"], rows.float())
    with safe_open(paths[0], framework="pt") as file:
        assert file.metadata() == {**metadata, "format": "pt"}
    assert [path.name for path in (tmp_path / "p").iterdir()] == [FILE]


def test_a_file_can_be_loaded_under_another_name(base: Components, tmp_path: Path) -> None:
    export_embeddings(tmp_path, "<x>", random_rows(2), {})
    pipeline = build_pipeline(base)
    assert load_embeddings(pipeline, tmp_path) == ("<x>", "<x>_1")
    assert load_embeddings(pipeline, tmp_path / FILE, token="<y>") == ("<y>", "<y>_1")
    assert torch.equal(table_of(pipeline)[-2:], table_of(pipeline)[-4:-2])


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"<x>": torch.zeros(1, 48)}, "width 48, this text encoder has width 32"),
        ({"<x>": torch.zeros(1, 768)}, r"width 768 \(SD 1.x\)"),
        ({"<x>": torch.zeros(1, 32), "<y>": torch.zeros(1, 32)}, r"holds 2 tensors \(<x>, <y>\)"),
        ({}, "holds 0 tensors, expected one"),
        ({"<x>": torch.zeros(1, 1, 32)}, r"tensor \(1, 1, 32\)"),
        ({"<x>": torch.zeros(0, 32)}, r"tensor \(0, 32\)"),
        ({"<x>": torch.zeros(1, 32, dtype=torch.int64)}, "int64"),
        ({"<x>": torch.full((1, 32), float("nan"))}, "not finite"),
        ({"<|endoftext|>": torch.zeros(1, 32)}, "already"),
        ({"emb_params": torch.zeros(1, 32)}, "Write <emb_params>"),
        ({"<X>": torch.zeros(2, 32)}, "reads '<X>' as '<x>'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(
    base: Components, tmp_path: Path, tensors: dict[str, torch.Tensor], word: str
) -> None:
    save_file(tensors, tmp_path / FILE)
    pipeline, before, size = build_pipeline(base), table_of(base), len(base.tokenizer)
    with pytest.raises(SettingsError, match=word):
        load_embeddings(pipeline, tmp_path)
    assert len(base.tokenizer) == size
    assert torch.equal(table_of(base), before)


def test_a_token_that_exists_already_is_refused(base: Components, tmp_path: Path) -> None:
    export_embeddings(tmp_path, "<x>", random_rows(1), {})
    load_embeddings(build_pipeline(base), tmp_path)
    with pytest.raises(SettingsError, match="holds <x> already"):
        load_embeddings(build_pipeline(base), tmp_path)


@pytest.mark.parametrize(("content", "word"), [(None, "does not exist"), (b"\x80\x02}", "not a whole safetensors")])
def test_a_missing_or_broken_file_is_refused(base: Components, tmp_path: Path, content: Any, word: str) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(SettingsError, match=word):
        load_embeddings(build_pipeline(base), tmp_path)


def test_nearest_words_are_those_with_the_largest_cosine(base: Components) -> None:
    table, ids = table_of(base), base.tokenizer.get_vocab()
    red, dry = ids["red</w>"], ids["dry</w>"]
    found = nearest_words(base.tokenizer, torch.stack([5 * table[red], -table[dry]]), table, 3)
    word, cosine = found[0][0]
    assert word == "red"
    assert cosine == pytest.approx(1.0)
    cosines = torch.nn.functional.cosine_similarity(-table[dry][None], table)
    cosines[base.tokenizer.all_special_ids] = -2
    assert [value for _, value in found[1]] == pytest.approx(cosines.topk(3).values.tolist())
    without = nearest_words(base.tokenizer, table[red][None], table, 3, exclude=[red])
    assert "red" not in [word for word, _ in without[0]]
    special = table[base.tokenizer.eos_token_id][None]
    assert nearest_words(base.tokenizer, special, table, 1)[0][0][1] < 0.99


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        ("texture</w>", "texture"),
        ("str", "str-"),
        ("<</w>", "<"),
        ("></w>", ">"),
        ("\u00c3\u00a9</w>", "\u00e9"),
        ("\u00e6", "'\u00e6'-"),
        ("<dry>_1", "<dry>_1"),
    ],
)
def test_tokens_read_as_words(piece: str, text: str) -> None:
    assert readable(piece) == text
