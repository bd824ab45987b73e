"""Prompt files: one prompt in each line, or YAML with sets of prompts and three rings of forgetting prompts.

negative_prompt: blurry                 # of every prompt that has none of its own
sets:
  learnt:
    - "{caption}"                       # the captions of each run, in its own words
    - prompt: sf_dry sf_warp
      seeds: 0-3                        # and negative_prompt, num_inference_steps, guidance_scale
    - prompt: sf_compacted              # not seen in training: where does it lie between two captions that were?
      between: [sf_dry_compacted, sf_injected]
    - template: a {colour} {concept}
      over: {colour: [red, blue]}
      concepts: [sf_dry]                # {concept}: every caption of these concepts
rings:                                  # what a model should not forget, from near to far
  class: [a texture]
  related: [a striped texture]
  unrelated: [two red circles]
claims: []                              # what is expected of the runs, as `asked_claims` says
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from data.concepts import CONCEPTS, load_concept
from data.errors import SettingsError, nearest
from data.strict_yaml import LARGE, read_yaml
from data.texts import says_nothing
from pipelines.evaluation.asked_claims import AskedClaim, read_claims
from pipelines.evaluation.result import KINDS
from pipelines.prompts import parse_seeds, read_prompts

CAPTION = "{caption}"  # stands for every caption of the run that is asked
RINGS = ("class", "related", "unrelated")
MOST_PROMPTS = 10_000
MOST_IMAGES = 1_000_000  # that the seeds of a file ask for
MOST_CHARACTERS = 5_000  # of a prompt; a text encoder reads 77 tokens
MOST_STEPS = 1_000  # of an image, the timesteps that models are trained with
_KEYS = ("negative_prompt", "sets", "rings", "claims")
_ENTRY_KEYS = (
    "prompt",
    "template",
    "over",
    "concepts",
    "negative_prompt",
    "seeds",
    "num_inference_steps",
    "guidance_scale",
    "between",
)
_NAME = re.compile(r"[\w-][\w .-]{0,39}")
_FIELD = re.compile(r"\{(\w+)\}")
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Prompt:
    """A prompt, where it stands, and what it says of its own drawing; None is as the command line says.

    group: the name of its set or ring. ring: 0, 1, 2 from near to far, None outside the rings. between: two captions
    between whose real images its images are placed.
    """

    text: str
    group: str
    ring: int | None = None
    negative: str = ""
    seeds: tuple[int, ...] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    between: tuple[str, str] | None = None


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file in its order, each once. num_repeated: how many further times one stood there."""

    path: Path
    sha256: str
    prompts: tuple[Prompt, ...]
    num_repeated: int
    claims: tuple[AskedClaim, ...] = ()

    @property
    def has_rings(self) -> bool:
        """Whether the file has prompts by which forgetting can be measured."""
        return any(prompt.ring is not None for prompt in self.prompts)


