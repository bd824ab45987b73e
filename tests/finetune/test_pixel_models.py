"""The U-Net presets of models of pixels, and how diffusers is told their noise schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import nn

from data.errors import SettingsError
from finetune.core.pixel_models import UNetShape, scheduler, unet, unet_shape
from pipelines.diffusion.schedules import Schedule, alphas_cumprod
from pipelines.pixel_model import PixelModel

SIZES = ("small", "medium", "ddpm")


def build(shape: UNetShape, size_px: int, **more: Any) -> UNet2DModel:
    values: dict[str, Any] = {"channels": 1, "learned_variance": False, "num_classes": 0, "dropout": 0.0, "seed": 0}
    return unet(shape, size_px, **{**values, **more})


def pixel_model(schedule: Schedule, steps: int, **more: Any) -> PixelModel:
    values: dict[str, Any] = {"prediction_type": "epsilon", "learned_variance": False, **more}
    return PixelModel(
        nn.Identity(), alphas_cumprod(schedule, steps), channels=1, size_px=8, schedule=schedule, **values
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("size_px", [32, 64, 128, 256])
def test_a_preset_attends_at_16_px_and_in_the_middle(size: Any, size_px: int) -> None:
    shape = unet_shape(size, size_px)
    with torch.device("meta"):
        network = build(shape, size_px)
    attending = [size_px // 2**k for k, kind in enumerate(network.config.down_block_types) if kind == "AttnDownBlock2D"]
    assert attending == [16]
    assert tuple(reversed(network.config.up_block_types)) == tuple(
        kind.replace("Down", "Up") for kind in network.config.down_block_types
    )
    assert any(isinstance(part, Attention) for part in network.mid_block.modules())
    assert any(isinstance(part, nn.GroupNorm) for part in network.modules())
    assert any(isinstance(part, nn.SiLU) for part in network.modules())
    assert network.config.time_embedding_type == "positional"
    assert size_px // 2 ** (len(shape.block_out_channels) - 1) in (4, 8)


def test_the_preset_of_ddpm_is_the_network_of_the_paper() -> None:
    """35.7 million parameters for CIFAR-10 (Ho et al. 2020, appendix B)."""
    with torch.device("meta"):
        network = build(unet_shape("ddpm", 32), 32, channels=3)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(35.7e6, rel=0.005)


def test_presets_grow_with_their_names() -> None:
    sizes = []
    for size in SIZES:
        with torch.device("meta"):
            sizes.append(sum(p.numel() for p in build(unet_shape(size, 64), 64).parameters()))  # type: ignore[arg-type]
    assert sizes == sorted(sizes)
    assert sizes[0] < 2.5e6


def test_a_side_that_cannot_be_halved_so_often_has_fewer_levels() -> None:
    assert unet_shape("small", 28) == UNetShape((32, 64, 64), 1)
    network = build(unet_shape("small", 28), 28)
    assert network.config.down_block_types == ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    assert network(torch.zeros(2, 1, 28, 28), torch.tensor([0, 9])).sample.shape == (2, 1, 28, 28)


def test_what_is_given_stands_in_the_place_of_the_preset() -> None:
    assert unet_shape("ddpm", 64, (16, 24), 3) == UNetShape((16, 24), 3)
    assert unet_shape("ddpm", 64, layers_per_block=1) == UNetShape((128, 256, 384, 512), 1)


@pytest.mark.parametrize(
    ("size_px", "channels", "message"),
    [
        (63, (), "found 63, expected a multiple of 2"),
        (30, (16, 16, 16), "found 30, expected a multiple of 4, as 3 levels halve it 2 times"),
        (32, (16, 20), "found 16 20, expected multiples of 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(size_px: int, channels: tuple[int, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        unet_shape("small", size_px, channels)


def test_a_learnt_variance_doubles_what_comes_out_and_classes_have_one_more_embedding() -> None:
    network = build(UNetShape((8, 16), 1), 8, channels=3, learned_variance=True, num_classes=5)
    said = network(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), torch.tensor([0, 5])).sample
    assert said.shape == (2, 6, 8, 8)
    assert network.class_embedding.num_embeddings == 6


def test_a_seed_gives_the_same_network_and_leaves_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    networks = [build(UNetShape((8, 16), 1), 8, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [network.conv_in.weight for network in networks]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("schedule", "steps", "named"),
    [
        ("linear", 1000, "linear"),
        ("cosine", 1000, "squaredcos_cap_v2"),
        ("sigmoid", 1000, None),
        ("linear", 200, None),  # its ends are scaled, which diffusers has no name for
        ("cosine", 50, "squaredcos_cap_v2"),
    ],
)
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_diffusers_is_told_the_schedule_by_name_or_as_betas(
    schedule: Schedule, steps: int, named: str | None, kind: Any
) -> None:
    model = pixel_model(schedule, steps)
    told = kind.from_config(scheduler(model).config)
    assert (told.config.beta_schedule if told.config.trained_betas is None else None) == named
    torch.testing.assert_close(told.alphas_cumprod.double(), model.alphas_cumprod, rtol=1e-3, atol=1e-6)
    assert told.config.num_train_timesteps == steps


def test_diffusers_is_told_target_and_variance() -> None:
    told = scheduler(pixel_model("cosine", 50, prediction_type="v_prediction", learned_variance=True))
    assert told.config.prediction_type == "v_prediction"
    assert told.config.variance_type == "learned_range"
    assert scheduler(pixel_model("cosine", 50)).config.variance_type == "fixed_small"
