"""The ceiling of an autoencoder against spaces whose loss is known: none, a gaussian, noise."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from data.errors import FilrougeError, OutputError, SettingsError
from data.synthetic.weave import weave, write_weave
from pipelines import vae_ceiling
from pipelines.metrics.ceiling import Scale, advice, measure, reconstruct, words
from pipelines.metrics.round_trip import round_trip


class Identity:
    """A space that is its pixels."""

    def moments(self, pixels):
        return pixels, torch.ones_like(pixels)

    def sample(self, mean, std, eps):
        return mean + std * eps

    def decode(self, latents):
        return latents


class Blur(Identity):
    """A space that keeps what a gaussian of so many px keeps."""

    def __init__(self, sigma_px):
        self.sigma_px = sigma_px

    def decode(self, latents):
        rows, columns = (np.fft.fftfreq(side) for side in latents.shape[2:])
        transfer = np.exp(-2 * (np.pi * self.sigma_px) ** 2 * (rows[:, None] ** 2 + columns**2))
        return torch.from_numpy(np.fft.ifft2(np.fft.fft2(latents.numpy()) * transfer).real.astype(np.float32))


class Brighter(Identity):
    """A space that adds a constant to the picture."""

    def __init__(self, shift, channels=slice(None)):
        self.shift, self.channels = shift, channels

    def decode(self, latents):
        shifted = latents.clone()
        shifted[:, self.channels] += self.shift
        return shifted


def noise_images(num=24, side=64, seed=0, channels=3):
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(0, 0.25, (num, channels, side, side)), -1, 1).astype(np.float32)


def layers(period_px, num=24, side=64, seed=0):
    """Noisy horizontal bars, half of them tow, as grey images in [-1, 1], (num, 3, side, side)."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, period_px, (num, 1))
    tow = (np.arange(side) + start) % period_px < period_px / 2
    grey = np.where(tow, 0.5, -0.5)[:, :, None] + rng.normal(0, 0.1, (num, side, side))
    return np.repeat(np.clip(grey, -1, 1)[:, None], 3, axis=1).astype(np.float32)


def slices_through(space, period_px, um_per_px, side=64) -> Scale:
    held_out, training = layers(period_px, side=side), layers(period_px, side=side, seed=1)
    return measure(space, {"warp": held_out}, {"warp": training}, um_per_px, are_slices=True)


def test_a_space_without_loss_is_a_perfect_ceiling():
    pixels = noise_images()
    assert np.array_equal(reconstruct(Identity(), pixels), pixels)
    loss = round_trip(pixels, reconstruct(Identity(), pixels))
    np.testing.assert_allclose(loss.kept, 1, atol=1e-12)
    np.testing.assert_allclose(loss.error, 0, atol=1e-12)
    assert [(octave.low, octave.high) for octave in loss.octaves][-1] == (0.25, 0.5)
    assert all(octave.kept.value == pytest.approx(1) for octave in loss.octaves)
    assert loss.finest_kept_px is None
    assert loss.finest_right_px is None
    assert loss.psnr_db.value == pytest.approx(20 * math.log10(255) + 10 * math.log10(12))  # that of rounding to 8 bits


@pytest.mark.parametrize("sigma_px", [0.6, 1.0, 1.7])
def test_a_gaussian_loses_what_its_closed_form_says(sigma_px):
    """It multiplies an amplitude by H = exp(-2 pi^2 sigma^2 f^2): power H^2, error (1 - H)^2, half at 7.55 sigma."""
    pixels = noise_images(num=96, channels=1)
    loss = round_trip(pixels, reconstruct(Blur(sigma_px), pixels))
    transfer = np.exp(-2 * (np.pi * sigma_px * loss.frequencies) ** 2)
    # the window spreads the first frequency over the second
    np.testing.assert_allclose(loss.kept[1:], transfer[1:] ** 2, atol=0.03)
    np.testing.assert_allclose(loss.error, (1 - transfer) ** 2, atol=0.02)
    half = 2 * math.pi * sigma_px / math.sqrt(math.log(2))
    assert loss.finest_kept_px == pytest.approx(half, rel=0.03)
    assert loss.finest_right_px == loss.finest_kept_px
    finest = loss.octaves[-1]
    expected = (transfer[loss.frequencies >= 0.25] ** 2).mean()
    assert finest.kept.value == pytest.approx(expected, abs=0.01)
    assert finest.kept.low <= finest.kept.value <= finest.kept.high


def test_power_that_the_space_makes_up_is_kept_but_not_right():
    pixels = gaussian_filter(noise_images(num=48, channels=1), (0, 0, 1, 1), mode="wrap")
    after = pixels + 0.05 * noise_images(num=48, channels=1, seed=1)
    loss = round_trip(pixels, after)
    assert loss.finest_kept_px is None
    assert loss.kept[-1] > 1.5
    # the error is white, 0.05^2 of the noise before the blur: half of what the blur left, H^2, at this frequency
    frequency = math.sqrt(math.log(1 / (2 * 0.05**2))) / (2 * math.pi)
    assert loss.finest_right_px == pytest.approx(1 / frequency, rel=0.05)


