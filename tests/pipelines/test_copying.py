"""The search for copies: planted copies are found, moved or mirrored, and fresh images are not."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from scipy import ndimage, signal, stats

from data.errors import DataError
from pipelines.metrics import training_images as module
from pipelines.metrics.copying import Group, calibrated, comparer_id, copy_auc, copying
from pipelines.metrics.correlation import correlations
from pipelines.metrics.inputs import luminance
from pipelines.metrics.places import Places, unit
from pipelines.metrics.poses import AS_IT_IS, FLIPS, FLIPS_AND_TURNS, Pose
from pipelines.metrics.training_images import Match, TrainingImages
from tests.planted import shifted_texture, textures


def posed(pictures: np.ndarray, pose: Pose) -> np.ndarray:
    return np.stack([pose.of(pictures[..., channel]) for channel in range(3)], axis=-1)


def degraded(pictures: np.ndarray, seed: int = 0) -> np.ndarray:
    """As a model would give it back: less contrast, other noise."""
    noise = np.random.default_rng(seed).normal(0, 0.03, pictures.shape)
    return np.clip(0.5 + 0.95 * (pictures - 0.5) + noise, 0, 1).astype(np.float32)


def test_the_correlation_is_the_direct_sum_over_all_shifts() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 9, 7, 3), dtype=np.float32), rng.random((3, 9, 7, 3), dtype=np.float32)
    found = correlations(one, other)
    for i, a in enumerate(luminance(one)):
        for j, b in enumerate(luminance(other)):
            a0, b0 = a - a.mean(), b - b.mean()
            direct = signal.correlate2d(a0, b0, mode="full") / (np.linalg.norm(a0) * np.linalg.norm(b0))
            assert found[i, j] == pytest.approx(direct.max(), abs=1e-5)


def test_an_image_is_like_itself_at_any_contrast_and_unlike_its_negative() -> None:
    pictures = textures("zigzagged", 3)
    np.testing.assert_allclose(np.diag(correlations(pictures, 0.2 + 0.5 * pictures)), 1, atol=1e-5)
    assert (np.diag(correlations(pictures, 1 - pictures)) < 0.99).all()


def test_an_image_of_one_grey_is_like_nothing() -> None:
    grey = np.full((1, 64, 64, 3), 0.5, np.float32)
    assert np.abs(correlations(grey, textures("zigzagged", 2))).max() == 0
    assert TrainingImages(grey).nearest(grey)[0].ncc == 0


@pytest.mark.parametrize("pose", FLIPS_AND_TURNS, ids=lambda pose: pose.name)
def test_a_copy_is_found_in_its_pose_and_at_its_place(pose: Pose) -> None:
    """The pose is its own inverse but for the quarter turns, which undo each other."""
    training = TrainingImages(textures("bubbly", 12), poses=FLIPS_AND_TURNS)
    moved = np.stack([shifted_texture("bubbly", number, 6, -9) for number in (3, 7)])
    inverse = {"turned by 90 degrees": "turned by 270 degrees", "turned by 270 degrees": "turned by 90 degrees"}
    undone = next(each for each in FLIPS_AND_TURNS if each.name == inverse.get(pose.name, pose.name))
    found = training.nearest(posed(moved, undone))
    assert [match.training for match in found] == [3, 7]
    assert [match.pose for match in found] == [pose.name] * 2
    # what stood in the middle stands 6 px higher and 9 px further right in the copy
    assert [match.shift_px for match in found] == [(-6, 9)] * 2
    overlap = (64 - 6) * (64 - 9) / 64**2
    assert all(overlap - 0.2 < match.ncc <= 1 for match in found)
    for copy, match in zip(posed(moved, undone), found, strict=True):
        difference = posed(training.difference(copy, match)[None], pose)[0]
        assert difference[:58, 9:].max() < 1e-6
        assert difference[58:].min() == difference[:, :9].min() == 1


def test_exact_copies_have_a_correlation_of_one_and_a_symmetric_image_is_told_as_it_is() -> None:
    pictures = textures("bubbly", 6)
    assert [match.ncc for match in TrainingImages(pictures).nearest(pictures)] == pytest.approx([1] * 6, abs=1e-5)
    half = pictures[:, :, :32]
    symmetric = np.concatenate([half, half[:, :, ::-1]], axis=2)
    assert {match.pose for match in TrainingImages(symmetric).nearest(symmetric)} == {AS_IT_IS.name}


def test_the_search_by_stages_finds_what_the_full_search_finds() -> None:
    generated, training = textures("banded", 12), textures("banded", 40, 12)
    brute = np.max([correlations(posed(generated, pose), training) for pose in FLIPS], axis=0)
    found = TrainingImages(training).nearest(generated)
    np.testing.assert_allclose([match.ncc for match in found], brute.max(1), atol=1e-4)
    assert [match.training for match in found] == brute.argmax(1).tolist()


def test_planted_copies_are_told_from_fresh_images() -> None:
    training, held_out = TrainingImages(textures("zigzagged", 60)), textures("zigzagged", 24, 60)
    rng = np.random.default_rng(1)
    moved = [shifted_texture("zigzagged", n, *(int(s) for s in rng.integers(-8, 9, 2))) for n in range(24)]
    copies = degraded(np.stack(moved)[:, :, ::-1])
    found = copying(copies, training, held_out)
    assert found.auc is not None
    assert found.auc.value > 0.9
    assert found.auc.low > 0.8
    assert found.verdict == "nearer to the training images than held-out real images are"
    assert len(found.flagged) > 18
    assert np.mean([match.training == number for number, match in enumerate(found.matches)]) > 0.9
    fresh = copying(textures("zigzagged", 24, 90), training, held_out)
    assert fresh.auc is not None
    assert fresh.auc.low < 0.5 < fresh.auc.high
    assert fresh.verdict.startswith("inconclusive")
    assert fresh.flagged_share is not None
    assert fresh.flagged_share.low < 0.05
    assert len(fresh.flagged) < 5
    # calibrated by their own neighbours, copies stand out as well
    assert np.median([m.relative for m in found.matches]) < 0.8 * np.median([m.relative for m in fresh.matches])


def test_the_worst_pairs_come_first_and_a_planted_copy_leads_them() -> None:
    training = TrainingImages(textures("bubbly", 20))
    generated = textures("bubbly", 8, 40).copy()
    generated[5] = degraded(textures("bubbly", 20)[[11]])[0]
    worst = copying(generated, training, textures("bubbly", 12, 60)).worst
    assert (worst[0].image, worst[0].training) == (5, 11)
    assert [match.ncc for match in worst] == sorted((match.ncc for match in worst), reverse=True)


def test_without_held_out_images_the_pairs_are_shown_and_nothing_is_calibrated() -> None:
    training = TrainingImages(textures("bubbly", 6))
    for nothing in (None, np.empty((0, 64, 64, 3), np.float32)):
        found = copying(textures("bubbly", 2, 6), training, nothing)
        assert (found.auc, found.flagged_share, found.flagged) == (None, None, ())
        assert "no held-out images" in found.verdict
        assert len(found.as_json()["matches"]) == 2


def test_few_images_give_no_verdict() -> None:
    training = TrainingImages(textures("bubbly", 6))
    assert copying(textures("bubbly", 6), training, textures("bubbly", 12, 6)).verdict.startswith("no verdict")


def test_the_copy_auc_is_the_statistic_of_mann_and_whitney() -> None:
    rng = np.random.default_rng(2)
    near, usual = rng.normal(0.3, 0.1, 30).round(2), rng.normal(0.35, 0.1, 40).round(2)
    found = copy_auc(near, usual)
    assert found.value == pytest.approx(stats.mannwhitneyu(usual, near).statistic / (30 * 40))
    assert found.num_images == 30
    assert copy_auc(near, near).value == 0.5


def test_few_training_images_are_calibrated_by_the_others_and_many_by_the_fifty_nearest() -> None:
    ncc = np.linspace(0.9, 0.1, 60)
    distances = np.sqrt(2 - 2 * ncc)
    assert module._relative(ncc[:10], 0) == pytest.approx(distances[0] / distances[1:10].mean())
    assert module._relative(ncc, 0) == pytest.approx(distances[0] / (0.5 * distances[:50].mean()))
    assert np.isnan(module._relative(ncc[:1], 0))


def _larger(seed: int, rows: int, columns: int) -> np.ndarray:
    """Grey noise of a grain of 2 px, (rows, columns, 3) in [0, 1]."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((rows, columns)), 2)
    return np.repeat((0.5 + 0.1 * noise / noise.std()).clip(0, 1).astype(np.float32)[..., None], 3, axis=-1)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (36, 86), (17, 41)])
