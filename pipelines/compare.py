"""What a run learned, in one picture and two numbers: real images / base / tuned, per prompt, same seeds.

python pipelines/compare.py --adapter runs/sf_dry-lora --num_images 64
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DataError, SettingsError
from data.exits import Parser, at_least, exit_code, positive
from data.output_folders import refuse_unwritable
from data.plain_text import plain
from pipelines.run_records import read_manifest

if TYPE_CHECKING:
    import numpy as np


COLUMNS = 8  # images of each kind in the picture
BATCH_SIZE = 16  # images drawn together


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    manifest = _read_run(arguments.adapter)
    folder = refuse_unwritable(arguments.output_dir or arguments.adapter / "compare")
    from data.splits import manifest_hash
    from pipelines.run_data import reopened

    dataset = reopened(arguments.adapter, manifest)
    count = arguments.num_images
    real = {
        name: _pictures(pixels)
        for name, pixels in (("held-out", dataset.held_out_pixels(count)), ("training", dataset.training_pixels(count)))
    }
    captions = comparable(arguments.adapter, dataset.captions, real)
    real = {name: {caption: group[caption] for caption in captions} for name, group in real.items()}
    drawn = _drawn(arguments, folder, captions, dataset.resolution)
    scores = score(real["training"], real["held-out"], drawn["base"], drawn["tuned"])
    scores |= {"num_inference_steps": arguments.num_inference_steps, "guidance_scale": arguments.guidance_scale}
    scores["data_hash"] = manifest_hash(dataset.manifest())  # that of the run: `reopened` refuses any other
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    picture = _draw_picture(folder / "compare.png", captions, real["held-out"], drawn)
    _tell(scores)
    print(f"Look at {picture.resolve()}")


def _drawn(
    arguments: argparse.Namespace, folder: Path, captions: Sequence[str], size_px: int
) -> dict[str, dict[str, np.ndarray]]:
    """Return what base and tuned model draw for each caption, float32 (N, H, W, 3) in [0, 1].

    The images are kept in the folder by what they depend on, as those of an evaluation, and drawn once.
    """
    import numpy as np

    from data.progress import Progress
    from pipelines.devices import drawing_device
    from pipelines.evaluation.bases import load_bases
    from pipelines.evaluation.drawing import batches
    from pipelines.evaluation.grid import OWN_SCHEDULER, Sampling, asked_of
    from pipelines.evaluation.plan import Axes, make_plan
    from pipelines.evaluation.prompt_sets import CAPTION, Prompt
    from pipelines.evaluation.states import name_runs
    from pipelines.evaluation.store import ImageStore
    from pipelines.evaluation.workers import draw_batches

    device = drawing_device()
    (run,) = name_runs([arguments.adapter])
    bases, base_of = load_bases([run], None, device)
    sampling = Sampling(OWN_SCHEDULER, arguments.num_inference_steps, arguments.guidance_scale)
    axes = Axes((1.0,), (sampling,), tuple(range(arguments.num_images)), size_px)
    # the base does not know a new word, and is told the one that the new word began as
    asked = asked_of(
        [Prompt(CAPTION, "captions")], {run.label: captions}, {run.label: run.manifest.get("base_prompts", {})}
    )
    plan = make_plan(asked, axes, bases, [(run, base_of[run.label], [run.result])])
    store = ImageStore(folder)
    missing = [(key, cell) for key, cell in plan.keyed().items() if not store.has(key)]
    with Progress(total=len(missing), unit="image", desc="draw") as bar:
        draw_batches(batches(missing, BATCH_SIZE), plan, store, device, num_processes=None, progress=bar.update)
    keys: dict[str, dict[str, list[str]]] = {"base": {}, "tuned": {}}
    for cell in plan.cells:
        keys["base" if cell.arm.is_base else "tuned"].setdefault(captions[cell.asked], []).append(plan.key(cell))
    return {
        name: {caption: store.read_all(found).astype(np.float32) / 255 for caption, found in group.items()}
        for name, group in keys.items()
    }


def score(
    training: Mapping[str, np.ndarray],
    held_out: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray],
    tuned: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Return skill per prompt and overall, and how often a classifier of real images names the right prompt.

    Pictures by prompt: float32 (N, H, W, 3) in [0, 1]. Distance: the squared centroid distance to the held-out images
    in TexStat features of the grey image; skill is 0 at the base's distance and 1 at that of the real training
    images. The classifier is the nearest centroid of the real training images of each prompt.
    """
    import numpy as np
    import torch

    from pipelines.metrics.classifiers import NearestCentroid
    from pipelines.metrics.distances import Discrepancy, Estimate, bootstrap_interval, linear_kernel, skill
    from pipelines.metrics.texstat import TexStat, size_for

    side = min(next(iter(held_out.values())).shape[1:3])
    extractor = TexStat(size_for(side))

    def features(pictures: np.ndarray) -> np.ndarray:
        grey = torch.from_numpy(np.ascontiguousarray(pictures.mean(axis=-1))).float()[:, None]
        return np.asarray(extractor.features(grey))

    vectors = {
        name: {prompt: features(pictures) for prompt, pictures in group.items()}
        for name, group in (("training", training), ("held-out", held_out), ("base", base), ("tuned", tuned))
    }

    def distance(name: str, prompt: str) -> Estimate:
        pair = Discrepancy.between(vectors["held-out"][prompt], vectors[name][prompt], linear_kernel)
        return bootstrap_interval(pair, pair.sizes, seed=0)

    per_prompt: dict[str, dict[str, Any]] = {}
    for prompt in held_out:
        floor, start, end = (distance(name, prompt) for name in ("training", "base", "tuned"))
        gained = skill(end, start, floor)
        per_prompt[prompt] = {
            "real_versus_real": floor.value,
            "base": start.value,
            "tuned": end.value,
            "skill": None if gained is None else gained.value,
            "skill_interval": None if gained is None else [gained.low, gained.high],
            "num_images": {name: len(vectors[name][prompt]) for name in vectors},
        }

    def accuracy(name: str) -> float | None:
        if len(held_out) < 2:
            return None
        known = NearestCentroid.fit(*_labelled(vectors["training"], list(held_out)))
        return float(known.accuracy(*_labelled(vectors[name], list(held_out))))

    skills = [entry["skill"] for entry in per_prompt.values()]
    return {
        "extractor": extractor.extractor_id,
        "prompts": per_prompt,
        "skill": None if None in skills else float(np.mean(skills)),
        "prompt_accuracy": {name: accuracy(name) for name in ("held-out", "tuned", "base")},
    }


