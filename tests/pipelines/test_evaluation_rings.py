"""The noise drift of a model compares what both models say of the noise, whatever their U-Nets predict."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from torch import Tensor, nn

from pipelines.components import Components, build_pipeline
from pipelines.evaluation.bases import BaseModel
from pipelines.evaluation.grid import Arm, Asked
from pipelines.evaluation.measuring import Images, Subject
from pipelines.evaluation.opener import PipelineOpener
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.prompt_sets import Prompt
from pipelines.evaluation.rings import Rings
from pipelines.runs import BaseNeed

BASE, TUNED = Arm("base", None, 1.0, "base"), Arm("run", None, 0.5, "base")
PROMPTS = ("a texture", "a red circle")


class _SaysV(nn.Module):
    """Says as v what a U-Net that predicts the noise says (Salimans and Ho 2022, appendix D)."""

    def __init__(self, components: Components) -> None:
        super().__init__()
        self.unet, self.config = components.unet, components.unet.config
        self.device, self.dtype = components.unet.device, components.unet.dtype
        self._alpha_bars = components.scheduler.alphas_cumprod

    def forward(self, noisy: Tensor, timesteps: Tensor, **more: Any) -> tuple[Tensor]:
        alpha_bar = self._alpha_bars[timesteps].view(-1, 1, 1, 1)
        eps = self.unet(noisy, timesteps, **more)[0]
        return ((eps - (1 - alpha_bar).sqrt() * noisy) / alpha_bar.sqrt(),)


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> BaseModel:
    return BaseModel.load("base", BaseNeed(str(tiny_base_dir)), "cpu")


def _rings(base: BaseModel) -> Rings:
    """Return rings of two images for each prompt."""
    prompts = [Prompt(text, "rings", ring=ring) for ring, text in enumerate(PROMPTS)]
    asked = tuple(Asked(prompt.text, prompt.text, prompt, None, frozenset()) for prompt in prompts)
    pictures = np.random.default_rng(0).uniform(0, 1, (len(asked), 2, 32, 32, 3)).astype(np.float32)
    plan = SimpleNamespace(asked=asked, bases={"base": base}, digests={BASE: "", TUNED: "t"}, key=str)
    cells = {(BASE, 0, number): (number,) for number in range(len(asked))}
    images = SimpleNamespace(cells=cells, pictures=lambda _, number: pictures[number])
    return Rings(
        cast(Plan, plan), cast(Images, images), place=0, base=BASE, num_timesteps=4, images_per_prompt=2, seed=0
    )


def _drift(base: BaseModel, unet: nn.Module, tuned: Components, folder: Path) -> float:
    """Return the drift over all prompts of a U-Net that is taken to predict as `tuned` says."""
    pipeline = SimpleNamespace(
        unet=unet,
        text_encoder=tuned.text_encoder,
        tokenizer=tuned.tokenizer,
        scheduler=build_pipeline(tuned).scheduler,
    )
    opener = cast(PipelineOpener, SimpleNamespace(open=lambda _: pipeline))
    return _rings(base).drift(Subject(TUNED, 0), opener, folder).estimate(PROMPTS).value


def test_a_model_that_says_the_same_as_v_has_not_drifted(base: BaseModel, tmp_path: Path) -> None:
    as_v = base.components.predicting("v_prediction")
    assert _drift(base, base.components.unet, base.components, tmp_path / "a") == 0
    assert _drift(base, _SaysV(base.components), as_v, tmp_path / "b") == pytest.approx(0, abs=1e-6)
    assert _drift(base, base.components.unet, as_v, tmp_path / "c") > 0.1