def test_the_signal_to_noise_ratio_is_that_of_a_constant_error():
    pixels = 0.1 * noise_images()
    views = measure(Brighter(0.2), {"a": pixels}, {"a": pixels}, None, are_slices=False).views
    assert views["a"].loss.psnr_db.value == pytest.approx(20)  # 0.2 of [-1, 1] is 0.1 of [0, 1]
    assert views["a"].slices == {}


def test_slices_are_judged_by_their_grey_and_their_tint_is_told():
    found = measure(
        Brighter(0.2, channels=0), {"warp": layers(16)}, {"warp": layers(16, seed=1)}, 40.0, are_slices=True
    )
    view = found.views["warp"]
    assert view.tint == pytest.approx(0.1, rel=0.02)
    assert view.loss.psnr_db.value == pytest.approx(20 * math.log10(30), abs=0.2)  # a third of 0.1 in the mean
    assert "tint 10.0% of the window" in "\n".join(words(found))


def test_descriptors_before_and_after_are_those_of_the_slices():
    view = slices_through(Identity(), 15, 40.0).views["warp"]
    for name in ("tow_fraction", "pitch_rows", "tow_chord"):
        before, after = view.change(name)
        assert before == after
    assert view.change("pitch_rows")[0] == pytest.approx(15 * 40, rel=0.02)
    assert view.change("tow_fraction")[0] == pytest.approx(50, abs=3)
    assert view.change("pitch_columns") == (None, None)
    assert all(each.ratio <= 1 for each in view.slices.values() if each.ratio is not None)


def test_the_coarsest_scale_that_passes_is_advised():
    """Bars of 240 um: a gaussian of 1 px halves the power below 7.55 px, which is 302 um at 40 um per px."""
    space = Blur(1.0)
    scales = [slices_through(space, 480 / um, um) for um in (40.0, 20.0)]
    assert advice(scales).um_per_px == 20
    coarse, fine = advice(scales).shortcomings
    assert fine == ()
    assert len(coarse) == 1
    lost, wanted = map(
        int, re.fullmatch(r"warp: details below (\d+) um are lost or wrong, wanted (\d+) um", coarse[0]).groups()
    )
    assert lost == pytest.approx(302, rel=0.05)
    assert wanted == pytest.approx(240, rel=0.05)
    assert "The coarsest scale that passes: --um_per_px 20." in advice(scales).lines
    assert advice(scales, finest_um=310).um_per_px == 40
    assert advice(scales, finest_um=100).um_per_px is None
    assert "No tried scale passes" in advice(scales, finest_um=100).lines[-1]


def test_a_scale_whose_crop_is_too_small_for_the_pitch_fails():
    scales = [slices_through(Identity(), 960 / um, um) for um in (40.0, 10.0)]
    found = advice(scales)
    assert found.um_per_px == 40
    assert found.shortcomings[0] == ()
    assert "a crop of 64 px = 640 um does not show the pitch down the rows, 9" in found.shortcomings[1][0]


def test_a_changed_tow_fraction_and_a_lost_pitch_fail():
    bright = advice([slices_through(Brighter(0.5), 15, 40.0)])
    assert re.search(r"tow fraction 5\d\.\d -> [6-9]\d\.\d %|tow fraction 4\d\.\d -> ", bright.shortcomings[0][0])
    flat = advice([slices_through(Blur(8.0), 12, 40.0)])
    assert any("is lost" in each or "cannot be measured" in each for each in flat.shortcomings[0])
    assert flat.um_per_px is None


def test_images_without_a_scale_get_no_criterion_but_a_period():
    pixels = noise_images()
    blurred = measure(Blur(1.0), {"a": pixels, "b": pixels}, {}, None, are_slices=False)
    found = advice([blurred])
    assert found.criterion == "none: these images have no pixel scale"
    period = float(re.search(r"needs a period above ([\d.]+) px", found.lines[0])[1])
    assert period == pytest.approx(7.55, rel=0.05)
    told = "\n".join(words(blurred))
    assert "  a (24 images): PSNR" in told
    assert "  all (48 images): PSNR" in told
    assert re.search(r"details finer than 7\.\d+ px lose more than half their power", told)
    assert "0.250-0.500 cycles/px: power kept 0.0" in told
    perfect = advice([measure(Identity(), {"a": pixels}, {}, None, are_slices=False)])
    assert perfect.lines == ("This base draws every detail of these images right.",)


def test_a_space_that_loses_contrast_everywhere_is_told():
    class Pale(Identity):
        def decode(self, latents):
            return 0.5 * latents

    pixels = noise_images()
    found = measure(Pale(), {"a": pixels}, {}, None, are_slices=False)
    np.testing.assert_allclose(found.loss.kept, 0.25, rtol=0.01)
    assert "Even the coarsest octave is wrong by 25% of its power" in words(found)[-1]
    assert "This base draws no detail of these images right" in advice([found]).lines[0]
    assert "coarsest octave" not in "\n".join(words(measure(Identity(), {"a": pixels}, {}, None, are_slices=False)))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(2)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text("noise")
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    write_weave(folder / "dry.tif", weave("dry", 0, (64, 40, 160)))
    return folder


