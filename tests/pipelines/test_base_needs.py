"""Results of a base that can only be loaded as a variant: every command loads it as the run did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from data.errors import SettingsError
from data.exits import exit_code
from pipelines import convert_adapter, merge_adapters
from pipelines.components import load_components
from pipelines.evaluation.bases import BaseModel, base_of
from pipelines.evaluation.opener import open_run
from pipelines.evaluation.states import AskedRun
from pipelines.runs import BaseNeed, open_tuned, read_facts
from tests.tiny_adapters import tiny_adapter

FACTS = {"base": "owner/model", "revision": "1a2b", "variant": "fp16"}


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny base with the weights of its variant alone."""
    folder = copytree(tiny_base_dir, tmp_path_factory.mktemp("bases") / "half")
    for path in folder.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    with pytest.raises(SettingsError, match="Give --variant fp16"):
        load_components(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fingerprint = load_components(str(tiny_base_dir)).fingerprint
    facts = {"base": str(base), "base_fingerprint": fingerprint, "revision": None, "variant": "fp16"}
    return tiny_adapter(tiny_base_dir, tmp_path_factory.mktemp("runs") / "run", facts)


@pytest.mark.parametrize(
    ("facts", "asked_for", "expected"),
    [
        (FACTS, None, BaseNeed("owner/model", "1a2b", "fp16")),
        (FACTS, "owner/model", BaseNeed("owner/model", "1a2b", "fp16")),
        (FACTS, "elsewhere", BaseNeed("elsewhere")),  # what holds of one copy need not hold of another
        ({"base": "owner/model"}, None, BaseNeed("owner/model")),
        ({}, None, BaseNeed("swatch")),
        ({}, "elsewhere", BaseNeed("elsewhere")),
    ],
)
def test_revision_and_variant_go_with_the_base_that_the_result_names(
    facts: dict[str, str], asked_for: str | None, expected: BaseNeed
) -> None:
    assert BaseNeed.of(facts, asked_for) == expected


@pytest.mark.parametrize("asks", [True, False])
def test_a_result_is_opened_on_its_base(asks: bool, base: Path, adapter: Path) -> None:
    assert open_tuned([adapter], base=str(base) if asks else None).base == str(base)


def test_an_adapter_is_merged_and_converted(adapter: Path, tmp_path: Path) -> None:
    merged, kohya = tmp_path / "merged", tmp_path / "kohya.safetensors"
    merge = ["--adapter", str(adapter), "--output_dir", str(merged)]
    assert exit_code(lambda: merge_adapters.main(merge), "merge_adapters") == 0
    assert (read_facts(merged)["revision"], read_facts(merged)["variant"]) == (None, "fp16")
    convert = ["--adapter", str(adapter), "--to", "kohya", "--output", str(kohya)]
    assert exit_code(lambda: convert_adapter.main(convert), "convert_adapter") == 0
    assert kohya.exists()


def test_a_model_merged_into_another_copy_of_the_base_names_that_copy(
    adapter: Path, tiny_base_dir: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    arguments = ["--adapter", str(adapter), "--output_dir", str(merged)]
    asked = ["--pretrained_model_name_or_path", str(tiny_base_dir)]
    assert exit_code(lambda: merge_adapters.main([*arguments, *asked]), "merge_adapters") == 0
    assert BaseNeed.of(read_facts(merged)) == BaseNeed(str(tiny_base_dir))


def test_an_adapter_is_evaluated_beside_its_base(base: Path, adapter: Path) -> None:
    run = AskedRun.read(adapter, "run")
    need, _ = base_of(run, None)
    assert need == BaseNeed(str(base), None, "fp16")
    model = BaseModel.load("base", need, "cpu")
    assert open_run(run, model, "cpu").get_list_adapters()


def test_a_whole_model_of_a_run_is_evaluated_beside_its_base(
    base: Path, make_tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    """What the model's own file does not say, the manifest of its run does."""
    whole = make_tiny_base(tmp_path / "whole", seed=1)
    manifest = {"base": str(base), "settings": {"revision": None, "variant": "fp16"}}
    (whole / "manifest.json").write_text(json.dumps(manifest))
    assert base_of(AskedRun.read(whole, "whole"), None)[0] == BaseNeed(str(base), None, "fp16")
