"""What an evaluation found: pictures and numbers, as the page shows them and result.json keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from pipelines.metrics.distances import Estimate
from pipelines.metrics.estimates import finite
from pipelines.metrics.ladder import GREEN

Section = Literal["learning", "forgetting", "copying", "diversity"]


@dataclass(frozen=True)
class Kind:
    """One measure: how it is called, what it says, and which way is better.

    better: "up", "down", or "one" where 1 is as the reference. neutral: the value that says nothing, of the base model,
    of chance or of real images; None where no value does.
    """

    title: str
    section: Section
    better: Literal["up", "down", "one"]
    meaning: str
    neutral: float | None = None


KINDS: Mapping[str, Kind] = {
    "rung": Kind(
        "rung",
        "learning",
        "up",
        "0 unchanged, 1 moved, 2 recognisable, 3 overlapping with real pictures, 4 not told apart from them",
    ),
    "times": Kind(
        "distance, times real",
        "learning",
        "one",
        "how many times as far from held-out real pictures as training pictures are",
        1.0,
    ),
    "skill": Kind(
        "skill",
        "learning",
        "up",
        "share of the way from the base (0) to real pictures through the base's autoencoder (1), distances not squared",
        0.0,
    ),
    "right_caption": Kind(
        "right caption",
        "learning",
        "up",
        "share of pictures that a classifier of real ones, which may say none of these, names rightly; the floor is "
        "a guess",
    ),
    "told": Kind(
        "told from real",
        "learning",
        "down",
        "how often a classifier tells unseen drawn from real pictures; the floor is real against real, or a coin",
    ),
    "density": Kind(
        "density",
        "learning",
        "up",
        "how densely drawn pictures lie among the real ones; the floor is other real pictures",
    ),
    "fid": Kind(
        "FID", "learning", "down", "Frechet distance to held-out images; the floor is other real images, as many"
    ),
    "kid": Kind("KID", "learning", "down", "kernel distance to held-out images, unbiased; the floor is real images"),
    "cmmd": Kind(
        "CMMD", "learning", "down", "1,000 times the distance under a Gaussian kernel; the floor is other real images"
    ),
    "tint": Kind("tint", "learning", "down", "mean difference of the channels of slices, which are grey", 0.0),
    "drift": Kind("noise drift", "forgetting", "down", "change of the noise prediction over the base's own error", 0.0),
    "drift_class": Kind("noise drift, class", "forgetting", "down", "the same on the ring of the class word", 0.0),
    "drift_related": Kind("noise drift, related", "forgetting", "down", "the same on the ring of related prompts", 0.0),
    "drift_unrelated": Kind(
        "noise drift, unrelated", "forgetting", "down", "the same on the ring of unrelated prompts", 0.0
    ),
    "paired": Kind(
        "paired drift",
        "forgetting",
        "down",
        "distance of same-seed images over that of base images of other seeds",
        0.0,
    ),
    "prior": Kind(
        "prior distance", "forgetting", "down", "distance to base images of the rings; the floor is base against base"
    ),
    "leak": Kind(
        "leak", "forgetting", "down", "share of images of unrelated prompts taken for the concept, over base", 0.0
    ),
    "saturation": Kind("saturation kept", "forgetting", "one", "colour of unrelated images over the base's", 1.0),
    "likeness": Kind(
        "class like the concept", "forgetting", "down", "mean cosine of class images and concept, less base's", 0.0
    ),
    "copy_auc": Kind(
        "copy AUC", "copying", "down", "0.5: no nearer to training images than held-out images are; 1: copies", 0.5
    ),
    "flagged": Kind(
        "near-copies", "copying", "down", "share nearer to training than 95 % of held-out images; 5 % expected", 0.05
    ),
    "vendi": Kind(
        "Vendi ratio", "diversity", "one", "effective number of different images, over as many real ones", 1.0
    ),
    "pairwise": Kind(
        "pair distance ratio", "diversity", "one", "mean distance of two images of a prompt, over real ones", 1.0
    ),
    "coverage": Kind(
        "coverage",
        "diversity",
        "up",
        "share of real pictures with a drawn neighbour; the floor is other real pictures in place of the drawn ones",
    ),
    "class_coverage": Kind(
        "class coverage",
        "diversity",
        "up",
        "how evenly a classifier of real images names its classes in images of the class word; the floor is the base's",
    ),
}


@dataclass(frozen=True)
class Score:
    """A number with its 95 % interval, its sample count, what it was measured with, and what may be said.

    words: the verdict, "" where the interval says all. floor: what chance, or base against base, gives.
    """

    value: float | None
    low: float | None
    high: float | None
    num_images: int
    extractor: str
    words: str = ""
    floor: float | None = None

    @staticmethod
    def of(estimate: Estimate, extractor: str, words: str = "", floor: float | None = None) -> Score:
        """Return the score of an estimate; below 10 images its words are "no verdict"."""
        said = "no verdict below 10 images" if estimate.verdict == "none" else words
        return Score(
            finite(estimate.value),
            finite(estimate.low),
            finite(estimate.high),
            estimate.num_images,
            extractor,
            said,
            floor,
        )

    @staticmethod
    def none(why: str) -> Score:
        """Return the score of what could not be measured, with the reason."""
        return Score(None, None, None, 0, "", why)


@dataclass(frozen=True)
class Model:
    """A model of the evaluation. run: of which run, "base" for the base. is_real: real images, in a model's place."""

    label: str
    run: str
    step: int | None
    weight: float
    method: str
    is_base: bool
    image_visits: int | None = None
    epochs: float | None = None
    is_real: bool = False


