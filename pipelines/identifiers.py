"""What a base model already makes of an identifier, before anything is trained on it."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from data.errors import NonFiniteError, SettingsError
from data.randomness import generator
from pipelines.components import Components, PredictionType
from pipelines.conditioning import TextConditioner
from pipelines.embeddings import nearest_words, readable

Verdict = Literal["weak", "ordinary", "strong"]

# times an ordinary word. Half of all words lie between: of 24 words of swatch before "texture" a quarter is below 0.5
# and a quarter above 2.3, before "circle" below 0.7 and above 2.0
WEAK_BELOW, STRONG_ABOVE = 0.5, 2.0

NUM_NOISES = 2
_NUM_TIMESTEPS = 4
_NUM_WORDS = 8  # they differ more among themselves than the noises do
_NUM_NEAREST = 3
_NUM_SHOWN = 8  # words in a line
# of the 49,408 tokens of CLIP, which stand by how often they are used: "thickness" is 40,754, "composites" 45,395,
# "ohwx" 47,993, "sks" 48,136
_NUM_COMMON = 47_000
_BATCH_SIZE = 16
_SHORTEST_WORD = 4  # letters
_ROUNDING = 1e-12  # square of what float32 loses of a predicted noise
_END_OF_WORD = "</w>"
_ADVICE: dict[Verdict, str] = {
    "weak": "the base hardly reacts to it, so it can take a new meaning with little to unlearn",
    "ordinary": "the base reacts to it as to most words",
    "strong": "the base reacts to it more than to most words; what it draws for it must be unlearnt first",
}


@dataclass(frozen=True)
class Piece:
    """One token of an identifier. nearest: words whose embeddings have the largest cosine with it, and the cosine."""

    text: str
    id: int
    nearest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class IdentifierReport:
    """What becomes of an identifier in a base model. All fields can be written as JSON.

    prompt: the caption it was examined in. chance_cosine: the largest cosine that a direction without meaning has with
    the embeddings of a vocabulary, about sqrt(2 ln(words) / width). num_unknown: pieces that the tokenizer does not
    know. is_word: it is one token of the vocabulary. added: tokens that were added to the vocabulary and are found
    inside it. shared_with_noun: pieces that the class noun has too. same_tokens_as: other identifiers of the same run
    that become the same tokens. num_truncated: tokens of the prompt that the text encoder does not read.
    prior_strength: mean squared change of the predicted noise from "a NOUN" to the prompt, over that from "" to
    "a NOUN". word_strength: the same for ordinary words in the identifier's place, the median. relative_strength: the
    first over the second. relative_error: its standard error over the starting noises. words: the ordinary words.
    """

    identifier: str
    class_noun: str
    prompt: str
    pieces: tuple[Piece, ...]
    chance_cosine: float
    num_unknown: int
    is_word: bool
    added: tuple[str, ...]
    shared_with_noun: tuple[str, ...]
    same_tokens_as: tuple[str, ...]
    num_truncated: int
    prior_strength: float
    word_strength: float
    relative_strength: float
    relative_error: float
    words: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """How strongly the base reacts: below WEAK_BELOW times an ordinary word, above STRONG_ABOVE, or between."""
        if self.relative_strength < WEAK_BELOW:
            return "weak"
        return "strong" if self.relative_strength > STRONG_ABOVE else "ordinary"

    @property
    def spelling(self) -> str:
        """The identifier's pieces as they are read."""
        return " ".join(piece.text for piece in self.pieces)

    @property
    def notes(self) -> list[str]:
        """What a user should know of it beside its strength: one sentence each."""
        notes = []
        if self.num_unknown:
            notes.append(f"{self.num_unknown} of its tokens are unknown or special: the text encoder cannot read them.")
        if self.is_word:
            notes.append("it is a word of the vocabulary already, and what is trained replaces that word.")
        if self.added:
            notes.append(f"{', '.join(self.added)} was added to the vocabulary and is found inside it.")
        if self.shared_with_noun:
            notes.append(f"it shares {', '.join(self.shared_with_noun)} with the class noun {self.class_noun}.")
        if self.same_tokens_as:
            notes.append(
                f"it becomes the same tokens as {', '.join(self.same_tokens_as)}: no model can tell them apart."
            )
        if self.num_truncated:
            notes.append(f"{self.num_truncated} tokens of the prompt do not fit and are cut.")
        return notes

    @property
    def near(self) -> str:
        """The nearest word of each piece that has one nearer than chance."""
        found = [
            f"{piece.text}: {piece.nearest[0][0]} {piece.nearest[0][1]:.2f}"
            for piece in dict.fromkeys(self.pieces)
            if piece.nearest[0][1] > self.chance_cosine
        ]
        return ", ".join(found) or f"none nearer than chance, {self.chance_cosine:.2f}"


