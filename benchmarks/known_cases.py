"""Known cases: pictures whose rank the eye knows, and what the verdict and every measure say of them.

    python benchmarks/known_cases.py                        # defects of real slices, made without training
    python benchmarks/known_cases.py --steps 8 30 100 300   # and what a LoRA draws after so many steps, trained first

Each case takes the place of a model's pictures, 48 of each caption of a concept, judged against held-out slices by the
code of evaluate_prompts.py and compare.py. Prints a table in Markdown, and whether the verdict is one that the eye
allows; writes known_cases.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from data.randomness import generator
from data.sources import ImageSource
from data.stand_ins import generated_data
from pipelines import compare
from pipelines.components import build_pipeline, load_components
from pipelines.metrics.ceiling import round_trips
from pipelines.metrics.extractors import Extractor, TextureStatistics
from pipelines.metrics.learnt import Learnt, RealSets, learnt
from pipelines.metrics.naming import NUM_SHUFFLED, shuffle_pixels
from pipelines.metrics.slices import compare_slices
from pipelines.metrics.two_sample import evenly
from pipelines.sampling import sample
from pipelines.spaces import LatentSpace
from pipelines.whole_pictures import to_pictures

Pictures = Mapping[str, np.ndarray]  # by caption, float32 (N, H, W, 3) in [0, 1]

COLUMNS = (
    "rung",
    "times_drawn",
    "skill",
    "right_caption",
    "none_of_these",
    "precision",
    "recall",
    "density",
    "coverage",
    "told",
)


@dataclass(frozen=True)
class Case:
    """What stands in the place of drawn pictures.

    make: from fresh real pictures, and training pictures, by caption. rungs: those that the eye allows.
    """

    make: Callable[[Pictures, Pictures], Pictures]
    rungs: tuple[int, ...]


def each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Pictures, Pictures], Pictures]:
    """Return a case that changes the fresh pictures of every caption."""
    return lambda fresh, _: {caption: _clipped(change(pictures)) for caption, pictures in fresh.items()}


def blurred(sigma_px: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pictures: ndimage.gaussian_filter(pictures, (0, sigma_px, sigma_px, 0))


def noisy(std: float) -> Callable[[np.ndarray], np.ndarray]:
    """Grey noise, of as many pixels as the pictures have."""

    def change(pictures: np.ndarray) -> np.ndarray:
        rng = generator(0, "noise", *pictures.shape)
        return pictures + rng.normal(0, std, (*pictures.shape[:3], 1))

    return change


def stretched(pictures: np.ndarray) -> np.ndarray:
    size = pictures.shape[1]
    higher = ndimage.zoom(pictures, (1, 1.5, 1, 1), order=1, grid_mode=True, mode="reflect")
    start = (higher.shape[1] - size) // 2
    return np.asarray(higher[:, start : start + size])


def turned(pictures: np.ndarray) -> np.ndarray:
    return np.rot90(pictures, axes=(1, 2))


def cast(pictures: np.ndarray) -> np.ndarray:
    return pictures * np.array([1.0, 0.9, 0.6], dtype=np.float32)


def collapsed(pictures: np.ndarray) -> np.ndarray:
    return np.repeat(pictures[:1], len(pictures), axis=0)


def _clipped(pictures: np.ndarray) -> np.ndarray:
    return np.clip(pictures, 0, 1).astype(np.float32)


def _next(fresh: Pictures) -> dict[str, np.ndarray]:
    """The pictures of the next caption, in a circle."""
    captions = list(fresh)
    return {caption: fresh[captions[(place + 1) % len(captions)]] for place, caption in enumerate(captions)}


def _mixture(fresh: Pictures, _: Pictures) -> Pictures:
    other = _next(fresh)
    is_other = {c: np.arange(len(p)) % 2 == 1 for c, p in fresh.items()}
    return {c: np.where(is_other[c][:, None, None, None], other[c][: len(p)], p) for c, p in fresh.items()}


def _cross_fade(fresh: Pictures, _: Pictures) -> Pictures:
    other = _next(fresh)
    return {c: _clipped((p + other[c][: len(p)]) / 2) for c, p in fresh.items()}


def _copies(fresh: Pictures, training: Pictures) -> Pictures:
    return {c: evenly(training[c], len(p)) for c, p in fresh.items()}


def _noisy_copies(fresh: Pictures, training: Pictures) -> Pictures:
    return {c: _clipped(noisy(0.1)(evenly(training[c], len(p)))) for c, p in fresh.items()}


CASES: dict[str, Case] = {
    "real": Case(lambda fresh, _: fresh, (4,)),
    "copies of training pictures": Case(_copies, (4,)),
    "copies with noise": Case(_noisy_copies, (1, 2)),
    "gamma 1.1": Case(each(lambda pictures: pictures**1.1), (2, 3, 4)),
    "gamma 2": Case(each(lambda pictures: pictures**2), (1, 2)),
    "noise 0.02": Case(each(noisy(0.02)), (2, 3, 4)),
    "noise 0.1": Case(each(noisy(0.1)), (1, 2)),
    "blur 0.5 px": Case(each(blurred(0.5)), (2, 3)),
    "blur 1 px": Case(each(blurred(1.0)), (1, 2)),
    "blur 3 px": Case(each(blurred(3.0)), (1,)),
    "stretched by a half": Case(each(stretched), (1, 2)),
    "colour cast": Case(each(cast), (1, 2)),
    "turned by 90 degrees": Case(each(turned), (1, 2)),
    "one picture again and again": Case(each(collapsed), (1, 2)),
    "half of another caption": Case(_mixture, (1, 2)),
    "cross-fade of two captions": Case(_cross_fade, (1, 2)),
    "under wrong captions": Case(lambda fresh, _: _next(fresh), (1,)),
}


SIZE_PX, NUM_PICTURES, NUM_REAL = 64, 48, 64
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    arguments = _arguments()
    folder: Path = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    answers = {name: one.as_json() for name, one in of_real_slices(arguments.concept, arguments.base).items()}
    for steps in arguments.steps:
        run = folder / f"{arguments.concept}-{steps}"
        _train(run, arguments, steps)
        drawn = folder / "drawn"  # one folder for all, so that the base is drawn once
        compare.main(["--adapter", str(run), "--num_images", str(NUM_PICTURES), "--output_dir", str(drawn)])
        answers[f"LoRA, {steps} steps"] = json.loads((drawn / "scores.json").read_text(encoding="utf-8"))
    (folder / "known_cases.json").write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
    print(table(answers))
    wrong = [name for name, case in CASES.items() if answers[name]["verdict"]["rung"] not in case.rungs]
    print("the verdict is one that the eye allows" if not wrong else f"wrong: {', '.join(wrong)}")


def of_real_slices(concept: str, base: str) -> dict[str, Learnt]:
    """Return what is said of every case, of the base's pictures, and of real ones through its autoencoder."""
    source = ImageSource(resolution=SIZE_PX, concept=concept, data_root=generated_data(concept)[0])
    dataset = source.open()
    training = {c: to_pictures(pixels) for c, pixels in dataset.training_pixels(2 * NUM_REAL).items()}
    fresh = {c: evenly(pictures[1::2], NUM_PICTURES) for c, pictures in training.items()}
    training = {c: pictures[::2] for c, pictures in training.items()}
    held_out = {c: to_pictures(pixels) for c, pixels in dataset.held_out_pixels(NUM_REAL).items()}
    components = load_components(base)
    through = round_trips(LatentSpace(components.vae))
    pipeline = build_pipeline(components)
    drawn = {
        c: sample(
            pipeline,
            [c] * NUM_PICTURES,
            range(NUM_PICTURES),
            num_inference_steps=30,
            guidance_scale=3.0,
            batch_size=16,
            height=SIZE_PX,
            width=SIZE_PX,
        )
        for c in fresh
    }
    cases = {"base": drawn, "real through the autoencoder": {c: through(pictures) for c, pictures in fresh.items()}}
    cases |= {name: case.make(fresh, training) for name, case in CASES.items()}
    sets = {"training": training, "held_out": held_out}
    return judged(
        cases, drawn, sets, {c: through(p[:NUM_PICTURES]) for c, p in training.items()}, um_per_px=dataset.um_per_px
    )


