"""What is fuzzed: each reader takes what it is given, or refuses it in words; there is no third thing."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from hypothesis import strategies as st
from PIL import Image

from data.errors import DataError, FilrougeError, SettingsError
from tests.fuzz.mutations import Damaged, damaged, damaged_text

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Target:
    """Cases, and a function that looks at one of them in an empty folder and raises where the reader is wrong."""

    cases: Callable[[], st.SearchStrategy[Any]]
    look: Callable[[Any, Path], None]


# Volumes


def _volume_cases() -> st.SearchStrategy[Damaged]:
    from tests.tif_variants import GOOD, whole_file

    return damaged({name: whole_file(name) for name in GOOD}, is_tif=True)


def _look_at_volume(case: Damaged, folder: Path) -> None:
    from data.tif.stacks import open_stack
    from data.volume_specs import VolumeError
    from tests.tif_variants import GOOD, assert_harmless, compression_at, read, voxels_of, whole_file

    path = folder / "a.tif"
    path.write_bytes(case.content)
    try:
        stack = open_stack(path)
        voxels = read(stack)
    except VolumeError:
        return
    assert voxels.shape == stack.shape
    truth, whole = voxels_of(GOOD[case.name][0]), whole_file(case.name)
    if case.is_cut_only:
        np.testing.assert_array_equal(voxels, truth)
    elif case.how == ("flip",):
        changed = next((n for n, (a, b) in enumerate(zip(whole, case.content, strict=True)) if a != b), 0)
        path.write_bytes(whole)
        assert_harmless(voxels, truth, compression_at(path, changed))


# Images


@cache
def _pictures() -> dict[str, bytes]:
    rgb = np.random.default_rng(3).integers(0, 256, (20, 28, 3), np.uint8)
    grey, alpha = rgb[..., 0], np.dstack([rgb, rgb[..., :1]])

    def encoded(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image = Image.fromarray(pixels)
        (image if mode is None else image.convert(mode)).save(buffer, kind, **options)
        return buffer.getvalue()

    def tif(pixels: np.ndarray, **options: Any) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, **options)
        return buffer.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    wide = rgb.astype(np.uint16) * 257
    return {
        "PNG": encoded(rgb, "PNG"),
        "PNG with alpha": encoded(alpha, "PNG"),
        "PNG palette": encoded(rgb, "PNG", "P", transparency=3),
        "PNG 1 bit": encoded(grey, "PNG", "1"),
        "PNG 16 bit": encoded(wide[..., 0], "PNG"),
        "PNG transparent grey": encoded(grey, "PNG", transparency=7),
        "JPEG": encoded(rgb, "JPEG", exif=exif),
        "JPEG progressive": encoded(rgb, "JPEG", progressive=True),
        "JPEG CMYK": encoded(rgb, "JPEG", "CMYK"),
        "JPEG grey": encoded(grey, "JPEG"),
        "WebP": encoded(rgb, "WEBP"),
        "WebP lossless": encoded(alpha, "WEBP", lossless=True),
        "BMP": encoded(rgb, "BMP"),
        "TIFF": encoded(rgb, "TIFF"),
        "TIFF LZW": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "TIFF JPEG": encoded(rgb, "TIFF", compression="jpeg"),
        "TIFF 16 bit": tif(wide, photometric="rgb"),
        "TIFF 16 bit zlib": tif(wide, photometric="rgb", compression="zlib", predictor=True),
        "TIFF 16 bit Zstandard": tif(wide[..., 0], photometric="minisblack", compression="zstd"),
        "TIFF 16 bit planar": tif(np.moveaxis(wide, -1, 0).copy(), photometric="rgb", planarconfig="separate"),
    }


def _look_at_image(case: Damaged, folder: Path) -> None:
    from data.images import MAX_PIXELS, decode_image, read_image

    path = folder / "a.png"
    path.write_bytes(case.content)
    try:
        pixels = read_image(path)
    except DataError:
        return
    assert pixels.dtype == np.float32
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    assert np.isfinite(pixels).all()
    assert 0 <= pixels.min() <= pixels.max() <= 1
    if case.is_cut_only or (case.how == ("flip",) and case.name == "PNG"):
        truth = decode_image(_pictures()[case.name], "whole")
        np.testing.assert_array_equal(pixels, truth)


# Captions


_NAMES = st.sampled_from(
    ["a", "b", "A", "é", "e\u0301", "x/c", "x/d", "10_weave/e", "y/z/f", "train/g", "train/a", ".h"]
)
_ENDS = st.sampled_from([".png", ".jpg", ".PNG", ".tif", ".gif", ".png.txt"])
_WORDS = st.text(max_size=12) | st.sampled_from(["\u00a0", "\ufeff", "a\nb", "a\r\n", "\u2028", " x ", "\x85", "a\0"])
_NO_NAMES = ["../a.png", "/a.png", "a\\b.png", "", "C:a", "a.png\0", "."]
_ROW = st.fixed_dictionaries(
    {},
    optional={
        "file_name": st.builds("".join, st.tuples(_NAMES, _ENDS)) | st.sampled_from(_NO_NAMES),
        "text": _WORDS | st.none() | st.integers() | st.lists(st.integers(), max_size=2),
        "prompt": _WORDS,
        "group": st.none() | st.integers() | st.text(max_size=3) | st.booleans() | st.floats(),
    },
)  # fmt: skip
_LINE = st.builds(lambda row: json.dumps(row).encode(), _ROW) | st.binary(max_size=20)


@dataclass(frozen=True)
class Captions:
    """A folder of pictures: names, texts beside them, the lines of metadata.jsonl (None: there is none), its key."""

    pictures: tuple[str, ...]
    texts: dict[str, bytes]
    rows: tuple[bytes, ...] | None
    key: str


def _caption_cases() -> st.SearchStrategy[Captions]:
    pictures = st.lists(st.builds("".join, st.tuples(_NAMES, _ENDS)), unique=True, max_size=5).map(tuple)
    text = _WORDS.map(lambda words: words.encode()) | st.binary(max_size=12)
    texts = st.dictionaries(st.builds("".join, st.tuples(_NAMES, st.sampled_from([".txt", ".TXT", ".caption"]))), text)
    rows = st.none() | st.none() | st.lists(_LINE, max_size=5).map(tuple)
    return st.builds(Captions, pictures, texts, rows, st.sampled_from(["text", "text", "prompt"]))


def _look_at_captions(case: Captions, folder: Path) -> None:
    from data.faults import Fault
    from data.image_files import SUFFIXES, survey_folder
    from data.texts import says_nothing

    root = folder / "data"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    files = dict.fromkeys(case.pictures, b"picture") | case.texts
    if case.rows is not None:
        files["metadata.jsonl"] = b"\n".join(case.rows)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    try:
        found = survey_folder(root, case.key)
    except DataError:
        return
    assert all(isinstance(fault, Fault) and fault.reason for fault in found.faults)
    there = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }
    assert {image.name for image in found.images} == there
    for image in found.images:
        image.caption.encode()
        assert image.caption == image.caption.strip()
        assert not image.caption or not says_nothing(image.caption) or found.faults
        if image.lacks is None and image.name not in found.faulty and image.caption:
            beside = [root / f"{Path(image.name).with_suffix('')}{end}" for end in (".txt", ".TXT", ".caption")]
            said = {path.read_bytes().decode("utf-8-sig").strip() for path in beside if path.is_file()}
            said |= {Path(image.name).parts[0]}
            for line in case.rows or ():
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                    said.add(row[case.key].strip())
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
            assert image.caption in said


# Prompts


def _prompt_cases() -> st.SearchStrategy[tuple[bytes, str]]:
    return st.tuples(
        st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
        st.text("0123456789-, ٣", max_size=24) | st.text(max_size=8),
    )


def _look_at_prompts(case: tuple[bytes, str], folder: Path) -> None:
    from data.texts import says_nothing
    from pipelines.evaluation.prompt_sets import read_prompt_file
    from pipelines.prompts import LARGEST_SEED, MOST_SEEDS, parse_seeds, read_prompts

    content, seeds = case
    path = folder / "prompts.txt"
    path.write_bytes(content)
    for read in (read_prompts, read_prompt_file):
        try:
            found: Any = read(path)
        except SettingsError:
            continue
        prompts = found if isinstance(found, list) else [prompt.text for prompt in found.prompts]
        assert prompts
        for prompt in prompts:
            assert prompt.encode() in content
            assert not says_nothing(prompt)
    try:
        numbers = parse_seeds(seeds)
    except SettingsError:
        return
    assert 0 < len(numbers) == len(set(numbers)) <= MOST_SEEDS
    assert all(0 <= number <= LARGEST_SEED for number in numbers)


# YAML


_FRAGMENTS = (
    *("&a ", "*a", "<<: *a", "[" * 30, "{a: " * 30, "- " * 30, "!!python/name:os.system ", "!!set ", "? ", "--- "),
    *("2024-13-45", "9" * 60, "1e999", ".nan", "\0", "\ud800", "\ufeff", "\t", "\x85", "\u2028", "'", '"', ": ", "#"),
    *("...\n", "|\n", ">\n"),
    *("-1", "0", "1.5", "true", "~", "{}", "[]", "[1, 2]", "x: y", '"\\ud800"', '"\\UFFFFFFFF"', "null: null\n"),
)  # fmt: skip


@cache
def _yaml_files() -> dict[str, bytes]:
    files = {
        f"{kind}/{path.name}": path.read_bytes()
        for kind in ("prompts", "studies", "concepts", "bases")
        for path in sorted((ROOT / "configs" / kind).glob("*.yaml"))
    }
    files["volumes/volumes.yaml"] = (
        b"dry:\n  file: scan7.tif\n  planes: {thickness: 0, warp: 1, weft: 2}\n  voxel_size_um: [40, 40, 40]\n"
        b"  window: [1200, 52000]\n  shape: [359, 702, 970]\n  accept_warnings: true\ninjected: {file: b.tif}\n"
    )
    files["settings/lora.yaml"] = (
        b"concept: sf_dry\nmixed_precision: no\nlearning_rate: 1e-4\nvalidation_prompt: [a, b]\nrank: 8\n"
        b"resume_from_checkpoint: null\n"
    )
    return files


def _refusal(read: Callable[[], object]) -> FilrougeError | None:
    """Return how a reader refuses a file; None where it takes it."""
    try:
        read()
    except FilrougeError as error:
        return error
    return None


def _look_at_yaml(case: Damaged, folder: Path) -> None:
    from data.concepts import load_concept
    from data.strict_yaml import LARGE, read_yaml
    from data.volume_specs import read_volume_specs
    from finetune.core.cli import load_settings
    from finetune.core.setting_changes import refuse_changes
    from finetune.core.settings import LoraSettings
    from pipelines.evaluation.prompt_sets import read_prompt_file
    from pipelines.studies.study import read_study

    path = folder / "volumes.yaml"
    path.write_bytes(case.content)
    readers: dict[str, Callable[[], object]] = {
        "volumes": lambda: read_volume_specs(folder),
        "prompts": lambda: read_prompt_file(path),
        "studies": lambda: read_study(path),
        "concepts": lambda: load_concept("volumes", folder),
        "settings": lambda: load_settings(LoraSettings, "lora", ["--config", str(path)], ROOT / "configs"),
        "bases": lambda: load_settings(LoraSettings, "lora", ["--config", str(path)], ROOT / "configs"),
    }
    own = case.name.split("/")[0]
    for name, read in readers.items():
        refusal = _refusal(read)
        if refusal is not None:
            assert all(problem.strip() for problem in refusal.problems)
            assert name != own or len(str(refusal)) < 50_000
    _refusal(lambda: refuse_changes(path, LoraSettings(concept="sf_dry")))
    try:
        found = read_yaml(path, "anything", most_bytes=LARGE)
    except SettingsError:
        return
    assert found is None or isinstance(found, (str, int, float, bool, list, dict))


# Adapters


@cache
def _adapters() -> tuple[Any, dict[str, bytes]]:
    from tempfile import mkdtemp

    import torch

    from pipelines.adapters import FACTS_KEY
    from pipelines.components import build_pipeline, load_components
    from pipelines.embeddings import export_embeddings
    from pipelines.kohya import to_kohya
    from tests.tiny import tiny_base
    from tests.tiny_adapters import tiny_adapter

    folder = Path(mkdtemp(prefix="fuzz-"))
    base = tiny_base(folder / "base")
    facts = {"base": "tiny", "base_fingerprint": "x", "prediction_type": "epsilon"}
    adapter = tiny_adapter(base, folder / "adapter", facts) / "pytorch_lora_weights.safetensors"
    kohya = to_kohya(adapter, folder / "kohya.safetensors")
    words = export_embeddings(folder, "<weave>", torch.ones(2, 32), {FACTS_KEY: json.dumps(facts)})
    files = {"adapter": adapter.read_bytes(), "kohya": kohya.read_bytes(), "embeddings": words.read_bytes()}
    components = load_components(str(base))
    shutil.rmtree(folder)
    return (components, build_pipeline(components)), files


_SAFETENSORS = (
    '"',
    "}",
    "{",
    "F32",
    "F16",
    "I64",
    "[0,1]",
    "[2,32]",
    "[]",
    "999999999999",
    "null",
    "to_q",
    "lora_A",
    "alpha",
)


def _look_at_adapter(case: Damaged, folder: Path) -> None:
    from copy import deepcopy

    from pipelines.adapters import load_adapter, read_adapter, read_adapter_facts
    from pipelines.embeddings import load_embeddings
    from pipelines.kohya import from_kohya, to_kohya

    (components, pipeline), _ = _adapters()
    path = folder / "a.safetensors"
    path.write_bytes(case.content)
    pipeline.unload_lora_weights()
    before = {key: tensor.clone() for key, tensor in pipeline.unet.state_dict().items()}
    tensors: dict[str, Any] = {}
    for read in (
        lambda: tensors.update(read_adapter(path)[0]),
        lambda: read_adapter_facts(path),
        lambda: from_kohya(path, folder / "b.safetensors", components),
        lambda: to_kohya(path, folder / "c.safetensors"),
    ):
        _refusal(read)
    try:
        name = load_adapter(pipeline, path)
    except FilrougeError:
        after = {key.replace(".base_layer", ""): tensor for key, tensor in pipeline.unet.state_dict().items()}
        assert after.keys() == before.keys()
        assert all(np.array_equal(after[key].numpy(), before[key].numpy()) for key in before)
    else:
        try:
            loaded = {key: tensor for key, tensor in pipeline.unet.state_dict().items() if f".{name}." in key}
            assert len(loaded) == len(tensors)
            assert all(np.isfinite(tensor.float().numpy()).all() for tensor in loaded.values())
        finally:
            pipeline.unload_lora_weights()
    copied = deepcopy(pipeline) if case.name == "embeddings" else None
    if copied is not None:
        try:
            load_embeddings(copied, path)
        except FilrougeError:
            return
        assert np.isfinite(copied.text_encoder.get_input_embeddings().weight.detach().numpy()).all()


TARGETS: dict[str, Target] = {
    "volumes": Target(_volume_cases, _look_at_volume),
    "images": Target(lambda: damaged(_pictures(), is_tif=True), _look_at_image),
    "captions": Target(_caption_cases, _look_at_captions),
    "prompts": Target(_prompt_cases, _look_at_prompts),
    "yaml": Target(lambda: damaged_text(_yaml_files(), _FRAGMENTS), _look_at_yaml),
    "adapters": Target(lambda: damaged_text(_adapters()[1], _SAFETENSORS), _look_at_adapter),
}
