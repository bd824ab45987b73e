"""Every fine-tuning script once through its real command line, and what it says to input that it cannot use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from data.crops import Crops
from data.exits import exit_code
from data.image_dataset import build_image_dataset
from data.tif.writer import write_stack
from data.wording import RewordedDataset, Wording
from finetune.core import hub
from finetune.core import settings as options
from finetune.core.cli import run_script
from pipelines import generate

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, type[options.ConceptSettings]] = {
    "full_unet": options.FullUnetSettings,
    "textual_inversion": options.TextualInversionSettings,
    "dreambooth": options.DreamboothSettings,
    "lora": options.LoraSettings,
    "lora_dreambooth": options.LoraDreamboothSettings,
    "pivotal_tuning": options.PivotalTuningSettings,
}
LORA, WORD, WHOLE = "pytorch_lora_weights.safetensors", "learned_embeds.safetensors", "model_index.json"
FACTS = "filrouge.json"  # of a whole model
PRIOR = ("--with_prior_preservation", "--num_class_images", "2")
NEW_WORD = ("--placeholder_token", "<dry-warp>", "--initializer_token", "dry", "--num_vectors", "2")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scans/dry.tif, pictures/ without captions, captioned/ with a .txt beside each picture, and more."""
    folder = tmp_path_factory.mktemp("material")
    rng = np.random.default_rng(5)
    field = gaussian_filter(rng.standard_normal((40, 44, 130)), (1.0, 2.0, 3.0))
    grey = (20000 + 40000 * (field - field.min()) / np.ptp(field)).clip(0, 65535).astype(np.uint16)
    write_stack(folder / "scans" / "dry.tif", grey, (40.0, 40.0, 40.0))
    (folder / "pictures").mkdir()
    for number in range(4):
        pixels = rng.integers(0, 255, (36, 48, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    captioned = shutil.copytree(folder / "pictures", folder / "captioned")
    for number, words in enumerate(("a red texture", "a blue texture", "a red texture", "a striped texture")):
        (captioned / f"{number}.txt").write_text(words)
    broken = shutil.copytree(captioned, folder / "broken")
    (broken / "2.png").write_bytes((broken / "2.png").read_bytes()[:300])
    (folder / "empty").mkdir()
    return folder


def _environment(cache: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "FILROUGE_DATA"}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "FILROUGE_CACHE": str(cache)}


class Run(NamedTuple):
    """A script as it is run here: its source of images, its options, what it trains on, and what it leaves."""

    source: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]
    leaves: tuple[str, ...]


RUNS = {
    "full_unet": Run("captioned", ("--ema_decay", "0.9"), ("4 with 3 captions",), (WHOLE, FACTS, "unet")),
    "textual_inversion": Run("scans", NEW_WORD, ("new word    <dry-warp> <dry-warp>_1 (2 vectors)",), (WORD,)),
    "dreambooth": Run(
        "pictures",
        ("--instance_prompt", "a w17h3r texture", *PRIOR),
        ("4 with 1 captions, and 2 of the class",),
        (WHOLE, FACTS, "unet"),
    ),
    "lora": Run(
        "scans",
        ("--train_text_encoder", "--identifier_report"),
        ("identifiers measured with 96 predictions of the U-Net\n  identifier  prior", "\n  sf_dry  ", "\n  sf_warp  "),
        (LORA,),
    ),
    "lora_dreambooth": Run(
        "scans", ("--instance_prompt", "a w17h3r slice", *PRIOR), ("and 2 of the class to preserve",), (LORA,)
    ),
    "pivotal_tuning": Run("scans", NEW_WORD, ("token_rows", "unet_lora"), (WORD, LORA)),
}


def _source(name: str, material: Path) -> list[str]:
    if name == "scans":
        return ["--concept", "sf_dry_warp", "--data_root", str(material / "scans"), "--held_out_fraction", "0.4"]
    return ["--train_data_dir", str(material / name)]


