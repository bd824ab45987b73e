"""A folder with a model of pixels: read back as it was, or refused with what is wrong in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel

from data.errors import SettingsError
from pipelines.diffusion.schedules import alphas_cumprod, betas
from pipelines.pixel_model import FACTS_NAME, PixelModel, load_pixel_model, weights_fingerprint

LABELS = ("sf_dry sf_warp", "sf_dry sf_weft")
GREY = {"sf_dry sf_warp": {"window": [100.0, 900.0], "dtype": "uint16"}}


def network(**more: Any) -> UNet2DModel:
    values: dict[str, Any] = {"in_channels": 1, "out_channels": 2, "num_class_embeds": 3, **more}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            **values,
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PixelModel]:
    """A folder with a model of everything: learned variance, classes, an unnamed schedule, grey values."""
    unet = network()
    model = PixelModel(
        unet=unet,
        alphas_cumprod=alphas_cumprod("sigmoid", 40),
        prediction_type="v_prediction",
        learned_variance=True,
        channels=1,
        size_px=8,
        class_labels=LABELS,
        normalized=False,
        grey_values=GREY,
        um_per_px=40.0,
        schedule="sigmoid",
    )
    folder = tmp_path_factory.mktemp("exported")
    scheduler = DDPMScheduler(
        40,
        trained_betas=betas(model.alphas_cumprod).tolist(),
        prediction_type="v_prediction",
        variance_type="learned_range",
    )
    DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
    (folder / FACTS_NAME).write_text(json.dumps(model.facts()))
    return folder, model


@pytest.fixture
def folder(exported: tuple[Path, PixelModel], tmp_path: Path) -> Path:
    """A copy of that folder, to be harmed."""
    return shutil.copytree(exported[0], tmp_path / "model")


def test_a_model_is_read_back_with_all_that_is_known_of_it(exported: tuple[Path, PixelModel]) -> None:
    folder, model = exported
    read = load_pixel_model(folder)
    assert read.facts() == model.facts()
    assert torch.equal(read.alphas_cumprod, model.alphas_cumprod)  # in float64, though the scheduler holds float32
    assert read.fingerprint == weights_fingerprint(model.unet)
    assert not read.unet.training
    assert not any(p.requires_grad for p in read.unet.parameters())


def test_a_model_read_back_says_the_same_to_the_last_bit(exported: tuple[Path, PixelModel]) -> None:
    folder, model = exported
    x_t, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 20, 39])
    model.unet.eval()
    with torch.no_grad():
        before, after = (one.predict(x_t, t, torch.tensor([0, 1, 2])) for one in (model, load_pixel_model(folder)))
    assert torch.equal(before.eps, after.eps)
    assert torch.equal(before.x0, after.x0)
    assert before.log_variance is not None
    assert after.log_variance is not None
    assert torch.equal(before.log_variance, after.log_variance)


def test_weights_lie_aligned_as_those_of_a_trained_network(exported: tuple[Path, PixelModel]) -> None:
    """In the memory of their file they do not, and sums come out in another order than they did in training."""
    assert {p.data_ptr() % 64 for p in load_pixel_model(exported[0]).unet.parameters()} == {0}


def test_no_label_is_the_last_embedding(exported: tuple[Path, PixelModel]) -> None:
    model = load_pixel_model(exported[0])
    x_t, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([5, 6])
    assert model.no_label == 2
    with torch.no_grad():
        assert torch.equal(model.predict(x_t, t).eps, model.predict(x_t, t, torch.tensor([2, 2])).eps)
        assert not torch.equal(model.predict(x_t, t).eps, model.predict(x_t, t, torch.tensor([0, 2])).eps)


def test_the_fingerprint_is_of_the_weights() -> None:
    unet = network()
    first = weights_fingerprint(unet)
    assert weights_fingerprint(network()) == first
    with torch.no_grad():
        unet.conv_in.bias[0] += 1e-3
    assert weights_fingerprint(unet) != first


def test_a_folder_of_diffusers_alone_is_a_model_of_pixels_without_classes(tmp_path: Path) -> None:
    unet = network(in_channels=3, out_channels=3, num_class_embeds=None)
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler(100)).save_pretrained(tmp_path)
    model = load_pixel_model(tmp_path)
    assert (model.channels, model.class_labels, model.normalized, model.schedule) == (3, (), True, None)
    assert model.prediction_type == "epsilon"
    torch.testing.assert_close(model.alphas_cumprod, (1 - torch.linspace(1e-4, 0.02, 100).double()).cumprod(0))
    pipe = DDIMPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)


def _changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


SCHEDULER, UNET = "scheduler/scheduler_config.json", "unet/config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no network": (lambda f: shutil.rmtree(f / "unet"), r"holds no unet/config\.json; expected a pixel model"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), r"holds no scheduler/scheduler_config\.json"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"its weights cannot be read"),
    "cut weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), r"weights cannot be read"),
    "other weights": (
        lambda f: _changed(f / UNET, layers_per_block=2),
        r"its weights cannot be read: .* expected shape",
    ),
    "weights without a place": (
        lambda f: _changed(f / UNET, num_class_embeds=None),
        r"its weights do not fit its config",
    ),
    "a text model": (lambda f: _changed(f / UNET, _class_name="UNet2DConditionModel"), r"expected a UNet2DModel"),
    "no square": (lambda f: _changed(f / UNET, sample_size=[8, 16]), r"expected one side of a square"),
    "another target": (lambda f: _changed(f / SCHEDULER, prediction_type="flow"), r"the prediction type flow"),
    "no variance": (lambda f: _changed(f / SCHEDULER, variance_type="fixed_small"), r"makes 2 channels of 1"),
    "facts not JSON": (lambda f: (f / FACTS_NAME).write_text("{"), r"pixel_model\.json: is not JSON"),
    "facts no object": (lambda f: (f / FACTS_NAME).write_text("[]"), r"found list, expected an object"),
    "another schedule": (
        lambda f: _changed(f / FACTS_NAME, schedule="cosine"),
        r"another noise schedule than .*cosine",
    ),
    "no schedule": (lambda f: _changed(f / FACTS_NAME, schedule="straight"), r"schedule: found 'straight'"),
    "a label less": (lambda f: _changed(f / FACTS_NAME, class_labels=["a"]), r"names 1 labels, but unet/ has 3 class"),
    "no labels": (lambda f: (f / FACTS_NAME).unlink(), r"names 0 labels, but unet/ has 3 class embeddings"),
    "another target in the facts": (
        lambda f: _changed(f / FACTS_NAME, prediction_type="epsilon"),
        r"prediction_type is 'epsilon', the other files say 'v_prediction'",
    ),
}


@pytest.mark.parametrize("case", HARMS)
def test_a_harmed_folder_is_refused(case: str, folder: Path) -> None:
    harm, message = HARMS[case]
    harm(folder)
    with pytest.raises(SettingsError, match=message):
        load_pixel_model(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"holds no unet/config\.json"):
        load_pixel_model(tmp_path / "nowhere")