@dataclass(frozen=True)
class Question:
    """A prompt as it was asked. num_tokens_cut: how many tokens of it are not read."""

    text: str
    base_text: str
    group: str
    ring: int | None
    negative: str
    num_tokens_cut: int = 0


@dataclass(frozen=True)
class Picture:
    """One image: numbers of its model, prompt and sampler, its seed, and the key under which the store has it."""

    model: int
    prompt: int
    sampling: int
    seed: int
    key: str


@dataclass(frozen=True)
class Measured:
    """All scores of one model under one sampler, by the names in KINDS."""

    model: int
    sampling: int
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Drifted:
    """A pair of images of one prompt and seed, of the base and of a model, and their distance."""

    model: int
    prompt: int
    seed: int
    base_key: str
    key: str
    distance: float


@dataclass(frozen=True)
class Copied:
    """A generated image and the window of a training image most like it. ncc: their correlation, at most 1.

    shift_px: rows and columns by which the window's content is moved in the image, as it may reach beyond the training
    image. place: where the window is. difference_key: the picture of their difference, where the training image is
    moved and mirrored to fit.
    """

    model: int
    prompt: int
    seed: int
    key: str
    training_key: str
    difference_key: str
    ncc: float
    pose: str
    shift_px: tuple[int, int]
    flagged: bool
    place: str


@dataclass(frozen=True)
class Described:
    """One physical descriptor of a model's slices of one prompt, beside real ones."""

    model: int
    prompt: int
    name: str
    meaning: str
    unit: str
    real: float | None
    generated: float | None
    ratio: float | None
    low: float | None
    high: float | None
    words: str


@dataclass(frozen=True)
class Confusion:
    """What a classifier of real images names a model's images.

    counts: rows by the caption asked for, columns by the class named, both in the order of classes, and a last column
    for none of these. real_counts: of the held-out real images of each class, how many it names rightly, and how many
    there are.
    """

    model: int
    classes: tuple[str, ...]
    classifier: str
    counts: tuple[tuple[int, ...], ...]
    real_counts: tuple[tuple[int, int], ...]
    accuracy: Score
    real_accuracy: Score


@dataclass(frozen=True)
class Between:
    """Where a model's images of a prompt lie between the real images of two captions.

    share: 0 at the one, 1 at the other. residual: from the line, in standard deviations of one real image. mixed: 0
    where each image lies between, 1 where some are of the one and some of the other. places: along the line, of each
    image of the one, of the model, and of the other.
    """

    model: int
    prompt: int
    one: str
    other: str
    share: Score
    residual: Score
    mixed: Score
    places: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Curve:
    """A mean over images with its 95 % band, by the x of its profile."""

    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    num_images: int


@dataclass(frozen=True)
class Profile:
    """A model's images as a whole beside held-out real ones, over all its captions.

    name: "spectrum" for power in dB against cycles per px, else the tone, against 0 to 1, of which it has the shares.
    """

    model: int
    name: Literal["spectrum", "grey", "red", "green", "blue"]
    x: tuple[float, ...]
    generated: Curve
    real: Curve


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss of a run on held-out images at fixed noise, after a step."""

    run: str
    step: int
    image_visits: int | None
    epochs: float | None
    value: float


Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True)
class Verdict:
    """What may be said of one run: which checkpoint, why, and one sentence each on what it learnt, forgot and copied.

    rung: 0 to 4, None where it cannot be judged; see `metrics.ladder`. advice: what to do next. forgot_tone,
    copied_tone: how good the news is. caveats: what limits these words. onset: the step from which on it forgets; None
    where none was found.
    """

    run: str
    model: int
    step: int | None
    reason: str
    rung: int | None
    learnt: str
    advice: str
    forgot: str
    forgot_tone: Tone
    copied: str
    copied_tone: Tone
    caveats: tuple[str, ...] = ()
    onset: int | None = None
    forgetting_limit: float | None = None

    @property
    def learnt_tone(self) -> Tone:
        """Good from rung 3 on, where the pictures may stand for real ones."""
        if self.rung is None:
            return "open"
        return "good" if self.rung >= GREEN else "bad"


@dataclass(frozen=True)
class Claim:
    """A claim and what the evaluation says to it."""

    text: str
    verdict: Literal["confirmed", "contradicted", "inconclusive"]
    effect: str


@dataclass(frozen=True)
class Result:
    """An evaluation.

    samplings: how each sampler is called. statements: what was left out or replaced, and why. cost: rows of named
    values by run. provenance: what is needed to do it again, in titled values.
    """

    title: str
    models: tuple[Model, ...]
    prompts: tuple[Question, ...]
    samplings: tuple[str, ...]
    pictures: tuple[Picture, ...]
    measured: tuple[Measured, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    drifted: tuple[Drifted, ...] = ()
    copied: tuple[Copied, ...] = ()
    held_out_ncc: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    described: tuple[Described, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    between: tuple[Between, ...] = ()
    profiles: tuple[Profile, ...] = ()
    losses: tuple[HeldOutLoss, ...] = ()
    cost: tuple[Mapping[str, str], ...] = ()
    claims: tuple[Claim, ...] = ()
    statements: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> str:
        """Return all of it as JSON text, numbers finite."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def scores_of(self, model: int, sampling: int = 0) -> Mapping[str, Score]:
        """Return the scores of a model under a sampler; {} where none were measured."""
        return next((m.scores for m in self.measured if (m.model, m.sampling) == (model, sampling)), {})