def _labelled(features: Mapping[str, np.ndarray], prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    labels = [np.full(len(features[prompt]), number) for number, prompt in enumerate(prompts)]
    return np.concatenate([features[prompt] for prompt in prompts]), np.concatenate(labels)


def _pictures(pixels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(N, 3, H, W) in [-1, 1] -> (N, H, W, 3) in [0, 1]."""
    return {caption: (images.transpose(0, 2, 3, 1) + 1) / 2 for caption, images in pixels.items()}


def _draw_picture(
    path: Path,
    captions: Sequence[str],
    real: Mapping[str, np.ndarray],
    drawn: Mapping[str, Mapping[str, np.ndarray]],
) -> Path:
    from pipelines.sheets import Row, save_png, sheet

    rows = []
    for caption in captions:
        rows.append(
            Row(f"{caption}\nreal, held out", list(real[caption][:: max(1, len(real[caption]) // COLUMNS)][:COLUMNS]))
        )
        rows.append(Row(f"{caption}\nbase", list(drawn["base"][caption][:COLUMNS])))
        rows.append(Row(f"{caption}\ntuned", list(drawn["tuned"][caption][:COLUMNS])))
    title = "real images / base / tuned: same prompt, same seeds"
    num_columns = max(len(row.images) for row in rows)
    save_png(sheet(rows, title=title, columns=[f"seed {seed}" for seed in range(num_columns)]), path)
    return path


def _tell(scores: Mapping[str, Any]) -> None:
    print(f"squared centroid distance to held-out images ({scores['extractor']}), and skill = 0 base ... 1 real")
    for prompt, entry in scores["prompts"].items():
        gained = (
            "undefined"
            if entry["skill"] is None
            else "{:.2f} [{:.2f}, {:.2f}]".format(entry["skill"], *entry["skill_interval"])
        )
        print(
            f"  {plain(prompt):36s} real {entry['real_versus_real']:.4f}  base {entry['base']:.4f}  "
            f"tuned {entry['tuned']:.4f}  skill {gained}"
        )
    if scores["skill"] is not None:
        print(f"  mean skill {scores['skill']:.2f}")
    if scores["prompt_accuracy"]["tuned"] is not None:
        named = scores["prompt_accuracy"]
        print(
            f"right prompt named by a classifier of real images: tuned {named['tuned']:.0%}, held-out images "
            f"{named['held-out']:.0%}, base {named['base']:.0%}"
        )


def _read_run(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if "base" not in manifest:
        judge = f" Judge it so: python pipelines/judge_pixels.py --model {shlex.quote(str(folder))}"
        advice = judge if "pixel_model" in manifest else ""
        raise SettingsError(str(folder), f"is a run of {manifest.get('method')}, which fine-tunes no base.{advice}")
    return manifest


def comparable(folder: Path, captions: Sequence[str], real: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[str, ...]:
    """Return the prompts that have two images or more on both sides of the split; say how many have not."""
    kept = tuple(caption for caption in captions if all(len(group.get(caption, ())) > 1 for group in real.values()))
    if not kept:
        raise DataError(
            str(folder), "no prompt of this run has two held-out images and two training images to compare with."
        )
    if len(kept) < len(captions):
        print(f"{len(captions) - len(kept)} of {len(captions)} prompts have too few images to be judged: left out")
    return kept


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, required=True, help="run folder of a method that fine-tunes a base")
    parser.add_argument("--num_images", type=at_least(2), default=64, help="images for each caption (default: 64)")
    parser.add_argument("--num_inference_steps", type=positive, default=30, help="denoising steps (default: 30)")
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="1 is none (default: 3)")
    parser.add_argument("--output_dir", type=Path, help="folder, written over (default: the run's compare)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "compare"))