def judged(
    cases: Mapping[str, Pictures],
    base: Pictures,
    real: Mapping[str, Pictures],
    through: Pictures,
    *,
    um_per_px: float | None = None,
    are_slices: bool = True,
    extractor: Extractor | None = None,
) -> dict[str, Learnt]:
    """Return what is said of each case. real: training and held_out. through: training after the autoencoder.

    extractor: texture statistics where it is None.
    """
    seen = extractor or TextureStatistics.fitting(SIZE_PX)
    features = lambda pictures: {c: seen.extract(p) for c, p in pictures.items()}  # noqa: E731
    shuffled = features({c: shuffle_pixels(evenly(p, NUM_SHUFFLED)) for c, p in real["training"].items()})
    sets = RealSets(
        features(real["training"]), features(real["held_out"]), features(through), shuffled, seen.extractor_id
    )
    of_base = features(base)

    def of(pictures: Pictures) -> Learnt:
        def descriptors() -> dict[str, Any]:
            sides = (real["training"], real["held_out"], pictures)
            return {c: compare_slices(*(side[c].mean(-1) for side in sides), um_per_px=um_per_px) for c in pictures}

        return learnt(features(pictures), of_base, sets, descriptors=descriptors if are_slices else None)

    return {name: of(pictures) for name, pictures in cases.items()}


def _train(run: Path, arguments: argparse.Namespace, steps: int) -> None:
    """Train a LoRA for so many steps, unless it is there."""
    if (run / "manifest.json").is_file():
        return
    command = [sys.executable, "finetune/lora.py", "--concept", arguments.concept, "--max_train_steps", str(steps)]
    command += ["--pretrained_model_name_or_path", arguments.base, "--output_dir", str(run.resolve())]
    subprocess.run(command, cwd=ROOT, check=True)


def table(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the answers as a table in Markdown, a row for each case."""
    lines = ["| case | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, one in answers.items():
        found = {**one, "rung": one["verdict"]["rung"]}
        lines.append(f"| {name} | " + " | ".join(_cell(found[column]) for column in COLUMNS) + " |")
    return "\n".join(lines)


def _cell(answer: Any) -> str:
    if isinstance(answer, Mapping):
        return f"{answer['value']:.2f}"
    return "–" if answer is None else str(answer)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="sf_dry", help="whose captions (default: sf_dry)")
    parser.add_argument("--base", default="swatch", help="base model (default: swatch)")
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="of LoRA runs, trained where they are missing")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/known-cases"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