def test_what_is_cut_anywhere_out_of_a_larger_image_is_found_there(row: int, column: int) -> None:
    pictures = [_larger(1, 100, 150), _larger(2, 64, 90), _larger(3, 100, 150)]
    training = TrainingImages(pictures, (64, 64))
    cut = pictures[2][row : row + 64, column : column + 64]
    bright_and_mirrored = (0.3 + 0.5 * cut[:, ::-1])[None]
    for images, pose in ((cut[None], "as it is"), (bright_and_mirrored, "mirrored left to right")):
        match = training.nearest(images)[0]
        assert (match.training, match.shift_px, match.pose) == (2, (-row, -column), pose)
        assert match.ncc == pytest.approx(1, abs=1e-4)
        assert training.origin_px(match) == (row, column)
        assert training.beyond_px(match) == (0, 0)
        np.testing.assert_array_equal(training.window(match), cut)
    assert training.difference(cut, training.nearest(cut[None])[0]).max() < 1e-6


def test_an_image_that_reaches_beyond_a_larger_one_is_found_by_what_they_share() -> None:
    picture = _larger(4, 80, 120)
    beyond = np.concatenate([_larger(5, 10, 64), picture[:54, 56:]])  # its last 54 rows are the picture's first
    training = TrainingImages([_larger(6, 80, 120), picture], (64, 64))
    match = training.nearest(beyond[None])[0]
    assert (match.training, match.shift_px) == (1, (10, -56))
    assert 0.7 < match.ncc < 1
    assert training.origin_px(match) == (0, 56)
    assert training.beyond_px(match) == (10, 0)
    difference = training.difference(beyond, match)
    assert difference[:10].min() == 1
    assert difference[10:].max() < 1e-6


