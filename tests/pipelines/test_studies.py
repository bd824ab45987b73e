"""Studies: what a file asks for is what is trained, once, and everything wrong with it is told before that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.errors import OutputError, SettingsError
from finetune.core import settings as options
from finetune.core.cli import load_settings
from pipelines.evaluation.prompt_sets import read_prompt_file
from pipelines.studies.report import html, intervals, markdown, written
from pipelines.studies.study import SCRIPTS, Run, read_study
from pipelines.studies.summary import MEASURES, SeedMean, differences_of, judged, seed_mean, summarise
from pipelines.studies.training import RECORD, Cost, RunFailed, TrainedRun, arguments, check_runs, train_all

METHODS = {
    "full_unet": options.FullUnetSettings,
    "textual_inversion": options.TextualInversionSettings,
    "dreambooth": options.DreamboothSettings,
    "lora": options.LoraSettings,
    "lora_dreambooth": options.LoraDreamboothSettings,
    "pivotal_tuning": options.PivotalTuningSettings,
}
GOOD = """
prompts: configs/prompts/methods.yaml
tier: smoke
common: {max_train_steps: 3, rank: 4}
seeds: [0, 7]
data:
  sf_dry: {concept: sf_dry}
  sf_dry, nine: {concept: sf_dry, images_per_class: 3, max_train_steps: 5}
methods:
  lora: {script: lora}
  lora, rank 2: {script: lora, rank: 2, random_flip: true}