def read_prompt_file(path: Path) -> PromptFile:
    """Return the prompts of a text file, or of a YAML file where its name ends with .yaml or .yml.

    Raises SettingsError for a file that is missing, not UTF-8 or without a prompt, with everything that is wrong.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        prompts, claims = _from_yaml(path)
    else:
        prompts, claims = [Prompt(text, "prompts") for text in read_prompts(path)], ()
    if len(prompts) > MOST_PROMPTS:
        raise SettingsError(
            str(path), f"holds {len(prompts)} prompts, expected at most {MOST_PROMPTS}. Split the file."
        )
    once = tuple(dict.fromkeys(prompts))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PromptFile(path, digest, once, len(prompts) - len(once), claims)


def _from_yaml(path: Path) -> tuple[list[Prompt], tuple[AskedClaim, ...]]:
    content = _read_mapping(path)
    problems = [f"{key}: unknown key.{nearest(str(key), _KEYS)}" for key in content if key not in _KEYS]
    default = Prompt("", "", negative=_text(content, "negative_prompt", "negative_prompt", problems) or "")
    prompts: list[Prompt] = []
    for section, known in (("sets", None), ("rings", RINGS)):
        groups = content.get(section) or {}
        if not isinstance(groups, dict):
            problems.append(f"{section}: found {type(groups).__name__}, expected names with lists of prompts.")
            continue
        for name, entries in groups.items():
            where = f"{section}.{name}"
            if known is not None and name not in known:
                problems.append(f"{where}: unknown ring.{nearest(str(name), known)}")
            elif not isinstance(name, str) or not _NAME.fullmatch(name):
                problems.append(f"{where}: expected a name of 1 to 40 letters, digits, spaces, '.', '_' or '-'.")
            elif not isinstance(entries, list) or not entries:
                problems.append(f"{where}: found {_shown(entries)}, expected a list of one or more prompts.")
            else:
                group = replace(default, group=name, ring=None if known is None else known.index(name))
                for number, entry in enumerate(entries):
                    if len(prompts) <= MOST_PROMPTS:  # what is more is refused, and need not be made
                        prompts += _entry(entry, f"{where}[{number}]", group, problems)
    claims = read_claims(content.get("claims", []), tuple(KINDS), problems)
    problems += [
        f"claims: {claim.text}: one evaluation is of one data. Leave data out." for claim in claims if claim.data
    ]
    num_images = sum(len(prompt.seeds) for prompt in prompts if prompt.seeds)
    if num_images > MOST_IMAGES:
        problems.append(f"its seeds ask for {num_images:,} images, expected at most {MOST_IMAGES:,}. Ask for fewer.")
    if not prompts and not problems:
        problems.append("holds no prompt. Write sets: {name: [prompt, …]}, rings: {class: [prompt, …]}, or both.")
    if problems:
        raise SettingsError(str(path), *problems)
    return prompts, claims


def _read_mapping(path: Path) -> dict[Any, Any]:
    content = read_yaml(path, "a text or YAML file with prompts", most_bytes=LARGE)
    if not isinstance(content, dict):
        raise SettingsError(
            str(path),
            f"found {_shown(content)}, expected the keys {', '.join(_KEYS)}. "
            "A list with one prompt in each line is a text file: give it a name that ends with .txt.",
        )
    return content


def _entry(entry: object, where: str, group: Prompt, problems: list[str]) -> list[Prompt]:
    """Return the prompts of one entry; add what is wrong with it to the problems."""
    if isinstance(entry, str):
        entry = {"prompt": entry}
    if not isinstance(entry, dict):
        problems.append(f"{where}: found {_shown(entry)}, expected a text, or the keys {', '.join(_ENTRY_KEYS)}.")
        return []
    before = len(problems)
    problems += [
        f"{where}.{key}: unknown key.{nearest(str(key), _ENTRY_KEYS)}" for key in entry if key not in _ENTRY_KEYS
    ]
    if ("prompt" in entry) == ("template" in entry):
        problems.append(f"{where}: expected either prompt or template.")
        return []
    kind = "prompt" if "prompt" in entry else "template"
    text = _text(entry, kind, f"{where}.{kind}", problems)
    if not text or says_nothing(text):
        problems.append(f"{where}: its {kind} is empty; an empty prompt is written as negative_prompt only.")
        return []
    texts = [text]
    if len(text) > MOST_CHARACTERS:
        problems.append(f"{where}: its {kind} has {len(text):,} characters, expected at most {MOST_CHARACTERS:,}.")
        return []
    if group.ring is not None and CAPTION in text:
        problems.append(f"{where}: {CAPTION} is what a run learns, and rings are what it should not forget. Move it.")
    if kind == "template":
        texts = _filled(text, _fields(entry, where, problems), where, problems)
    elif "over" in entry or "concepts" in entry:
        problems.append(f"{where}: over and concepts fill a template. Write template instead of prompt.")
    negative = _text(entry, "negative_prompt", f"{where}.negative_prompt", problems)
    prompt = replace(
        group,
        negative=group.negative if negative is None else negative,
        seeds=_seeds(entry, where, problems),
        num_inference_steps=_number(entry, "num_inference_steps", where, problems, int),
        guidance_scale=_number(entry, "guidance_scale", where, problems, float),
        between=_between(entry, where, problems),
    )
    return [] if len(problems) > before else [replace(prompt, text=text.strip()) for text in texts]


def _fields(entry: Mapping[Any, Any], where: str, problems: list[str]) -> dict[str, list[str]]:
    """Return the words that a template's fields stand for."""
    over = entry.get("over", {})
    if not isinstance(over, dict) or not all(isinstance(words, list) and words for words in over.values()):
        problems.append(f"{where}.over: found {_shown(over)}, expected fields with lists of words.")
        over = {}
    fields = {str(name): [str(word) for word in words] for name, words in over.items()}
    if len(fields) < len(over):
        problems.append(f"{where}.over: two of its fields have one name, as 1 and '1' have. Rename one.")
    concepts = entry.get("concepts")
    if concepts is None:
        return fields
    if not isinstance(concepts, list) or not concepts:
        problems.append(f"{where}.concepts: found {_shown(concepts)}, expected a list of names of concepts.")
        return fields
    captions: list[str] = []
    for name in dict.fromkeys(map(str, concepts)):
        try:
            captions += load_concept(name, CONCEPTS).captions
        except SettingsError as error:
            problems += [f"{where}.concepts: {problem}" for problem in error.problems]
    fields["concept"] = list(dict.fromkeys(captions))
    return fields


