"""The commands that draw with a pixel model: every way of sampling, inpainting, a classifier that guides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from data.errors import DataError, FilrougeError, OutputError, SettingsError
from pipelines import generate_pixels, inpaint, train_noisy_classifier
from pipelines.diffusion.drawing import Way, draw
from pipelines.diffusion.noisy_classifier import accuracies, load_classifier, train_classifier
from pipelines.diffusion.pictures import open_pictures, pictures
from pipelines.pixel_model import PixelModel, load_pixel_model
from tests.tiny_pixels import LABELS, SIZE_PX, tiny_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")  # its use of numpy


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("labelled"), labels=True)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("grey"), grey=True, learned_variance=True)


@pytest.fixture(scope="module")
def classifier(labelled: Path) -> Path:
    options = ["--max_train_steps", "60", "--num_images", "6", "--output_dir", str(labelled / "classifier")]
    train_noisy_classifier.main(["--model", str(labelled), *options])
    return labelled / "classifier"


@pytest.fixture(scope="module")
def model(grey: Path) -> PixelModel:
    return load_pixel_model(grey)


WAYS = {
    "ddim": Way(num_steps=5),
    "ddim with chance": Way(num_steps=5, eta=0.7),
    "ddim quadratic": Way(num_steps=5, spacing="quadratic"),
    "ancestral small": Way("ancestral", 5),
    "ancestral large": Way("ancestral", 5, variance="large"),
    "ancestral learned": Way("ancestral", 5, variance="learned"),
    "dpm solver": Way("DPMSolverMultistepScheduler", 5),
    "euler ancestral": Way("EulerAncestralDiscreteScheduler", 5),
    "without clipping": Way(num_steps=5, clip=False),
}


def test_every_way_draws_something_else_from_the_same_seeds(model: PixelModel) -> None:
    drawn = {name: draw(model, way, [0, 1]) for name, way in WAYS.items()}
    names = list(drawn)
    for number, name in enumerate(names):
        assert drawn[name].shape == (2, 1, SIZE_PX, SIZE_PX)
        for other in names[:number]:
            assert not torch.equal(drawn[name], drawn[other]), (name, other)


@pytest.mark.parametrize("name", ["ddim with chance", "ancestral learned", "euler ancestral"])
def test_a_picture_depends_on_its_seed_and_not_on_its_batch(name: str, model: PixelModel) -> None:
    together = draw(model, WAYS[name], [3, 1, 2], batch_size=3)
    alone = draw(model, WAYS[name], [1], batch_size=1)
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(draw(model, WAYS[name], [3, 1, 2], batch_size=2), together, atol=1e-5, rtol=1e-5)
    assert float((together[0] - together[1]).abs().max()) > 0.1


def test_clipping_keeps_pictures_in_range(model: PixelModel) -> None:
    assert float(draw(model, WAYS["ddim"], range(4)).abs().max()) <= 1
    assert float(draw(model, WAYS["without clipping"], range(4)).abs().max()) > 1


def test_a_model_of_pixels_from_0_to_1_is_clipped_to_them(model: PixelModel) -> None:
    pixels = draw(replace(model, normalized=False), WAYS["ddim"], range(4))
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1


def test_labels_and_guidance_change_the_picture(labelled: Path) -> None:
    told = load_pixel_model(labelled)
    plain = [draw(told, Way(num_steps=4), [0], labels=[label]) for label in (0, 1)]
    assert not torch.equal(plain[0], plain[1])
    nobody = draw(told, Way(num_steps=4, guidance_scale=0.0), [0], labels=[0])
    assert torch.equal(nobody, draw(told, Way(num_steps=4), [0]))  # weight 0 is the model without a label
    more = draw(told, Way(num_steps=4, guidance_scale=4.0), [0], labels=[0])
    assert not torch.equal(more, plain[0])


def test_the_command_writes_pictures_stack_and_record(grey: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    options = ["--num_inference_steps", "4", "--seeds", "0-2", "--trajectory", "3", "--output_dir", str(folder)]
    generate_pixels.main(["--model", str(grey), "--sampler", "ancestral", "--variance", "learned", *options])
    expected = draw(load_pixel_model(grey), Way("ancestral", 4, variance="learned"), [0, 1, 2])[:, 0].double()
    unit = ((expected + 1) / 2).clamp(0, 1).numpy()
    with tifffile.TiffFile(folder / "000-pictures.tif") as tif:
        stack = tif.asarray()
        assert tif.imagej_metadata is not None
        assert (tif.imagej_metadata["spacing"], tif.imagej_metadata["unit"]) == (12.5, "um")
    assert stack.dtype == np.uint16
    np.testing.assert_allclose(stack, 1000 + 40000 * unit, atol=1)
    assert len(np.unique(stack)) > 256  # more grey values than a PNG keeps
    picture = np.asarray(Image.open(folder / "000-pictures-seed1.png"))
    np.testing.assert_allclose(picture[..., 0], 255 * unit[1], atol=0.51)
    record = json.loads((folder / "images.json").read_text())
    assert (record["sampler"], record["variance"], record["seeds"]) == ("ancestral", "learned", [0, 1, 2])
    assert record["fingerprint"] == load_pixel_model(grey).fingerprint
    strip, grid = Image.open(folder / "trajectory.png"), Image.open(folder / "grid.png")
    assert strip.height > grid.height  # two rows for each of three pictures
    with pytest.raises(OutputError, match="nothing is written over"):
        generate_pixels.main(["--model", str(grey), *options])


def test_a_row_for_each_label_that_is_asked_for(labelled: Path, tmp_path: Path) -> None:
    few = ["--model", str(labelled), "--seeds", "0", "--num_inference_steps", "2"]
    generate_pixels.main([*few, "--output_dir", str(tmp_path / "all")])
    generate_pixels.main([*few, "--labels", "spots", "--output_dir", str(tmp_path / "one")])
    assert sorted(path.name for path in (tmp_path / "all").glob("*-seed0.png")) == [
        "000-bars-seed0.png",
        "001-spots-seed0.png",
    ]
    one, all_ = (tmp_path / "one" / "000-spots-seed0.png"), (tmp_path / "all" / "001-spots-seed0.png")
    assert one.read_bytes() == all_.read_bytes()
    assert not list((tmp_path / "all").glob("*.tif"))  # pictures without grey values


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--labels", "bar"], "Did you mean bars"),
        (["--sampler", "dpm"], "--sampler: found 'dpm'"),
        (["--sampler", "ancestral", "--eta", "0.5"], "--eta: ancestral has none"),
        (["--variance", "large"], "--variance: ddim has none"),
        (["--sampler", "ancestral", "--variance", "learned"], "trained without a learned variance"),
        (["--sampler", "EulerDiscreteScheduler", "--spacing", "quadratic"], "--spacing: EulerDiscreteScheduler has"),
        (["--eta", "1.5"], "expected 0"),
        (["--num_inference_steps", "21"], "expected 1 to 20"),
        (["--num_inference_steps", "0"], "expected 1 or more"),
        (["--trajectory", "-1"], "expected 0 or more"),
        (["--classifier_scale", "2"], "expected a --classifier"),
        (["--classifier", "nowhere"], "holds no classifier of noisy pictures"),
        (["--seeds", "x"], "--seeds"),
    ],
)
def test_wrong_wishes_are_refused_and_nothing_is_written(
    options: list[str], said: str, labelled: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=said):
        generate_pixels.main(
            ["--model", str(labelled), "--num_inference_steps", "2", *options, "--output_dir", str(tmp_path / "out")]
        )
    assert not (tmp_path / "out").exists()


def test_labels_for_a_model_without_are_refused(grey: Path) -> None:
    with pytest.raises(SettingsError, match="trained without labels"):
        generate_pixels.main(["--model", str(grey), "--labels", "bars"])
    with pytest.raises(SettingsError, match="knows no labels to be guided to"):
        generate_pixels.main(["--model", str(grey), "--guidance_scale", "2"])


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a pixel model"):
        generate_pixels.main(["--model", str(tmp_path)])


def test_the_pictures_of_a_run_are_opened_again(labelled: Path) -> None:
    model, dataset = load_pixel_model(labelled), open_pictures(labelled)
    held_out, training = (pictures(model, dataset, side, 6) for side in ("held-out", "training"))
    assert {caption: len(pixels) for caption, pixels in held_out.items()} == dict.fromkeys(LABELS, 3)
    seen = {tuple(picture.flatten()[:40].tolist()) for pixels in training.values() for picture in pixels}
    assert not seen & {tuple(picture.flatten()[:40].tolist()) for pixels in held_out.values() for picture in pixels}


def test_pictures_that_have_changed_are_refused(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    (tmp_path / "pictures" / "bars" / "3.png").unlink()
    with pytest.raises(DataError, match="not that of the run; its content"):
        open_pictures(run)
    (run / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_pictures(run)


def test_a_classifier_learns_to_name_noisy_pictures(labelled: Path, classifier: Path) -> None:
    model = load_pixel_model(labelled)
    found = load_classifier(classifier, model)
    assert found.labels == LABELS
    held_out = pictures(model, open_pictures(labelled), "held-out", 8)
    named = accuracies(model, found, held_out, num_levels=3, seed=0)
    assert list(named) == [0, 10, 19] or list(named) == [0, 9, 19]
    assert named[0] == 1.0
    record = json.loads((classifier / "noisy_classifier.json").read_text())
    assert record["held_out_accuracy"]["0"] == 1.0


def test_training_the_classifier_is_a_function_of_its_seed(labelled: Path) -> None:
    model = load_pixel_model(labelled)
    shown = pictures(model, open_pictures(labelled), "training", 8)

    def weights(seed: int) -> torch.Tensor:
        found = train_classifier(model, shown, num_steps=2, batch_size=4, seed=seed)
        return torch.cat([value.flatten() for value in found.state_dict().values()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    with pytest.raises(SettingsError, match="expected two or more"):
        train_classifier(model, {"bars": shown["bars"]}, num_steps=1, batch_size=2, seed=0)


def test_the_classifier_leads_to_its_label(labelled: Path, classifier: Path) -> None:
    """With its gradient, what is drawn is more surely of the label in the classifier's own eyes."""
    model = load_pixel_model(labelled)
    found = load_classifier(classifier, model)
    for label in (0, 1):
        sure = []
        for scale in (0.0, 20.0):
            way = Way(num_steps=10, guidance_scale=0.0, classifier_scale=scale)
            pixels = draw(model, way, range(4), labels=[label] * 4, classifier=found if scale else None)
            sure.append(float(found(pixels, torch.zeros(4, dtype=torch.int64)).softmax(1)[:, label].mean()))
        assert sure[1] > sure[0]


