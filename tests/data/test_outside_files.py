"""Links and rows of datasets that lead out of the data: refused by name, taken where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.check import main as check
from data.errors import DataError
from data.outside_files import is_inside, refuse_links_out
from data.sources import ImageSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of six pictures with captions, and outside of it a picture, a caption and a folder."""
    folder, outside = tmp_path / "data", tmp_path / "outside"
    for place in (folder / "red", outside / "blue"):
        place.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(6):
        path = folder / "red" / f"{number}.png"
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    for name in ("private.png", "blue/1.png"):
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), np.uint8)).save(outside / name)
    (outside / "private.txt").write_text("a secret")
    return folder


def _source(folder: Path, *, allow: bool = False) -> ImageSource:
    return ImageSource(train_data_dir=folder, resolution=16, allow_outside_files=allow)


Link = Callable[[Path], tuple[Path, str]]
LINKS: dict[str, Link] = {
    "picture": lambda folder: (folder / "red" / "9.png", "private.png"),
    "picture by a relative path": lambda folder: (folder / "red" / "9.png", "../../outside/private.png"),
    "caption": lambda folder: (folder / "red" / "0.txt", "private.txt"),
    "folder": lambda folder: (folder / "blue", "blue"),
    "something missing": lambda folder: (folder / "red" / "9.png", "not-there.png"),
    "the whole disk": lambda folder: (folder / "blue", "/"),
}


def _make(folder: Path, link: Link) -> Path:
    place, target = link(folder)
    place.symlink_to(target if target.startswith(("/", ".")) else folder.parent / "outside" / target)
    return place


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_that_leads_out_of_the_folder_is_refused_by_name(kind: str, folder: Path, tmp_path: Path) -> None:
    name = _make(folder, LINKS[kind]).relative_to(folder).as_posix()
    with pytest.raises(DataError, match=f"{name}: a link that leads out of the folder") as caught:
        _source(folder).open()
    assert "--allow_outside_files" in str(caught.value)
    with pytest.raises(DataError, match=f"{name}: a link that leads out of the folder"):
        check(["--train_data_dir", str(folder), "--resolution", "16", "--output_dir", str(tmp_path / "page")])


@pytest.mark.parametrize("kind", ["picture", "caption", "folder"])
def test_it_is_taken_where_that_is_asked_for(kind: str, folder: Path) -> None:
    before = len(_source(folder).open().whole_images())
    _make(folder, LINKS[kind])
    if kind == "caption":
        for number in range(1, 6):
            (folder / "red" / f"{number}.txt").write_text("a secret")
    dataset = _source(folder, allow=True).open()
    assert len(dataset.whole_images()) == before + (kind != "caption")
    assert ("a secret" in dataset.captions) == (kind == "caption")


def test_links_inside_hidden_files_and_a_folder_that_is_a_link_itself_are_no_harm(folder: Path, tmp_path: Path) -> None:
    (folder / "blue").mkdir()
    (folder / "blue" / "1.png").symlink_to("../red/1.png")
    (folder / ".hidden").symlink_to("/")
    (folder / "red" / ".DS_Store").symlink_to("/etc/hostname")
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    for place in (folder, tmp_path / "link"):
        refuse_links_out(place)


def test_a_loop_of_links_is_refused_and_not_followed(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="loop: a link"):
        refuse_links_out(folder)
    (folder / "loop").unlink()
    (folder / "up").symlink_to("..")
    with pytest.raises(DataError, match="up: a link"):
        refuse_links_out(folder)


def test_all_links_are_told_at_once_and_counted_beyond_ten(folder: Path) -> None:
    for number in range(14):
        (folder / f"{number:02d}.png").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="12 problems") as caught:
        refuse_links_out(folder)
    assert "and 4 more." in str(caught.value)


@pytest.mark.parametrize("path", ["a\0b", "../outside/private.png", "/etc/hostname", "red/../../x"])
def test_what_is_not_inside_is_outside(path: str, folder: Path) -> None:
    assert not is_inside(folder / path, [folder])
    assert is_inside(folder / "red/1.png", [folder])
    assert is_inside(folder, [folder])


def test_a_volume_that_is_a_link_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    voxels = np.random.default_rng(0).integers(0, 255, (8, 8, 8), np.uint8)
    tifffile.imwrite(tmp_path / "private.tif", voxels)
    (root / "DRY.tif").symlink_to(tmp_path / "private.tif")
    (root / "volumes.yaml").write_text("dry: {file: DRY.tif}\n")
    source = ImageSource(concept="sf_dry", data_root=root, resolution=8)
    with pytest.raises(DataError, match=r"DRY\.tif: a link that leads out of the folder"):
        source.open()


@pytest.fixture
def rows(folder: Path) -> Callable[[str], Path]:
    """Return a dataset in a folder of its own whose only row names a file."""

    def make(path: str) -> Path:
        import datasets

        place = folder.parent / "rows"
        row = {"image": [{"path": path, "bytes": None}], "text": ["a texture"]}
        features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
        place.mkdir()
        datasets.Dataset.from_dict(row, features=features).data.table  # noqa: B018
        dataset = datasets.Dataset.from_dict(row, features=features)
        # without embedding: `to_parquet` of datasets would read the file and keep its bytes
        import pyarrow.parquet

        pyarrow.parquet.write_table(dataset.data.table, place / "train.parquet")
        return place

    return make


@pytest.mark.parametrize("path", ["../outside/private.png", "outside"])
def test_a_row_that_names_a_file_outside_of_its_dataset_is_refused(
    path: str, rows: Callable[[str], Path], folder: Path
) -> None:
    from data.hub_images import survey_rows

    named = folder.parent / "outside" / "private.png"
    place = rows(str(named) if path == "outside" else str(folder / path))
    (image,) = survey_rows(str(place), None, "train", "image", "text", None).images
    with pytest.raises(DataError, match=r"train\[0\]: names the file .*private\.png, which is no part of the dataset"):
        image.content()
    (image,) = survey_rows(str(place), None, "train", "image", "text", None, allow_outside_files=True).images
    assert image.content() == named.read_bytes()
    source = ImageSource(dataset_name=str(place), resolution=16)
    with pytest.raises(DataError, match="which is no part of the dataset"):
        source.open()


def test_a_row_that_names_a_file_of_its_dataset_is_taken(folder: Path) -> None:
    from data.hub_images import survey_rows

    lines = [{"file_name": f"red/{number}.png", "text": "a texture"} for number in range(6)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    images = survey_rows(str(folder), None, "train", "image", "text", None).images
    assert sorted(image.content() for image in images) == sorted(p.read_bytes() for p in (folder / "red").iterdir())
