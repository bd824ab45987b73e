"""What is called the base is drawn as its own folder says, whatever a run has it predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from data.whole_images import WholeImage, WholeImages
from pipelines import compare
from pipelines.components import Components, build_pipeline, load_components
from pipelines.evaluation.bases import load_bases
from pipelines.evaluation.grid import Arm
from pipelines.evaluation.opener import PipelineOpener
from pipelines.evaluation.real_images import RealImages
from pipelines.evaluation.states import AskedRun
from pipelines.identifiers import examine_all
from pipelines.runs import BaseNeed
from tests.tiny_adapters import tiny_adapter

AS_V = {"prediction_type": "v_prediction", "zero_terminal_snr": True}
SIZE_PX = 32


def as_v(components: Components) -> Components:
    return components.predicting("v_prediction").ending_in_pure_noise()


def way(pipeline: StableDiffusionPipeline) -> tuple[str, bool, str]:
    """Return what the way of drawing depends on."""
    config = pipeline.scheduler.config
    return config.prediction_type, config.rescale_betas_zero_snr, config.timestep_spacing


OWN, OF_RUN = ("epsilon", False, "leading"), ("v_prediction", True, "trailing")


def run_of(base: Path, folder: Path, facts: dict[str, object]) -> AskedRun:
    """Return a run folder with an adapter of a base."""
    fingerprint = load_components(str(base)).fingerprint
    told = {"base": str(base), "base_fingerprint": fingerprint, **facts}
    tiny_adapter(base, folder, told)
    more = {"base_prompts": {}, "settings": {"revision": None, "variant": None}}
    (folder / "manifest.json").write_text(json.dumps({"method": "lora", **told, **more}))
    return AskedRun.read(folder, folder.name)


def test_a_model_taken_otherwise_still_knows_its_folder(tiny_base_dir: Path) -> None:
    loaded = load_components(str(tiny_base_dir))
    assert way(build_pipeline(as_v(loaded))) == OF_RUN
    again = as_v(loaded).as_loaded()
    assert way(build_pipeline(again)) == OWN
    assert again.scheduler.config == loaded.scheduler.config
    assert again.unet is loaded.unet
    assert not again.predicts_otherwise
    assert not again.ends_in_pure_noise


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_compare_draws_the_base_its_own_way_and_the_adapter_as_it_was_trained(
    predicts: str, make_tiny_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_tiny_base(tmp_path / "base", prediction_type=predicts)
    run = run_of(base, tmp_path / "run", {**AS_V, "data": {"cells": [{"caption": "dry"}]}})
    pictures = np.random.default_rng(0).uniform(0, 1, (2, SIZE_PX, SIZE_PX, 3)).astype(np.float32)
    whole = WholeImages(2, lambda place: WholeImage(2 * pictures[place].transpose(2, 0, 1) - 1, "dry", str(place)))
    real = RealImages({"dry": pictures[::-1]}, {"dry": pictures}, whole, "", None, False)
    drawn: list[tuple[str, bool, str]] = []

    def sample(pipeline: StableDiffusionPipeline, prompts: list[str], *_: object, **__: object) -> np.ndarray:
        drawn.append(way(pipeline))
        return np.random.default_rng(1).uniform(0, 1, (len(prompts), SIZE_PX, SIZE_PX, 3)).astype(np.float32)

    monkeypatch.setattr("pipelines.evaluation.real_images.open_real_images", lambda *_: (real, ""))
    monkeypatch.setattr("pipelines.evaluation.drawing.sample", sample)
    compare.main(["--adapter", str(run.path), "--num_images", "2"])
    assert list(dict.fromkeys(drawn)) == [(predicts, False, "leading"), OF_RUN]


def test_runs_of_one_base_share_it_whatever_they_predict(tiny_base_dir: Path, tmp_path: Path) -> None:
    runs = [
        run_of(tiny_base_dir, tmp_path / "plain", {"prediction_type": "epsilon"}),
        run_of(tiny_base_dir, tmp_path / "other", AS_V),
    ]
    bases, labels = load_bases(runs, None, "cpu")
    assert labels == {"plain": "base", "other": "base"}
    assert bases["base"].need == BaseNeed(str(tiny_base_dir))
    opener = PipelineOpener(bases, {run.label: run for run in runs}, "cpu")
    assert way(opener.open(Arm("base", None, 1.0, "base"))) == OWN
    assert way(opener.open(Arm("plain", runs[0].result, 1.0, "base"))) == OWN
    assert way(opener.open(Arm("other", runs[1].result, 1.0, "base"))) == OF_RUN
    alone = [load_bases([run], None, "cpu")[0]["base"].identity for run in runs]
    assert alone == [bases["base"].identity] * 2  # so its images are those of an evaluation of either run


def test_an_identifier_is_examined_before_anything_is_trained(tiny_base_dir: Path) -> None:
    base = load_components(str(tiny_base_dir))
    expected = examine_all(base, ["w17h3r"], "texture", num_noises=2)
    assert examine_all(as_v(base), ["w17h3r"], "texture", num_noises=2) == expected
    meant = load_components(str(tiny_base_dir))
    meant.own_sampler.register_to_config(prediction_type="v_prediction")  # as of a folder that says so
    assert examine_all(meant, ["w17h3r"], "texture", num_noises=2) != expected
