"""Texts that stand under images or are asked of a model: which of them say something, and can be read at all."""

from __future__ import annotations

import unicodedata


def says_nothing(text: str) -> bool:
    """Return whether a text shows nothing: no letter, digit, sign or symbol.

    Blanks, no-break spaces, joiners, byte order marks and other characters that are not seen are nothing.
    """
    return not any(unicodedata.category(letter)[0] in "LNPSM" for letter in text)


def text_problems(text: str, what: str) -> list[str]:
    """Return what makes a text unfit for a tokenizer or a file of UTF-8. what: how a sentence about it begins."""
    if "\0" in text:
        return [f"{what} holds a NUL character. Remove it."]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return [f"{what} {text!a} is no valid Unicode. Write it anew as UTF-8."]
    return []
