"""Skills, permutation tests and corrections: closed forms first, then defects planted in real pictures."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from scipy import stats

from data.errors import DataError
from pipelines.metrics.distances import linear_kernel, squared_centroid_distance
from pipelines.metrics.extractors import TextureStatistics
from pipelines.metrics.fidelity import Fidelity, SkillScore, fidelity, holm, permutation_p_value, split_null
from tests.planted import DEFECTS, directions, textures, weaves, with_defect

EXTRACTOR = TextureStatistics.fitting(64)


def scored(turn: float, count: int = 30, spread: float = 0.3, seed: int = 0) -> Fidelity:
    """Tuned images at an angle from the real ones, the base at 1 rad."""
    rng = np.random.default_rng(seed)
    at = lambda angle, n: directions(rng, n, [np.cos(angle), np.sin(angle), 0, 0], spread)  # noqa: E731
    return fidelity(at(turn, count), at(1, count), at(0, count), at(0, count), extractor_id="x", num_permutations=200)


def test_exact_permutations_of_small_sets_agree_with_all_of_them() -> None:
    rng = np.random.default_rng(0)
    x, y = directions(rng, 4, [1, 0, 0]), directions(rng, 4, [0.8, 0.6, 0])
    pooled, seen = np.concatenate([x, y]), squared_centroid_distance(x, y)
    every = [
        squared_centroid_distance(pooled[list(chosen)], np.delete(pooled, chosen, axis=0))
        for chosen in itertools.combinations(range(8), 4)
    ]
    exact = np.mean(np.array(every) >= seen - 1e-12)
    found = permutation_p_value(x, y, linear_kernel, seed=1, num_permutations=4000)
    assert found == pytest.approx(exact, abs=0.02)


def test_p_values_of_one_law_are_uniform() -> None:
    rng = np.random.default_rng(0)
    found = [
        permutation_p_value(
            directions(rng, 10, [1, 0, 0]), directions(rng, 14, [1, 0, 0]), linear_kernel, seed=s, num_permutations=99
        )
        for s in range(150)
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) < 0.11


def test_holm_multiplies_by_the_claims_that_are_left() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_the_skill_falls_from_one_at_the_real_images_to_zero_at_the_base() -> None:
    for score in ("scd", "kid"):
        found = [getattr(scored(turn), score) for turn in (0.0, 0.5, 1.0)]
        assert found[0].skill.low <= 1 <= found[0].skill.high
        assert 0.5 < found[1].skill.value < 0.9
        assert found[2].skill.low < 0 < found[2].skill.high
        assert [each.verdict for each in found] == ["as near as real images", "better", "inconclusive"]
    assert scored(1.5).scd.verdict == "worse"


def test_an_interval_that_holds_one_is_not_enough_where_the_test_tells_the_images_apart() -> None:
    near = scored(0.0).scd
    assert near.skill is not None
    assert near.skill.high >= 1
    apart = SkillScore(near.tuned, near.base, near.floor, near.skill, p_tuned=0.01, p_base=0.01)
    assert apart.verdict == "better"


def test_a_base_that_is_as_near_as_real_images_leaves_nothing_to_close() -> None:
    rng = np.random.default_rng(0)
    same = [directions(rng, 25, [1, 0, 0]) for _ in range(4)]
    found = fidelity(*same, extractor_id="x", num_permutations=50)
    assert found.scd.skill is None
    assert found.scd.verdict == "undefined"
    assert found.as_json()["scd"]["skill"] is None


@pytest.mark.parametrize(("count", "caveat"), [(9, "no verdict"), (15, "weak"), (20, None)])
def test_few_references_warn_and_fewer_give_no_verdict(count: int, caveat: str | None) -> None:
    found = scored(0.5, count)
    assert found.counts == {"tuned": count, "base": count, "references": count, "other_real": count}
    assert (found.scd.verdict == "no verdict") == (count < 10)
    assert len(found.caveats) == (caveat is not None)
    if caveat is not None:
        assert f"{count} references" in found.caveats[0]
        assert caveat in found.caveats[0]


def test_blocks_of_alike_references_widen_the_interval() -> None:
    """30 references that are 6 images five times each know as much as 6."""
    rng = np.random.default_rng(0)
    real = np.repeat(directions(rng, 6, [1, 0, 0]), 5, axis=0) + rng.normal(0, 0.01, (30, 3))
    sets = directions(rng, 30, [0.9, 0.4, 0]), directions(rng, 30, [0, 1, 0]), real, directions(rng, 30, [1, 0, 0])
    single, blocks = (fidelity(*sets, extractor_id="x", block_length=n, num_permutations=20).scd.tuned for n in (1, 5))
    assert blocks.value == single.value
    assert blocks.num_images == single.num_images == 30
    assert blocks.high - blocks.low > 1.3 * (single.high - single.low)


def test_the_null_of_a_split_is_centred_on_zero_and_its_quantile_is_rarely_exceeded() -> None:
    rng = np.random.default_rng(0)
    exceeded = []
    for seed in range(60):
        found = split_null(directions(rng, 16, [1, 0, 0]), directions(rng, 16, [1, 0, 0]), seed=seed)
        exceeded.append(found.value > np.quantile(found.draws, 0.95))
        assert abs(found.draws.mean()) < 0.01
    assert 0 < np.mean(exceeded) < 0.15


@cache
def weave_features() -> dict[str, np.ndarray]:
    real = weaves("dry", 36)
    sets = {"references": real[:36], "other_real": real[36:72], "fresh": real[72:], "base": textures("woven", 36)}
    sets |= {name: with_defect(name, sets["fresh"]) for name in DEFECTS if name != "colour loss"}
    sets["another class"] = weaves("compacted", 12)
    return {name: EXTRACTOR.extract(pictures) for name, pictures in sets.items()}


def judged(name: str) -> Fidelity:
    sets = weave_features()
    return fidelity(
        sets[name], sets["base"], sets["references"], sets["other_real"], extractor_id=EXTRACTOR.extractor_id
    )


def test_fresh_real_images_are_not_told_from_real_images() -> None:
    found = judged("fresh")
    assert min(found.scd.p_tuned, found.kid.p_tuned) > 0.05
    assert found.scd.verdict == found.kid.verdict == "as near as real images"
    assert found.extractor_id == "texstat-v1-j4-64px"


@pytest.mark.parametrize("name", [*(name for name in DEFECTS if name != "colour loss"), "another class"])
def test_a_planted_defect_lowers_the_skill(name: str) -> None:
    fresh, found = judged("fresh"), judged(name)
    for score in ("scd", "kid"):
        now, before = getattr(found, score), getattr(fresh, score)
        assert now.p_tuned < 0.01
        assert now.skill.value < before.skill.value - 0.03
        assert now.verdict != "as near as real images"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tuned": np.empty((0, 4))}, "tuned images: found 0 images, expected at least 2"),
        ({"references": np.ones((1, 4))}, "references: found 1 image, expected at least 2"),
        ({"base": np.full((5, 4), np.nan)}, "5 images of 5 are not finite"),
        ({"other_real": np.ones((5, 3))}, "other_real 3 numbers per image"),
        ({"base": np.zeros((5, 4))}, "length zero"),
        ({"base": np.ones(4)}, r"shape \(4,\)"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(changed: dict[str, np.ndarray], message: str) -> None:
    sets = {name: np.ones((5, 4)) for name in ("tuned", "base", "references", "other_real")} | changed
    with pytest.raises(DataError, match=message):
        fidelity(*sets.values(), extractor_id="x")
