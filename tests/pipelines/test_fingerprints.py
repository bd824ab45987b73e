"""What tells one base from another: every part and every byte, hashed once while the files stay the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.environment import CACHE_VARIABLE
from data.errors import SettingsError
from finetune.core.assembly import noise_objective
from finetune.core.encodings import EncodedConditioner
from finetune.core.settings import LoraSettings
from pipelines import components as module
from pipelines import fingerprints
from pipelines.components import Components, build_pipeline, load_components
from pipelines.fingerprints import PartFingerprint, differing_parts, file_states, remembered

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> Components:
    return load_components(str(tiny_base_dir))


@pytest.fixture
def folder(tiny_base_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_dir, tmp_path / "base"))


def _edit(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def _next_number(tensor: Tensor) -> Tensor:
    """Return a tensor whose last number is the next one that float32 knows."""
    changed = tensor.clone()
    last = changed.view(-1)[-1:]
    last.copy_(torch.nextafter(last, torch.tensor([torch.inf])))
    return changed


@pytest.mark.parametrize("part", WEIGHTS)
def test_the_last_bit_of_every_weight_of_every_part_counts(part: str, folder: Path, base: Components) -> None:
    """A sample of the U-Net's matrices was all that counted."""
    file = folder / part / WEIGHTS[part]
    stored = load_file(file)
    for name in list(stored)[:: max(1, len(stored) // 8)]:  # among them biases, norms and embeddings
        save_file({**stored, name: _next_number(stored[name])}, file, metadata={"format": "pt"})
        found = load_components(str(folder)).fingerprint
        assert differing_parts(base.fingerprint, found, exact=True) == (part,), name
        assert differing_parts(base.fingerprint, found) == (), name


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_part_with_half_of_its_weights_is_another_base_for_an_adapter_too(
    part: str, folder: Path, base: Components
) -> None:
    _edit(folder / part / WEIGHTS[part], lambda tensors: {name: tensor / 2 for name, tensor in tensors.items()})
    assert differing_parts(base.fingerprint, load_components(str(folder)).fingerprint) == (part,)


def _edit_json(file: Path, **changed: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def _swap_words(folder: Path) -> None:
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = [word for word in vocabulary if word.endswith("</w>") and len(word) > 5][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "part", "for_an_adapter"),
    [
        (lambda folder: _edit_json(folder / "vae" / "config.json", scaling_factor=0.2), "vae", True),
        (lambda folder: _edit_json(folder / "unet" / "config.json", flip_sin_to_cos=False), "unet", True),
        (lambda folder: _edit_json(folder / "text_encoder" / "config.json", hidden_act="gelu"), "text_encoder", True),
        (_swap_words, "tokenizer", True),
        (lambda folder: _edit_json(folder / "scheduler" / "scheduler_config.json", beta_end=0.02), "scheduler", True),
        # how it is sampled decides what a run draws of itself, and nothing of what an adapter fits to
        (lambda folder: _edit_json(folder / "scheduler" / "scheduler_config.json", steps_offset=0), "scheduler", False),
    ],
    ids=["scale of latents", "time embedding", "activation", "vocabulary", "noise", "sampling"],
)
def test_all_else_that_decides_what_a_base_draws_counts(
    change: Callable[[Path], object], part: str, for_an_adapter: bool, folder: Path, base: Components
) -> None:
    change(folder)
    found = load_components(str(folder)).fingerprint
    assert differing_parts(base.fingerprint, found, exact=True) == (part,)
    assert differing_parts(base.fingerprint, found) == ((part,) if for_an_adapter else ())


def test_a_base_that_is_saved_again_is_the_same(base: Components, folder: Path, tmp_path: Path) -> None:
    base.tokenizer(["a dry slice"], padding="max_length", truncation=True)  # which leaves its settings in the tokenizer
    build_pipeline(base).save_pretrained(tmp_path / "again")
    assert load_components(str(tmp_path / "again")).fingerprint == base.fingerprint
    # what is a default may be left out, or be written by another release
    for part in WEIGHTS:
        _edit_json(folder / part / "config.json", _diffusers_version="0.1", transformers_version="0.1", sample_size=64)
    assert load_components(str(folder)).fingerprint == base.fingerprint


def test_half_precision_is_another_base_for_a_run_and_the_same_for_an_adapter(base: Components, folder: Path) -> None:
    for part, name in WEIGHTS.items():
        _edit(folder / part / name, lambda tensors: {key: tensor.half() for key, tensor in tensors.items()})
    halved = load_components(str(folder))
    assert halved.unet.dtype == torch.float32
    assert differing_parts(base.fingerprint, halved.fingerprint) == ()
    assert differing_parts(base.fingerprint, halved.fingerprint, exact=True) == tuple(WEIGHTS)


def test_widths_and_seeds_are_told_apart(base: Components, make_tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    others = [make_tiny_base(tmp_path / "seed", seed=1), make_tiny_base(tmp_path / "wide", cross_attention_dim=64)]
    assert len({base.fingerprint, *(load_components(str(other)).fingerprint for other in others)}) == 3


@pytest.mark.parametrize(("told", "found"), [(None, "unet=1"), ("unet=1", None), ("unet=1", "")])
def test_what_is_not_known_is_not_compared(told: object, found: str | None) -> None:
    assert differing_parts(told, found) == ()


@pytest.mark.parametrize("told", ["", "0123", "0" * 32, 5, {"unet": 1}])
def test_what_is_no_fingerprint_differs_in_all_parts(told: object, base: Components) -> None:
    assert differing_parts(told, base.fingerprint) == ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """Return how often a file is hashed when its fingerprint is asked for."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "_SETTLED_SECONDS", -1.0)

    def count(file: Path) -> int:
        calls = []

        def make() -> PartFingerprint:
            calls.append(1)
            return PartFingerprint("0" * 16, "1" * 16)

        assert remembered(file_states([file]), {}, make) == ("0" * 16, "1" * 16)
        return len(calls)

    return count


def test_files_are_hashed_once_until_they_change(hashed: Callable[[Path], int], tmp_path: Path) -> None:
    file, other = tmp_path / "weights", tmp_path / "other"
    file.write_bytes(b"one")
    other.write_bytes(b"one")
    assert [hashed(file), hashed(file), hashed(other)] == [1, 0, 1]
    before = file.stat()
    file.write_bytes(b"two")  # of the same size, and then of the same time
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert [hashed(file), hashed(file)] == [1, 0]
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert hashed(file) == 1


def test_a_file_that_may_still_change_within_the_clock_is_hashed_again(
    hashed: Callable[[Path], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "_SETTLED_SECONDS", 60.0)
    (tmp_path / "weights").write_bytes(b"one")
    assert [hashed(tmp_path / "weights") for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"exact": "zz", "rounded": 5}'])
def test_a_damaged_entry_is_made_again(content: bytes, hashed: Callable[[Path], int], tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"one")
    assert hashed(tmp_path / "weights") == 1
    (entry,) = (tmp_path / "cache" / fingerprints.FOLDER).iterdir()
    entry.write_bytes(content)
    assert [hashed(tmp_path / "weights"), hashed(tmp_path / "weights")] == [1, 0]


def test_without_a_cache_files_are_hashed_each_time(hashed: Callable[[Path], int], tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"one")
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert [hashed(tmp_path / "weights") for _ in range(2)] == [1, 1]


def test_a_second_start_hashes_no_weights(
    folder: Path, base: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "_SETTLED_SECONDS", -1.0)
    assert load_components(str(folder)).fingerprint == base.fingerprint
    for name in ("of_file", "of_module", "tokenizer_fingerprint"):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("hashed again"))
    assert load_components(str(folder)).fingerprint == base.fingerprint


def test_a_base_that_changes_while_it_is_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._read_part

    def read(part: str, *arguments: object, **options: object) -> object:
        found = real(part, *arguments, **options)  # type: ignore[arg-type]
        if part == "scheduler":
            _edit(folder / "vae" / WEIGHTS["vae"], lambda tensors: {name: -tensor for name, tensor in tensors.items()})
        return found

    monkeypatch.setattr(module, "_read_part", read)
    with pytest.raises(SettingsError, match="changed while they were read"):
        load_components(str(folder))


def test_what_a_caption_was_read_as_is_not_taken_from_another_tokenizer(base: Components, folder: Path) -> None:
    _swap_words(folder)
    names = []
    for components in (base, load_components(str(folder))):
        conditioner = noise_objective(LoraSettings(concept="sf_dry"), 0, components).conditioner
        assert isinstance(conditioner, EncodedConditioner)
        names.append(conditioner._name("a dry striped composite texture"))
    assert names[0] != names[1]
