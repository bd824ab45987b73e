"""Forgetting in noise predictions and in images: exact where the answer is known, none where nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig

from data.errors import DataError, NonFiniteError
from pipelines.components import Components, load_components
from pipelines.diffusion.prediction import READINGS
from pipelines.metrics.extractors import TextureStatistics
from pipelines.metrics.forgetting import (
    DriftPoints,
    drift_parts,
    drift_points,
    noise_drift,
    paired_drift,
    predicted_noise,
    prior_distance,
    prior_likeness,
)
from tests.planted import directions, textures

PROMPTS = ("a dry texture", "red stripe")


def pictures(count: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {prompt: rng.random((count, 32, 32, 3), dtype=np.float32) for prompt in PROMPTS}


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> Components:
    return load_components(str(tiny_base_dir))


@pytest.fixture(scope="module")
def points(base: Components) -> DriftPoints:
    return drift_points(pictures(), base, num_timesteps=4)


def test_the_points_are_frozen_and_spread_over_the_schedule(base: Components, points: DriftPoints) -> None:
    again = drift_points(pictures(), base, num_timesteps=4)
    assert torch.equal(again.timesteps, points.timesteps)
    assert torch.equal(again.latents, points.latents)
    assert torch.equal(again.noise(3, 1), points.noise(3, 1))
    assert not torch.equal(points.noise(3, 1), points.noise(3, 2))
    assert not torch.equal(drift_points(pictures(), base, num_timesteps=4, seed=1).timesteps, points.timesteps)
    assert points.prompts == (PROMPTS[0],) * 4 + (PROMPTS[1],) * 4
    assert ((points.timesteps // 250) == torch.arange(4)).all()
    assert torch.equal(points.alpha_bars, base.scheduler.alphas_cumprod[points.timesteps])


def test_an_untouched_model_has_not_drifted_at_all(base: Components, points: DriftPoints) -> None:
    one, other = predicted_noise(base, points, batch_size=5), predicted_noise(base, points, batch_size=5)
    found = noise_drift(one, other, points)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert found.num_images == 8


def test_the_predictions_do_not_depend_on_the_batch_but_for_rounding(base: Components, points: DriftPoints) -> None:
    np.testing.assert_allclose(
        predicted_noise(base, points, batch_size=1), predicted_noise(base, points, batch_size=32), atol=1e-5
    )


def test_the_predictions_are_those_of_the_unet_at_the_noisy_latents(base: Components, points: DriftPoints) -> None:
    image, place = 5, 2
    timestep = points.timesteps[image, place]
    noisy = base.scheduler.add_noise(points.latents[image], points.noise(image, place), timestep)
    ids = base.tokenizer(
        PROMPTS[1], padding="max_length", max_length=base.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = base.unet(noisy[None], timestep, base.text_encoder(ids)[0]).sample[0]
    np.testing.assert_allclose(predicted_noise(base, points)[image, place], expected, atol=1e-5)


def test_an_adapter_drifts_when_it_is_on_and_not_when_it_is_off(tiny_base_dir: Path, points: DriftPoints) -> None:
    components = load_components(str(tiny_base_dir))
    before = predicted_noise(components, points, batch_size=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        components.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
        for name, weight in components.unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
    components.unet.train()
    on = noise_drift(predicted_noise(components, points, batch_size=8), before, points)
    assert components.unet.training
    assert on.low > 0
    components.unet.disable_adapters()
    off = noise_drift(predicted_noise(components, points, batch_size=8), before, points)
    assert off.value == pytest.approx(0, abs=1e-10)


def test_the_sums_are_divided_and_not_the_images(points: DriftPoints) -> None:
    rng = np.random.default_rng(1)
    shape = (*points.timesteps.shape, *points.latents.shape[1:])
    noise = np.stack([np.stack([points.noise(i, p).numpy() for p in range(4)]) for i in range(8)])
    base = noise + rng.normal(size=shape) * rng.uniform(0.1, 2, (8, 4, 1, 1, 1))
    tuned = base + rng.normal(size=shape)
    found = noise_drift(tuned, base, points)
    assert found.value == pytest.approx(((tuned - base) ** 2).sum() / ((base - noise) ** 2).sum())
    assert found.low < found.value < found.high
    of_one = drift_parts(tuned, base, points).estimate(PROMPTS[1:])
    assert of_one.value == pytest.approx(((tuned - base)[4:] ** 2).sum() / ((base - noise)[4:] ** 2).sum())
    assert of_one.num_images == 4


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_is_turned_into_the_noise(prediction_type: str) -> None:
    x0, noise = torch.randn((2, 6, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    alpha_bar = torch.linspace(0.01, 0.99, 6).view(-1, 1, 1, 1)
    noisy = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    predicted = {
        "epsilon": noise,
        "v_prediction": alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0,
        "sample": x0,
    }[prediction_type]
    torch.testing.assert_close(
        READINGS[prediction_type](predicted, noisy, alpha_bar.flatten()).eps, noise, atol=1e-4, rtol=1e-4
    )


def test_a_model_of_v_is_measured_in_noise(base: Components, points: DriftPoints) -> None:
    """The same weights, taken to predict v, predict another noise: sqrt(a) v + sqrt(1 - a) x_t."""
    as_v = base.predicting("v_prediction")
    plain, converted = (predicted_noise(each, points, batch_size=8) for each in (base, as_v))
    alpha_bar = points.alpha_bars[0, 1]
    noisy = alpha_bar.sqrt() * points.latents[0] + (1 - alpha_bar).sqrt() * points.noise(0, 1)
    expected = alpha_bar.sqrt() * torch.from_numpy(plain[0, 1]) + (1 - alpha_bar).sqrt() * noisy
    np.testing.assert_allclose(converted[0, 1], expected, atol=1e-5)


def test_a_model_of_another_schedule_is_asked_at_the_same_noise(base: Components, points: DriftPoints) -> None:
    asked: list[torch.Tensor] = []
    other = base.predicting("v_prediction").ending_in_pure_noise()
    hook = base.unet.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[1]))
    try:
        predicted_noise(other, points, batch_size=64)
    finally:
        hook.remove()
    own = other.scheduler.alphas_cumprod[torch.cat(asked)]
    assert (own - points.alpha_bars.flatten()).abs().max() < 2e-3
    assert (torch.cat(asked) != points.timesteps.flatten()).any()


def test_a_model_that_breaks_is_named_and_its_modes_are_kept(tiny_base_dir: Path, points: DriftPoints) -> None:
    broken = load_components(str(tiny_base_dir))
    broken.unet.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        predicted_noise(broken, points)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no prompt"),
        ({"a": np.empty((0, 32, 32, 3), np.float32)}, "base images of 'a': found 0 images"),
        ({"a": np.zeros((1, 32, 32, 3), np.float32), "b": np.zeros((1, 16, 32, 3), np.float32)}, "different sizes"),
    ],
)
def test_pictures_that_give_no_points_are_refused(base: Components, given: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        drift_points(given, base)


def test_predictions_of_other_points_are_refused(points: DriftPoints) -> None:
    with pytest.raises(DataError, match="the points have"):
        noise_drift(np.zeros((2, 4, 4, 8, 8)), np.zeros((2, 4, 4, 8, 8)), points)


def ring(seed: int, turn: float = 0.0, count: int = 24) -> dict[str, np.ndarray]:
    """Features of three prompts, each about a direction of its own, turned towards the last axis."""
    rng = np.random.default_rng(seed)
    means = np.eye(4)[:3] * np.cos(turn) + np.eye(4)[3] * np.sin(turn)
    return {name: directions(rng, count, mean, 0.2) for name, mean in zip("abc", means, strict=True)}


def test_the_same_images_have_not_drifted_and_other_seeds_drift_as_far_as_base_images_do() -> None:
    base = ring(0)
    same = paired_drift(base, base, extractor_id="x")
    assert (same.distance.value, same.distance.high) == (0, 0)
    other = paired_drift(ring(1), base, extractor_id="x")
    assert other.relative is not None
    assert other.relative.low < 1 < other.relative.high
    assert other.distance.num_images == 72
    assert other.distances["a"].shape == (24,)


def test_the_paired_distance_of_a_turned_image_is_the_chord() -> None:
    base = {"a": np.tile([1.0, 0.0], (12, 1))}
    tuned = {"a": np.tile([np.cos(0.4), np.sin(0.4)], (12, 1)) * 3}
    found = paired_drift(tuned, base, extractor_id="x")
    assert found.distance.value == pytest.approx(2 * np.sin(0.2))
    assert found.relative is None  # all base images are one: there is nothing to divide by
    assert found.as_json()["relative"] is None


def test_base_against_base_has_not_moved_and_a_turned_ring_has() -> None:
    moved = []
    for seed in range(20):
        found = prior_distance(ring(3 * seed), ring(3 * seed), ring(3 * seed + 1), extractor_id="x", seed=seed)
        moved.append(found.has_moved)
        assert found.distance.value == pytest.approx(found.floor.value)
    assert np.mean(moved) <= 0.05
    assert prior_distance(ring(5, 0.5), ring(5), ring(6), extractor_id="x").has_moved
    # the squared chord of 0.5 rad, shortened by the spread of the directions
    value = prior_distance(ring(5, 0.5), ring(5), ring(6), extractor_id="x").distance.value
    assert 0.5 * (2 * np.sin(0.25)) ** 2 < value < (2 * np.sin(0.25)) ** 2


def test_paired_images_are_not_taken_for_nearer_than_they_are() -> None:
    """The base itself as the tuned model: against its own images the distance would be below that of chance."""
    base, other = ring(7, count=8), ring(8, count=8)
    found = prior_distance(base, base, other, extractor_id="x")
    own = prior_distance(base, base, base, extractor_id="x")
    assert own.distance.value < found.distance.value
    assert own.distance.value < 0


def test_a_class_that_becomes_the_concept_is_more_like_it() -> None:
    extractor = TextureStatistics.fitting(64)
    concept = extractor.extract(textures("zigzagged", 16))
    before = prior_likeness(extractor.extract(textures("bubbly", 16)), concept)
    after = prior_likeness(extractor.extract(textures("zigzagged", 16, 40)), concept)
    assert after.low > before.high
    single = prior_likeness(np.array([[3.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 2.0]]))
    assert single.value == pytest.approx((np.sqrt(0.5) + 0) / 2)


@pytest.mark.parametrize(
    ("tuned", "base", "message"),
    [
        ({}, {}, "no prompt"),
        ({"a": np.eye(3)}, {"b": np.eye(3)}, "found 'a' of one model only"),
        ({"a": np.eye(3)}, {"a": np.eye(3)[:2]}, "3 tuned and 2 base images"),
        ({"a": np.full((3, 3), np.nan)}, {"a": np.eye(3)}, "tuned images of 'a'"),
        ({"a": np.eye(3)}, {"a": np.ones((3, 2))}, "tuned 3, base 2"),
    ],
)
def test_rings_that_are_not_pairs_are_refused(tuned: dict, base: dict, message: str) -> None:
    measures: tuple[Callable[[], object], ...] = (
        lambda: paired_drift(tuned, base, extractor_id="x"),
        lambda: prior_distance(tuned, base, base, extractor_id="x"),
    )
    for measure in measures:
        with pytest.raises(DataError, match=message):
            measure()


def test_a_prompt_without_other_seeds_is_named() -> None:
    with pytest.raises(DataError, match="other seeds lack 'c'"):
        prior_distance(
            ring(0), ring(0), {name: each for name, each in ring(1).items() if name != "c"}, extractor_id="x"
        )