"""


def _file(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_combination_is_one_run_and_the_narrower_option_wins(tmp_path: Path) -> None:
    study = read_study(_file(tmp_path, GOOD))
    assert len(study.runs) == 2 * 2 * 2
    assert len({run.folder_name for run in study.runs}) == 8
    assert [run.data for run in study.runs] == ["sf_dry"] * 4 + ["sf_dry, nine"] * 4
    last = study.runs[-1]
    assert (last.method, last.seed, last.script) == ("lora, rank 2", 7, "lora")
    assert last.options == {
        "max_train_steps": 5, "rank": 2, "concept": "sf_dry", "images_per_class": 3, "random_flip": True
    }  # fmt: skip


def test_the_study_of_all_methods_is_valid_and_has_all_of_them() -> None:
    path = Path(__file__).resolve().parents[2] / "configs" / "studies" / "methods.yaml"
    study = read_study(path)
    assert f"--study configs/studies/{path.name}" in path.read_text(encoding="utf-8").splitlines()[0]
    assert {run.script for run in study.runs} == set(SCRIPTS)
    assert len(study.runs) == len(study.methods) * len(study.data) * len(study.seeds) >= 54
    for run in study.runs:
        load_settings(METHODS[run.script], run.script, arguments(run), path.parents[1])
    assert read_prompt_file(path.parents[2] / study.prompts).has_rings


def test_options_become_the_words_of_a_command_line() -> None:
    run = Run(
        "m", "d", 3, "lora", {"rank": 2, "random_flip": True, "center_crop": False, "instance_prompt": ["a b", "c"]}
    )
    assert arguments(run) == [
        *("--rank", "2", "--random_flip", "--no-center_crop", "--instance_prompt", "a b", "c", "--seed", "3")
    ]


CLAIM = """claims:
  - {text: more, data: sf_dry, measure: skill, greater: lora, than: "lora, rank 2"}
  - {text: cheaper, data: sf_dry, measure: core_minutes, greater: lora, than: 100}
  - {text: small, data: sf_dry, measure: artefact_mb, same: [lora, "lora, rank 2"], within: 0.1}
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "found list, expected the keys prompts, tier, num_inference_steps"),
        ("methods: {a: [", "not readable as YAML"),
        ("{}", "data: expected one or more names"),
        (GOOD.replace("prompts:", "prompt:"), "prompts: missing; expected a file of prompts"),
        (GOOD.replace("smoke", "small"), "tier: found 'small'. Known: full, smoke, standard."),
        (GOOD.replace("seeds", "seed"), "seed: unknown key. Did you mean seeds?"),
        (GOOD.replace("[0, 7]", "[0, 0]"), "seeds: found [0, 0], expected different numbers"),
        (GOOD.replace("[0, 7]", "[yes]"), "seeds: found [True]"),
        (GOOD.replace("script: lora}", "script: lorra}"), "methods.lora.script: found 'lorra'. Did you mean lora"),
        (GOOD.replace("rank: 4", "output_dir: x"), "common.output_dir: is decided by the study"),
        (GOOD.replace("sf_dry, nine", "../sf_dry"), "data: found the name '../sf_dry'"),
        (GOOD.replace("sf_dry, nine", "sf dry") + "  lora; rank: {script: lora}\n", "methods: found the name"),
        (GOOD.replace("lora, rank 2", "lora  rank").replace("  lora:", "  lora rank:"), "methods: two names make one"),
        (GOOD + "images_per_prompt: 1\n", "images_per_prompt: found 1, expected a whole number from 2"),
        (GOOD + "num_inference_steps: many\n", "num_inference_steps: found 'many'"),
        (GOOD + CLAIM.replace("greater: lora", "greater: lorra"), "found the method 'lorra'. Did you mean lora"),
        (GOOD + CLAIM.replace("data: sf_dry", "data: sf"), "claims: more: found the data 'sf'"),
        (GOOD + CLAIM.replace("skill", "skil"), "claims[0].measure: found 'skil'"),
    ],
)
def test_a_wrong_file_is_told_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read_study(_file(tmp_path, text))
    assert said in str(caught.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("seeds", "seed").replace("script: lora}", "script: lorra}").replace("rank: 4", "dry_run: true")
    with pytest.raises(SettingsError) as caught:
        read_study(_file(tmp_path, text))
    assert len(caught.value.problems) == 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    values = np.random.default_rng(3).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    for number, picture in enumerate(values):
        Image.fromarray(picture).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a rough thing", encoding="utf-8")
    return folder


def _study(folder: Path, pictures: Path, base: Path, **options: Any) -> Path:
    common = {
        "max_train_steps": 2, "train_batch_size": 1, "checkpointing_steps": 1, "num_validation_images": 1,
        "pretrained_model_name_or_path": str(base), **options,
    }  # fmt: skip
    content = {
        "prompts": "configs/prompts/methods.yaml",
        "common": common,
        "data": {"rough": {"train_data_dir": str(pictures)}},
        "methods": {"lora": {"script": "lora", "rank": 2}},
    }
    return _file(folder, json.dumps(content))


def test_a_run_is_trained_once_and_a_stopped_one_goes_on(tmp_path: Path, pictures: Path, tiny_base_dir: Path) -> None:
    study = read_study(_study(tmp_path, pictures, tiny_base_dir))
    done: list[TrainedRun] = []
    (trained,) = train_all(study.runs, tmp_path / "out", on_done=done.append)
    assert [each.folder for each in done] == [trained.folder]
    artefact = trained.folder / "pytorch_lora_weights.safetensors"
    record = json.loads((trained.folder / RECORD).read_text())
    assert record["is_done"]
    assert trained.cost.cpu_seconds > 0.5
    assert trained.cost.peak_mib > 100
    before = artefact.stat().st_mtime_ns, artefact.read_bytes()
    (again,) = train_all(study.runs, tmp_path / "out")
    assert again.cost == trained.cost
    assert artefact.stat().st_mtime_ns == before[0]

    (trained.folder / RECORD).write_text(json.dumps({**record, "is_done": False}))
    artefact.unlink()
    shutil.rmtree(trained.folder / "checkpoint-2")
    first = (trained.folder / "checkpoint-1" / "manifest.json").stat().st_mtime_ns
    (resumed,) = train_all(study.runs, tmp_path / "out")
    assert (trained.folder / "checkpoint-1" / "manifest.json").stat().st_mtime_ns == first
    assert artefact.read_bytes() == before[1]
    assert resumed.cost.cpu_seconds > trained.cost.cpu_seconds

    changed = read_study(_study(tmp_path, pictures, tiny_base_dir, train_batch_size=2))
    with pytest.raises(OutputError, match=r"train_batch_size: the study says 2, the run there had 1"):
        check_runs(changed.runs, tmp_path / "out")


def test_a_run_of_another_script_is_not_taken_for_the_one_asked(tmp_path: Path) -> None:
    runs = read_study(_file(tmp_path, GOOD)).runs
    for run in runs:
        (tmp_path / run.folder_name).mkdir()
        record = json.dumps({"script": run.script, "options": dict(run.options), "is_done": True})
        (tmp_path / run.folder_name / RECORD).write_text(record)
    check_runs(runs, tmp_path)
    with pytest.raises(OutputError, match=r"script: the study says 'lora_dreambooth', the run there had 'lora'"):
        check_runs([replace(run, script="lora_dreambooth") for run in runs], tmp_path)


def test_an_option_that_a_script_refuses_is_told_before_anything_is_trained(
    tmp_path: Path, tiny_base_dir: Path
) -> None:
    study = read_study(_study(tmp_path, tmp_path / "nowhere", tiny_base_dir))
    with pytest.raises(SettingsError, match=r"(?s)rough, lora: .*nowhere"):
        check_runs(study.runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_says_where_its_log_is(tmp_path: Path, pictures: Path, tiny_base_dir: Path) -> None:
    study = read_study(_study(tmp_path, pictures, tiny_base_dir, learning_rate=1e30, max_grad_norm=1e30))
    with pytest.raises(RunFailed, match=r"(?s)ended with 5.*The end of .*\.log.*the largest weight is 1e\+30"):
        train_all(study.runs, tmp_path / "out")


def _score(value: float | None, words: str = "") -> dict[str, Any]:
    return {"value": value, "low": None if value is None else value - 0.1, "high": value, "words": words}


def test_the_interval_of_a_mean_over_seeds_is_students() -> None:
    """Three trainings: 4.303 standard errors of the mean (t, two degrees of freedom, 97.5 %)."""
    mean = seed_mean([_score(0.1), _score(0.2), _score(0.3)])
    assert mean.num_seeds == 3
    assert mean.value == pytest.approx(0.2)
    assert mean.high - mean.value == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert mean.value - mean.low == pytest.approx(mean.high - mean.value)
    alone = seed_mean([_score(0.5)])
    assert (alone.low, alone.value, alone.high, alone.num_seeds) == (0.4, 0.5, 0.5, 1)


def test_differences_are_decided_by_the_spread_over_seeds() -> None:
    values = {"a": [0.80, 0.81, 0.82], "b": [0.50, 0.51, 0.52], "c": [0.3, 0.8, 0.6], "once": [0.1]}
    found = {(each.higher, each.lower): each for each in differences_of("d", "skill", values)}
    assert set(found) == {("a", "b"), ("a", "c"), ("c", "b")}
    assert found["a", "b"].is_decided
    assert found["a", "b"].difference == pytest.approx(0.3)
    assert not found["a", "c"].is_decided
    same = differences_of("d", "skill", {"a": [0.5, 0.5], "b": [0.5, 0.5], "c": [0.6, 0.6]})
    assert [each.p for each in same] == [1.0, 0.0, 0.0]


def _found(
    folder: Path, text: str = GOOD, skills: Sequence[float | None] = (0.80, 0.82, 0.40, 0.42)
) -> tuple[Any, Any]:
    """A study of two methods and two seeds, and what its summary is, from a result as an evaluation writes it."""
    study = read_study(_file(folder, text))
    runs = [run for run in study.runs if run.data == "sf_dry"]
    trained = [TrainedRun(run, folder, Cost(60.0 * (1 + run.seed), 512.0)) for run in runs]
    labels = [f"{run.method} <{run.seed}>" for run in runs]
    result = {
        "models": [{"run": "base", "is_base": True}, *({"run": label, "is_base": False} for label in labels)],
        "measured": [
            {
                "model": 1 + place,
                "sampling": 0,
                "scores": {
                    "skill": _score(skill, "" if skill else "as near as the base"),
                    "prior": _score([0.40, 0.41, 0.20, 0.21][place]),
                    "right_caption": _score(None, "one word"),
                },
            }
            for place, skill in enumerate(skills)
        ],
        "cost": [{"run": label, "artefact, MB": "3.7", "trained parameters": "968,832"} for label in labels],
    }
    return study, summarise("sf_dry", trained, labels, result)


def test_a_summary_has_a_row_for_each_method_with_its_cost(tmp_path: Path) -> None:
    _, summary = _found(tmp_path)
    first, second = summary.rows
    assert (first.method, first.cpu_minutes, first.artefact_mb, first.trained) == ("lora", 4.5, "3.7", "968,832")
    assert first.scores["skill"].value == pytest.approx(0.81)
    assert second.scores["skill"].value == pytest.approx(0.41)
    assert first.scores["right_caption"] is None
    assert first.why["right_caption"] == "one word"
    assert first.num_seeds == 2
    assert set(first.scores) == set(MEASURES)
    assert {(d.measure, d.higher) for d in summary.differences} == {("skill", "lora"), ("prior", "lora")}


def test_no_zero_is_below_zero() -> None:
    assert written(SeedMean(-0.001, -0.004, 0.001, 3), 3) == "0.00 [0.00, 0.00]"
    assert written(SeedMean(-0.01, -0.02, 0.0, 3), 3) == "-0.01 [-0.02, 0.00]"
    assert written(None, 3) == "–"


def test_a_mean_of_fewer_seeds_than_were_trained_says_so(tmp_path: Path) -> None:
    assert written(SeedMean(0.5, 0.4, 0.6, 2), 3) == "0.50 [0.40, 0.60], 2 of 3 seeds"
    study, summary = _found(tmp_path, skills=(0.80, None, 0.40, 0.42))
    table, page = markdown(summary), html(study, summary, {}, {})
    for text in (table, page):
        assert "0.80 [0.70, 0.80] over images, 1 of 2 seeds" in text
        assert "0.41 [0.28, 0.54]" in text
        assert "over training seeds; over the images of one training where it alone has the number." in text
    assert '<td title="as near as the base">0.80 [' in page
    assert summary.rows[1].why.keys() == summary.rows[0].why.keys() - {"skill"}
    (claim, *_) = judged(read_study(_file(tmp_path, GOOD + CLAIM)).claims, summary.rows)
    assert claim.verdict == "inconclusive"
    assert claim.effect == "sf_dry, skill: one training seed of lora, where two are needed"


def test_a_study_of_one_seed_says_that_its_intervals_are_over_images(tmp_path: Path) -> None:
    study, summary = _found(tmp_path, GOOD.replace("[0, 7]", "[0]"), (0.80, 0.40))
    assert intervals(summary.rows).startswith("Intervals: 95 % over the images of one training")
    table, page = markdown(summary), html(study, summary, {}, {})
    for text in (table, page):
        assert "0.80 [0.70, 0.80] over images, 1 of 1 seed" in text
        assert "over training seeds" not in text
    assert "1 training seed:" in page
    assert "One training seed decides no difference of methods." in page


def test_claims_are_judged_by_the_trainings_and_shown(tmp_path: Path) -> None:
    """0.80 and 0.82 against 0.40 and 0.42, trainings of 1 and 8 minutes, results of one size."""
    _, summary = _found(tmp_path)
    study = read_study(_file(tmp_path, GOOD + CLAIM))
    claims = judged(study.claims, summary.rows)
    assert [claim.verdict for claim in claims] == ["confirmed", "contradicted", "confirmed"]
    assert claims[0].effect.startswith("sf_dry, skill: lora 0.81 against lora, rank 2 0.41 (p = ")
    assert "core_minutes: lora 4.5 against 100" in claims[1].effect
    whole = replace(summary, claims=tuple(claims))
    assert "| more | confirmed | sf_dry, skill: lora 0.81" in markdown(whole)
    page = html(study, whole, {}, {})
    assert '<td class="contradicted">contradicted</td>' in page
    assert [claim["text"] for claim in whole.as_json()["claims"]] == ["more", "cheaper", "small"]


def test_table_and_page_say_the_same_and_no_name_becomes_markup(tmp_path: Path) -> None:
    study, summary = _found(tmp_path)
    table = markdown(summary)
    assert "0.81 [0.68, 0.94] | – |" in table
    assert "skill: 1 of 1 pairs decided: lora above" in table
    page = html(study, summary, {"sf_dry": "evaluations/sf_dry/index.html"}, {"command": "x <script>alert(1)</script>"})
    assert "0.81 [0.68, 0.94]" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert 'href="evaluations/sf_dry/index.html"' in page
    assert "http" not in page.replace("http-equiv", "")