def test_a_classifier_of_another_model_is_refused(classifier: Path, grey: Path) -> None:
    with pytest.raises(SettingsError, match="trained with channels 3, the model has 1"):
        load_classifier(classifier, load_pixel_model(grey))


@pytest.fixture(scope="module")
def inpainted(labelled: Path) -> Path:
    options = ["--num_images", "4", "--num_inference_steps", "5", "--jump_length", "2", "--num_resamples", "2"]
    options += ["--num_draws", "3"]
    inpaint.main(["--model", str(labelled), *options, "--output_dir", str(labelled / "inpainted")])
    return labelled / "inpainted"


def test_inpainting_keeps_the_known_and_measures_the_unknown(inpainted: Path) -> None:
    record = json.loads((inpainted / "inpainting.json").read_text())
    assert tuple(record["masks"]) == inpaint.MASK_NAMES
    for found in record["masks"].values():
        assert found["known_part_kept"] is True
        assert found["num_images"] == 4
        assert set(found["error"]) == {"inpainted", "mean of draws", "biharmonic fill", "mean fill"}
        assert found["error"]["mean of draws"]["value"] < found["error"]["inpainted"]["value"]
        for error in found["error"].values():
            assert 0 < error["low"] <= error["value"] <= error["high"] < 1
        for name, ratios in found["error_over_fill"].items():
            for fill, ratio in ratios.items():
                assert ratio["value"] == pytest.approx(found["error"][name]["value"] / found["error"][fill]["value"])
                assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert set(record["masks"]["half"]["error_over_fill"]) == {"inpainted", "mean of draws"}
    assert record["masks"]["half"]["unknown_share"] == 0.5
    assert Image.open(inpainted / "inpainting.png").height > 6 * 96