def run(*arguments):
    vae_ceiling.main([str(argument) for argument in arguments])


def test_pictures_through_a_tiny_base(pictures, tiny_base_dir, tmp_path, capsys):
    out = tmp_path / "out"
    run("--train_data_dir", pictures, "--pretrained_model_name_or_path", tiny_base_dir, "--output_dir", out)
    record = json.loads((out / "ceiling.json").read_text(encoding="utf-8"))
    (scale,) = record["scales"]
    assert scale["um_per_px"] is None
    assert record["recommended_um_per_px"] is None
    assert scale["captions"]["noise"]["num_images"] == scale["all"]["num_images"] == 4  # a fifth of 20 is held out
    assert scale["all"]["octaves"][-1]["kept"]["value"] < 0.5  # random weights show nothing
    told = capsys.readouterr().out
    assert "noise (4 images): PSNR" in told
    with Image.open(out / "ceiling.png") as picture:
        assert picture.width > 400
        assert picture.height > 700


def test_slices_through_a_tiny_base_try_finer_scales(volumes, tiny_base_dir, tmp_path, capsys):
    out = tmp_path / "out"
    run(
        *("--concept", "sf_dry_warp", "--data_root", volumes, "--pretrained_model_name_or_path", tiny_base_dir),
        *("--num_images", 12, "--output_dir", out),
    )
    record = json.loads((out / "ceiling.json").read_text(encoding="utf-8"))
    assert [scale["um_per_px"] for scale in record["scales"]] == [40, 20, 10]
    assert record["recommended_um_per_px"] is None
    assert all(scale["shortcomings"] for scale in record["scales"])
    descriptors = record["scales"][0]["captions"]["sf_dry sf_warp"]["descriptors"]
    assert descriptors["pitch_rows"]["before"] == pytest.approx(600, rel=0.03)
    assert 40 < descriptors["tow_fraction"]["before"] < 80
    octave = record["scales"][0]["all"]["octaves"][-1]
    assert octave["cycles_per_mm"] == [6.25, 12.5]
    told = capsys.readouterr().out
    assert "No tried scale passes" in told
    assert "6.25-12.50 cycles/mm: power kept" in told


def test_given_scales_are_tried_from_coarse_to_fine_and_no_others(volumes, tiny_base_dir, tmp_path):
    run(
        *("--concept", "sf_dry_warp", "--data_root", volumes, "--pretrained_model_name_or_path", tiny_base_dir),
        *("--num_images", 4, "--um_per_px", 20, 40, "--output_dir", tmp_path / "out"),
    )
    record = json.loads((tmp_path / "out" / "ceiling.json").read_text(encoding="utf-8"))
    assert [scale["um_per_px"] for scale in record["scales"]] == [40, 20]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --concept --train_data_dir is required"),
        (["--concept", "sf_dry", "--train_data_dir", "x"], "not allowed with argument"),
        (["--concept", "sf_dri"], "no concept 'sf_dri'.*sf_dry"),
        (["--train_data_dir", "PICTURES", "--um_per_px", "40"], "--um_per_px: these images have no voxel size"),
        (["--train_data_dir", "PICTURES", "--data_root", "."], "belongs to --concept"),
        (["--train_data_dir", "PICTURES", "--resolution", "30"], "found 30, expected a multiple of 8: 24 or 32"),
        (["--train_data_dir", "PICTURES", "--num_images", "0"], "found 0, expected 1 or more"),
        (["--concept", "sf_dry", "--um_per_px", "0"], "found 0, expected a number above 0"),
        (["--concept", "sf_dry", "--um_per_px", "nan"], "found nan, expected a number above 0"),
        (["--concept", "sf_dry", "--finest_um", "-1"], "--finest_um"),
        (["--train_data_dir", "PICTURES", "--finest_um", "100"], "--finest_um: these images have no voxel size"),
        (["--train_data_dir", "no_such_folder"], "no_such_folder"),
        (["--train_data_dir", "PICTURES", "--num_images", "1"], "no caption with two held-out"),
    ],
)
def test_wrong_input_is_told(arguments, message, pictures, tiny_base_dir, tmp_path):
    filled = [str(pictures) if each == "PICTURES" else each for each in arguments]
    with pytest.raises(FilrougeError, match=re.compile(message, re.DOTALL)) as caught:
        run(*filled, "--pretrained_model_name_or_path", tiny_base_dir, "--output_dir", tmp_path / "out")
    assert caught.value.exit_code in (2, 3)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(pictures, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="exists and is not empty"):
        run("--train_data_dir", pictures, "--output_dir", tmp_path)
    with pytest.raises(SettingsError, match="no_model"):
        run("--train_data_dir", pictures, "--pretrained_model_name_or_path", "no_model")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
