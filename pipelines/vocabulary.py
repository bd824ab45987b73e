"""A CLIP tokenizer made from a list of words."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

MAX_LENGTH = 77  # as in every Stable Diffusion 1.x and 2.x
_END_OF_WORD = "</w>"


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """Return a byte-level CLIP tokenizer in which each of the words (lower-case letters) is one token.

    Any other text is spelt in the pieces that these words are made of, in the end in bytes; nothing is unknown.
    """
    words = sorted(set(words))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix=_END_OF_WORD))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    # large enough for every merge: training ends when each word has become one token
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix=_END_OF_WORD,
        show_progress=False,
    )
    bpe.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(byte + _END_OF_WORD for byte in alphabet), *("".join(pair) for pair in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)
    tokenizer.model_max_length = MAX_LENGTH
    return tokenizer