def _filled(template: str, fields: Mapping[str, Sequence[str]], where: str, problems: list[str]) -> list[str]:
    """Return a template with every combination of its fields' words."""
    named = set(_FIELD.findall(template)) - {"caption"}
    problems += [f"{where}: {{{name}}} has no words. List them under over." for name in sorted(named - fields.keys())]
    problems += [f"{where}: the template holds no {{{name}}}." for name in sorted(fields.keys() - named)]
    combinations = 1
    for words in fields.values():
        combinations *= len(words)
    if combinations > MOST_PROMPTS:
        problems.append(f"{where}: gives {combinations} prompts, expected at most {MOST_PROMPTS}.")
        return []
    longest = len(template) + sum(
        template.count(f"{{{name}}}") * max(map(len, words), default=0) for name, words in fields.items()
    )
    if longest > MOST_CHARACTERS:
        problems.append(f"{where}: gives prompts of {longest:,} characters, expected at most {MOST_CHARACTERS:,}.")
        return []
    names = list(fields)
    return [_replaced(template, dict(zip(names, words, strict=True))) for words in itertools.product(*fields.values())]


def _replaced(template: str, words: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: words.get(match[1], match[0]), template)


def _text(entry: Mapping[Any, Any], key: str, where: str, problems: list[str]) -> str | None:
    found = entry.get(key)
    if found is not None and (not isinstance(found, str) or "\0" in found):
        problems.append(f"{where}: found {_shown(found)}, expected a text. Put it in quotes.")
        return None
    return found


def _seeds(entry: Mapping[Any, Any], where: str, problems: list[str]) -> tuple[int, ...] | None:
    if "seeds" not in entry:
        return None
    try:
        return tuple(parse_seeds(str(entry["seeds"])))
    except SettingsError as error:
        problems += [f"{where}.seeds: {problem}" for problem in error.problems]
        return None


def _between(entry: Mapping[Any, Any], where: str, problems: list[str]) -> tuple[str, str] | None:
    found = entry.get("between")
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(one, str) and one.strip() for one in found):
        problems.append(f"{where}.between: found {_shown(found)}, expected two captions.")
        return None
    one, other = (str(caption).strip() for caption in found)
    if one == other:
        problems.append(f"{where}.between: found {one!r} twice, expected two captions that differ.")
    return one, other


def _number(entry: Mapping[Any, Any], key: str, where: str, problems: list[str], kind: type[_Number]) -> _Number | None:
    found = entry.get(key)
    if found is None:
        return None
    least, most = (1, MOST_STEPS) if kind is int else (0, 1_000)
    fits = isinstance(found, int if kind is int else int | float) and not isinstance(found, bool)
    if not fits or not least <= found <= most:
        problems.append(f"{where}.{key}: found {_shown(found)}, expected a number from {least} to {most}.")
        return None
    return kind(found)


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
