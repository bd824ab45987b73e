"""Spatial frequencies against Parseval and pictures of one wave, and the closed forms of what noise leaves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from data.errors import SettingsError
from pipelines.diffusion.forward import noised
from pipelines.diffusion.fourier import (
    band_edges,
    band_index,
    band_powers,
    coherence,
    lost_at,
    mean_signal_to_noise,
    snr_by_band,
)
from pipelines.diffusion.schedules import alphas_cumprod

SIZE, BANDS = 32, 6
LEFT = alphas_cumprod("linear", 500)


def _white(num: int, seed: int = 0) -> Tensor:
    return torch.randn(num, 1, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_white_noise_has_power_one_in_every_band() -> None:
    np.testing.assert_allclose(band_powers(_white(200), BANDS).power, 1, atol=0.1)


def test_the_powers_of_all_coefficients_sum_to_the_variance() -> None:
    """Parseval: bands weighted by their number of coefficients give the mean square of a picture without mean."""
    pixels = _white(3) * 0.7 + 0.4
    bands = band_powers(pixels, BANDS)
    index = band_index(SIZE, BANDS)
    counts = np.array([int((index == band).sum()) for band in range(BANDS)])
    assert counts.sum() == SIZE**2 - 1
    centred = pixels - pixels.mean((2, 3), keepdim=True)
    assert float((counts * bands.power).sum() / SIZE**2) == pytest.approx(float(centred.square().mean()), rel=1e-9)


@pytest.mark.parametrize("cycles", [2, 6, 14])
def test_a_wave_is_in_the_band_of_its_frequency(cycles: int) -> None:
    columns = torch.arange(SIZE, dtype=torch.float64)
    wave = torch.sin(2 * math.pi * cycles * columns / SIZE).expand(1, 1, SIZE, SIZE)
    power = band_powers(wave, BANDS).power
    edges = band_edges(BANDS)
    home = int(np.searchsorted(edges, cycles / SIZE, side="right")) - 1
    assert power[home] > 1
    assert np.delete(power, home).max() < 1e-20


def test_the_mean_is_in_no_band() -> None:
    assert band_powers(torch.full((1, 1, SIZE, SIZE), 0.6), BANDS).power.max() < 1e-20


def test_a_band_is_lost_where_noise_becomes_stronger_than_signal() -> None:
    pixels = 0.5 * _white(50)
    bands = band_powers(pixels, BANDS)
    ratio = snr_by_band(bands, LEFT)
    np.testing.assert_allclose(ratio[100], float(LEFT[100] / (1 - LEFT[100])) * bands.power)
    for band, t in enumerate(lost_at(bands, LEFT)):
        assert t is not None
        assert ratio[t, band] < 1 <= ratio[t - 1, band]
    assert lost_at(band_powers(1e4 * pixels, BANDS), LEFT[:10]) == [None] * BANDS


def test_the_coherence_is_what_the_powers_say() -> None:
    pixels = 0.5 * _white(60)
    for t, x_t in zip((20, 150, 400), noised(pixels, LEFT, [20, 150, 400], seed=3), strict=True):
        ratio = snr_by_band(band_powers(pixels, BANDS), LEFT)[t]
        np.testing.assert_allclose(coherence(pixels, x_t, BANDS), np.sqrt(ratio / (1 + ratio)), atol=0.03)


def test_the_forward_process_has_mean_and_variance_of_its_law() -> None:
    x0 = torch.full((300, 1, 8, 8), 0.8)
    for t, x_t in zip((10, 250), noised(x0, LEFT, [10, 250], seed=0), strict=True):
        assert float(x_t.mean()) == pytest.approx(0.8 * float(LEFT[t]) ** 0.5, abs=0.03)
        assert float(x_t.var()) == pytest.approx(1 - float(LEFT[t]), rel=0.03)


def test_the_same_noise_is_added_at_every_timestep() -> None:
    x0 = torch.zeros(2, 1, 4, 4)
    early, late = noised(x0, LEFT, [50, 400], seed=1)
    scale = float(((1 - LEFT[400]) / (1 - LEFT[50])) ** 0.5)
    torch.testing.assert_close(early * scale, late)


@pytest.mark.parametrize("timesteps", [[-1], [500], [0, 9999]])
def test_timesteps_outside_the_schedule_are_refused(timesteps: list[int]) -> None:
    with pytest.raises(SettingsError, match="expected 0 to 499"):
        noised(torch.zeros(1, 1, 4, 4), LEFT, timesteps, seed=0)


def test_the_mean_of_a_picture_is_read_as_well_as_the_closed_form_says() -> None:
    """Measured over draws of noise with its offset, at one timestep."""
    side, offset, alpha_bar = 16, 0.1, 0.2
    rng = torch.Generator().manual_seed(0)
    eps = torch.randn(4000, side, side, generator=rng) + offset * torch.randn(4000, 1, 1, generator=rng)
    means = (math.sqrt(alpha_bar) + math.sqrt(1 - alpha_bar) * eps).mean((1, 2))
    measured = float(means.mean() / means.std())
    assert mean_signal_to_noise(side, alpha_bar, offset) == pytest.approx(measured, rel=0.05)


def test_offset_noise_hides_the_mean_that_stable_diffusion_leaves() -> None:
    last = float(DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod[-1])
    assert mean_signal_to_noise(64, last, 0.0) > 4
    assert mean_signal_to_noise(64, last, 0.1) < 1
