"""An image is a function of its prompt and its seed, and the one that plain diffusers draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from torch import nn

from data.errors import NonFiniteError, SettingsError
from pipelines.components import build_pipeline, load_components
from pipelines.sampling import sample

PROMPTS = ["a dry slice", "compacted warp", "a dry slice", ""]
SEEDS = [0, 1, 2, 2**40]
HOW = {"num_inference_steps": 4, "guidance_scale": 3.0}


@pytest.fixture
def pipeline(tiny_base_dir: Path) -> StableDiffusionPipeline:
    return build_pipeline(load_components(str(tiny_base_dir)))


@pytest.fixture(scope="module")
def plain(tiny_base_dir: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_images_are_those_of_plain_diffusers(
    guidance_scale: float, pipeline: StableDiffusionPipeline, plain: StableDiffusionPipeline
) -> None:
    images = sample(pipeline, PROMPTS, SEEDS, num_inference_steps=4, guidance_scale=guidance_scale, batch_size=1)
    for image, prompt, seed in zip(images, PROMPTS, SEEDS, strict=True):
        expected = plain(
            prompt,
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=4,
            guidance_scale=guidance_scale,
            output_type="np",
        ).images[0]
        np.testing.assert_allclose(image, expected, atol=1e-6)


def test_images_do_not_depend_on_the_batch_they_are_drawn_in(pipeline: StableDiffusionPipeline) -> None:
    together = sample(pipeline, PROMPTS, SEEDS, batch_size=4, **HOW)
    assert together.shape == (4, 32, 32, 3)
    assert together.dtype == np.float32
    assert together.min() >= 0
    assert together.max() <= 1
    np.testing.assert_allclose(sample(pipeline, PROMPTS, SEEDS, batch_size=3, **HOW), together, atol=1e-4)
    for index in range(4):
        alone = sample(pipeline, [PROMPTS[index]], [SEEDS[index]], batch_size=1, **HOW)[0]
        np.testing.assert_allclose(alone, together[index], atol=1e-4)
    assert np.abs(together[0] - together[2]).max() > 0.1  # the same prompt, another seed


def test_a_scheduler_that_draws_noise_takes_it_from_the_seed_of_each_image(tiny_base_dir: Path) -> None:
    components = load_components(str(tiny_base_dir))
    pipeline = build_pipeline(components, EulerAncestralDiscreteScheduler.from_config(components.sampler.config))
    together = sample(pipeline, PROMPTS, SEEDS, batch_size=4, **HOW)
    alone = sample(pipeline, PROMPTS[2:3], SEEDS[2:3], batch_size=1, **HOW)[0]
    np.testing.assert_allclose(alone, together[2], atol=1e-4)


def test_global_generators_and_modes_stay_as_they_are(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet.train()
    pipeline.unet.mid_block.eval()
    modes = [part.training for part in pipeline.unet.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    sample(pipeline, PROMPTS[:1], SEEDS[:1], batch_size=1, **HOW)
    assert [part.training for part in pipeline.unet.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


def test_dropout_does_not_act_on_images(pipeline: StableDiffusionPipeline) -> None:
    expected = sample(pipeline, PROMPTS[:1], SEEDS[:1], batch_size=1, **HOW)
    for module in pipeline.unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    pipeline.unet.train()
    assert (sample(pipeline, PROMPTS[:1], SEEDS[:1], batch_size=1, **HOW) == expected).all()


def test_a_prompt_is_read_once(pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = pipeline.encode_prompt

    def counted(prompt: str | None = None, *given: object, **options: object) -> object:
        calls.append(prompt)
        return encode(prompt, *given, **options)

    monkeypatch.setattr(pipeline, "encode_prompt", counted)
    sample(pipeline, PROMPTS, SEEDS, batch_size=2, **HOW)
    assert sorted(text for text in calls if text is not None) == ["", "a dry slice", "compacted warp"]


def test_progress_counts_images(pipeline: StableDiffusionPipeline) -> None:
    drawn: list[int] = []
    sample(pipeline, PROMPTS, SEEDS, batch_size=3, progress=drawn.append, **HOW)
    assert drawn == [3, 1]


def test_other_sizes_are_drawn(pipeline: StableDiffusionPipeline) -> None:
    assert sample(pipeline, ["a"], [0], batch_size=1, height=48, width=64, **HOW).shape == (1, 48, 64, 3)
    assert sample(pipeline, ["a"], [0], batch_size=1, width=64, **HOW).shape == (1, 32, 64, 3)


@pytest.mark.parametrize(("height", "width"), [(30, None), (None, 31), (-8, 8), (4, 8)])
def test_sizes_that_cannot_be_drawn_are_refused(
    height: int | None, width: int | None, pipeline: StableDiffusionPipeline
) -> None:
    with pytest.raises(SettingsError, match="expected a multiple of 8"):
        sample(pipeline, ["a"], [0], batch_size=1, height=height, width=width, **HOW)


def test_half_precision_in_the_denoiser_draws_nearly_the_same(pipeline: StableDiffusionPipeline) -> None:
    expected = sample(pipeline, PROMPTS[:1], SEEDS[:1], batch_size=1, **HOW)
    pipeline.unet.to(torch.bfloat16)
    pipeline.text_encoder.to(torch.bfloat16)
    half = sample(pipeline, PROMPTS[:1], SEEDS[:1], batch_size=1, **HOW)
    assert 0 < np.abs(half - expected).mean() < 0.05


def _decoding_to(value: float, pipeline: StableDiffusionPipeline) -> None:
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.zero_()
        pipeline.vae.decoder.conv_out.bias.fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_images_that_are_not_finite_are_refused(value: float, pipeline: StableDiffusionPipeline) -> None:
    """Clamped to what can be shown, the second would pass for a black one."""
    _decoding_to(value, pipeline)
    with pytest.raises(NonFiniteError) as caught:
        sample(pipeline, PROMPTS[:2], SEEDS[:2], batch_size=2, **HOW)
    assert "prompt 'compacted warp' and seed 1 is not finite" in str(caught.value)


def test_a_black_image_is_an_image_and_told(
    pipeline: StableDiffusionPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """Air is black, and so are all pictures of some classes."""
    _decoding_to(-50.0, pipeline)
    assert not sample(pipeline, PROMPTS[:2], SEEDS[:2], batch_size=2, **HOW).any()
    assert "prompt 'compacted warp' and seed 1 is black in every pixel" in capsys.readouterr().err
