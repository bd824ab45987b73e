"""Values with intervals: how they are resampled over images and prompts, combined, compared and written down.

All draws are keyed by a seed: two estimates made with one seed from sets of equal sizes are paired draw by draw, so
that their ratios and differences have the intervals of paired samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from data.errors import DataError
from data.randomness import derive, generator
from pipelines.metrics.distances import Estimate

NUM_RESAMPLES = 1000
NUM_HALF_SAMPLES = 200

Comparison = Literal["higher", "lower", "inconclusive", "no verdict"]


def interval_text(value: float, low: float, high: float, digits: int = 2) -> str:
    """Return a value with its interval as "0.52 [0.48, 0.55]", no zero below zero."""
    first, second, third = (f"{round(number, digits) + 0.0:.{digits}f}" for number in (value, low, high))
    return f"{first} [{second}, {third}]"


def written(estimate: Estimate | None) -> dict[str, Any] | None:
    """Return an estimate as JSON can hold it: value, low, high (95 %), num_images, verdict; None where undefined."""
    if estimate is None:
        return None
    return {
        "value": finite(estimate.value),
        "low": finite(estimate.low),
        "high": finite(estimate.high),
        "num_images": estimate.num_images,
        "verdict": estimate.verdict,
    }


def finite(value: float) -> float | None:
    """Return the value, or None where it is not finite: JSON knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def standard_error(estimate: Estimate) -> float:
    """Return the standard deviation of an estimate's draws."""
    return float(np.nanstd(estimate.draws))


def compared(one: Estimate, other: Estimate) -> Comparison:
    """Return how one value stands to another: "inconclusive" where their 95 % intervals overlap.

    "no verdict" below 10 images on either side. Intervals that do not overlap are a stricter test than an interval of
    the difference without 0; for paired values take `difference` and `sign`.
    """
    if "none" in (one.verdict, other.verdict):
        return "no verdict"
    if one.low > other.high:
        return "higher"
    return "lower" if one.high < other.low else "inconclusive"


def sign(difference: Estimate, against: float = 0.0) -> Comparison:
    """Return on which side of a value the whole 95 % interval of an estimate lies."""
    if difference.verdict == "none":
        return "no verdict"
    if difference.low > against:
        return "higher"
    return "lower" if difference.high < against else "inconclusive"


def difference(one: Estimate, other: Estimate) -> Estimate:
    """Return one - other, draw by draw."""
    return Estimate(one.value - other.value, one.draws - other.draws, min(one.num_images, other.num_images))


def ratio(one: Estimate, other: Estimate) -> Estimate | None:
    """Return one / other, draw by draw; None where other's interval reaches 0, so that the ratio says nothing."""
    if not other.low > 0:
        return None
    draws = one.draws / np.where(other.draws > 0, other.draws, np.nan)
    return Estimate(one.value / other.value, draws, min(one.num_images, other.num_images))


def share(hits: np.ndarray, *, seed: int, purpose: str) -> Estimate:
    """Return the share of hits, bool (N,), with draws of Jeffreys' posterior Beta(k + 1/2, N - k + 1/2).

    Its interval has a width even where no image or every image is a hit, as a bootstrap's has not; the end is then 0
    or 1 itself. purpose: two shares of different purposes are drawn independently.
    Source: L. Brown, T. Cai, A. DasGupta, "Interval estimation for a binomial proportion", Statistical Science 2001.
    """
    hits = np.asarray(hits, dtype=bool)
    if not hits.size:
        raise DataError(purpose, "found no image, expected at least one.")
    draws = _beta_draws(hits.mean(), hits.size, seed, purpose)
    return Estimate(float(hits.mean()), draws, hits.size)


def mean_share(groups: Sequence[np.ndarray], *, seed: int, purpose: str) -> Estimate:
    """Return the mean over groups of the share of hits in each, bool (N_g,) each, with an interval as of `share`.

    Each group counts alike, however many images it has. The draws are those of a share of so many images as would have
    the same standard error, G^2 / sum 1 / N_g, which is all of them where the groups are of one size.
    """
    known = [np.asarray(group, dtype=bool) for group in groups if len(group)]
    if not known:
        raise DataError(purpose, "found no image, expected at least one.")
    value = float(np.mean([group.mean() for group in known]))
    worth = len(known) ** 2 / sum(1 / len(group) for group in known)
    return Estimate(value, _beta_draws(value, worth, seed, purpose), sum(len(group) for group in known))


def _beta_draws(value: float, count: float, seed: int, purpose: str) -> np.ndarray:
    rng = generator(seed, "share", purpose, round(count))
    draws = np.asarray(rng.beta(value * count + 0.5, (1 - value) * count + 0.5, NUM_RESAMPLES))
    # more than 2.5 % of the draws, so that the end of the interval is exact
    if value == 0:
        draws[draws <= np.quantile(draws, 0.03)] = 0
    elif value == 1:
        draws[draws >= np.quantile(draws, 0.97)] = 1
    return draws


