"""Do volumes of the source report's sizes give its nine classes, and how much memory does opening them take?

    python benchmarks/class_counts.py [--folder SCRATCH] [--output_dir runs/class-counts]

Writes three uint16 volumes of exactly those sizes, 1 GB in all, and the first of them deflated once more. Their content
is a cheap pattern (a wave along each axis, and noise that repeats in every slice), not a weave. They are opened in
fresh processes, one by one and all together, by the code that training uses: the slices of each plane are counted as
`find_slices` finds them, which reads them all, slices spread over each plane are compared with what was written, and
the blocks of training and evaluation are cut. The peak of the process's resident memory, interpreter, libraries and
mapped file included, is set against the size of the volumes, and must stay below 1.5 of it. Cutting the blocks takes
more, which depends little on the size: it is told, and held to that limit for all volumes together. Needs 2 GB on the
disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

# the states' (Z, Y, X); a plane has as many slices as its axis is long
SHAPES = {"dry": (359, 702, 970), "compacted": (197, 863, 773), "injected": (287, 701, 633)}
PLANE_AXES = {"thickness": 0, "warp": 1, "weft": 2}
TOTAL = 5485
LARGEST_SHARE = 1.5  # of a volume's size that opening and reading it may take
NUM_COMPARED = 12  # slices of each plane
RESOLUTION = 64  # of the crops for which blocks are cut


@dataclass(frozen=True)
class Measured:
    """What a fresh process found in its volumes, and its peak memory in MiB after each stage, nothing subtracted."""

    name: str
    counts: dict[str, dict[str, int]]
    num_compared: int
    size_mib: float
    imports_mib: float
    opened_mib: float
    read_mib: float
    split_mib: float
    open_seconds: float
    reopen_seconds: float

    def __str__(self) -> str:
        counts = ", ".join(" + ".join(str(count) for count in planes.values()) for planes in self.counts.values())
        stages = ", ".join(
            f"{stage} {peak:.0f} MiB ({peak / self.size_mib:.2f})"
            for stage, peak in (("opened", self.opened_mib), ("read", self.read_mib), ("blocks cut", self.split_mib))
        )
        return (
            f"{self.name:15s} {self.size_mib:4.0f} MiB: {counts} slices, {self.num_compared} compared; peak (share of "
            f"the size): imports alone {self.imports_mib:.0f} MiB, {stages}; opened in {self.open_seconds:.1f} s, "
            f"again in {self.reopen_seconds:.1f} s"
        )


def main() -> None:
    arguments = _arguments()
    if arguments.measure is not None:
        print(json.dumps(asdict(measure([Path(path) for path in arguments.measure]))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        scratch = Path(folder)
        plain = [write(scratch, state, None) for state in SHAPES]
        results = [_in_a_fresh_process([path], scratch) for path in plain]
        results.append(_in_a_fresh_process(plain, scratch))
        results.append(_in_a_fresh_process([write(scratch, "dry", "zlib")], scratch))
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(result) for result in results], indent=1)
    (arguments.output_dir / "results.json").write_text(text + "\n", encoding="utf-8")
    if problems := _problems(results):
        sys.exit("not as expected: " + "; ".join(problems))


def _problems(results: Sequence[Measured]) -> list[str]:
    expected = {state: dict(zip(PLANE_AXES, shape, strict=True)) for state, shape in SHAPES.items()}
    problems = [
        f"{result.name}: {state} has {counts}, expected {expected[state]}"
        for result in results
        for state, counts in result.counts.items()
        if counts != expected[state]
    ]
    together = next(result for result in results if len(result.counts) == len(SHAPES))
    total = sum(sum(counts.values()) for counts in together.counts.values())
    print(f"slices in all: {total}")
    problems += [f"{total} slices in all, expected {TOTAL}"] if total != TOTAL else []
    problems += [
        f"{result.name}: {result.read_mib / result.size_mib:.2f} of its size"
        for result in results
        if result.read_mib >= LARGEST_SHARE * result.size_mib
    ]
    if together.split_mib >= LARGEST_SHARE * together.size_mib:
        problems.append(f"{together.name}: {together.split_mib / together.size_mib:.2f} of their size with blocks cut")
    return problems


def _in_a_fresh_process(paths: Sequence[Path], scratch: Path) -> Measured:
    """Measure volumes in a process of their own, and print a line."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", *map(str, paths)],
        env={**os.environ, "FILROUGE_CACHE": str(scratch / "cache")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result = Measured(**json.loads(done.stdout))
    print(result, flush=True)
    return result


def measure(paths: Sequence[Path]) -> Measured:
    """Open volumes as training does, count and compare their slices, cut their blocks, and note the peaks of memory."""
    from data.slices import PixelScale, find_slices
    from data.splits import split_volume, whole_block
    from data.volume_specs import VolumeSpec
    from data.volumes import open_volume

    imports = peak_mib()
    specs = [VolumeSpec(state, path, PLANE_AXES, shape=SHAPES[state]) for path in paths for state in [_state(path)]]
    start = time.perf_counter()
    volumes = [open_volume(spec) for spec in specs]
    open_seconds, opened = time.perf_counter() - start, peak_mib()
    counts: dict[str, dict[str, int]] = {}
    num_compared = 0
    for volume in volumes:
        counts[volume.spec.state] = {}
        for plane, axis in PLANE_AXES.items():
            slices = find_slices(volume, whole_block(volume), plane, PixelScale(None))
            counts[volume.spec.state][plane] = len(slices)
            for index in np.linspace(0, volume.num_slices(plane) - 1, NUM_COMPARED).astype(int):
                np.testing.assert_array_equal(volume.plane(plane, index), _plane(volume.shape, axis, int(index)))
                num_compared += 1
    read, size = peak_mib(), sum(volume.voxels.nbytes for volume in volumes) / 2**20
    for volume in volumes:
        split_volume(volume, smallest_px=RESOLUTION)
    split = peak_mib()
    del volume, volumes, slices
    start = time.perf_counter()
    for spec in specs:
        open_volume(spec)
    again = time.perf_counter() - start
    name = paths[0].stem if len(paths) == 1 else "all together"
    return Measured(name, counts, num_compared, size, imports, opened, read, split, open_seconds, again)


def _state(path: Path) -> str:
    return path.stem.partition("-")[0]


def peak_mib() -> float:
    """Return the largest resident memory of this process so far (Linux; what the parent held does not count)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def write(folder: Path, state: str, compression: str | None) -> Path:
    """Write a volume slice by slice, as an ImageJ tif, and return where."""
    import tifffile

    path = folder / f"{state}-{compression or 'plain'}.tif"
    tifffile.imwrite(
        path,
        _slices(SHAPES[state]),
        shape=SHAPES[state],
        dtype=np.uint16,
        imagej=True,
        compression=compression,
        compressionargs={"level": 1} if compression else None,
        metadata={"axes": "ZYX", "unit": "um", "spacing": 40.0},
        resolution=(1 / 40, 1 / 40),
    )
    return path


def _slices(shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    for index in range(shape[0]):
        yield _plane(shape, 0, index)


def _plane(shape: tuple[int, int, int], axis: int, index: int) -> np.ndarray:
    """Return one slice along an axis: waves of another period along each axis, and noise of a slice's own shape."""
    periods = (5, 13, 9)
    waves = [np.rint(8_000 + 4_000 * np.sin(np.arange(n) / p)).astype(int) for n, p in zip(shape, periods, strict=True)]
    noise = np.random.default_rng(0).integers(0, 2_000, shape[1:])  # the same in every thickness slice
    rows, columns = (waves[other] for other in range(3) if other != axis)
    grains = noise if axis == 0 else noise.take(index, axis - 1)
    return (waves[axis][index] + rows[:, None] + columns + grains).astype(np.uint16)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the volumes are written for the time being")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/class-counts"))
    parser.add_argument("--measure", nargs="+", metavar="FILE", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
