"""data/check.py: every fault is found and named, the verdict is training's own, and the exit code says it."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from data.check import _parser, main
from data.checks.captions_findings import token_counts
from data.checks.images import examine_images
from data.errors import DataError, FilrougeError, OutputError, SettingsError
from data.exits import exit_code
from data.sources import ImageSource
from data.tif.writer import write_stack
from finetune.core.settings import LoraSettings

Tree = dict[str, bytes | str]
TOKENIZER = Path(__file__).resolve().parents[2] / "pipelines" / "swatch" / "tokenizer"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILROUGE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("FILROUGE_DATA", raising=False)


def picture(number: int, shape: tuple[int, int] = (40, 56)) -> np.ndarray:
    """A smooth picture like no other: uint8 (row, column, 3)."""
    small = np.random.default_rng(number).integers(0, 256, (7, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def grow(folder: Path, tree: Tree) -> Path:
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def check(folder: Path, *options: str) -> tuple[int, dict[str, object], str]:
    """Run the script on a folder; return its exit code, what check.json holds, and the page."""
    out = folder.parent / "out"
    command = ["--train_data_dir", str(folder), "--output_dir", str(out), "--num_workers", "1", *options]
    code = exit_code(lambda: main(command), "check")
    if not (out / "check.json").exists():
        return code, {}, ""
    return code, json.loads((out / "check.json").read_text("utf-8")), (out / "check.html").read_text("utf-8")


def faults_of(found: dict[str, object]) -> dict[str, str]:
    faults = found["faults"]
    assert isinstance(faults, list)
    told = {fault["where"]: fault["reason"] for fault in faults}
    assert len(told) == len(faults), "one fault at each place"
    return told


def source(folder: Path, **changes: object) -> ImageSource:
    settings: dict[str, object] = {"train_data_dir": folder, "resolution": 32}
    return ImageSource(**{**settings, **changes})  # type: ignore[arg-type]


def trains(folder: Path, **changes: object) -> bool:
    """Whether training takes this data."""
    try:
        source(folder, **changes).open()
    except DataError:
        return False
    return True


# Pictures

RGB = picture(1)
GREY = RGB[..., 0]
ALPHA = np.linspace(0, 255, GREY.size).reshape(GREY.shape).astype(np.uint8)
PALETTE = Image.fromarray(RGB).convert("P")


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(RGB, "JPEG", exif=exif, quality=95)


def tif(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def film(kind: str) -> bytes:
    frames = [Image.fromarray(picture(number)) for number in (1, 2, 3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = encoded(RGB, "JPEG", quality=95)
PNG = encoded(RGB)
UPRIGHT, LYING = (40, 56), (56, 40)
GOOD_PICTURES: dict[str, tuple[bytes, tuple[int, int]]] = {  # content, size upright
    **{f"orientation {number}.jpg": (turned(number), UPRIGHT if number < 5 else LYING) for number in range(1, 9)},
    "palette.png": (encoded(PALETTE), UPRIGHT),
    "palette with transparency.png": (encoded(PALETTE, transparency=3), UPRIGHT),
    "RGBA.png": (encoded(np.dstack([RGB, ALPHA])), UPRIGHT),
    "grey and alpha.png": (encoded(Image.fromarray(np.dstack([GREY, ALPHA]), "LA")), UPRIGHT),
    "CMYK.jpg": (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), UPRIGHT),
    "16 bit.png": (encoded(Image.fromarray(GREY.astype(np.uint16) * 257)), UPRIGHT),
    "16 bit.tif": (tif(RGB.astype(np.uint16) * 257, photometric="rgb"), UPRIGHT),
    "1 bit.png": (encoded(Image.fromarray(GREY > 99)), UPRIGHT),
    "progressive.jpeg": (encoded(RGB, "JPEG", progressive=True), UPRIGHT),
    "a PNG all the same.jpg": (PNG, UPRIGHT),
    "lossless.webp": (encoded(RGB, "WEBP", lossless=True), UPRIGHT),
    "bitmap.bmp": (encoded(RGB, "BMP"), UPRIGHT),
}
BAD_PICTURES: dict[str, tuple[bytes, str]] = {  # content, what the reason says
    "cut.jpg": (JPEG[: len(JPEG) * 6 // 10], "cannot be decoded"),
    "cut.png": (PNG[: len(PNG) // 2], "cannot be decoded"),
    "cut.tif": (tif(RGB, photometric="rgb")[:-90], "parts of its pixels are not in the file"),
    "nothing.png": (b"", r"is empty \(0 bytes\)"),
    "text.png": (b"no picture at all", "is no image of the formats"),
    "page.jpg": (b"<!doctype html><title>404</title>", "is no image of the formats"),
    "gif.png": (encoded(PALETTE, "GIF"), "is no image of the formats"),
    "film.png": (film("PNG"), "holds 3 frames"),
    "film.webp": (film("WEBP"), "holds 3 frames"),
    "stack.tif": (tif(np.zeros((3, 40, 56), np.uint8), photometric="minisblack"), "holds 3 pages"),
    "float.tif": (tif(RGB.astype(np.float32), photometric="rgb"), "expected 8 bit"),
    "bomb.png": (bomb(), "pixels are allowed|pixels allowed"),
    "other.gif": (encoded(PALETTE, "GIF"), "pictures of this format are not read"),
    "other.heic": (PNG, "pictures of this format are not read"),
}


def test_every_damaged_picture_is_named_beside_the_good_ones(tmp_path: Path) -> None:
    assert len(GOOD_PICTURES) + len(BAD_PICTURES) >= 15
    tree: Tree = {name: content for name, (content, _) in {**GOOD_PICTURES, **BAD_PICTURES}.items()}
    folder = grow(tmp_path / "all", tree)
    code, found, page = check(folder)
    told = faults_of(found)
    assert told.keys() == BAD_PICTURES.keys()
    for name, (_, reason) in BAD_PICTURES.items():
        assert re.search(reason, told[name]), (name, told[name])
    assert code == 3
    assert found["num_images"] == len(GOOD_PICTURES)
    assert found["refused"] is True
    assert page.count("<img") >= len(GOOD_PICTURES)


@pytest.mark.parametrize("name", GOOD_PICTURES)
def test_a_good_picture_is_seen_upright_and_trained_on(tmp_path: Path, name: str) -> None:
    content, shape = GOOD_PICTURES[name]
    folder = grow(tmp_path / "one", {name: content})
    report = examine_images(source(folder), "one", tokenizer=TOKENIZER, num_workers=1)
    assert not report.refused
    assert trains(folder)
    sizes = report.numbers["sizes"]
    assert (sizes["height_px"]["most"], sizes["width_px"]["most"]) == shape


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_the_verdict_on_a_picture_is_that_of_training(tmp_path: Path, name: str) -> None:
    folder = grow(tmp_path / "one", {"good.png": PNG, name: BAD_PICTURES[name][0]})
    assert not trains(folder)
    code, found, _ = check(folder)
    assert code == 3
    assert list(faults_of(found)) == [name]


# Captions

WORDS = "a woven surface"
CAPTIONS: dict[str, tuple[Tree, dict[str, str], str]] = {  # files, faults, the caption of a.png where it is trained on
    "a line": ({"a.txt": WORDS}, {}, WORDS),
    "a byte order mark": ({"a.txt": b"\xef\xbb\xbf" + WORDS.encode()}, {}, WORDS),
    "Windows line ends": ({"a.txt": f"{WORDS}\r\n"}, {}, WORDS),
    "10,000 characters": ({"a.txt": "woven " * 1666 + "cloth"}, {}, "woven " * 1666 + "cloth"),
    "no caption": ({}, {}, ""),
    "UTF-16": ({"a.txt": WORDS.encode("utf-16")}, {"a.txt": "is UTF-16"}, ""),
    "Latin-1": ({"a.txt": "tiss\xe9".encode("latin-1")}, {"a.txt": "is not UTF-8"}, ""),
    "an empty file": ({"a.txt": b""}, {"a.txt": "is empty. Write a caption"}, ""),
    "no-break spaces": ({"a.txt": "\u00a0\u2003"}, {"a.txt": "is empty. Write a caption"}, ""),
    "blanks": ({"a.txt": " \t "}, {"a.txt": "is empty. Write a caption"}, ""),
    "a line end alone": ({"a.txt": "\n"}, {"a.txt": "is empty. Write a caption"}, ""),
    "two lines": ({"a.txt": "one\ntwo"}, {"a.txt": "holds 2 lines"}, ""),
    "a NUL": ({"a.txt": "a\0b"}, {"a.txt": "NUL character"}, ""),
    "a row": ({"metadata.jsonl": json.dumps({"file_name": "a.png", "text": WORDS})}, {}, WORDS),
    "a row of an unknown file": (
        {"metadata.jsonl": '{"file_name": "a.png", "text": "x"}\n{"file_name": "z.png", "text": "y"}'},
        {"metadata.jsonl:2": "z.png is missing"},
        "",
    ),
    "a second row": (
        {"metadata.jsonl": '{"file_name": "a.png", "text": "x"}\n{"file_name": "a.png", "text": "y"}'},
        {"metadata.jsonl:2": "a.png has a second caption"},
        "",
    ),
    "bad JSON": (
        {"metadata.jsonl": '{"file_name": "a.png", "text": "x"}\n{"file_name": '},
        {"metadata.jsonl:2": "is no JSON"},
        "",
    ),
    "an unnamed picture": (
        {"metadata.jsonl": '{"file_name": "a.png", "text": "x"}', "b.png": encoded(picture(2))},
        {"b.png": "is not named in metadata.jsonl"},
        "",
    ),
    "a row and a file": (
        {"metadata.jsonl": '{"file_name": "a.png", "text": "x"}', "a.txt": "y"},
        {"a.png": "its caption stands in metadata.jsonl and in a.txt"},
        "",
    ),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_every_kind_of_caption_is_read_or_refused_as_training_does(tmp_path: Path, name: str) -> None:
    tree, expected, caption = CAPTIONS[name]
    folder = grow(tmp_path / "captions", {"a.png": PNG, **tree})
    code, found, _ = check(folder)
    told = faults_of(found)
    assert told.keys() == expected.keys()
    for where, reason in expected.items():
        assert reason in told[where]
    assert trains(folder) is not bool(expected)
    assert code == (3 if expected else 0)
    if not expected:
        dataset = source(folder).open()
        assert dataset.captions == (caption,)
        words = found["captions"]
        assert isinstance(words, dict)
        assert words["num_without"] == (0 if caption else 1)
        assert (words["characters"] or {"most": 0})["most"] == len(caption)


def test_a_text_without_a_picture_is_listed_as_no_part_of_the_data(tmp_path: Path) -> None:
    tree: Tree = {"a.png": PNG, "b.txt": "alone", ".directory": "", "notes.md": "x"}
    code, found, page = check(grow(tmp_path / "stray", tree))
    assert code == 0
    assert found["ignored"] == [".directory", "b.txt", "notes.md"]
    assert all(name in page for name in (".directory", "b.txt", "notes.md"))


def test_pictures_without_captions_train_under_a_prompt_only(tmp_path: Path) -> None:
    code, found, _ = check(grow(tmp_path / "bare", {"a.png": PNG}))
    assert code == 0
    assert found["verdict"] == "Training would go on with this data under --instance_prompt: images have no caption."
    asks = "training asks for --instance_prompt, one prompt for all."
    assert f"No image has a caption: {asks}" in found["warnings"]  # type: ignore[operator]
    tree: Tree = {f"{letter}.png": encoded(picture(number)) for number, letter in enumerate("abcdef")}
    folder = grow(tmp_path / "some", {**tree, "c.txt": "words"})
    code, found, page = check(folder)
    assert (code, trains(folder)) == (3, False)
    told = faults_of(found)
    assert told.keys() == {f"{letter}.png" for letter in "abdef"}
    assert told["a.png"] == "has no caption, and other images have one. Write a.txt beside it."
    assert told["a.png"] in page
    code, found, _ = check(folder, "--instance_prompt", "a w17h3r surface")
    assert (code, trains(folder, needs_captions=False)) == (0, True)
    assert found["verdict"] == "Training would go on with this data."


def test_captions_that_are_too_long_are_counted(tmp_path: Path) -> None:
    tree: Tree = {"a.png": PNG, "a.txt": "woven " * 90, "b.png": encoded(picture(2)), "b.txt": "short"}
    _, found, page = check(grow(tmp_path / "long", tree))
    words = found["captions"]
    assert isinstance(words, dict)
    assert (words["num_over_limit"], words["token_limit"], words["tokens"]["most"]) == (1, 77, 92)
    assert words["frequent_words"] == {"woven": 90, "short": 1}
    assert "1 caption is over 77 tokens" in str(found["warnings"])
    assert "Captions over 77 tokens" in page


# The whole


def seven_faults(folder: Path) -> tuple[Path, set[str]]:
    """A folder of classes with captions, of which seven files are damaged in seven ways."""
    tree: Tree = {}
    for number in range(60):
        name = f"{('banded', 'woven')[number % 2]}/{number:02d}"
        tree[f"{name}.png"] = encoded(picture(number, (24 + number % 7, 40 - number % 5)))
        tree[f"{name}.txt"] = f"surface {number}"
    planted: Tree = {
        "banded/02.png": bytes(tree["banded/02.png"])[:300],  # type: ignore[arg-type]
        "woven/11.png": b"",
        "banded/20.png": "<!doctype html>",
        "woven/31.png": film("PNG"),
        "banded/40.png": bomb(),
        "woven/45.txt": "tiss\xe9".encode("latin-1"),
        "banded/54.txt": "\n",
    }
    return grow(folder, {**tree, **planted}), set(planted)


def test_seven_planted_faults_are_found_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, planted = seven_faults(tmp_path / "planted")
    code, found, page = check(folder, "--resolution", "32")
    assert faults_of(found).keys() == planted
    assert code == 3
    assert (found["num_images"], found["refused"]) == (55, True)
    shown = capsys.readouterr()
    for where in planted:
        assert where in page
        assert where in shown.out
    assert re.search(r"Training would refuse this data: 7 faults, in .* and 4 more\.", shown.out)
    assert shown.err == f"filrouge: {tmp_path / 'out'}: training would refuse planted. See check.html there.\n"
    assert found["warnings"] == [
        f"{sum(min(24 + n % 7, 40 - n % 5) < 32 for n in range(60)) - 5} images of 55 (100.0%) are smaller than 32 px "
        "and would be enlarged: blur is learnt too."
    ]
    classes = found["images"]
    assert isinstance(classes, dict)
    assert {label: counts["images"] for label, counts in classes["classes"].items()} == {"banded": 27, "woven": 28}
    words = found["captions"]
    assert isinstance(words, dict)
    assert words["frequent_words"]["surface"] == 53  # captions that can be read count, though others cannot


@pytest.mark.parametrize("split_by", ["group", "folder", "label"])
def test_groups_stay_whole_with_and_without_faults(tmp_path: Path, split_by: str) -> None:
    """Sides are those of training, and where training refuses, those that it would give to the pictures that are left.

    A copy of every picture lies in its group, folder and label: across the split only where it was not kept whole.
    """
    tree: Tree = {}
    rows = []
    for number in range(24):
        pixels = picture(number, (96, 120))
        darker = encoded((pixels * 0.8).astype(np.uint8))
        for name, content in (
            (f"{number % 8}/{number}.png", encoded(pixels)),
            (f"{number % 8}/{number} b.png", darker),
        ):
            tree[name] = content
            rows.append(json.dumps({"file_name": name, "text": "words", "group": number}))
    folder = grow(tmp_path / "groups", {**tree, "metadata.jsonl": "\n".join(rows)})
    options = ("--split_by", split_by, "--held_out_fraction", "0.5")
    _, whole_found, _ = check(folder, *options)
    held_out = {image.name for image in source(folder, split_by=split_by, held_out_fraction=0.5).open().held_out}  # type: ignore[union-attr]
    (folder / "0" / "0.png").write_bytes(PNG[:200])
    code, found, _ = check(folder, *options)
    assert code == 3
    for one, num_pairs in ((whole_found, 24), (found, 23)):
        duplicates, images = one["duplicates"], one["images"]
        assert isinstance(duplicates, dict)
        assert isinstance(images, dict)
        assert len(duplicates["near"]) == num_pairs
        assert duplicates["num_across_the_split"] == 0
        assert 0 < sum(counts["held out"] for counts in images["classes"].values()) < 47
    counted = whole_found["images"]["classes"]  # type: ignore[index]
    assert sum(counts["held out"] for counts in counted.values()) == len(held_out)


def copies(folder: Path) -> Path:
    """Twelve pictures, and of each a copy that is smaller, darker and saved as JPEG, under another class."""
    tree: Tree = {}
    for number in range(12):
        pixels = picture(number, (96, 120))
        smaller = Image.fromarray((pixels * 0.85).astype(np.uint8)).resize((108, 86), Image.Resampling.LANCZOS)
        tree[f"banded/{number}.png"] = encoded(pixels)
        tree[f"banded/{number} again.jpg"] = encoded(smaller, "JPEG", quality=70)
    return grow(folder, tree)


def test_copies_across_the_split_are_found_and_shown(tmp_path: Path) -> None:
    folder = copies(tmp_path / "copies")
    code, found, page = check(folder, "--held_out_fraction", "0.5")
    assert code == 0
    duplicates = found["duplicates"]
    assert isinstance(duplicates, dict)
    pairs = {frozenset(pair["images"]) for pair in duplicates["near"]}
    assert pairs == {frozenset((f"banded/{n}.png", f"banded/{n} again.jpg")) for n in range(12)}
    dataset = source(folder, held_out_fraction=0.5).open()
    held_out = {image.name for image in dataset.held_out}  # type: ignore[union-attr]
    across = sum(len(pair & held_out) == 1 for pair in pairs)
    assert duplicates["num_across_the_split"] == across > 0
    assert f"{across} pairs of images that show the same lie across the split" in str(found["warnings"])
    assert page.count("across the split</td>") == across


def test_equal_files_under_other_words_are_told(tmp_path: Path) -> None:
    tree: Tree = {f"x/{number}.png": encoded(picture(number)) for number in range(6)}
    tree["y/copy.png"] = tree["x/3.png"]
    _, found, page = check(grow(tmp_path / "equal", tree))
    duplicates = found["duplicates"]
    assert isinstance(duplicates, dict)
    assert duplicates["equal"] == [["x/3.png", "y/copy.png"]]
    warning = "1 image stands under different words or classes, such as x/3.png and y/copy.png. Keep one."
    assert warning in found["warnings"]  # type: ignore[operator]
    assert warning in page


def test_pictures_of_one_colour_and_clipped_ones_are_told(tmp_path: Path) -> None:
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, :16] = 255
    half[0] = (200, 10, 10)
    tree: Tree = {"flat.png": encoded(np.full((32, 32, 3), 7, np.uint8)), "half.png": encoded(half)}
    _, found, _ = check(grow(tmp_path / "light", tree))
    light = found["light"]
    assert isinstance(light, dict)
    assert light["blank"] == ["flat.png"]
    assert light["num_grey"] == 1
    assert light["clipped_share"] == pytest.approx((0 + 31 / 32) / 2)
    assert sum(light["brightness"]) == pytest.approx(1, abs=1e-3)


def test_a_strip_that_training_refuses_at_a_resolution_is_refused_beside_other_faults(tmp_path: Path) -> None:
    tree: Tree = {"strip.png": encoded(np.zeros((1, 9000, 3), np.uint8)), "cut.png": PNG[:200], "a.png": PNG}
    code, found, _ = check(grow(tmp_path / "strip", tree), "--resolution", "512")
    assert code == 3
    assert faults_of(found).keys() == {"strip.png", "cut.png"}
    (tmp_path / "strip" / "cut.png").unlink()
    code, found, _ = check(tmp_path / "strip", "--resolution", "512")
    assert faults_of(found).keys() == {"strip.png"}


@pytest.mark.parametrize("make", [Path.exists, Path.mkdir, Path.touch])
def test_a_folder_that_is_none_or_empty_still_gets_its_page(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "none")
    code, found, page = check(tmp_path / "none")
    assert code == 3
    assert found["num_images"] == 0
    assert len(faults_of(found)) == 1
    assert "Training would refuse this data: 1 fault" in page


def test_a_second_check_replaces_the_page_and_leaves_other_files(tmp_path: Path) -> None:
    folder = grow(tmp_path / "twice", {"a.png": PNG, "b.png": PNG[:300]})
    assert check(folder)[0] == 3
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (folder / "b.png").unlink()
    code, found, page = check(folder)
    assert (code, found["refused"]) == (0, False)
    assert "What training refuses" not in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["check.html", "check.json", "notes.txt"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "--train_data_dir: missing"),
        (["--concept", "sf_dri"], "Did you mean sf_dry"),
        (["--train_data_dir", "x", "--concept", "sf_dry"], "expected only one of them"),
        (["--train_data_dir", "x", "--resolution", "4"], "found 4, expected 8 or more"),
        (["--train_data_dir", "x", "--held_out_fraction", "0.7"], "at most 0.5"),
        (["--train_data_dir", "x", "--um_per_px", "10"], "--um_per_px: these images have no voxel size"),
        (["--train_data_dir", "x", "--image_column", "a"], "--image_column: belongs to --dataset_name"),
        (["--train_data_dir", "x", "--num_workers", "0"], "expected 1 or more"),
        (["--train_data_dir", "x", "--resolutoin", "64"], "--resolutoin"),
    ],
)
def test_wrong_settings_end_with_code_2_and_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=re.escape(expected)) as caught:
        main(options)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_is_none_and_a_file_in_the_way_are_told(tmp_path: Path) -> None:
    folder = grow(tmp_path / "images", {"a.png": PNG, "a.txt": "x"})
    with pytest.raises(SettingsError, match=r"--tokenizer: .*tokenizer.json cannot be read"):
        main(["--train_data_dir", str(folder), "--tokenizer", str(tmp_path), "--output_dir", str(tmp_path / "o")])
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        main(["--train_data_dir", str(folder), "--output_dir", str(tmp_path / "file")])


def test_tokens_are_counted_by_the_tokenizer_that_is_given_and_never_cut_short(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    cutting = tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    cutting.enable_truncation(77)
    cutting.enable_padding(length=77)
    (tmp_path / "cutting").mkdir()
    cutting.save(str(tmp_path / "cutting" / "tokenizer.json"))
    assert token_counts(["woven " * 90, "woven"], tmp_path / "cutting") == [92, 3]
    letters = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, "?"))
    letters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    letters.save(str(tmp_path / "letters.json"))
    assert token_counts(["abc", "a"], tmp_path / "letters.json") == [3, 1]


def test_options_have_the_names_and_defaults_of_training() -> None:
    ours = vars(_parser().parse_args([]))
    theirs = LoraSettings.model_fields
    for name in ours.keys() & theirs.keys() - {"resolution", "output_dir"}:
        assert ours[name] == theirs[name].default, name
    assert {
        "train_data_dir",
        "dataset_name",
        "concept",
        "data_root",
        "held_out_fraction",
    } <= ours.keys() & theirs.keys()


# Concepts


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    rng = np.random.default_rng(1)
    blocks = rng.integers(1000, 60000, (8, 7, 13)).repeat(5, 0).repeat(6, 1).repeat(10, 2)
    grey = (blocks + rng.integers(0, 900, blocks.shape)).astype(np.uint16)
    grey[8] = grey[7]  # a slice that the scanner wrote twice
    grey[38:] = 30_000  # slices that show nothing do not repeat each other
    grey[:, 5] = 30_000  # a slice that shows nothing
    write_stack(folder / "dry.tif", grey, (40.0, 40.0, 40.0))
    return folder


def volume_check(scans: Path, concept: str, *options: str) -> tuple[int, dict[str, object], str]:
    out = scans.parent / "out"
    command = ["--concept", concept, "--data_root", str(scans), "--output_dir", str(out), "--resolution", "32"]
    code = exit_code(lambda: main([*command, *options]), "check")
    return code, json.loads((out / "check.json").read_text("utf-8")), (out / "check.html").read_text("utf-8")


def test_a_volume_is_shown_with_its_window_gap_and_effective_sizes(scans: Path) -> None:
    code, found, page = volume_check(scans, "sf_dry")
    dataset = source(scans, concept="sf_dry", data_root=scans, train_data_dir=None).open()
    assert code == 0
    volumes = found["volumes"]
    assert isinstance(volumes, dict)
    dry = volumes["dry"]
    cells = {cell.cell.plane: cell for cell in dataset.cells}  # type: ignore[union-attr]
    assert dry["shape"] == [40, 42, 130]
    assert dry["window"] == list(cells["warp"].training.volume.window)
    assert dry["gap_px"] == cells["warp"].split.gap_px
    assert dry["equal_neighbours"] == [8]
    assert dry["share_below_window"] == pytest.approx(0.005, abs=1e-3)
    assert {plane: (cell["training"], cell["held_out"], cell["blank"]) for plane, cell in dry["cells"].items()} == {
        plane: (len(cell.training), len(cell.held_out), cell.training.num_blank + cell.held_out.num_blank)
        for plane, cell in cells.items()
    }
    assert dry["cells"]["warp"]["blank"] == 2  # one slice, in both blocks
    for plane, cell in cells.items():
        assert dry["cells"][plane]["effective"] == pytest.approx(cell.training.effective_size, abs=0.06)
        assert len(dry["slice_correlation"][plane]) == min(200, cell.training.volume.num_slices(plane) - 1)
    assert "dry.tif: 1 slice along Z repeats the one before (8)." in str(found["warnings"])
    assert page.count("<svg") == 4
    assert "sf_dry sf_warp" in page


def test_a_damaged_volume_is_refused_and_the_others_are_shown(scans: Path) -> None:
    content = (scans / "dry.tif").read_bytes()
    (scans / "dry_compacted.tif").write_bytes(content[: len(content) // 2])
    (scans / "injected.tif").write_bytes(content)
    code, found, page = volume_check(scans, "composites")
    assert code == 3
    faults = found["faults"]
    assert isinstance(faults, list)
    assert {fault["where"] for fault in faults} == {"dry_compacted.tif"}
    assert set(found["volumes"]) == {"dry", "injected"}  # type: ignore[call-overload]
    assert "dry.tif and injected.tif hold the same voxels." in str(found["warnings"])
    assert "Volume: injected" in page


def test_a_volume_too_small_for_a_crop_is_refused(scans: Path) -> None:
    code, found, _ = volume_check(scans, "sf_dry", "--resolution", "64")
    assert code == 3
    assert any("Choose a smaller --resolution" in reason for reason in faults_of(found).values())


def test_the_generated_stand_in_is_checked_where_there_is_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data.stand_ins.ensure_volumes", lambda _: scans)
    monkeypatch.chdir(tmp_path)
    main(["--concept", "sf_dry_warp", "--resolution", "32"])
    assert "using generated stand-ins" in capsys.readouterr().out
    assert (tmp_path / "check-sf_dry_warp" / "check.html").is_file()


@pytest.fixture
def dtd(tmp_path: Path) -> Path:
    """Two classes of DTD with six pictures each, a stray file, and ten splits."""
    folder = tmp_path / "dtd"
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for place, label in enumerate(("banded", "woven")):
        for number in range(6):
            name = f"{label}/{label}_{number:04d}.jpg"
            grow(folder / "images", {name: encoded(picture(10 * place + number), "JPEG")})
            parts[("train", "val", "test")[number % 3]].append(name)
    for split in range(1, 11):
        grow(folder / "labels", {f"{part}{split}.txt": "\n".join(names) for part, names in parts.items()})
    grow(folder / "images", {"woven/.directory": ""})
    return folder


def test_a_class_of_dtd_is_on_the_sides_of_its_own_split(dtd: Path) -> None:
    code, found, _ = volume_check(dtd, "dtd_woven")
    assert code == 0
    classes = found["images"]
    assert isinstance(classes, dict)
    assert classes["classes"] == {"woven": {"images": 6, "training": 4, "held out": 2}}
    assert found["ignored"] == ["images/woven/.directory"]


def test_a_leak_in_a_split_of_dtd_is_told(dtd: Path) -> None:
    original = Image.open(dtd / "images/woven/woven_0000.jpg")
    original.save(dtd / "images/woven/woven_0002.jpg", "JPEG", quality=60)
    _, found, _ = volume_check(dtd, "dtd_woven")
    duplicates = found["duplicates"]
    assert isinstance(duplicates, dict)
    assert [pair["across_the_split"] for pair in duplicates["near"]] == [True]


def test_dtd_with_a_damaged_image_and_a_missing_label_shows_the_rest(dtd: Path) -> None:
    (dtd / "images/woven/woven_0001.jpg").write_bytes(b"cut")
    (dtd / "images/woven/woven_0009.jpg").write_bytes((dtd / "images/woven/woven_0000.jpg").read_bytes())
    code, found, _ = volume_check(dtd, "dtd_woven")
    assert code == 3
    faults = found["faults"]
    assert isinstance(faults, list)
    assert len(faults) == 2
    assert any("in no label file" in fault["reason"] for fault in faults)
    assert any(fault["where"] == "images/woven/woven_0001.jpg" for fault in faults)
    assert found["num_images"] == 6


def test_every_error_of_a_check_is_a_named_one(tmp_path: Path) -> None:
    with pytest.raises(FilrougeError):
        main(["--dataset_name", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "out")])


def test_rows_of_a_dataset_are_checked_like_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    stored = [{"bytes": encoded(picture(number)), "path": None} for number in range(6)]
    stored[4] = {"bytes": PNG[:200], "path": None}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": stored, "text": [f"row {n}" for n in range(6)]}, features=features)
    (tmp_path / "rows").mkdir()
    rows.to_parquet(tmp_path / "rows" / "train.parquet")
    command = ["--dataset_name", str(tmp_path / "rows"), "--output_dir", str(tmp_path / "out")]
    assert exit_code(lambda: main(command), "check") == 3
    found = json.loads((tmp_path / "out" / "check.json").read_text("utf-8"))
    assert faults_of(found).keys() == {"train[4]"}
    assert found["num_images"] == 5
