"""The axes of an evaluation, and every image that their combinations ask for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.evaluation.prompt_sets import CAPTION, Prompt
from pipelines.evaluation.states import State

BASE = "base"
OWN_SCHEDULER = "own"
_KEY_VERSION = 1  # of what the name of an image is made from


@dataclass(frozen=True)
class Arm:
    """One model: a run at one state and strength, or its base.

    run: label of the run; BASE, with a number where there are several bases. weight: strength of its adapter, 1 as
    trained. base: label of the base it stands on; its own for a base.
    """

    run: str
    state: State | None
    weight: float
    base: str

    @property
    def is_base(self) -> bool:
        """Whether nothing is added to the base."""
        return self.state is None

    @property
    def model(self) -> str:
        """The run and its step: the label of the arm at strength 1."""
        return self.run if self.state is None or self.state.step is None else f"{self.run} @{self.state.step}"

    @property
    def label(self) -> str:
        """A name that no other arm has."""
        return self.model if self.weight == 1.0 else f"{self.model} ×{self.weight:g}"


@dataclass(frozen=True)
class Sampling:
    """How an image is drawn from its noise. scheduler: OWN_SCHEDULER, or a name of `drawing.SCHEDULERS`."""

    scheduler: str
    num_inference_steps: int
    guidance_scale: float

    @property
    def label(self) -> str:
        """How the sampler is called on the page."""
        return f"{self.scheduler}, {self.num_inference_steps} steps, guidance {self.guidance_scale:g}"


@dataclass(frozen=True)
class Asked:
    """A prompt as one or more runs are asked it.

    text: with the run's caption in it. base_text: what the base is asked, which does not know a new word. runs: labels;
    None is all. is_caption: of which runs it is a caption, whose images it can be compared with.
    """

    text: str
    base_text: str
    prompt: Prompt
    runs: frozenset[str] | None
    caption_of: frozenset[str]


@dataclass(frozen=True)
class Cell:
    """One image.

    asked, place: numbers of its prompt and of its sampler on the axes; prompts may change the sampler's steps and
    guidance. text: what is written to the text encoder.
    """

    arm: Arm
    asked: int
    place: int
    text: str
    negative: str
    sampling: Sampling
    seed: int

    def key(self, *, base_identity: str, arm_digest: str, size_px: int) -> str:
        """Return a name that depends on everything that the image depends on, and on nothing else."""
        content = [
            _KEY_VERSION,
            base_identity,
            arm_digest,
            self.arm.weight,
            self.text,
            self.negative,
            self.sampling.scheduler,
            self.sampling.num_inference_steps,
            self.sampling.guidance_scale,
            self.seed,
            size_px,
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:40]


def asked_of(
    prompts: Sequence[Prompt], captions: Mapping[str, Sequence[str]], base_prompts: Mapping[str, Mapping[str, str]]
) -> tuple[Asked, ...]:
    """Return the prompts with each run's captions in them, each text once for the runs whose base is asked the same.

    captions: by the label of the run. base_prompts: by the label of the run, what its base is asked in place of a
    prompt with a new word, which another run may have begun from another word. Rings are asked as they stand.
    A prompt with {caption} is asked of no run without captions.
    """
    found: list[Asked] = []
    for prompt in prompts:
        groups = _groups(prompt, captions, base_prompts)
        is_of_all = CAPTION not in prompt.text and len(groups) == 1
        for (text, base_text), runs in groups.items():
            caption_of = frozenset(label for label in runs if text in captions[label])
            found.append(Asked(text, base_text, prompt, None if is_of_all else frozenset(runs), caption_of))
    return tuple(found)


def _groups(
    prompt: Prompt, captions: Mapping[str, Sequence[str]], base_prompts: Mapping[str, Mapping[str, str]]
) -> dict[tuple[str, str], set[str]]:
    """Return the runs that are asked a prompt, by their text and their base's."""
    is_literal = CAPTION not in prompt.text
    if is_literal and (prompt.ring is not None or not captions):
        return {(prompt.text, prompt.text): set(captions)}
    groups: dict[tuple[str, str], set[str]] = {}
    for label, own in captions.items():
        for text in [prompt.text] if is_literal else [prompt.text.replace(CAPTION, caption) for caption in own]:
            groups.setdefault((text, base_prompts.get(label, {}).get(text, text)), set()).add(label)
    return groups


def cells(
    asked: Sequence[Asked], arms: Sequence[Arm], samplings: Sequence[Sampling], seeds: Sequence[int]
) -> tuple[Cell, ...]:
    """Return every image, those of one arm together and the bases first.

    A base is asked what any run on it is asked. A prompt with seeds, steps or guidance of its own has those alone.
    """
    bases_of: dict[str, set[str]] = {}
    for arm in arms:
        if not arm.is_base:
            bases_of.setdefault(arm.base, set()).add(arm.run)
    found: list[Cell] = []
    for arm in sorted(arms, key=lambda arm: not arm.is_base):
        for number, question in enumerate(asked):
            asked_of_arm = bases_of.get(arm.run, set()) if arm.is_base else {arm.run}
            if question.runs is not None and not question.runs & asked_of_arm:
                continue
            text = question.base_text if arm.is_base else question.text
            prompt = question.prompt
            for place, sampling in enumerate(samplings):
                own = _changed(sampling, prompt)
                for seed in seeds if prompt.seeds is None else prompt.seeds:
                    found.append(Cell(arm, number, place, text, prompt.negative, own, seed))
    return tuple(found)


def _changed(sampling: Sampling, prompt: Prompt) -> Sampling:
    return Sampling(
        sampling.scheduler,
        sampling.num_inference_steps if prompt.num_inference_steps is None else prompt.num_inference_steps,
        sampling.guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale,
    )
