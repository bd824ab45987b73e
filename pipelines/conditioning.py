"""Captions as the denoiser reads them."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.loaders import TextualInversionLoaderMixin
from torch import LongTensor, Tensor
from transformers import CLIPTextModel, CLIPTokenizer


class TextConditioner:
    """Tokens and text-encoder outputs of captions, the very ones that a StableDiffusionPipeline samples with."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        self._tokenizer, self.module = tokenizer, text_encoder
        self._placeholders = TextualInversionLoaderMixin()

    def token_ids(self, captions: Sequence[str]) -> LongTensor:
        """Return the ids (B, model_max_length) between start and end token, padded, cut where they do not fit.

        A placeholder of several learned vectors is spelt out.
        """
        ids: LongTensor = self._tokenizer(
            self._spelt_out(captions),
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return ids

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return the last hidden state (B, tokens, width), normalised, in the text encoder's precision."""
        states: Tensor = self.module(self.token_ids(captions).to(self.module.device))[0]
        return states.to(self.module.dtype)

    def num_truncated(self, captions: Sequence[str]) -> int:
        """Return how many captions are longer than the text encoder reads."""
        lengths = (len(ids) for ids in self._tokenizer(self._spelt_out(captions)).input_ids)
        return sum(length > self._tokenizer.model_max_length for length in lengths)

    def _spelt_out(self, captions: Sequence[str]) -> list[str]:
        spelt: list[str] = self._placeholders.maybe_convert_prompt(list(captions), self._tokenizer)
        return spelt
