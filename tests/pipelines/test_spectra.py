"""Spectra and histograms of images: white noise, a wave, tones that are known, and bands over images."""

from __future__ import annotations

import numpy as np
import pytest

from data.errors import DataError
from pipelines.metrics.slices.pooled import QUANTISATION_POWER
from pipelines.metrics.spectra import NUM_TONES, Tone, radial_spectrum, tone_histogram

SIZE = 48


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, dtype=np.float32)[..., None], 3, axis=-1)


def noise(count: int, deviation: float, seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0.5, deviation, (count, SIZE, SIZE))
    return grey(np.clip(values, 0, 1))


def test_white_noise_is_flat_at_its_variance() -> None:
    band = radial_spectrum([noise(64, 0.1)])
    assert band.x[0] == pytest.approx(1 / SIZE)
    assert band.x[-1] == 0.5
    # 10 log10 of 0.01; the mean, which is removed, takes a little from the lowest frequency
    assert band.value == pytest.approx(-20, abs=1.2)
    assert band.value[4:] == pytest.approx(-20, abs=0.25)
    assert band.num_images == 64


@pytest.mark.parametrize("cycles", [3, 6, 12])
@pytest.mark.parametrize("along_rows", [True, False])
def test_a_wave_peaks_at_its_frequency(cycles: int, along_rows: bool) -> None:
    place = np.arange(SIZE) / SIZE
    wave = np.tile(0.5 + 0.3 * np.sin(2 * np.pi * cycles * place), (SIZE, 1))
    band = radial_spectrum([grey((wave if along_rows else wave.T)[None])])
    assert band.x[band.value.argmax()] == pytest.approx(cycles / SIZE)
    far = np.abs(band.x - cycles / SIZE) > 3 / SIZE
    assert band.value[far].max() < band.value.max() - 40


def test_what_rounding_hides_is_no_power() -> None:
    band = radial_spectrum([grey(np.full((2, SIZE, SIZE), 0.4))])
    assert band.value == pytest.approx(10 * np.log10(QUANTISATION_POWER))


def test_captions_count_alike_however_many_images_they_have() -> None:
    quiet, loud = noise(40, 0.02), noise(10, 0.2, seed=2)
    alone = [10 ** (radial_spectrum([each]).value / 10) for each in (quiet, loud)]
    assert radial_spectrum([quiet, loud]).value == pytest.approx(10 * np.log10(np.mean(alone, axis=0)))
    band = radial_spectrum([quiet, loud])
    assert band.num_images == 10
    assert (band.low <= band.value).all()
    assert (band.value <= band.high).all()


def test_the_band_is_that_of_a_mean_over_images() -> None:
    """Images of one grey each: the share of a tone is a share of images, whose mean has a binomial's spread."""
    greys = np.where(np.arange(100) < 30, 0.1, 0.9)
    band = tone_histogram([grey(np.tile(greys[:, None, None], (1, 8, 8)))], "grey")
    dark = int(0.1 * NUM_TONES)
    spread = 1.96 * np.sqrt(0.3 * 0.7 / 100)
    assert band.value[dark] == pytest.approx(0.3)
    assert band.low[dark] == pytest.approx(0.3 - spread, abs=0.02)
    assert band.high[dark] == pytest.approx(0.3 + spread, abs=0.02)
    assert band.value.sum() == pytest.approx(1)


def test_one_seed_gives_one_band() -> None:
    images = noise(12, 0.1)
    one, again, other = (radial_spectrum([images], seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.low, again.low)
    assert not np.array_equal(one.low, other.low)
    assert (one.low <= one.value).all()
    assert (one.value <= one.high).all()


@pytest.mark.parametrize(("tone", "level"), [("red", 1.0), ("green", 0.5), ("blue", 0.0), ("grey", 0.299 + 0.587 / 2)])
def test_each_colour_has_its_own_tones(tone: Tone, level: float) -> None:
    pictures = np.tile(np.array([1.0, 0.5, 0.0], dtype=np.float32), (3, 8, 8, 1))
    band = tone_histogram([pictures], tone)
    expected = min(int(level * NUM_TONES), NUM_TONES - 1)
    assert band.value[expected] == 1
    assert band.x[expected] == pytest.approx((expected + 0.5) / NUM_TONES)
    assert band.value.sum() == 1


def test_every_8_bit_level_falls_into_a_bin_of_as_many() -> None:
    ramp = grey(np.arange(256).reshape(1, 16, 16) / 255)
    assert tone_histogram([ramp], "green").value == pytest.approx(1 / NUM_TONES)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([], "found pictures of none px"),
        ([noise(2, 0.1), grey(np.full((1, 16, 16), 0.5))], "found pictures of 16 x 16, 48 x 48 px, expected one size"),
        ([noise(2, 0.1)[..., 0]], "expected (images, rows, columns, 3)"),
        ([2 * noise(2, 0.1)], "expected floats in [0, 1]"),
    ],
)
def test_what_has_no_spectrum_is_refused(groups: list[np.ndarray], words: str) -> None:
    with pytest.raises(DataError) as error:
        radial_spectrum(groups)
    assert words in str(error.value)
