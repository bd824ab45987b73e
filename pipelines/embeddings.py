"""Learned embeddings (Textual Inversion, Gal et al. 2022): placeholders in a vocabulary, their rows, their files."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.textual_inversion import TEXT_INVERSION_NAME_SAFE
from tokenizers import decoders
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from data.errors import SettingsError
from pipelines.adapters import opened, serialized

EMBEDDINGS_NAME = TEXT_INVERSION_NAME_SAFE

_LONGEST_TOKEN = 64  # characters
_END_OF_WORD = "</w>"
_FAMILIES = {768: " (SD 1.x)", 1024: " (SD 2.x)"}


@dataclass(frozen=True, eq=False)
class Placeholder:
    """A word of its own in a vocabulary: its tokens, one for each vector, their ids and their first values.

    initial: (num_vectors, width) float32.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    initial: Tensor


def placeholder_tokens(token: str, num_vectors: int) -> tuple[str, ...]:
    """Return the tokens of a placeholder of several vectors, named as diffusers does: <x>, <x>_1, <x>_2."""
    return (token, *(f"{token}_{i}" for i in range(1, num_vectors)))


def token_problems(tokenizer: CLIPTokenizer, token: str, num_vectors: int) -> list[str]:
    """Say all that forbids a placeholder; nothing where it can be added.

    An added token is looked for in the whole text, in its folded form and before the text is cut into words: only one
    in angle brackets is sure to be found where it is meant and nowhere else.
    """
    if not token:
        return ["the placeholder is empty. Give a name in angle brackets, such as <dry-slice>."]
    problems = []
    most = tokenizer.model_max_length - 2  # beside the start and end tokens
    folded = _folded(tokenizer, token)
    if not 1 <= num_vectors <= most:
        problems.append(f"found {num_vectors} vectors, expected 1 to {most}: a prompt has no room for more tokens.")
    if len(token) > _LONGEST_TOKEN:
        problems.append(f"{token[:16]}… has {len(token)} characters, expected at most {_LONGEST_TOKEN}. Shorten it.")
    if not token.isprintable() or any(character.isspace() for character in token):
        problems.append(f"{token!r} holds spaces or control characters; expected one word, such as <dry-slice>.")
    elif not re.fullmatch(r"<[^<>]+>", token):
        name = re.sub(r"[<>]", "", folded) or "dry-slice"
        problems.append(
            f"{token!r} can be a part of an ordinary word or of another token (as ct is of structure) and would be "
            f"found there too; expected a name between < and >. Write <{name}>."
        )
    elif folded != token:
        problems.append(
            f"the tokenizer reads {token!r} as {folded!r} (it lowers case and composes accents): the two cannot be "
            f"told apart, and several vectors would not be found. Write {folded}."
        )
    return problems + _collisions(tokenizer, token, num_vectors)


def add_placeholder(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, token: str, initializer_token: str, num_vectors: int
) -> Placeholder:
    """Add a placeholder to a tokenizer and to the table of its text encoder, and return it.

    Each of its rows starts as the embedding of the initializer, the mean of its pieces where it is not one token. All
    other rows keep their bits, the table its precision, device and mode.
    Raises SettingsError, and changes nothing, for a placeholder that must not be added or an initializer that is empty
    or unknown.
    """
    problems = token_problems(tokenizer, token, num_vectors)
    pieces = tokenizer(initializer_token, add_special_tokens=False).input_ids
    if not pieces:
        problems.append(f"the initializer {initializer_token!r} is no token. Give a word near the concept: texture.")
    elif set(pieces) & set(tokenizer.all_special_ids):
        problems.append(
            f"the initializer {initializer_token!r} holds what the tokenizer does not know or keeps for itself. "
            "Give a word near the concept: texture."
        )
    if problems:
        raise SettingsError(f"placeholder {token}", *problems)
    table = text_encoder.get_input_embeddings().weight
    initial = table.detach()[pieces].float().mean(dim=0).repeat(num_vectors, 1)
    tokens = placeholder_tokens(token, num_vectors)
    return Placeholder(tokens, _append(tokenizer, text_encoder, tokens, initial), initial)