def ratio_over_prompts(
    numerators: Sequence[np.ndarray], denominators: Sequence[np.ndarray] | None = None, *, seed: int
) -> Estimate:
    """Return the sum of numerators over the sum of denominators, resampled over images and over prompts.

    numerators, denominators: for each prompt one number per image, (N_p,); None takes 1 for each image, which gives
    the mean over all images. The images of every prompt are drawn again, then the prompts (cluster bootstrap in two
    stages); with one prompt, its images alone. NaN where the denominators sum to 0.
    Raises DataError where there is no image, the two do not match, or a number is not finite.
    """
    over = [np.ones(len(each)) for each in numerators] if denominators is None else list(denominators)
    groups = [(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)) for a, b in _matched(numerators, over)]
    top, bottom = np.empty((2, NUM_RESAMPLES, len(groups)))
    for place, (above, below) in enumerate(groups):
        size = len(above)
        counts = generator(seed, "prompt-images", place, size).multinomial(
            size, np.full(size, 1 / size), size=NUM_RESAMPLES
        )
        top[:, place], bottom[:, place] = counts @ above, counts @ below
    weights = _prompt_counts(len(groups), seed)
    return Estimate(
        float(_quotient(sum(a.sum() for a, _ in groups), sum(b.sum() for _, b in groups))),
        _quotient((weights * top).sum(1), (weights * bottom).sum(1)),
        sum(len(above) for above, _ in groups),
    )


def mean_over_prompts(estimates: Sequence[Estimate], *, seed: int) -> Estimate:
    """Return the mean of one estimate per prompt; its draws resample the prompts as well.

    The draws of different prompts have to be independent: give `prompt_seed(seed, place)` to each. num_images is that
    of the prompt with the fewest. Raises DataError for no estimate.
    """
    if not estimates:
        raise DataError("mean over prompts", "found no prompt with this measure, expected at least one.")
    assert len({len(each.draws) for each in estimates}) == 1, "found estimates of different numbers of draws"
    draws = np.stack([each.draws for each in estimates], axis=1)
    weights = _prompt_counts(len(estimates), seed, len(draws))
    known = np.isfinite(draws)
    return Estimate(
        float(np.mean([each.value for each in estimates])),
        _quotient((weights * np.where(known, draws, 0)).sum(1), (weights * known).sum(1)),
        min(each.num_images for each in estimates),
    )


def mean_of_all(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of one estimate for each caption, where the captions are all that there are.

    The captions are not drawn again, their images are. The draws of different captions have to be independent: give
    `prompt_seed(seed, place)` to each. num_images is that of the caption with the fewest. Raises DataError for none.
    """
    if not estimates:
        raise DataError("mean over captions", "found no caption with this measure, expected at least one.")
    assert len({len(each.draws) for each in estimates}) == 1, "found estimates of different numbers of draws"
    return Estimate(
        float(np.mean([each.value for each in estimates])),
        np.mean([each.draws for each in estimates], axis=0),
        min(each.num_images for each in estimates),
    )


def prompt_seed(seed: int, place: int) -> int:
    """Return the seed of the resamples of one prompt: other prompts are drawn independently, other models alike."""
    return derive(seed, "prompt", place)


def half_samples(
    statistic: Callable[..., float],
    sizes: Sequence[int],
    *,
    seed: int,
    value: float,
    num_resamples: int = NUM_HALF_SAMPLES,
) -> Estimate:
    """Return a value with an interval for a statistic that repeated images would spoil, such as a count of modes.

    statistic: takes, for each set, the indices of the images in it. The spread of a statistic over random halves drawn
    without repetition is the spread of the whole over new samples; their mean is moved to the value.
    Source: J. Shao and C. Wu, "A general theory for jackknife variance estimation", Annals of Statistics 1989, with
    half of the images left out.
    """

    def one(*indices: np.ndarray) -> np.ndarray:
        return np.array([statistic(*indices)])

    return half_samples_of_all(one, sizes, seed=seed, values=[value], num_resamples=num_resamples)[0]


def half_samples_of_all(
    statistics: Callable[..., np.ndarray],
    sizes: Sequence[int],
    *,
    seed: int,
    values: Sequence[float],
    num_resamples: int = NUM_HALF_SAMPLES,
) -> list[Estimate]:
    """Return what `half_samples` does of several statistics (K,) that are computed together, on the same halves."""
    draws = np.empty((num_resamples, len(values)))
    for number in range(num_resamples):
        rng = generator(seed, "half", number)
        draws[number] = statistics(*(rng.permutation(size)[: max(2, size // 2)] for size in sizes))
    centred = draws - np.nanmean(draws, axis=0) + np.asarray(values)
    return [Estimate(float(value), centred[:, place], min(sizes)) for place, value in enumerate(values)]


def _prompt_counts(num_prompts: int, seed: int, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    rng = generator(seed, "prompts", num_prompts)
    return rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=num_resamples).astype(np.float64)


def _quotient(above: Any, below: Any) -> Any:
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)


def _matched(numerators: Sequence[np.ndarray], denominators: Sequence[np.ndarray]) -> list[tuple[Any, Any]]:
    above, below = ([len(each) for each in group] for group in (numerators, denominators))
    problems = []
    if above != below:
        problems.append(f"found {above} and {below} images per prompt, expected as many.")
    if not above or 0 in above:
        problems.append(f"found {above} images per prompt, expected one prompt and one image each, or more.")
    if not all(np.isfinite(each).all() for each in (*numerators, *denominators)):
        problems.append("found numbers that are not finite.")
    if problems:
        raise DataError("images by prompt", *problems)
    return list(zip(numerators, denominators, strict=True))
