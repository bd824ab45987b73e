"""The facts that a result is exported with suffice to load its base again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shutil import copytree
from typing import Any, cast

import pytest

from finetune.core import assembly, exports
from finetune.core.settings import LoraSettings
from pipelines.components import load_components
from pipelines.runs import read_facts


class _Pictures:
    captions, resolution, um_per_px = ("a dry slice",), 32, None
    grey_values: Mapping[str, object] = {}

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_result_says_the_revision_and_the_variant_of_its_base(
    variant: str | None, tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, run = copytree(tiny_base_dir, tmp_path / "base"), tmp_path / "run"
    if variant is not None:
        for path in base.glob("*/*.safetensors"):
            path.rename(path.with_suffix(f".{variant}.safetensors"))
    monkeypatch.setattr(exports, "SAMPLING_STEPS", 2)
    settings = LoraSettings(
        concept="sf_dry", pretrained_model_name_or_path=str(base), revision="1a2b", variant=variant, output_dir=run
    )
    components = load_components(str(base), revision="1a2b", variant=variant)
    lora = assembly.unet_lora(settings, components, seed=0)
    run.mkdir()
    exports.fine_tuned(settings, components, cast(Any, _Pictures()), [exports.adapters({"unet": lora})])(run)
    facts = read_facts(run)
    assert (facts["base"], facts["revision"], facts["variant"]) == (str(base), "1a2b", variant)