def test_the_value_at_a_place_is_the_correlation_of_the_image_with_that_window() -> None:
    rng = np.random.default_rng(7)
    picture, image = rng.random((13, 17)), rng.random((6, 5))
    places = Places.of(torch.from_numpy(picture)[None].float(), (6, 5))
    found = places.values(places.spectra_of(unit(torch.from_numpy(image)[None].float())[0]))[0]
    for row in range(13 - 6 + 1):
        for column in range(17 - 5 + 1):
            window = picture[row : row + 6, column : column + 5]
            direct = np.corrcoef(image.ravel(), window.ravel())[0, 1]
            assert found[-row, -column].item() == pytest.approx(direct, abs=1e-5)
    assert found.abs().max() <= 1


def test_each_caption_is_held_against_its_own_held_out_images() -> None:
    """Images of one caption resemble each other more than those of another, and nothing is copied."""

    def matches(ncc: np.ndarray) -> list[Match]:
        return [Match(number, 0, float(value), "as it is", (0, 0), 1.0) for number, value in enumerate(ncc)]

    rng = np.random.default_rng(8)
    alike, unlike = (lambda: 0.9 + 0.02 * rng.random(20)), (lambda: 0.3 + 0.02 * rng.random(20))
    one = Group(matches(alike()), matches(alike()))
    other = Group(matches(unlike()), matches(unlike()))
    found = calibrated([one, other], num_training=1, comparer_id="x")
    assert found.auc is not None
    assert found.auc.low < 0.5 < found.auc.high
    assert found.auc.value == pytest.approx(
        np.mean([copy_auc(*(np.array([m.distance for m in side]) for side in group)).value for group in (one, other)])
    )
    assert found.auc.num_images == 40
    pooled = calibrated([Group(one.generated, [*one.held_out, *other.held_out])], num_training=1, comparer_id="x")
    assert pooled.auc is not None
    assert pooled.auc.low > 0.5  # what a caption of images that are alike would be blamed for
    alone = calibrated([one, Group(other.generated, [])], num_training=1, comparer_id="x")
    assert alone.num_uncalibrated == 20
    assert alone.verdict.endswith("20 images have no held-out ones to compare with")
    assert len(alone.matches) == 40
    few = calibrated([one, Group(other.generated[:4], other.held_out)], num_training=1, comparer_id="x")
    assert few.auc is not None
    assert few.auc.verdict == "none"


def test_images_above_the_full_size_are_compared_smaller_and_shifts_stay_in_their_pixels() -> None:
    smooth = np.kron(np.random.default_rng(4).random((2, 48, 48)), np.ones((8, 8)))
    pictures = np.repeat(smooth[..., None], 3, axis=-1).astype(np.float32)
    found = TrainingImages(pictures).nearest(np.roll(pictures[1:], (16, -24), axis=(1, 2)))[0]
    assert found.training == 1
    assert found.shift_px == (16, -24)


def test_sixty_four_images_are_searched_in_five_hundred_within_ten_seconds() -> None:
    rng = np.random.default_rng(5)
    training, generated = (rng.random((count, 64, 64, 3), dtype=np.float32) for count in (500, 64))
    done: list[int] = []
    start = time.process_time()
    TrainingImages(training).nearest(generated, progress=done.append)
    assert time.process_time() - start < 10
    assert sum(done) == 64


def test_the_comparer_is_named_by_size_and_poses() -> None:
    assert comparer_id(TrainingImages(textures("bubbly", 1))) == "ncc-v2-64x64px-4poses"


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.empty((0, 64, 64, 3), np.float32), "found 0 images"),
        (np.full((1, 64, 64, 3), np.nan, np.float32), "not finite"),
        (np.zeros((1, 32, 64, 3), np.float32), "found 32 x 64 px, expected 64 x 64 px"),
        (np.zeros((64, 64, 3), np.float32), r"shape \(64, 64, 3\)"),
    ],
)
def test_pictures_that_cannot_be_searched_for_are_refused(pictures: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TrainingImages(textures("bubbly", 2)).nearest(pictures)


def test_what_cannot_be_an_index_is_refused() -> None:
    with pytest.raises(DataError, match="found 0 images"):
        TrainingImages(np.empty((0, 8, 8, 3), np.float32))
    with pytest.raises(DataError, match="only square images can be turned"):
        TrainingImages(np.zeros((1, 8, 16, 3), np.float32), poses=FLIPS_AND_TURNS)
    with pytest.raises(DataError, match="no generated image"):
        calibrated([], num_training=3, comparer_id="x")
    with pytest.raises(DataError, match="training image 1: found 16 x 63 px, expected at least"):
        TrainingImages([np.zeros((16, 64, 3), np.float32), np.zeros((16, 63, 3), np.float32)])
    with pytest.raises(DataError, match="training image 0: 1 image of 1 are not finite"):
        TrainingImages(np.full((1, 8, 8, 3), np.nan, np.float32))