def test_the_bar_of_inpainting_ends_where_it_says(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """5 steps with jumps of 2, each made twice, denoise 9 times; the moves back up denoise nothing."""
    options = ["--masks", "half", "--num_images", "2", "--num_inference_steps", "5", "--jump_length", "2"]
    output = ["--num_resamples", "2", "--output_dir", str(tmp_path / "o")]
    inpaint.main(["--model", str(labelled), *options, *output])
    assert "inpaint  step 18 of 18" in capsys.readouterr().err  # of two captions


def test_a_mask_of_ones_own_is_used(labelled: Path, tmp_path: Path) -> None:
    levels = np.zeros((SIZE_PX, SIZE_PX), dtype=np.uint8)
    levels[4:8, 4:8] = 255
    Image.fromarray(levels).save(tmp_path / "hole.png")
    options = ["--num_images", "2", "--num_inference_steps", "2", "--num_resamples", "1", "--seed", "5"]
    inpaint.main(
        [
            "--model",
            str(labelled),
            "--mask_file",
            str(tmp_path / "hole.png"),
            *options,
            "--output_dir",
            str(tmp_path / "o"),
        ]
    )
    record = json.loads((tmp_path / "o" / "inpainting.json").read_text())
    assert list(record["masks"]) == ["hole.png"]
    assert "mean of draws" not in record["masks"]["hole.png"]["error"]
    assert record["masks"]["hole.png"]["unknown_share"] == 16 / 256
    assert record["moves"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--masks", "halff"], "Did you mean half"),
        (["--mask_file", "nowhere.png"], r"nowhere\.png"),
        (["--num_inference_steps", "21"], "expected 1 to 20"),
        (["--jump_length", "0"], "expected 1 or more"),
    ],
)
def test_wrong_inpainting_is_refused(options: list[str], said: str, labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(FilrougeError, match=said):
        inpaint.main(["--model", str(labelled), *options, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
