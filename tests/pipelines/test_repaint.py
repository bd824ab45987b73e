"""RePaint: the known part stays, bit for bit, and with an exact denoiser the rest follows the conditional law."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data.errors import SettingsError
from pipelines.diffusion.points import GaussianMixture
from pipelines.diffusion.repaint import repaint, walk
from pipelines.diffusion.samplers import ancestral
from pipelines.diffusion.schedules import alphas_cumprod, strided

LEFT = alphas_cumprod("linear", 100)
SIZE = 12
# a stationary Gaussian field on a line: neighbours are alike
PLACES = torch.arange(SIZE, dtype=torch.float64)
COVARIANCE = torch.exp(-(((PLACES[:, None] - PLACES) / 2.5) ** 2)) + 0.02 * torch.eye(SIZE, dtype=torch.float64)
FIELD = GaussianMixture(torch.ones(1), torch.full((1, SIZE), 0.4), COVARIANCE[None])
KNOWN = torch.tensor([True, True, True, False, False, True, True, False, False, False, True, True])


def _normal(num: int, first: int) -> object:
    return lambda number: torch.randn(
        num, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(first + number)
    )


def _inpainted(num: int, known: Tensor, jump_length: int = 10, num_resamples: int = 10) -> Tensor:
    return repaint(
        FIELD.denoiser(LEFT),
        _normal(num, 0)(0),  # type: ignore[operator]
        strided(LEFT, 50),
        known=known.expand(num, SIZE),
        mask=KNOWN,
        noise=_normal(num, 10_000),  # type: ignore[arg-type]
        known_noise=_normal(num, 20_000),  # type: ignore[arg-type]
        jump_length=jump_length,
        num_resamples=num_resamples,
    )


def test_the_known_part_is_kept_bit_for_bit() -> None:
    known = FIELD.sample(1, 3)[0]
    drawn = _inpainted(5, known, jump_length=5, num_resamples=2)
    assert torch.equal(drawn[:, KNOWN], known[KNOWN].expand(5, -1))
    assert float(drawn[:, ~KNOWN].std(0).min()) > 0.01


def test_what_the_known_holds_outside_the_mask_is_not_used() -> None:
    known = FIELD.sample(1, 3)[0]
    hidden = torch.where(KNOWN, known, torch.nan)
    assert torch.equal(_inpainted(2, hidden, num_resamples=1), _inpainted(2, known, num_resamples=1))


def test_with_the_exact_denoiser_the_conditional_mean_is_approached_by_resampling() -> None:
    known = FIELD.sample(1, 3)[0]
    inside = COVARIANCE[KNOWN][:, KNOWN]
    expected = 0.4 + COVARIANCE[~KNOWN][:, KNOWN] @ torch.linalg.solve(inside, known[KNOWN] - 0.4)
    errors = {}
    for resamples in (1, 8):
        mean = _inpainted(200, known, jump_length=5, num_resamples=resamples)[:, ~KNOWN].mean(0)
        errors[resamples] = float((mean - expected).square().mean().sqrt())
    far = float((0.4 - expected).square().mean().sqrt())
    assert errors[8] < errors[1] < far
    assert errors[8] < 0.35 * far


def test_without_a_known_part_or_jumps_it_is_ancestral_sampling() -> None:
    steps, start = strided(LEFT, 20), _normal(3, 0)(0)  # type: ignore[operator]
    chance = _normal(3, 5)
    drawn = repaint(
        FIELD.denoiser(LEFT),
        start,
        steps,
        known=torch.zeros(3, SIZE, dtype=torch.float64),
        mask=torch.zeros(SIZE, dtype=torch.bool),
        noise=chance,  # type: ignore[arg-type]
        known_noise=chance,  # type: ignore[arg-type]
        num_resamples=1,
    )
    assert torch.equal(drawn, ancestral(FIELD.denoiser(LEFT), start, steps, noise=chance))  # type: ignore[arg-type]


def test_all_known_gives_the_known_image() -> None:
    known = FIELD.sample(2, 1)
    drawn = repaint(
        FIELD.denoiser(LEFT),
        torch.zeros(2, SIZE, dtype=torch.float64),
        strided(LEFT, 5),
        known=known,
        mask=torch.ones(2, SIZE, dtype=torch.bool),
        noise=_normal(2, 0),  # type: ignore[arg-type]
        known_noise=_normal(2, 9),  # type: ignore[arg-type]
    )
    assert torch.equal(drawn, known)


def test_the_way_goes_down_with_jumps_up() -> None:
    assert walk(4, 10, 10) == [4, 3, 2, 1, 0]
    assert walk(4, 1, 1) == [4, 3, 2, 1, 0]
    assert walk(5, 2, 2) == [5, 4, 3, 4, 5, 4, 3, 2, 1, 2, 3, 2, 1, 0]
    assert walk(3, 1, 3) == [3, 2, 3, 2, 3, 2, 1, 2, 1, 2, 1, 0]


def test_the_usual_way_has_as_many_moves_as_the_paper_says() -> None:
    """250 steps, j = 10, r = 10 (appendix B): 24 jumps, each 9 times 10 up and 10 down."""
    heights = walk(250, 10, 10)
    assert len(heights) - 1 == 250 + 24 * 9 * 20 + 0
    assert heights.count(0) == 1


@pytest.mark.parametrize(("jump_length", "num_resamples"), [(0, 1), (1, 0), (-3, -3)])
def test_jumps_below_one_are_refused(jump_length: int, num_resamples: int) -> None:
    with pytest.raises(SettingsError, match="expected 1 or more"):
        walk(10, jump_length, num_resamples)