def export_embeddings(folder: Path, token: str, rows: Tensor, metadata: Mapping[str, str]) -> Path:
    """Write a placeholder's rows (num_vectors, width) as `learned_embeds.safetensors` and return the file.

    `StableDiffusionPipeline.load_textual_inversion(folder, weight_name="learned_embeds.safetensors")` adds them under
    the names of `placeholder_tokens`. They are float32. metadata: further entries for the header. Equal rows give equal
    bytes.
    """
    assert rows.ndim == 2, f"rows are (num_vectors, width), found {tuple(rows.shape)}"
    assert rows.isfinite().all(), "learned rows are finite"
    assert "format" not in metadata
    tensors = {token: rows.detach().to("cpu", torch.float32).contiguous()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / EMBEDDINGS_NAME
    temporary = folder / f".{EMBEDDINGS_NAME}.tmp"
    temporary.write_bytes(serialized(tensors, {**metadata, "format": "pt"}))
    temporary.replace(path)
    return path


def load_embeddings(
    pipeline: StableDiffusionPipeline, folder_or_file: Path, *, token: str | None = None
) -> tuple[str, ...]:
    """Add the learned embeddings of a file to a pipeline and return their tokens; all other rows keep their bits.

    token: the placeholder to add them under; None is the one that the file names.
    Raises SettingsError, and changes nothing, for a file that is missing or not safetensors, holds anything but the
    rows of one placeholder, was made for a text encoder of another width, or names a placeholder that `token_problems`
    forbids.
    """
    path = folder_or_file / EMBEDDINGS_NAME if folder_or_file.is_dir() else folder_or_file
    if not path.exists():
        raise SettingsError(str(path), f"this file does not exist; expected the {EMBEDDINGS_NAME} of a run.")
    with opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if len(tensors) != 1:
        shown = ", ".join(sorted(tensors)[:3]) + (", …" if len(tensors) > 3 else "")
        raise SettingsError(
            str(path), f"holds {len(tensors)} tensors{shown and f' ({shown})'}, expected one: {{placeholder: rows}}."
        )
    (named, rows), width = tensors.popitem(), pipeline.text_encoder.get_input_embeddings().weight.shape[1]
    rows = rows[None] if rows.ndim == 1 else rows
    problems = _row_problems(rows, width)
    if not problems:
        problems = token_problems(pipeline.tokenizer, token or named, len(rows))
    if problems:
        raise SettingsError(str(path), *problems)
    tokens = placeholder_tokens(token or named, len(rows))
    _append(pipeline.tokenizer, pipeline.text_encoder, tokens, rows)
    return tokens


def nearest_words(
    tokenizer: CLIPTokenizer, vectors: Tensor, table: Tensor, k: int, exclude: Collection[int] = ()
) -> list[list[tuple[str, float]]]:
    """Return for each vector (n, width) the k words of the table (vocabulary, width) with the largest cosine.

    exclude: ids that are left out, as the special tokens are. Words read as `readable` writes them.
    """
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids) - set(exclude))
    normalize = torch.nn.functional.normalize
    rows = normalize(table.detach()[ids].float(), dim=1)
    cosines = normalize(vectors.detach().to(rows), dim=1) @ rows.T
    best = cosines.topk(min(k, len(ids)), dim=1)
    return [
        [
            (readable(tokenizer.convert_ids_to_tokens(ids[place])), float(cosine))
            for place, cosine in zip(places, values, strict=True)
        ]
        for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def readable(piece: str) -> str:
    """Return a token as it is read: `word` ends a word, `str-` is a piece that another one follows.

    Bytes that are no whole character that can be printed are shown as they stand in the vocabulary, between quotes.
    """
    if piece.startswith("<") and ">" in piece and piece != "<" + _END_OF_WORD:
        return piece  # an added token
    body = piece.removesuffix(_END_OF_WORD)
    text = decoders.ByteLevel().decode([body])
    if "\ufffd" in text or not text.isprintable() or not text.strip():
        text = repr(body)
    return text if piece.endswith(_END_OF_WORD) else f"{text}-"


def _folded(tokenizer: CLIPTokenizer, token: str) -> str:
    folded: str = tokenizer.backend_tokenizer.normalizer.normalize_str(token)
    return folded


def _collisions(tokenizer: CLIPTokenizer, token: str, num_vectors: int) -> list[str]:
    """Say which tokens of a placeholder, or of a longer one of its name, a vocabulary holds already."""
    known = {
        **dict.fromkeys(tokenizer.get_vocab()),
        **{_folded(tokenizer, t): t for t in tokenizer.added_tokens_encoder},
    }
    *own, further = [_folded(tokenizer, part) for part in placeholder_tokens(token, max(num_vectors, 1) + 1)]
    present = [part for part in own if part in known]
    if present:
        return [f"the vocabulary holds {', '.join(present)} already. Give the placeholder another name."]
    if further in known:
        return [
            f"the vocabulary holds {further} already, which would be taken for one more vector of {token}. "
            "Give the placeholder another name."
        ]
    return []


def _row_problems(rows: Tensor, width: int) -> list[str]:
    if rows.ndim != 2 or not rows.is_floating_point() or not len(rows):
        return [f"holds a tensor {tuple(rows.shape)} of {rows.dtype}, expected rows of floats (vectors, {width})."]
    if rows.shape[1] != width:
        made_for, has = (f"{dim}{_FAMILIES.get(dim, '')}" for dim in (rows.shape[1], width))
        return [
            f"holds vectors of width {made_for}, this text encoder has width {has}. "
            "Give the base that they were learned on."
        ]
    if not rows.isfinite().all():
        return ["holds numbers that are not finite; its training failed. Take an earlier checkpoint."]
    return []


@torch.no_grad()
def _append(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, tokens: Sequence[str], rows: Tensor
) -> tuple[int, ...]:
    """Add tokens with their rows, in the precision of the table, and return their ids."""
    num_added = tokenizer.add_tokens(list(tokens))
    ids = tuple(tokenizer.convert_tokens_to_ids(list(tokens)))
    assert num_added == len(tokens), f"{num_added} of the tokens {tokens} are new"
    assert tokenizer(" ".join(tokens), add_special_tokens=False).input_ids == list(ids), f"{tokens} are read otherwise"
    device = text_encoder.get_input_embeddings().weight.device
    if max(ids) >= len(text_encoder.get_input_embeddings().weight):
        # transformers draws the new rows at random before they are written here
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            text_encoder.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    table = text_encoder.get_input_embeddings().weight
    table[list(ids)] = rows.to(table)
    return ids
