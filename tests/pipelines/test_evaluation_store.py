"""Images of an evaluation on disk: whole or not at all, drawn once, the same in a batch and alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from data.errors import OutputError, SettingsError
from pipelines.components import build_pipeline, load_components
from pipelines.evaluation import drawing
from pipelines.evaluation.bases import BaseModel, base_of, load_bases
from pipelines.evaluation.drawing import LARGEST_DIFFERENCE, Drawing, batches, count_tokens_cut, parse_schedulers
from pipelines.evaluation.grid import Arm, Sampling, asked_of, cells
from pipelines.evaluation.prompt_sets import Prompt
from pipelines.evaluation.states import AskedRun
from pipelines.evaluation.store import ImageStore
from pipelines.runs import BaseNeed

BASE = Arm("base", None, 1.0, "base")


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> BaseModel:
    return BaseModel.load("base", BaseNeed(str(tiny_base_dir)), "cpu")


def _keyed(prompts: list[Prompt], samplings: tuple[Sampling, ...], seeds: tuple[int, ...]) -> list[tuple[str, object]]:
    found = cells(asked_of(prompts, {}, {}), (BASE,), samplings, seeds)
    return [(cell.key(base_identity="b", arm_digest="", size_px=32), cell) for cell in found]


def _draw(keyed: list, store: ImageStore, base: BaseModel, batch_size: int) -> int:  # type: ignore[type-arg]
    """Return how many images were drawn, after drawing all of them."""
    drawing = Drawing(store, {"base": base}, {}, size_px=32, device="cpu")
    count = 0
    for batch in batches(keyed, batch_size):
        drawing.draw(batch)
        count += len(batch)
    return count


def test_an_image_is_kept_as_it_is_with_what_it_was_drawn_from(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "new")
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert not store.has("ab12")
    store.keep("ab12", image, {"prompt": "</é>", "seed": 3})
    assert store.has("ab12")
    assert (store.read("ab12") == image).all()
    with Image.open(store.path("ab12")) as picture:
        assert json.loads(picture.text["filrouge"]) == {"prompt": "</é>", "seed": 3}  # type: ignore[attr-defined]
    assert [path.name for path in (tmp_path / "new").rglob("*.*")] == ["ab12.png"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_image_counts_as_none(damage: str, tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    store.keep("ab12", np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), {})
    path = store.path("ab12")
    content = bytearray(path.read_bytes())
    middle = content.index(b"IDAT") + 20
    content[middle] ^= 1
    path.write_bytes({"cut": path.read_bytes()[:middle], "flipped": bytes(content), "empty": b""}[damage])
    assert not store.has("ab12")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        ImageStore(tmp_path / "file")


def test_images_are_those_of_one_call_for_each(tmp_path: Path, base: BaseModel) -> None:
    """Batched over prompts and seeds, with negative prompts and several samplers."""
    samplings = (Sampling("own", 3, 3.0), Sampling("DDPM", 4, 2.0))
    keyed = _keyed([Prompt("a red slice", "s", negative="blue"), Prompt("striped", "s")], samplings, (0, 1, 7))
    store = ImageStore(tmp_path)
    assert _draw(keyed, store, base, 5) == 12
    for key, cell in keyed:
        pipeline = build_pipeline(base.components)
        own = pipeline.scheduler
        if cell.sampling.scheduler != "own":  # type: ignore[attr-defined]
            pipeline.scheduler = drawing.SCHEDULERS["DDPM"].from_config(own.config)
        alone = pipeline(
            cell.text,  # type: ignore[attr-defined]
            negative_prompt=cell.negative,  # type: ignore[attr-defined]
            generator=torch.Generator().manual_seed(cell.seed),  # type: ignore[attr-defined]
            num_inference_steps=cell.sampling.num_inference_steps,  # type: ignore[attr-defined]
            guidance_scale=cell.sampling.guidance_scale,  # type: ignore[attr-defined]
            height=32,
            width=32,
            output_type="np",
        ).images[0]
        assert np.abs(store.read(key).astype(float) - alone * 255).max() <= LARGEST_DIFFERENCE
    drawn = [store.read(key) for key, _ in keyed]
    assert len({picture.tobytes() for picture in drawn}) == 12


def test_what_is_killed_between_two_batches_keeps_the_first(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed = _keyed([Prompt("a", "s"), Prompt("b", "s")], (Sampling("own", 1, 1.0),), (0, 1, 2))
    store = ImageStore(tmp_path)
    real, calls = drawing.sample, []

    def dies(*arguments: object, **options: object) -> np.ndarray:
        calls.append(options["batch_size"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing, "sample", dies)
    with pytest.raises(KeyboardInterrupt):
        _draw(keyed, store, base, 4)
    monkeypatch.setattr(drawing, "sample", real)
    there = [key for key, _ in keyed if store.has(key)]
    assert len(there) == 4
    times = {key: store.path(key).stat().st_mtime_ns for key in there}
    assert _draw([pair for pair in keyed if not store.has(pair[0])], store, base, 4) == 2
    assert all(store.has(key) for key, _ in keyed)
    assert times == {key: store.path(key).stat().st_mtime_ns for key in there}


def test_bases_differ_by_any_of_their_weights_and_by_what_they_predict(
    tiny_base_dir: Path, base: BaseModel, tmp_path: Path
) -> None:
    again = BaseModel.load("base", BaseNeed(str(tiny_base_dir)), "cpu")
    assert again.identity == base.identity
    other = load_components(str(tiny_base_dir))
    assert other.fingerprint == base.components.fingerprint
    as_v = copytree(tiny_base_dir, tmp_path / "v")
    config = as_v / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"prediction_type": "epsilon"', '"prediction_type": "v_prediction"'))
    assert BaseModel.load("base", BaseNeed(str(as_v)), "cpu").identity != base.identity
    for part, name in (
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("unet", "diffusion_pytorch_model"),
    ):
        folder = copytree(tiny_base_dir, tmp_path / part)
        file = folder / part / f"{name}.safetensors"
        tensors = load_file(file)
        next(iter(tensors.values())).view(-1)[0] += 1e-6
        save_file(tensors, file, metadata={"format": "pt"})
        assert BaseModel.load("base", BaseNeed(str(folder)), "cpu").identity != base.identity, part


def test_a_run_of_other_weights_than_its_base_is_refused(
    tmp_path: Path, make_tiny_base: Callable[..., Path], tiny_base_dir: Path
) -> None:
    whole = make_tiny_base(tmp_path / "whole", seed=1)
    manifest = {"base": str(tiny_base_dir), "base_fingerprint": "0" * 32}
    run = AskedRun(whole, "whole", manifest)
    with pytest.raises(SettingsError, match="whole was trained on another base"):
        load_bases([run], None, "cpu")
    with pytest.raises(SettingsError, match="--pretrained_model_name_or_path"):
        base_of(AskedRun(whole, "whole", {}), None)


def test_schedulers_go_by_their_names() -> None:
    assert parse_schedulers("own, ddim,DPMSolverMultistepScheduler,DDIM") == ("own", "DDIM", "DPMSolverMultistep")
    with pytest.raises(SettingsError, match=r"2 problems(.|\n)*'ddmi'(.|\n)*DDIM"):
        parse_schedulers("ddmi,")


def test_tokens_beyond_what_is_read_are_counted(base: BaseModel) -> None:
    tokenizer = base.components.tokenizer
    assert count_tokens_cut(tokenizer, ["red"] * 2 + [" ".join(["red"] * 80)]) == [0, 0, 80 + 2 - 77]
