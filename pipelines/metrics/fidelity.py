"""How near generated images are to real ones, measured between the base model and other real images.

The absolute value of a distance says little: it depends on extractor, image size and number of images. What is told is
the skill, the share of the base model's distance to real images that fine-tuning has closed (`distances.skill`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from data.randomness import generator
from pipelines.metrics.distances import (
    FEWEST_FOR_A_VERDICT,
    FEWEST_WITHOUT_WARNING,
    Discrepancy,
    Estimate,
    Kernel,
    bootstrap_interval,
    cubic_kernel,
    linear_kernel,
    skill,
    unit_vectors,
)
from pipelines.metrics.estimates import written
from pipelines.metrics.inputs import check_widths, checked_features

FidelityVerdict = Literal["no verdict", "undefined", "worse", "inconclusive", "better", "as near as real images"]

SIGNIFICANT = 0.05
_IN_FULL = {
    "tuned": "tuned images",
    "base": "base images",
    "references": "references",
    "other_real": "other real images",
}

IN_WORDS: dict[FidelityVerdict, str] = {
    "no verdict": f"no verdict: fewer than {FEWEST_FOR_A_VERDICT} images in a set, where every distance is near chance",
    "undefined": "undefined: the base model is no farther from the real images than other real images are",
    "worse": "farther from the real images than the base model",
    "inconclusive": "inconclusive: the interval holds the base model's value",
    "better": "nearer to the real images than the base model",
    "as near as real images": "not told apart from the real images, at this number of images",
}


@dataclass(frozen=True)
class SkillScore:
    """One distance of the tuned model to the real images, between the base model and the floor.

    tuned, base, floor: the distance of their images to the references. skill: 0 as the base, 1 as other real images;
    None where undefined. p_tuned, p_base: permutation tests of the tuned and of the base images against the references.
    """

    tuned: Estimate
    base: Estimate
    floor: Estimate
    skill: Estimate | None
    p_tuned: float
    p_base: float

    @property
    def verdict(self) -> FidelityVerdict:
        """What the interval of the skill allows to say; see IN_WORDS."""
        if "none" in (self.tuned.verdict, self.base.verdict):
            return "no verdict"
        if self.skill is None:
            return "undefined"
        if self.skill.high < 0:
            return "worse"
        if self.skill.low <= 0:
            return "inconclusive"
        alike = self.skill.high >= 1 and self.p_tuned > SIGNIFICANT
        return "as near as real images" if alike else "better"

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "tuned": written(self.tuned),
            "base": written(self.base),
            "floor": written(self.floor),
            "skill": written(self.skill),
            "p_tuned_against_real": self.p_tuned,
            "p_base_against_real": self.p_base,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Fidelity:
    """Squared centroid distance (the headline) and kernel distance of one model's images of one prompt.

    counts: images of each set. extractor_id: only numbers of one id may be compared.
    """

    scd: SkillScore
    kid: SkillScore
    counts: Mapping[str, int]
    extractor_id: str

    @property
    def caveats(self) -> tuple[str, ...]:
        """What to print beside the numbers; () where there is nothing to warn of."""
        found = self.counts["references"]
        if found < FEWEST_FOR_A_VERDICT:
            return (f"{found} references: no verdict on fidelity below {FEWEST_FOR_A_VERDICT}",)
        if found < FEWEST_WITHOUT_WARNING:
            return (f"{found} references: a weak verdict, {FEWEST_WITHOUT_WARNING} make a sound one",)
        return ()

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {
            "scd": self.scd.as_json(),
            "kid": self.kid.as_json(),
            "counts": dict(self.counts),
            "extractor": self.extractor_id,
            "caveats": list(self.caveats),
        }


def fidelity(
    tuned: np.ndarray,
    base: np.ndarray,
    references: np.ndarray,
    other_real: np.ndarray,
    *,
    extractor_id: str,
    seed: int = 0,
    block_length: int = 1,
    num_permutations: int = 1000,
) -> Fidelity:
    """Return both distances of the tuned images to the references, as skills between base model and real images.

    Features (N, D) of one prompt: tuned and base with the same seeds; references: real images held out of training;
    other_real: real images that are none of the references, such as the training images; their distance is the floor.
    seed: give `estimates.prompt_seed(seed, place)`, where skills are averaged over prompts. block_length: so many
    consecutive references, and other real images, are drawn together: crops of one volume in the order of their depth
    depend on each other, and intervals that ignore it are too narrow. The permutation tests take all as independent.
    Raises DataError for fewer than two images in a set, features that are not finite or of different widths.
    """
    sets = {"tuned": tuned, "base": base, "references": references, "other_real": other_real}
    sets = {name: checked_features(features, _IN_FULL[name], at_least=2) for name, features in sets.items()}
    check_widths(**sets)
    scores = {
        name: _skill_score(sets, kernel, seed, block_length, num_permutations)
        for name, kernel in (("scd", linear_kernel), ("kid", cubic_kernel))
    }
    return Fidelity(scores["scd"], scores["kid"], {name: len(each) for name, each in sets.items()}, extractor_id)


def permutation_p_value(
    x: np.ndarray, y: np.ndarray, kernel: Kernel, *, seed: int, num_permutations: int = 1000
) -> float:
    """Return how often sets shuffled together are as far apart as x (n, D) and y (m, D), by one kernel; in (0, 1].

    (1 + shuffles at least as far) / (1 + shuffles), which is valid at any number of shuffles: B. Phipson and G. Smyth,
    "Permutation p-values should never be zero", 2010. All shuffles share one Gram matrix of n + m rows.
    """
    shuffled = _shuffled_distances(x, y, kernel, seed=seed, num_shuffles=num_permutations)
    as_far = int((shuffled[1:] >= shuffled[0] - 1e-12).sum())
    return (1 + as_far) / (1 + num_permutations)


def split_null(x: np.ndarray, y: np.ndarray, kernel: Kernel = linear_kernel, *, seed: int) -> Estimate:
    """Return the distance of two sets of one law, with draws from shuffling them together: what chance alone gives.

    x, y: features (n, D), (m, D), such as base images of two sets of seeds. The 95 % quantile of the draws is the
    limit that `selection.onset` takes.
    """
    x = checked_features(x, "first set", at_least=2)
    y = checked_features(y, "second set", at_least=2)
    check_widths(first=x, second=y)
    distances = _shuffled_distances(x, y, kernel, seed=seed, num_shuffles=1000)
    return Estimate(float(distances[0]), distances[1:], min(len(x), len(y)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values of several claims, adjusted so that one false claim in all of them has their level.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def _skill_score(
    sets: Mapping[str, np.ndarray], kernel: Kernel, seed: int, block_length: int, num_permutations: int
) -> SkillScore:
    def distance(name: str) -> Estimate:
        pair = Discrepancy.between(sets["references"], sets[name], kernel)
        blocks = block_length, block_length if name == "other_real" else 1
        return _in_blocks(pair, blocks, seed)

    def p_value(name: str) -> float:
        return permutation_p_value(sets["references"], sets[name], kernel, seed=seed, num_permutations=num_permutations)

    tuned, base, floor = distance("tuned"), distance("base"), distance("other_real")
    return SkillScore(tuned, base, floor, skill(tuned, base, floor), p_value("tuned"), p_value("base"))


def _in_blocks(pair: Discrepancy, lengths: tuple[int, int], seed: int) -> Estimate:
    """The distance with intervals over blocks of consecutive images of each set."""
    members = [
        (np.arange(size) // length == np.arange(-(-size // length))[:, None]).astype(np.float64)
        for size, length in zip(pair.sizes, lengths, strict=True)
    ]

    def of_blocks(x_counts: np.ndarray, y_counts: np.ndarray) -> np.ndarray:
        return pair(x_counts @ members[0], y_counts @ members[1])

    found = bootstrap_interval(of_blocks, [len(each) for each in members], seed=seed)
    return replace(found, num_images=min(pair.sizes))


def _shuffled_distances(x: np.ndarray, y: np.ndarray, kernel: Kernel, *, seed: int, num_shuffles: int) -> np.ndarray:
    """The distance of the sets as they are, then of each of the shuffled ones, (1 + num_shuffles,)."""
    pooled, n = unit_vectors(np.concatenate([x, y])), len(x)
    in_x = np.zeros((1 + num_shuffles, len(pooled)))
    in_x[0, :n] = 1
    rng = generator(seed, "shuffle", n, len(y))
    for row in in_x[1:]:
        row[rng.permutation(len(pooled))[:n]] = 1
    return _split_distances(kernel(pooled, pooled), in_x)


def _split_distances(gram: np.ndarray, in_x: np.ndarray) -> np.ndarray:
    """The unbiased squared distance of the images in x from the others, (R,), for indicators (R, n + m)."""
    in_y = 1 - in_x
    diagonal = np.diag(gram)
    with_x, with_y = in_x @ gram, in_y @ gram
    n, m = in_x.sum(1), in_y.sum(1)
    within_x = ((with_x * in_x).sum(1) - in_x @ diagonal) / (n * (n - 1))
    within_y = ((with_y * in_y).sum(1) - in_y @ diagonal) / (m * (m - 1))
    return within_x + within_y - 2 * (with_x * in_y).sum(1) / (n * m)
