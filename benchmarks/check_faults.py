"""Whether data/check.py finds what is wrong with 5,000 pictures, and nothing else, and how long that takes.

    python benchmarks/check_faults.py [--num_images 5000] [--folder /tmp/faults]

Draws textures of 64 to 256 px with captions, plants seven faults of seven kinds and two copies that training would not
refuse, runs the check through its command line twice (the second time what was decoded is known), and compares.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from PIL import Image

from data.dtd import CLASSES
from data.progress import Progress
from data.randomness import generator
from data.synthetic.textures import SUBSTITUTES, texture

ROOT = Path(__file__).resolve().parents[1]
SEED = 5
NAMES = tuple(name for name in CLASSES if name not in SUBSTITUTES)
SMALLEST_PX, LARGEST_PX = 64, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=5000)
    parser.add_argument("--folder", type=Path, help="where to draw (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.folder or Path(temporary)
        images = place / "images"
        _draw(images, arguments.num_images)
        faults, copies = _plant(images)
        for run in ("first", "second"):
            seconds, code = _check(images, place)
            found = json.loads((place / "check" / "check.json").read_text(encoding="utf-8"))
            print(f"{run} run: {seconds:.1f} s, exit code {code}")
        _compare(found, faults, copies)


def _draw(folder: Path, num_images: int) -> None:
    for number in Progress(range(num_images), desc="drawing", unit="image"):
        name = NAMES[number % len(NAMES)]
        path = folder / name / f"{number:05d}.{'png' if number % 5 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = generator(SEED, "size", number)
        size = tuple(int(side) for side in rng.integers(SMALLEST_PX, LARGEST_PX + 1, 2))
        picture = Image.fromarray(texture(name, number // len(NAMES), SEED))
        picture.resize((size[0], size[1]), Image.Resampling.BICUBIC).save(path, quality=90)
        path.with_suffix(".txt").write_text(f"a {name} surface, picture {number}", encoding="utf-8")


def _plant(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Damage seven files and copy two pictures; return {where: kind} of the faults and {copy: original}."""
    pictures = sorted(folder.rglob("*.jpg"))
    chosen = [pictures[index] for index in generator(SEED, "faults", 0).permutation(len(pictures))[:9]]
    cut, empty, page, film, bomb, latin, blank, twin, again = chosen
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    empty.write_bytes(b"")
    page.write_text("<!doctype html><title>404 Not Found</title>", encoding="utf-8")
    film.write_bytes(_film(film))
    bomb.write_bytes(_bomb())
    latin.with_suffix(".txt").write_bytes("une surface tiss\xe9e".encode("latin-1"))
    blank.with_suffix(".txt").write_text(" \n", encoding="utf-8")

    def copied(original: Path, name: str) -> Path:
        path = original.with_name(name)
        path.with_suffix(".txt").write_bytes(original.with_suffix(".txt").read_bytes())
        return path

    same, smaller = copied(twin, "same.jpg"), copied(again, "smaller.png")
    same.write_bytes(twin.read_bytes())
    with Image.open(again) as picture:
        picture.resize((picture.width * 9 // 10, picture.height * 9 // 10), Image.Resampling.LANCZOS).save(smaller)
    faults = {
        _inside(cut, folder): "JPEG cut short",
        _inside(empty, folder): "empty file",
        _inside(page, folder): "web page named as a picture",
        _inside(film, folder): "animated picture",
        _inside(bomb, folder): "picture of 20,000 x 20,000 px",
        _inside(latin.with_suffix(".txt"), folder): "caption that is not UTF-8",
        _inside(blank.with_suffix(".txt"), folder): "blank caption",
    }
    return faults, {_inside(same, folder): _inside(twin, folder), _inside(smaller, folder): _inside(again, folder)}


def _inside(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _film(path: Path) -> bytes:
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        frames = [picture.convert("RGB"), picture.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _check(images: Path, place: Path) -> tuple[float, int]:
    """Run the check with a cache of its own and return its seconds and its exit code."""
    command = [sys.executable, str(ROOT / "data" / "check.py"), "--train_data_dir", str(images)]
    command += ["--output_dir", str(place / "check")]
    started = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, "FILROUGE_CACHE": str(place / "cache")}, check=False)
    return time.perf_counter() - started, done.returncode


def _compare(found: dict[str, object], faults: dict[str, str], copies: dict[str, str]) -> None:
    told = {str(fault["where"]): str(fault["reason"]) for fault in found["faults"]}  # type: ignore[attr-defined]
    for where, kind in faults.items():
        print(f"{'found' if where in told else 'MISSED':>7}  {kind}: {where}: {told.get(where, '')}")
    for where in told.keys() - faults.keys():
        print(f"  WRONG  {where}: {told[where]}")
    duplicates = found["duplicates"]
    assert isinstance(duplicates, dict)
    alike = [set(group) for group in duplicates["equal"]] + [set(pair["images"]) for pair in duplicates["near"]]
    for copy, original in copies.items():
        print(f"{'found' if {copy, original} in alike else 'MISSED':>7}  copy: {copy} of {original}")
    print(f"{len(alike) - len(copies)} other pairs are taken for copies")


if __name__ == "__main__":
    main()