@pytest.fixture(scope="module")
def trained(
    material: Path, tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, str]]:
    """Return a function from a script to the folder of its run and what it printed; each is run once."""
    runs = tmp_path_factory.mktemp("runs")
    done: dict[str, tuple[Path, str]] = {}

    def run(script: str) -> tuple[Path, str]:
        if script not in done:
            row, folder = RUNS[script], runs / script
            command = [
                *(sys.executable, f"finetune/{script}.py", *_source(row.source, material)),
                *("--pretrained_model_name_or_path", str(tiny_base_dir), "--output_dir", str(folder)),
                *("--max_train_steps", "2", "--train_batch_size", "2", "--num_validation_images", "1"),
                *("--num_threads", "1", *row.arguments),
            ]
            result = subprocess.run(
                command,
                cwd=ROOT,
                env=_environment(runs / "cache"),
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert result.returncode == 0, result.stderr
            assert "\r" not in result.stderr  # a file can hold what it tells
            assert "train  step 2 of 2, loss " in result.stderr
            done[script] = folder, result.stdout
        return done[script]

    return run


def _printed_code(printed: str) -> str:
    """Return the lines of Python that a script ends with."""
    after = printed.partition("To use it:\n")[2]
    return "\n".join(line.removeprefix("    ") for line in after.splitlines() if line.startswith("    "))


@pytest.mark.parametrize("script", RUNS)
def test_a_script_trains_and_prints_lines_of_plain_diffusers_that_run(
    script: str,
    trained: Callable[[str], tuple[Path, str]],
    tiny_base_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, printed = trained(script)
    for words in (*RUNS[script].says, f"method      {script} -> {folder}", "steps       2 of 2 images"):
        assert words in printed
    assert all((folder / name).exists() for name in (*RUNS[script].leaves, "checkpoint-2", "README.md"))
    assert json.loads((folder / "status.json").read_text())["status"] == "done"
    code = _printed_code(printed)
    assert "diffusers" in code
    assert "filrouge" not in code
    drawn = tmp_path / "drawn.png"
    if script == "pivotal_tuning":  # as a user's own script
        code += f"\nimage.save({str(drawn)!r})\nimport sys; assert not {{'finetune', 'pipelines'}} & set(sys.modules)"
        environment = _environment(tmp_path / "cache")
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=300)
    else:  # what the card says, beside the run and its base
        card_code = (folder / "README.md").read_text().partition("```python\n")[2].partition("\n```")[0]
        assert code == card_code.replace(repr(folder.name), repr(str(folder))).replace(
            repr(tiny_base_dir.name), repr(str(tiny_base_dir))
        )
        for place in (folder, tiny_base_dir):
            (tmp_path / place.name).symlink_to(place)
        monkeypatch.chdir(tmp_path)
        scope: dict[str, Image.Image] = {}
        exec(card_code, scope)
        scope["image"].save(drawn)
    with Image.open(drawn) as image:
        assert image.size == (32, 32)
        assert np.asarray(image).std() > 0


@pytest.mark.parametrize(
    ("script", "tags", "instance_prompt"),
    [
        ("full_unet", set(), None),
        ("textual_inversion", {"textual_inversion"}, "<dry-warp>"),
        ("dreambooth", {"dreambooth"}, "a w17h3r texture"),
        ("lora", {"lora"}, "sf_dry sf_warp"),
        ("lora_dreambooth", {"lora", "dreambooth"}, "a w17h3r slice"),
        ("pivotal_tuning", {"textual_inversion", "lora"}, "<dry-warp>"),
    ],
)
def test_what_is_published_says_what_it_is_and_not_where_it_was_made(
    script: str,
    tags: set[str],
    instance_prompt: str | None,
    trained: Callable[[str], tuple[Path, str]],
    material: Path,
    tiny_base_dir: Path,
    tmp_path: Path,
) -> None:
    folder, _ = trained(script)
    data = ModelCard.load(folder / "README.md").data
    always = {"text-to-image", "diffusers", "diffusers-training", "stable-diffusion", "stable-diffusion-diffusers"}
    assert set(data.tags) == {*always, "filrouge", *tags}
    assert (data.library_name, data.get("instance_prompt"), data.license) == ("diffusers", instance_prompt, None)
    assert data.widget[0]["output"] == {"url": "final.png"}
    staged = tmp_path / "hub"
    hub.stage(folder, staged)
    files = [path for path in staged.rglob("*") if path.is_file()]
    published = {path.relative_to(staged).as_posix(): path.read_bytes() for path in files}
    assert {"README.md", "final.png", "curves.png", "samples/step-000002.png"} <= published.keys()
    assert {name.partition("/")[0] for name in published} >= set(RUNS[script].leaves)
    assert not {"settings.yaml", "manifest.json", "checkpoint-2"} & {name.partition("/")[0] for name in published}
    here = [str(place).encode() for place in (folder.parent, material, tiny_base_dir.parent, ROOT)]
    assert not [name for name, content in published.items() if any(place in content for place in here)]
    for name in published:
        if name.endswith(".safetensors"):
            before, after = load_file(folder / name), load_file(staged / name)
            assert before.keys() == after.keys()
            assert all(torch.equal(before[key], after[key]) for key in before), name


def test_prompts_reach_the_images_of_a_folder_without_captions(
    trained: Callable[[str], tuple[Path, str]], material: Path
) -> None:
    """Flat folders of pictures are the usual layout of DreamBooth and of Textual Inversion."""
    folder, _ = trained("dreambooth")
    record = json.loads((folder / "manifest.json").read_text())
    assert record["data"]["wording"] == {"": ["a w17h3r texture"]}
    images = build_image_dataset(material / "pictures", Crops(32, 0, proportion_empty_prompts=0.25))
    dataset = RewordedDataset(images, Wording.identified(images.captions, ("a w17h3r texture",)), 0)
    captions = [dataset.sample(position).caption for position in range(200)]
    assert set(captions) == {"a w17h3r texture", ""}
    assert captions.count("") / 200 == pytest.approx(0.25, abs=0.1)


def _generate(folder: Path, *arguments: str) -> dict[str, np.ndarray]:
    """Draw with generate.py and return its images by name."""
    command = [*arguments, "--num_inference_steps", "3", "--seeds", "0,5", "--output_dir", str(folder)]
    assert exit_code(lambda: generate.main(command), "generate") == 0
    return {path.name: np.asarray(Image.open(path), int) for path in folder.glob("*-seed*.png")}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a w17h3r slice\na <dry-warp> slice\n")
    return path


def test_two_adapters_are_drawn_with_at_their_strengths(
    trained: Callable[[str], tuple[Path, str]], prompts: Path, tiny_base_dir: Path, tmp_path: Path
) -> None:
    two = ("--adapter", str(trained("lora")[0]), str(trained("lora_dreambooth")[0]), "--prompts", str(prompts))
    both = _generate(tmp_path / "both", *two, "--weight", "1", "0.5")
    assert len(both) == 4
    assert json.loads((tmp_path / "both" / "images.json").read_text())["weight"] == [1.0, 0.5]
    off = _generate(tmp_path / "off", *two, "--weight", "0", "0")
    base = _generate(
        tmp_path / "base", "--prompts", str(prompts), "--pretrained_model_name_or_path", str(tiny_base_dir)
    )
    strong = _generate(tmp_path / "strong", *two, "--weight", "40", "0.5")
    assert off.keys() == base.keys() == both.keys() == strong.keys()
    for name in base:
        assert np.array_equal(off[name], base[name])
        assert np.abs(strong[name] - both[name]).max() > 0


def test_an_embedding_is_drawn_with_beside_an_adapter(
    trained: Callable[[str], tuple[Path, str]], prompts: Path, tmp_path: Path
) -> None:
    adapter, word = str(trained("lora_dreambooth")[0]), str(trained("textual_inversion")[0])
    without = _generate(tmp_path / "a", "--adapter", adapter, "--prompts", str(prompts))
    with_it = _generate(tmp_path / "b", "--adapter", adapter, word, "--prompts", str(prompts))
    assert without.keys() == with_it.keys()
    for name, image in without.items():
        assert np.array_equal(image, with_it[name]) == name.startswith("000"), name  # the first prompt lacks the word


class Mistake(NamedTuple):
    """What a user wrote, and what the script must say to it. source: a key of `_source`, or "" for none."""

    script: str
    source: str
    arguments: tuple[str, ...]
    code: int
    words: tuple[str, ...]


def _word_for(token: str, *words: str) -> Mistake:
    return Mistake("textual_inversion", "pictures", ("--placeholder_token", token), 2, ("placeholder", *words))


MISTAKES = {
    # options that do not exist, and the nearest that do
    "full_unet option": Mistake("full_unet", "captioned", ("--ema_deacy", "0.9"), 2, ("--ema_deacy", "ema_decay")),
    "textual_inversion option": Mistake(
        "textual_inversion", "captioned", ("--placeholder", "<x>"), 2, ("--placeholder", "placeholder_token")
    ),
    "dreambooth option": Mistake(
        "dreambooth", "captioned", ("--clas_prompt", "a"), 2, ("--clas_prompt", "class_prompt")
    ),
    "lora option": Mistake("lora", "captioned", ("--lora_aplha", "8"), 2, ("--lora_aplha", "lora_alpha")),
    "lora_dreambooth option": Mistake(
        "lora_dreambooth", "captioned", ("--prior_weight", "1"), 2, ("--prior_weight", "prior_loss_weight")
    ),
    "pivotal_tuning option": Mistake("pivotal_tuning", "captioned", ("--pviot", "0.4"), 2, ("--pviot", "pivot")),
    "another method's option": Mistake("full_unet", "captioned", ("--rank", "4"), 2, ("--rank", "unknown option")),
    # new words
    "placeholder that exists": _word_for("<|endoftext|>", "<|endoftext|>", "the vocabulary holds", "another name"),
    "placeholder inside words": _word_for("ct", "'ct' can be a part of an ordinary word", "Write <ct>"),
    "placeholder with a space": _word_for("<dry slice>", "'<dry slice>'", "spaces", "such as <dry-slice>"),
    "placeholder in upper case": _word_for("<Dry>", "'<Dry>'", "'<dry>'", "Write <dry>"),
    "placeholder of the second phase": Mistake(
        "pivotal_tuning", "pictures", ("--placeholder_token", "dry"), 2, ("'dry'", "Write <dry>")
    ),
    "blank initializer": Mistake(
        "textual_inversion",
        "pictures",
        ("--placeholder_token", "<dry>", "--initializer_token", " "),
        2,
        ("initializer ' ' is no token", "texture"),
    ),
    "empty initializer": Mistake(
        "textual_inversion",
        "pictures",
        ("--placeholder_token", "<dry>", "--initializer_token", ""),
        2,
        ("initializer",),
    ),
    "no vectors": Mistake(
        "textual_inversion", "pictures", ("--num_vectors", "0"), 2, ("--num_vectors", "'0'", "greater than or equal")
    ),
    "prompts given twice": Mistake(
        "pivotal_tuning", "pictures", ("--instance_prompt", "a w17h3r"), 2, ("--instance_prompt", "Leave it out")
    ),
    "pivot at the end": Mistake(
        "pivotal_tuning", "pictures", ("--pivot", "1.0"), 2, ("--pivot", "'1.0'", "less than 1")
    ),
    # prompts and captions
    "prompts that fit no captions": Mistake(
        "dreambooth",
        "captioned",
        ("--instance_prompt", "a w17h3r", "a w18h3r"),
        2,
        ("--instance_prompt", "found 2 prompts, expected 1, or 3", "'a striped texture'"),
    ),
    "no captions": Mistake("full_unet", "pictures", (), 2, ("--instance_prompt", "no image has a caption", "NAME.txt")),
    "no captions and no identifier": Mistake(
        "lora_dreambooth", "pictures", (), 2, ("--instance_prompt", "no image has a caption")
    ),
    # where images come from
    "no source": Mistake("full_unet", "", (), 2, ("--concept", "missing", "--train_data_dir", "--dataset_name")),
    "two sources": Mistake(
        "dreambooth", "captioned", ("--concept", "sf_dry"), 2, ("--concept, --train_data_dir", "only one")
    ),
    "unknown concept": Mistake("dreambooth", "", ("--concept", "dtd_zigzaged"), 2, ("dtd_zigzaged", "dtd_zigzagged")),
    "folder that is not there": Mistake("lora", "nowhere", (), 3, ("nowhere", "is not a folder", "Give the folder")),
    "folder without images": Mistake("lora", "empty", (), 3, ("empty", "found no images", "expected files", ".png")),
    "folder with a broken image": Mistake("full_unet", "broken", (), 3, ("1 of 4 images", "2.png", "damaged")),
    "dataset that cannot be fetched": Mistake(
        "lora", "", ("--dataset_name", "nobody/nothing"), 2, ("nobody/nothing", "network", "HF_HUB_OFFLINE")
    ),
    "volumes that are not there": Mistake(
        "pivotal_tuning", "", ("--concept", "sf_injected", "--data_root", "scans"), 3, ("injected.tif",)
    ),
    # options that do not go together
    "class images without prior": Mistake(
        "dreambooth", "captioned", ("--num_class_images", "7"), 2, ("--num_class_images", "--with_prior_preservation")
    ),
    "decay of no average": Mistake("dreambooth", "captioned", ("--ema_decay", "0.9"), 2, ("--ema_decay", "--use_ema")),
    "rate of a frozen text encoder": Mistake(
        "lora", "captioned", ("--text_encoder_lr", "1e-5"), 2, ("--text_encoder_lr", "--train_text_encoder")
    ),
    "rank of no convolution": Mistake(
        "lora",
        "captioned",
        ("--conv_rank", "4", "--target", "attention"),
        2,
        ("--conv_rank", "found 4", "--target attention+conv"),
    ),
    "pure noise under epsilon": Mistake(
        "lora", "captioned", ("--zero_terminal_snr",), 2, ("zero_terminal_snr", "epsilon", "v_prediction")
    ),
}
UNSERVED = {
    "TF32": Mistake("lora", "captioned", ("--allow_tf32",), 2, ("--allow_tf32", "NVIDIA", "Leave it out")),
    "xformers": Mistake(
        "full_unet",
        "captioned",
        ("--enable_xformers_memory_efficient_attention",),
        2,
        ("--enable_xformers_memory_efficient_attention",),
    ),
    "fp16": Mistake(
        "textual_inversion", "captioned", ("--mixed_precision", "fp16"), 2, ("--mixed_precision fp16", "GPU", "bf16")
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _own_precision() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def _check(mistake: Mistake, material: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a mistake over a folder that holds something, and see it told and the folder's content kept."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("years of work")
    argv = [
        *(_source(mistake.source, material) if mistake.source else []),
        *("--pretrained_model_name_or_path", str(base), "--output_dir", str(run), "--overwrite_output_dir"),
        *("--max_train_steps", "1", *mistake.arguments),
    ]
    code = run_script(import_module(f"finetune.{mistake.script}").main, SETTINGS[mistake.script], mistake.script, argv)
    printed = capsys.readouterr()
    assert code == mistake.code, printed.err
    message = printed.err[printed.err.index("filrouge: ") :]
    for word in mistake.words:
        assert word in message
    assert "Traceback" not in printed.err
    (kept,) = tmp_path.rglob("thesis.txt")  # an earlier folder may be moved aside, no more
    assert kept.read_text() == "years of work"
    cached = tmp_path / "cache"  # a base's files may have been hashed
    written = {path.name for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(cached)}
    assert written <= {"thesis.txt", ".lock"}, written


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_and_nothing_is_written_over(
    name: str,
    material: Path,
    tiny_base_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FILROUGE_DATA", raising=False)
    monkeypatch.chdir(material)
    _check(MISTAKES[name], material, tiny_base_dir, tmp_path, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", UNSERVED)
def test_what_a_machine_without_gpu_cannot_serve_is_told_before_anything_is_loaded(
    name: str, material: Path, tiny_base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _check(UNSERVED[name], material, tiny_base_dir, tmp_path, capsys)
    assert (tmp_path / "run" / "thesis.txt").exists()