def told(reports: Sequence[IdentifierReport], ordinary: Sequence[str], others: Sequence[str] = ()) -> list[str]:
    """Return reports as lines for a terminal: a table from the weakest prior to the strongest, and what it means.

    reports: one at least. ordinary, others: words that were left out, as `rare` finds them and for the sake of time.
    """
    noun = reports[0].class_noun
    lines = [
        *_table(sorted(reports, key=lambda report: report.relative_strength)),
        *(f"note: {report.identifier}: {note}" for report in reports for note in report.notes),
        *(f"{verdict}: {_ADVICE[verdict]}." for verdict in sorted({report.verdict for report in reports})),
        f'prior: how far "a WORD {noun}" moves what the base predicts for "a {noun}", in units of an ordinary '
        f"word: the median of {', '.join(reports[0].words)}",
    ]
    if others:
        lines.append(f"not examined, to save time: {_some(others)}; pipelines/identify.py examines any word")
    if ordinary:
        lines.append(f"not examined, as ordinary words: {_some(ordinary)}")
    return lines


def _table(reports: Sequence[IdentifierReport]) -> list[str]:
    rows = [("identifier", "prior", "", "tokens", "nearest words")]
    for report in reports:
        strength = f"{report.relative_strength:.2f} ± {report.relative_error:.2f}"
        rows.append(
            (report.identifier, strength, report.verdict, f"{len(report.pieces)}: {report.spelling}", report.near)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _some(words: Sequence[str]) -> str:
    shown = ", ".join(words[:_NUM_SHOWN])
    return shown if len(words) <= _NUM_SHOWN else f"{shown} and {len(words) - _NUM_SHOWN} more"


def rare(tokenizer: CLIPTokenizer, identifiers: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the identifiers that have a rare word in them, and the others, each once.

    A word is rare where the tokenizer makes several tokens of it, or one that text seldom has. What a base makes of
    the others is known: it has learnt them as the words they are.
    """
    names = dict.fromkeys(identifiers)
    found = tuple(name for name in names if not name.strip() or any(_is_rare(tokenizer, w) for w in name.split()))
    return found, tuple(name for name in names if name not in found)


def words_of(prompts: Sequence[str], class_noun: str) -> tuple[str, ...]:
    """Return the words of prompts without punctuation around them and without the class noun, each once."""
    words = (word.strip(string.punctuation) for prompt in prompts for word in prompt.split())
    return tuple(dict.fromkeys(word for word in words if word and word.lower() not in class_noun.lower().split()))


def most_broken(tokenizer: CLIPTokenizer, words: Sequence[str], count: int) -> tuple[str, ...]:
    """Return so many words, those with the fewest letters for a token first: "w17h3r" before "tomography"."""

    def letters_per_token(word: str) -> float:
        return len(word) / max(1, len(tokenizer(word, add_special_tokens=False).input_ids))

    return tuple(sorted(words, key=letters_per_token)[:count])


def num_predictions(num_identifiers: int, num_noises: int = NUM_NOISES) -> int:
    """Return how many noisy images the U-Net sees at most in a report on identifiers."""
    return num_noises * _NUM_TIMESTEPS * (2 + _NUM_WORDS + num_identifiers)


def examine(components: Components, identifier: str, class_noun: str, *, seed: int = 0) -> IdentifierReport:
    """Return the report on one identifier before a class noun, as `examine_all` does."""
    return examine_all(components, [identifier], class_noun, seed=seed)[0]


@torch.no_grad()
def examine_all(
    components: Components,
    identifiers: Sequence[str],
    class_noun: str,
    *,
    seed: int = 0,
    num_noises: int = NUM_NOISES,
    size_px: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[IdentifierReport, ...]:
    """Return the reports on identifiers that are to be used in one run, each once, in their order.

    The parts are used as they are: device, precision, mode; but prediction type and noise schedule are those of the
    model's own folder, as nothing is trained yet. num_noises: starting noises to average over, at least 2;
    the relative error falls with their square root. size_px: side of the images; None is the model's own.
    progress: called with the number of predictions made since
    the last call, of `num_predictions`.
    Raises SettingsError for an empty identifier or class noun, NonFiniteError where the U-Net predicts no numbers.
    """
    problems = ["found no identifier, expected at least one."] if not identifiers else []
    problems += [f"identifier {i + 1} is empty." for i, name in enumerate(identifiers) if not name.strip()]
    problems += [] if class_noun.strip() else ["the class noun is empty; expected a word such as texture."]
    problems += [] if num_noises > 1 else [f"found {num_noises} noises, expected 2 or more."]
    if problems:
        raise SettingsError("identifiers", *problems)
    names = list(dict.fromkeys(identifiers))
    tokenizer = components.tokenizer
    token_ids = {name: tuple(tokenizer(name, add_special_tokens=False).input_ids) for name in names}
    noun_ids = set(tokenizer(class_noun, add_special_tokens=False).input_ids)
    words = _ordinary_words(tokenizer, class_noun)
    captions = ["", *(f"a {word} {class_noun}" for word in [*words, *names])]
    changes = _changes(components.as_loaded(), captions, class_noun, seed, num_noises, size_px, progress)
    noun_change, word_changes, name_changes = changes[0], changes[1 : 1 + len(words)], changes[1 + len(words) :]
    word_change = float(word_changes.mean(dim=1).median())
    num_words, width = components.text_encoder.get_input_embeddings().weight.shape
    chance_cosine = (2 * math.log(num_words) / width) ** 0.5
    reports = []
    for name, change in zip(names, name_changes, strict=True):
        ids = token_ids[name]
        reports.append(
            IdentifierReport(
                identifier=name,
                class_noun=class_noun,
                prompt=f"a {name} {class_noun}",
                pieces=_pieces(components, ids),
                chance_cosine=chance_cosine,
                num_unknown=sum(i in tokenizer.all_special_ids for i in ids),
                is_word=len(ids) == 1 and ids[0] not in tokenizer.all_special_ids,
                added=_added_inside(tokenizer, ids),
                shared_with_noun=_texts(tokenizer, [i for i in dict.fromkeys(ids) if i in noun_ids]),
                same_tokens_as=tuple(other for other in names if other != name and token_ids[other] == ids),
                num_truncated=_num_truncated(tokenizer, f"a {name} {class_noun}"),
                prior_strength=_ratio(float(change.mean()), float(noun_change.mean())),
                word_strength=_ratio(word_change, float(noun_change.mean())),
                relative_strength=_ratio(float(change.mean()), word_change),
                relative_error=_relative_error(change, word_changes),
                words=tuple(words),
            )
        )
    return tuple(reports)


def _is_rare(tokenizer: CLIPTokenizer, word: str) -> bool:
    ids = tokenizer(word, add_special_tokens=False).input_ids
    return len(ids) != 1 or ids[0] in tokenizer.all_special_ids or ids[0] >= _NUM_COMMON


def _ratio(numerator: float, denominator: float) -> float:
    """Return a ratio of squared changes, 0 of 0 being 0: where captions are not read, rounding alone is left."""
    return numerator / max(denominator, _ROUNDING) if numerator > _ROUNDING else 0.0


def _relative_error(change: Tensor, word_changes: Tensor) -> float:
    """Return the jackknife standard error (Efron 1982) of a relative strength over the paths.

    change: (paths,). word_changes: (words, paths).
    """
    count = len(change)
    without = [[path for path in range(count) if path != left_out] for left_out in range(count)]
    ratios = np.array(
        [_ratio(float(change[paths].mean()), float(word_changes[:, paths].mean(dim=1).median())) for paths in without]
    )
    return float(np.sqrt((count - 1) * ratios.var()))


def _pieces(components: Components, ids: Sequence[int]) -> tuple[Piece, ...]:
    table = components.text_encoder.get_input_embeddings().weight
    pieces = []
    for i in ids:
        near = nearest_words(components.tokenizer, table[[i]], table, _NUM_NEAREST, exclude=[i])[0]
        pieces.append(Piece(_texts(components.tokenizer, [i])[0], i, tuple(near)))
    return tuple(pieces)


def _texts(tokenizer: CLIPTokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(readable(piece) for piece in tokenizer.convert_ids_to_tokens(list(ids)))


def _added_inside(tokenizer: CLIPTokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    added = tokenizer.added_tokens_decoder
    found = (i for i in dict.fromkeys(ids) if i in added and i not in tokenizer.all_special_ids)
    return tuple(str(added[i]) for i in found) if len(ids) > 1 else ()


def _num_truncated(tokenizer: CLIPTokenizer, prompt: str) -> int:
    return max(0, len(tokenizer(prompt).input_ids) - int(tokenizer.model_max_length))


def _ordinary_words(tokenizer: CLIPTokenizer, class_noun: str) -> list[str]:
    """Return words spread evenly over a vocabulary, other than the class noun's.

    Pair encoding builds long tokens of short ones: one that ends a word and that no other is built of is a whole word.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    parts = {part for pair in model["merges"] for part in pair}
    ends = (
        token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1]) if token.endswith(_END_OF_WORD)
    )
    words = [token.removesuffix(_END_OF_WORD) for token in ends if token not in parts]
    words = [word for word in words if len(word) >= _SHORTEST_WORD and word.isascii() and word.isalpha()]
    words = [word for word in words if word not in class_noun.lower().split()]
    if not words:
        raise SettingsError(
            "tokenizer", "holds no whole words to compare an identifier with; expected a CLIP vocabulary."
        )
    count = min(_NUM_WORDS, len(words))
    return [words[(2 * i + 1) * len(words) // (2 * count)] for i in range(count)]


def _changes(
    components: Components,
    captions: Sequence[str],
    class_noun: str,
    seed: int,
    num_noises: int,
    size_px: int | None,
    progress: Callable[[int], object] | None,
) -> Tensor:
    """Return the mean squared difference of the noise predicted for each caption and for "a NOUN", (captions, paths).

    It is measured at the same noisy images for every caption, on the base's own way from noise to images of "a NOUN":
    DDIM (Song et al. 2021, eq. 12, eta = 0) without guidance, in a few steps. There the denoiser sees what it was
    trained on; of Gaussian latents, which stay white at every timestep, it has learnt nothing at low noise.
    """
    unet, alpha_bars = components.unet, components.scheduler.alphas_cumprod.double().tolist()
    size = unet.config.sample_size
    if size_px is not None:
        size = size_px // components.vae_scale_factor
    shape = (num_noises, unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    draws = generator(seed, "identifiers").standard_normal(shape, dtype=np.float32)
    noisy = torch.from_numpy(draws).to(unet.device)
    conditioner = TextConditioner(components.tokenizer, components.text_encoder)
    states = torch.cat([conditioner.encode([caption]) for caption in [f"a {class_noun}", *captions]])
    rows = torch.cartesian_prod(torch.arange(len(states)), torch.arange(num_noises)).to(unet.device)
    # the middles of equal parts of the schedule, from the noisiest
    timesteps = [round((i + 0.5) * len(alpha_bars) / _NUM_TIMESTEPS) for i in reversed(range(_NUM_TIMESTEPS))]
    changes = torch.zeros(len(captions), num_noises, device=unet.device)
    for timestep, following in zip(timesteps, [*timesteps[1:], 0], strict=True):
        predicted = []
        for batch in rows.split(_BATCH_SIZE):
            caption, path = batch.T
            predicted.append(unet(noisy[path].to(unet.dtype), timestep, states[caption].to(unet.dtype)).sample.float())
            if progress is not None:
                progress(len(batch))
        outputs = torch.cat(predicted).view(len(states), *shape)
        x0, noise = _x0_and_noise(outputs, noisy, alpha_bars[timestep], components.prediction_type)
        changes += (noise[1:] - noise[0]).square().mean(dim=(2, 3, 4)) / _NUM_TIMESTEPS
        noisy = alpha_bars[following] ** 0.5 * x0[0] + (1 - alpha_bars[following]) ** 0.5 * noise[0]
    if not changes.isfinite().all():
        raise NonFiniteError("prior strength", "the U-Net predicts numbers that are not finite. Use float32.")
    return changes.cpu()


def _x0_and_noise(
    output: Tensor, noisy: Tensor, alpha_bar: float, prediction_type: PredictionType
) -> tuple[Tensor, Tensor]:
    """Return what a denoiser's output says of the clean image and of the noise (Salimans and Ho 2022, appendix D)."""
    signal, spread = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if prediction_type == "epsilon":
        return (noisy - spread * output) / signal, output
    if prediction_type == "sample":
        return output, (noisy - signal * output) / spread
    return signal * noisy - spread * output, signal * output + spread * noisy
