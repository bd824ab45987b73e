from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DataError
from data.image_files import ImageFile, _natural, find_images, survey_folder

Tree = dict[str, bytes | str]
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
PICTURE = b"pictures are not decoded here"


def rows(*entries: tuple[str, str]) -> str:
    return "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in entries)


def grow(folder: Path, tree: Tree) -> Path:
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


Found = list[tuple[str, str, str]]  # name, caption, label
GOOD: dict[str, tuple[Tree, Found, list[str]]] = {  # tree, pictures, what is skipped
    "flat": ({"a.png": PICTURE, "b.JPG": PICTURE}, [("a.png", "", ""), ("b.JPG", "", "")], []),
    "every suffix that is read": (
        {f"{i}{suffix}": PICTURE for i, suffix in enumerate(SUFFIXES)},
        [(f"{i}{suffix}", "", "") for i, suffix in enumerate(SUFFIXES)],
        [],
    ),
    "numbers by value": (
        {f"im{i}.png": PICTURE for i in (10, 2, 1, 100)},
        [(f"im{i}.png", "", "") for i in (1, 2, 10, 100)],
        [],
    ),
    "a folder for each class": (
        {"polka-dotted/2.png": PICTURE, "polka-dotted/10.png": PICTURE, "banded/1.png": PICTURE},
        [
            ("banded/1.png", "banded", "banded"),
            ("polka-dotted/2.png", "polka-dotted", "polka-dotted"),
            ("polka-dotted/10.png", "polka-dotted", "polka-dotted"),
        ],
        [],
    ),
    "txt beside a picture": (
        {"a.png": PICTURE, "a.txt": "  a red weave\n\n", "b.c.png": PICTURE, "b.c.TXT": "dots"},
        [("a.png", "a red weave", ""), ("b.c.png", "dots", "")],
        [],
    ),
    "txt before the class": (
        {"woven/a.png": PICTURE, "woven/a.txt": "a twill", "woven/b.png": PICTURE, "woven/b.caption": "a satin"},
        [("woven/a.png", "a twill", "woven"), ("woven/b.png", "a satin", "woven")],
        [],
    ),
    "txt with a byte order mark and another script": (
        {"a.png": PICTURE, "a.txt": b"\xef\xbb\xbf" + "Köper 綾織".encode()},
        [("a.png", "Köper 綾織", "")],
        [],
    ),
    "metadata": (
        {"a.png": PICTURE, "b.png": PICTURE, "metadata.jsonl": rows(("b.png", "two"), ("a.png", " one "))},
        [("a.png", "one", ""), ("b.png", "two", "")],
        [],
    ),
    "metadata with a byte order mark, Windows line ends and an empty line": (
        {
            "a.png": PICTURE,
            "metadata.jsonl": b'\xef\xbb\xbf{"file_name": "a.png", "text": "\xc3\xa9", "width": 3}\r\n\r\n',
        },
        [("a.png", "é", "")],
        [],
    ),
    "metadata in train": (
        {"train/a.png": PICTURE, "train/metadata.jsonl": rows(("a.png", "one")), "README.md": "card"},
        [("train/a.png", "one", "")],
        ["README.md"],
    ),
    "metadata with folders of any depth": (
        {
            "x/y/a.png": PICTURE,
            "x/b.png": PICTURE,
            "metadata.jsonl": rows(("x/y/a.png", "one"), (".\\x\\b.png", "two")),
        },
        [("x/b.png", "two", "x"), ("x/y/a.png", "one", "x")],
        [],
    ),
    "a class called train": (
        {"train/a.png": PICTURE, "bus/b.png": PICTURE},
        [("bus/b.png", "bus", "bus"), ("train/a.png", "train", "train")],
        [],
    ),
    "what is not a picture": (
        {
            "waffled/.directory": "",
            "waffled/a.png": PICTURE,
            ".DS_Store": "",
            "._a.png": "",
            ".cache/b.png": PICTURE,
            "README.txt": "two\nlines",
            "Thumbs.db": "",
        },
        [("waffled/a.png", "waffled", "waffled")],
        ["._a.png", ".cache", ".DS_Store", "README.txt", "Thumbs.db", "waffled/.directory"],
    ),
    "kohya's folder, with captions of its own": (
        {"10_weave/a.png": PICTURE, "10_weave/a.txt": "a twill"},
        [("10_weave/a.png", "a twill", "10_weave")],
        [],
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_pictures_are_found_with_their_words_and_the_rest_is_counted(tmp_path: Path, name: str) -> None:
    tree, expected, skipped = GOOD[name]
    folder = grow(tmp_path / "data", tree)
    found = survey_folder(folder)
    assert not found.faults
    assert [(image.name, image.caption, image.label) for image in found.images] == expected
    assert [path.relative_to(folder).as_posix() for path in found.ignored] == skipped
    assert find_images(folder) == list(found.images)
    assert all(image.content() == PICTURE for image in found.images)


BAD: dict[str, tuple[Tree, list[str]]] = {  # tree, a part of each problem, in order
    "empty folder": ({}, ["found no images (the folder is empty), expected files that end in .jpg"]),
    "no pictures": (
        {"a.txt": "a", "b.txt": "b", "LICENSE": "c", ".hidden.png": PICTURE},
        ["found no images (2 .txt, 1 files without a suffix, 1 hidden)"],
    ),
    "metadata without its pictures": (
        {
            "a.png": PICTURE,
            "metadata.jsonl": rows(("a.png", "one"), ("b.png", "two"), ("A.PNG", "three"), ("c.mp4", "four")),
            "c.mp4": "",
        },
        [
            "metadata.jsonl:2: b.png is missing",
            "metadata.jsonl:3: A.PNG is missing. Did you mean a.png?",
            "metadata.jsonl:4: c.mp4 is not an image that is read",
        ],
    ),
    "a picture that metadata does not name": (
        {"a.png": PICTURE, "b.png": PICTURE, "c.png": PICTURE, "metadata.jsonl": rows(("b.png", "two"))},
        ["a.png: is not named in metadata.jsonl", "c.png: is not named in metadata.jsonl"],
    ),
    "rows given twice": (
        {
            "a.png": PICTURE,
            "metadata.jsonl": rows(("a.png", "one"), ("./a.png", "one"), ("a.png", "two")),
        },
        [
            "metadata.jsonl:2: a.png is named a second time, after line 1",
            "metadata.jsonl:3: a.png has a second caption, after line 1",
        ],
    ),
    "rows that cannot be read": (
        {
            **{f"{name}.png": PICTURE for name in ("a", "b5", "b7", "b8", "b11", "b12")},
            "metadata.jsonl": b"\n".join(
                [
                    rows(("a.png", "one")).strip().encode(),
                    b'{"file_name": "b.png", ',
                    b'["b.png", "two"]',
                    b'{"file_name": "b.png", "text": "caf\xe9"}',
                    b'{"file_name": "b5.png", "prompt": "one"}',
                    b'{"file_name": 3, "text": null}',
                    b'{"file_name": "b7.png", "text": " \\u00a0 "}',
                    b'{"file_name": "b8.png", "text": "one", "text": "two"}',
                    b'{"file_name": "../b.png", "text": "one"}',
                    b'{"file_name": "/b.png", "text": "one"}',
                    b'{"file_name": "b11.png", "text": "\\ud800"}',
                    b'{"file_name": "b12.png", "text": "a\\u0000b"}',
                    b"[" * 100_000,
                ]
            ),
        },
        [
            "metadata.jsonl:2: is no JSON",
            "metadata.jsonl:3: found ['b.png', 'two'], expected {",
            "metadata.jsonl:4: is not UTF-8 (byte 35 of the line)",
            "metadata.jsonl:5: has no text (found file_name, prompt). Give the key of the captions as --caption_column",
            "metadata.jsonl:6: found file_name 3, expected text",
            "metadata.jsonl:8: gives 'text' twice",
            "metadata.jsonl:9: found file_name '../b.png', expected a path inside the folder",
            "metadata.jsonl:10: found file_name '/b.png'",
            "metadata.jsonl:11: text '\\ud800' is no valid Unicode",
            "metadata.jsonl:12: text holds a NUL character",
            "metadata.jsonl:13: is no JSON",
            "b8.png: is not named in metadata.jsonl",
            "metadata.jsonl:7: the text of b7.png is empty",
        ],
    ),
    "metadata in UTF-16": (
        {"a.png": PICTURE, "metadata.jsonl": rows(("a.png", "one")).encode("utf-16")},
        ["metadata.jsonl: is UTF-16, expected UTF-8"],
    ),
    "empty metadata": (
        {"a.png": PICTURE, "metadata.jsonl": b""},
        ["metadata.jsonl: the file is empty"],
    ),
    "metadata and txt": (
        {"a.png": PICTURE, "a.txt": "one", "metadata.jsonl": rows(("a.png", "one"))},
        ["a.png: its caption stands in metadata.jsonl and in a.txt"],
    ),
    "two txt for one picture": (
        {"a.png": PICTURE, "a.txt": "one", "a.TXT": "two"},
        ["a.png: has the captions a.TXT, a.txt"],
    ),
    "txt that cannot be read": (
        {
            **{f"{letter}.png": PICTURE for letter in "abcdefgh"},
            "a.txt": b"",
            "b.txt": b" \n\t\n",
            "c.txt": "caf\xe9".encode("latin-1"),
            "d.txt": "words".encode("utf-16"),
            "e.txt": "one\ntwo\n",
            "f.txt": "a\0b",
            "g.txt": "\u00a0\u200b\ufeff",
            "h.txt": "woven " * 11_666 + "able",
        },
        [
            "c.txt: is not UTF-8 (byte 0xe9 at 3)",
            "d.txt: is UTF-16",
            "e.txt: holds 2 lines, expected one caption",
            "f.txt: the text holds a NUL character",
            "h.txt: has 70,000 bytes, expected one caption",
            "a.txt: is empty",
            "b.txt: is empty",
            "g.txt: is empty",
        ],
    ),
    "pictures beside class folders": (
        {"a.png": PICTURE, "banded/b.png": PICTURE},
        ["a.png in the folder itself, and images in the class folders banded"],
    ),
    "pictures too deep": ({"x/y/a.png": PICTURE}, ["x/y/a.png: lies 2 folders deep"]),
    "pictures outside train": (
        {"train/a.png": PICTURE, "test/b.png": PICTURE, "train/metadata.jsonl": rows(("a.png", "one"))},
        ["test/b.png outside train/"],
    ),
    "two metadata files": (
        {
            "train/a.png": PICTURE,
            "metadata.jsonl": rows(("train/a.png", "one")),
            "train/metadata.jsonl": rows(("a.png", "one")),
        },
        ["found metadata.jsonl and train/metadata.jsonl"],
    ),
    "metadata in a class folder": (
        {"x/a.png": PICTURE, "x/metadata.jsonl": rows(("a.png", "one"))},
        ["x/metadata.jsonl: expected in the folder itself or in train/"],
    ),
    "captions in another format": (
        {"a.png": PICTURE, "metadata.csv": "file_name,text\na.png,one\n"},
        ["metadata.csv: captions of this format are not read"],
    ),
    "some pictures of a class without a txt": (
        {"woven/a.png": PICTURE, "woven/a.txt": "a twill", "woven/b.png": PICTURE, "woven/c.png": PICTURE},
        ["woven/b.png: has no caption, and other images have one. Write b.txt", "woven/c.png: has no caption"],
    ),
    "a txt that is named otherwise": (
        {"a.png": PICTURE, "a.txt": "one", "b.png": PICTURE, "B.txt": "two", "c.png": PICTURE, "c.png.txt": "three"},
        [
            "b.png: has no caption; found B.txt, expected b.txt. Rename it",
            "c.png: has no caption; found c.png.txt, expected c.txt",
        ],
    ),
    "two pictures that share a txt": (
        {"a.png": PICTURE, "a.jpg": PICTURE, "a.txt": "both"},
        ["a.txt: lies beside a.jpg, a.png, and which of them it describes is not known"],
    ),
    "kohya's folder": (
        {"10_weave/a.png": PICTURE, "10_weave/b.png": PICTURE},
        ["10_weave: is named as some trainers name a folder whose images are seen 10 times in an epoch"],
    ),
    "a class whose name shows nothing": (
        {"\u00a0/a.png": PICTURE, "woven/b.png": PICTURE},
        ["'\\xa0': the name of this folder shows nothing"],
    ),
    "another key in every row": (
        {
            "a.png": PICTURE,
            "b.png": PICTURE,
            "metadata.jsonl": '{"file_name": "a.png", "prompt": "one"}\n{"file_name": "b.png", "prompt": "two"}',
        },
        ["metadata.jsonl: no row has text (found file_name, prompt). Give the key of the captions as --caption_column"],
    ),
    "pictures in another format": (
        {"a.png": PICTURE, "b.HEIC": PICTURE, "c.gif": PICTURE},
        ["b.HEIC: pictures of this format are not read", "c.gif: pictures of this format"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_everything_that_is_in_doubt_is_told_at_once(tmp_path: Path, name: str) -> None:
    tree, expected = BAD[name]
    folder = grow(tmp_path / "data", tree)
    folder.mkdir(exist_ok=True)
    with pytest.raises(DataError) as caught:
        find_images(folder)
    assert caught.value.where == str(folder)
    problems = caught.value.problems
    assert len(problems) == len(expected), problems
    for problem, part in zip(problems, expected, strict=True):
        assert part in problem


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    for path in (tmp_path / "none", tmp_path / "a.png"):
        with pytest.raises(DataError, match="is not a folder"):
            find_images(path)


def test_problems_of_every_kind_are_reported_together(tmp_path: Path) -> None:
    tree: Tree = {
        "a.png": PICTURE,
        "b.png": PICTURE,
        "b.txt": "",
        "c.gif": PICTURE,
        "metadata.jsonl": rows(("a.png", "one"), ("d.png", "four")) + "no json\n",
    }
    with pytest.raises(DataError) as caught:
        find_images(grow(tmp_path, tree))
    starts = [problem.split(": ")[0] for problem in caught.value.problems]
    assert sorted(starts) == ["b.png", "b.txt", "c.gif", "metadata.jsonl:2", "metadata.jsonl:3"]


def test_links_are_followed_and_those_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    grow(tmp_path / "elsewhere", {"1.png": PICTURE, "2.png": PICTURE})
    folder = grow(tmp_path / "data", {"banded/3.png": PICTURE})
    (folder / "dotted").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "banded" / "4.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    assert [image.name for image in find_images(folder)] == [
        "banded/3.png",
        "banded/4.png",
        "dotted/1.png",
        "dotted/2.png",
    ]
    (folder / "banded" / "5.png").symlink_to(tmp_path / "gone.png")
    (folder / "dotted" / "up").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(DataError) as caught:
        find_images(folder)
    told = [problem.split(". ")[0] for problem in caught.value.problems]
    assert told == [
        "banded/5.png: a link to a file that is missing",
        "dotted/up: a link that leads back to a folder above it",
    ]


def test_a_folder_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    except OSError:
        pytest.skip("this file system refuses such names")
    (tmp_path / os.fsdecode(b"caf\xe9") / "a.png").write_bytes(PICTURE)
    with pytest.raises(DataError, match=r"the name of a folder 'caf.udce9' is no valid Unicode"):
        find_images(tmp_path)


def test_a_name_counts_from_the_folder_and_is_whole_outside_it(tmp_path: Path) -> None:
    assert ImageFile(tmp_path / "x" / "a.png", "", "x", tmp_path).name == "x/a.png"
    assert ImageFile(tmp_path / "a.png", "", "").name == (tmp_path / "a.png").as_posix()
    with pytest.raises(DataError, match="the file is missing"):
        ImageFile(tmp_path / "a.png", "", "").content()


@given(names=st.lists(st.text("aAbB019_-é", min_size=1, max_size=6), unique=True, max_size=8))
def test_the_order_is_total_and_counts(names: list[str]) -> None:
    paths = [Path(name) for name in names]
    assert len({_natural(path) for path in paths}) == len(paths)
    numbers = [Path(f"x{number}") for number in range(119, -1, -7)]
    numbers.sort(key=_natural)
    assert numbers == [Path(f"x{number}") for number in range(0, 120, 7)]


def test_a_row_may_name_a_group(tmp_path: Path) -> None:
    rows = [{"group": "coupon 3"}, {"group": 7}, {}]
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    text = "".join(json.dumps({"file_name": f"{i}.png", "text": "a", **row}) + "\n" for i, row in enumerate(rows))
    (tmp_path / "metadata.jsonl").write_text(text)
    assert [image.group for image in find_images(tmp_path)] == ["coupon 3", "7", ""]
    (tmp_path / "metadata.jsonl").write_text(text.replace("7", "[7]"))
    with pytest.raises(DataError, match=r"metadata\.jsonl:2: found group \[7\], expected text or a whole number"):
        find_images(tmp_path)


def test_the_key_of_captions_is_that_of_the_option(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "prompt": "one", "text": "two"}')
    assert [image.caption for image in survey_folder(tmp_path, "prompt").images] == ["one"]
    assert [image.caption for image in survey_folder(tmp_path).images] == ["two"]
    (tmp_path / "metadata.jsonl").unlink()
    (fault,) = survey_folder(tmp_path, "prompt").faults
    assert "--caption_column prompt names a key of metadata.jsonl, and there is none here" in fault.reason


def test_repeats_that_are_not_applied_are_told(tmp_path: Path) -> None:
    grow(tmp_path, {"5_weave/a.png": PICTURE, "5_weave/a.txt": "a twill", "1_knit/b.png": PICTURE, "1_knit/b.txt": "b"})
    assert survey_folder(tmp_path).notes == (
        "repeats     1_knit, 5_weave: the number is not applied; each image is seen once in an epoch",
    )
