"""Textual Inversion changes the placeholder's rows and nothing else, in every precision."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from data.errors import OutputError
from finetune.core.token_rows import TokenRows
from pipelines.components import Components, build_pipeline, load_components
from pipelines.conditioning import TextConditioner
from pipelines.embeddings import add_placeholder, export_embeddings

TOKEN = "<dry-slice>"
WITH = ("a <dry-slice> texture", "<dry-slice>, red")
WITHOUT = ("a photo of a dry composite", "red", "")


@pytest.fixture
def base(tiny_base_dir: Path) -> Components:
    return load_components(str(tiny_base_dir))


def token_rows(base: Components, num_vectors: int = 2) -> TokenRows:
    return TokenRows(
        base.text_encoder, add_placeholder(base.tokenizer, base.text_encoder, TOKEN, "texture", num_vectors)
    )


def encode(base: Components, captions: tuple[str, ...]) -> torch.Tensor:
    return TextConditioner(base.tokenizer, base.text_encoder).encode(captions)


def train(base: Components, part: TokenRows, num_steps: int, *, autocast: bool = False) -> None:
    """Take AdamW steps, with weight decay, towards the encoder's output of another caption."""
    optimizer = torch.optim.AdamW(part.named_parameters().values(), lr=1e-2, weight_decay=1e-2)
    with torch.no_grad():
        goal = encode(base, ("compacted warp slice", "blue")).float()
    for _ in range(num_steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = (encode(base, WITH).float() - goal).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def test_a_fresh_placeholder_reads_as_its_initializer_and_other_prompts_are_unchanged(base: Components) -> None:
    with torch.no_grad():
        before = encode(base, WITHOUT)
        as_initializer = encode(base, ("a texture texture texture",))
        part = token_rows(base)
        assert torch.equal(encode(base, WITHOUT), before)
        assert torch.equal(encode(base, ("a <dry-slice> texture",)), as_initializer)
    assert part.rows.shape == (2, 32)
    assert part.distance() == 0


def test_the_gradient_reaches_the_rows_and_nothing_else(base: Components) -> None:
    base.text_encoder.requires_grad_(True)
    part = token_rows(base)
    encode(base, WITH).square().mean().backward()
    gradient = part.named_parameters()["rows"].grad
    assert gradient is not None
    assert (gradient.abs().sum(dim=1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in base.text_encoder.parameters())


def test_the_gradient_is_that_of_the_table(base: Components) -> None:
    placeholder = add_placeholder(base.tokenizer, base.text_encoder, TOKEN, "texture", 2)
    other = copy.deepcopy(base.text_encoder)
    part = TokenRows(base.text_encoder, placeholder)
    encode(base, WITH).sin().mean().backward()
    table = other.get_input_embeddings().weight.requires_grad_(True)
    TextConditioner(base.tokenizer, other).encode(WITH).sin().mean().backward()
    torch.testing.assert_close(part.named_parameters()["rows"].grad, table.grad[list(placeholder.ids)])


def test_prompts_without_the_token_are_bit_equal_after_training(base: Components) -> None:
    """Nothing is forgotten, as no weight changed: diffusers' script lets AdamW touch all rows and puts them back."""
    weights = {name: weight.clone() for name, weight in base.text_encoder.state_dict().items()}
    with torch.no_grad():
        before = encode(base, WITHOUT)
    part = token_rows(base)
    with torch.no_grad():
        with_token = encode(base, WITH)
    train(base, part, 2)
    for name, weight in base.text_encoder.state_dict().items():
        assert torch.equal(weight[: len(weights[name])], weights[name]), name
    with torch.no_grad():
        assert torch.equal(encode(base, WITHOUT), before)
        assert not torch.equal(encode(base, WITH), with_token)
    # AdamW moves every number by about the learning rate in a step
    assert 0.5 * 2e-2 * 32**0.5 < part.distance() < 1.5 * 2e-2 * 32**0.5


@pytest.mark.parametrize("autocast", [True, False])
def test_to_float32_does_not_detach_the_embedding_under_half_precision(base: Components, autocast: bool) -> None:
    """diffusers' advanced script casts the embedding outside the graph: no gradient, and nothing is learnt."""
    base.text_encoder.to(torch.bfloat16)
    part = token_rows(base)
    parameter = part.named_parameters()["rows"]
    assert parameter.dtype == torch.float32
    before = part.rows.clone()
    with torch.no_grad():
        states = encode(base, WITH)
    train(base, part, 1, autocast=autocast)
    assert (part.rows != before).all()
    # a step of 1e-2 is kept in float32 to the last digits: the rows are no bf16 numbers
    assert not torch.equal(part.rows, part.rows.to(torch.bfloat16).float())
    with torch.no_grad():
        assert not torch.equal(encode(base, WITH), states)


def test_float32_rows_are_not_rounded_by_autocast(base: Components) -> None:
    part = token_rows(base)
    ids = torch.tensor([part._ids.tolist()])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        part.named_parameters()["rows"].mul_(1.001)
        assert torch.equal(base.text_encoder.get_input_embeddings()(ids)[0], part.rows)


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_the_exported_file_reads_in_plain_diffusers_as_the_live_rows(
    base: Components, tiny_base_dir: Path, tmp_path: Path, num_vectors: int
) -> None:
    part = token_rows(base, num_vectors)
    train(base, part, 2)
    export_embeddings(tmp_path, TOKEN, part.rows, {})
    plain = StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None)
    plain.load_textual_inversion(str(tmp_path), weight_name="learned_embeds.safetensors", local_files_only=True)
    live = build_pipeline(base)
    for prompt in (*WITH, *WITHOUT):
        with torch.no_grad():
            states = [p.encode_prompt(prompt, torch.device("cpu"), 1, False)[0] for p in (live, plain)]
        assert torch.equal(*states), prompt


def test_the_table_holds_the_rows_once_they_are_written_back(base: Components) -> None:
    part = token_rows(base)
    train(base, part, 1)
    embedding = base.text_encoder.get_input_embeddings()
    assert not torch.equal(embedding.weight[-2:], part.rows)
    others = embedding.weight[:-2].clone()
    with torch.no_grad():
        live = encode(base, WITH)
        part.write_back()
        assert torch.equal(embedding.weight[-2:], part.rows)
        assert torch.equal(embedding.weight[:-2], others)
        embedding._forward_hooks.clear()
        assert torch.equal(encode(base, WITH), live)


def test_two_placeholders_are_trained_apart(base: Components) -> None:
    first = token_rows(base)
    second = TokenRows(base.text_encoder, add_placeholder(base.tokenizer, base.text_encoder, "<y>", "dry", 1))
    train(base, first, 1)
    assert first.distance() > 0
    assert second.distance() == 0
    encode(base, ("a <y>",)).square().mean().backward()
    assert second.named_parameters()["rows"].grad.abs().sum() > 0  # type: ignore[union-attr]
    assert first.named_parameters()["rows"].grad.abs().sum() == 0  # type: ignore[union-attr]


def test_state_restores_the_rows(base: Components, tiny_base_dir: Path) -> None:
    part = token_rows(base)
    train(base, part, 2)
    state = {name: tensor.clone() for name, tensor in part.state().items()}
    other = token_rows(load_components(str(tiny_base_dir)))
    other.restore(state)
    assert torch.equal(other.rows, part.rows)
    assert other.distance() == part.distance() > 0


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({}, "rows is missing"),
        ({"rows": torch.zeros(3, 32)}, r"rows has shape \(3, 32\), expected \(2, 32\)"),
        ({"rows": torch.zeros(2, 32), "more": torch.zeros(1)}, "more is not part of this run"),
    ],
)
def test_a_state_of_another_shape_is_refused(base: Components, tensors: dict[str, torch.Tensor], word: str) -> None:
    part = token_rows(base)
    with pytest.raises(OutputError, match=word):
        part.restore(tensors)
    assert part.distance() == 0
