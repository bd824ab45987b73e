"""Each figure comes with its numbers, and the numbers are those of the closed forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import FilrougeError, OutputError
from finetune import points as train_points
from pipelines import diffusion_figures, generate_pixels, points_in_plane
from pipelines.diffusion.drawing import Way, denoiser
from pipelines.diffusion.figures import bits
from pipelines.diffusion.pictures import open_pictures, pictures
from pipelines.diffusion.points import LAWS, GaussianMixture
from pipelines.diffusion.posterior import VARIANCES
from pipelines.diffusion.progressive import shared_counts, siblings, spread
from pipelines.diffusion.schedules import SCHEDULES, SPACINGS, alphas_cumprod, log_snr, strided
from pipelines.pixel_model import load_pixel_model
from tests.tiny_pixels import SIZE_PX, tiny_run

LEFT = alphas_cumprod("linear", 50)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("figures"), grey=True, learned_variance=True)


def drawn(name: str, tmp_path: Path, *options: str) -> dict[str, Any]:
    folder = tmp_path / name
    diffusion_figures.main([name, *options, "--output_dir", str(folder)])
    assert min(Image.open(folder / f"{name}.png").size) > 100
    numbers: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return numbers


def test_schedules_side_by_side(tmp_path: Path) -> None:
    found = drawn("schedules", tmp_path, "--num_train_timesteps", "100")["schedules"]
    assert set(found) == set(SCHEDULES)
    for name in SCHEDULES:
        left = alphas_cumprod(name, 100)
        assert found[name]["alpha_bar_last"] == float(left[-1])
        half = found[name]["half_of_the_signal_left_at_t"]
        assert float(left[half]) < 0.5 <= float(left[half - 1])


def test_offset_noise_lowers_what_is_left_of_the_mean(tmp_path: Path) -> None:
    found = drawn("offset", tmp_path, "--sides", "64")["signal_to_noise_of_the_mean"]
    assert set(found) == {f"{name}, 64 px" for name in (*SCHEDULES, "Stable Diffusion")}
    for by_offset in found.values():
        ratios = list(by_offset.values())
        assert ratios == sorted(ratios, reverse=True)
    assert found["Stable Diffusion, 64 px"]["0.0"] == pytest.approx(4.4, abs=0.1)


def test_the_forward_process_at_chosen_timesteps(run: Path, tmp_path: Path) -> None:
    options = ["--timesteps", "0", "30", "49", "--num_train_timesteps", "50", "--schedules", "linear"]
    found = drawn("forward", tmp_path, "--images", str(run.parent / "pictures"), "--resolution", "16", *options)
    assert found["schedules"] == {
        "linear": {str(t): {"alpha_bar": float(LEFT[t]), "log_snr": float(log_snr(LEFT)[t])} for t in (0, 30, 49)}
    }


def test_bands_are_lost_from_the_finest_to_the_coarsest(run: Path, tmp_path: Path) -> None:
    found = drawn("bands", tmp_path, "--model", str(run), "--bands", "4")
    assert found["num_images"] == 8
    bars = [band["lost_at_t"]["linear"] for band in found["bands"]]
    assert len(bars) == 4
    for band in found["bands"]:
        assert band["coherence"]["0"] > 0.99
        assert abs(band["coherence"]["999"]) < 0.3
    strongest = max(found["bands"], key=lambda band: band["power"])
    assert strongest["lost_at_t"]["linear"] == max(bars)


def test_bits_are_the_sum_of_their_terms(run: Path, tmp_path: Path) -> None:
    found = drawn("bits", tmp_path, "--model", str(run), "--num_images", "4", "--num_steps", "20")
    total = found["prior"] + sum(found["terms"].values())
    assert found["bits_per_dimension"]["value"] == pytest.approx(total)
    assert found["bits_per_dimension"]["low"] <= total <= found["bits_per_dimension"]["high"]
    assert found["terms"]["0"] == found["decoder"]


def test_rate_rises_to_the_bits_as_distortion_is_told(run: Path, tmp_path: Path) -> None:
    options = ["--model", str(run), "--num_images", "4", "--num_steps", "10", "--variance", "large"]
    found = drawn("rate", tmp_path, *options)
    rates = [point["rate_bits_per_dimension"] for point in found["curve"]]
    assert rates == sorted(rates)
    assert rates[-1] < found["bits_per_dimension"]["value"]
    model = load_pixel_model(run)
    shown = pictures(model, open_pictures(run), "held-out", 4)
    bound = bits.measure(model, shown, num_steps=10, variance="large", num_values=256, seed=0)
    expected = float(bound.squared_errors.mean(1).sqrt()[3]) * 255 / 2
    assert found["curve"][3]["distortion"] == pytest.approx(expected)


def test_progressive_generation_is_drawn_with_its_spread(run: Path, tmp_path: Path) -> None:
    options = ["--num_inference_steps", "6", "--rows", "3", "--num_images", "3"]
    found = drawn("progressive", tmp_path, "--model", str(run), *options)
    assert len(found["rows"]) == 3
    assert all(row["spread"] >= 0 for row in found["rows"])


def test_pictures_that_share_more_differ_less() -> None:
    law = GaussianMixture(torch.full((8,), 1 / 8), 4 * torch.randn(8, 6, generator=torch.Generator().manual_seed(0)),
                          0.05 * torch.eye(6).expand(8, 6, 6))  # fmt: skip
    steps = strided(LEFT, 50)
    spreads = []
    for count in (0, 30, 47):
        drawn_points, shared = siblings(law.denoiser(LEFT), (6,), steps, shared_steps=count, num_pictures=40, seed=1)
        assert drawn_points.shape == (40, 6)
        assert shared.shape == (1, 6)
        spreads.append(spread(drawn_points))
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[2] < 0.2 * spreads[0]


def test_more_shared_steps_go_on_from_fewer(run: Path) -> None:
    model = load_pixel_model(run)
    denoise, steps = denoiser(model, Way()), strided(model.alphas_cumprod, 6)
    shape = (1, SIZE_PX, SIZE_PX)
    with torch.no_grad():
        shared = [siblings(denoise, shape, steps, shared_steps=n, num_pictures=1, seed=4)[1] for n in (0, 2, 2)]
    assert torch.equal(shared[1], shared[2])
    assert not torch.equal(shared[0], shared[1])
    assert shared_counts(steps, 3) == [0, 2, 5]
    assert shared_counts(steps, 100) == [0, 1, 2, 3, 4, 5]


def test_points_are_trained_and_looked_at(tmp_path: Path) -> None:
    few = ["--max_train_steps", "60", "--train_batch_size", "64", "--num_train_timesteps", "30"]
    train_points.main(["--law", "two_gaussians", *few, "--output_dir", str(tmp_path / "p")])
    points_in_plane.main(["--model", str(tmp_path / "p"), "--num_points", "150", "--output_dir", str(tmp_path / "o")])
    found = json.loads((tmp_path / "o" / "points.json").read_text())
    exact = found["samples"]["exact, ancestral, 30 steps"]["energy_distance"]
    assert exact["value"] < 0.05
    assert set(found["score_error"]) == {"1", "7", "14", "22", "28"}
    assert found["score_error"]["28"] < found["score_error"]["1"]  # pure noise is the easiest to name
    assert min(Image.open(tmp_path / "o" / "points.png").size) > 300
    with pytest.raises(OutputError, match="nothing is written over"):
        train_points.main(["--law", "spiral", *few, "--output_dir", str(tmp_path / "p")])


@pytest.mark.parametrize(
    ("main", "argv", "said"),
    [
        (train_points.main, ["--law", "circle"], [*LAWS]),
        (train_points.main, ["--schedule", "cubic"], [*SCHEDULES]),
        (diffusion_figures.main, ["forward", "--schedules", "cubic"], [*SCHEDULES]),
        (diffusion_figures.main, ["bands", "--schedule", "cubic"], [*SCHEDULES]),
        (diffusion_figures.main, ["bits", "--model", "x", "--variance", "none"], [*VARIANCES]),
        (generate_pixels.main, ["--model", "x", "--variance", "none"], [*VARIANCES]),
        (generate_pixels.main, ["--model", "x", "--spacing", "cubic"], [*SPACINGS]),
    ],
)
def test_choices_written_out_in_scripts_are_all_there_are(
    main: Callable[[list[str]], None], argv: list[str], said: list[str]
) -> None:
    with pytest.raises(FilrougeError) as caught:
        main(argv)
    choices = str(caught.value).partition("choose from")[2].partition(")")[0]
    assert [name.strip(" '") for name in choices.split(",")] == said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["forward"], "expected --model, a run of finetune/ddpm.py, or --images"),
        (["forward", "--images", "nowhere"], "nowhere"),
        (["forward", "--model", "RUN", "--timesteps", "1000"], "expected 0 to 999"),
        (["bands", "--model", "RUN", "--bands", "9"], "found 9, expected 2 to 8"),
        (["schedules", "--num_train_timesteps", "1"], "found 1, expected 2 or more"),
        (["bits", "--model", "RUN", "--num_steps", "1"], "found 1, expected 2 or more"),
        (["rate", "--model", "RUN", "--num_steps", "21"], "expected 1 to 20"),
        (["progressive", "--model", "RUN", "--label", "bars"], "This model knows no labels"),
        (["progressive", "--model", "nowhere"], "expected a pixel model"),
        (["nothing"], "invalid choice"),
    ],
)
def test_wrong_wishes_are_refused_and_leave_no_folder(argv: list[str], said: str, run: Path, tmp_path: Path) -> None:
    given = [str(run) if part == "RUN" else part for part in argv]
    with pytest.raises(FilrougeError, match=said):
        diffusion_figures.main([*given, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_pictures_of_one_grey_have_no_bands(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    Image.fromarray(np.full((16, 16), 90, dtype=np.uint8)).save(tmp_path / "flat" / "a.png")
    with pytest.raises(FilrougeError, match="show one grey value each"):
        diffusion_figures.main(
            ["bands", "--images", str(tmp_path / "flat"), "--resolution", "16", "--output_dir", str(tmp_path / "o")]
        )
