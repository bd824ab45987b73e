"""What a run learned and forgot, in one picture and one verdict: real images / base / tuned, same prompts and seeds.

python pipelines/compare.py --adapter runs/sf_dry-lora --num_images 64
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DataError, SettingsError
from data.exits import Parser, at_least, exit_code, positive
from data.output_folders import refuse_unwritable
from data.plain_text import plain
from pipelines.run_records import read_manifest

if TYPE_CHECKING:
    import numpy as np

    from pipelines.evaluation.measuring import Images, Learning, Subject
    from pipelines.evaluation.plan import Plan
    from pipelines.evaluation.real_images import RealImages
    from pipelines.evaluation.result import Score
    from pipelines.evaluation.states import AskedRun
    from pipelines.evaluation.store import ImageStore
    from pipelines.metrics.learnt import Learnt


COLUMNS = 8  # images of each kind in the picture
BATCH_SIZE = 16  # images drawn together
# what is forgotten is looked at on one prompt of each ring
RINGS = ("a texture", "a striped texture", "two red circles on a white background")
RING_SEEDS = tuple(range(10))
NUM_TIMESTEPS = 8


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    _refuse_without_base(arguments.adapter)
    folder = refuse_unwritable(arguments.output_dir or arguments.adapter / "compare")
    from pipelines.evaluation.real_images import NUM_REAL, captions_of, open_real_images
    from pipelines.evaluation.states import name_runs

    (run,) = name_runs([arguments.adapter])
    real, missing = open_real_images(run, NUM_REAL)
    if real is None or not real.captions:
        raise DataError(str(arguments.adapter), missing)
    captions = captions_of(run)
    if left_out := len(set(captions) - set(real.captions)):
        print(f"{left_out} of {len(captions)} prompts have too few images to be judged: left out")
    compared = _drawn(arguments, folder, run, captions, real)
    found, forgetting = judge(compared)
    scores = {
        "extractor": compared.images.extractor.extractor_id,
        **found.as_json(),
        "prompts": {
            caption: {f"times_{name}": _written(each) for name, each in times._asdict().items()}
            for caption, times in found.by_caption.items()
        },
        "num_images": arguments.num_images,
        "forgetting": {name: vars(score) for name, score in forgetting.items()},
        "num_inference_steps": arguments.num_inference_steps,
        "guidance_scale": arguments.guidance_scale,
        "data_hash": run.manifest.get("data_hash"),  # of the data that was opened: any other is refused
    }
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    picture = _draw_picture(folder / "compare.png", compared, real)
    print(f"Look at {picture.resolve()}")
    _tell(found, forgetting)


@dataclass(frozen=True, eq=False)
class Compared:
    """What is compared: the drawn images of a run and its base, and the real ones. asked: captions and rings."""

    plan: Plan
    store: ImageStore
    images: Images
    learning: Learning
    base: Subject
    tuned: Subject
    device: Any


def _drawn(
    arguments: argparse.Namespace, folder: Path, run: AskedRun, captions: Sequence[str], real: RealImages
) -> Compared:
    """Draw what is missing of captions and rings; kept in the folder by what it depends on, as in an evaluation."""
    from data.progress import Progress
    from pipelines.devices import drawing_device
    from pipelines.evaluation.bases import load_bases
    from pipelines.evaluation.drawing import batches
    from pipelines.evaluation.grid import OWN_SCHEDULER, Sampling, asked_of
    from pipelines.evaluation.measuring import Images, Learning, Subject
    from pipelines.evaluation.plan import Axes, make_plan
    from pipelines.evaluation.prompt_sets import CAPTION, Prompt
    from pipelines.evaluation.store import ImageStore
    from pipelines.evaluation.workers import draw_batches
    from pipelines.metrics.ceiling import round_trips
    from pipelines.metrics.extractors import TextureStatistics
    from pipelines.spaces import LatentSpace

    device = drawing_device()
    bases, base_of = load_bases([run], None, device)
    sampling = Sampling(OWN_SCHEDULER, arguments.num_inference_steps, arguments.guidance_scale)
    size_px = next(iter(real.held_out.values())).shape[1]
    axes = Axes((1.0,), (sampling,), tuple(range(arguments.num_images)), size_px)
    rings = [Prompt(text, "ring", ring=ring, seeds=RING_SEEDS) for ring, text in enumerate(RINGS)]
    # the base does not know a new word, and is told the one that the new word began as
    asked = asked_of(
        [Prompt(CAPTION, "captions"), *rings],
        {run.label: [caption for caption in captions if caption in real.captions]},
        {run.label: run.manifest.get("base_prompts", {})},
    )
    plan = make_plan(asked, axes, bases, [(run, base_of[run.label], [run.result])])
    store = ImageStore(folder)
    missing = [(key, cell) for key, cell in plan.keyed().items() if not store.has(key)]
    with Progress(total=len(missing), unit="image", desc="draw") as bar:
        draw_batches(batches(missing, BATCH_SIZE), plan, store, device, num_processes=None, progress=bar.update)
    images = Images(plan, store, TextureStatistics.fitting(size_px))
    through = round_trips(LatentSpace(bases[base_of[run.label]].components.vae))
    learning = Learning.of(run.label, plan, real, images.extractor, through)
    base, tuned = (Subject(arm, 0) for arm in sorted(plan.arms, key=lambda arm: not arm.is_base))
    return Compared(plan, store, images, learning, base, tuned, device)


def judge(compared: Compared) -> tuple[Learnt, dict[str, Score]]:
    """Return what was learnt, and the scores of what was forgotten, as an evaluation of the same images has them."""
    from pipelines.evaluation.measuring import what_is_learnt
    from pipelines.evaluation.opener import PipelineOpener
    from pipelines.evaluation.rings import Rings

    found = what_is_learnt(compared.tuned, compared.images, compared.learning, seed=0)
    assert found is not None, "captions with real images are asked"
    rings = Rings(
        compared.plan,
        compared.images,
        place=0,
        base=compared.base.arm,
        num_timesteps=NUM_TIMESTEPS,
        images_per_prompt=len(RING_SEEDS),
        seed=0,
    )
    opener = PipelineOpener(compared.plan.bases, compared.plan.runs, compared.device)
    drift = rings.drift(compared.tuned, opener, compared.store.folder / "drift")
    return found, rings.scores(compared.tuned, drift, None, compared.images)


def _draw_picture(path: Path, compared: Compared, real: RealImages) -> Path:
    from pipelines.metrics.two_sample import evenly
    from pipelines.sheets import Row, save_png, sheet

    def drawn(of: Subject, place: int) -> list[np.ndarray]:
        return list(compared.images.pictures(of, place)[:num_columns])

    num_columns = min(COLUMNS, len(compared.plan.axes.seeds))
    rows = []
    for caption, place in compared.learning.asked.items():
        held_out = real.held_out[caption]
        rows.append(Row(f"{caption}\nreal, held out", list(evenly(held_out, num_columns))))
        rows.append(Row(f"{caption}\nbase", drawn(compared.base, place)))
        rows.append(Row(f"{caption}\ntuned", drawn(compared.tuned, place)))
    for place, question in enumerate(compared.plan.asked):
        if question.prompt.ring is not None:
            rows.append(Row(f"{question.text}\nbase", drawn(compared.base, place)))
            rows.append(Row(f"{question.text}\ntuned", drawn(compared.tuned, place)))
    title = "real images / base / tuned: same prompt, same seeds"
    save_png(sheet(rows, title=title, columns=[f"seed {seed}" for seed in range(num_columns)]), path)
    return path


def _tell(found: Learnt, forgetting: Mapping[str, Score]) -> None:
    from pipelines.evaluation.judging import forgotten

    standing, named = found.standing, found.naming
    print(f"Learnt: {'' if standing.rung is None else f'{standing.rung} of 4. '}{standing.words}")
    if standing.advice:
        print(f"  Next: {standing.advice}")
    print(f"Forgot: {forgotten(forgetting)[0]}")
    print("how many times as far from held-out images as training images are")
    print(f"  {'':36s} {'base':>6s} {'tuned':>6s}   real through the autoencoder")
    for caption, times in {**found.by_caption, "mean": found.times}.items():
        drawn, base, ceiling = ("-" if each is None else f"{each.value:.2f}" for each in times)
        print(f"  {plain(caption):36s} {base:>6s} {drawn:>6s}   {ceiling}")
    gained = "undefined" if found.skill is None else _with_interval(found.skill)
    print(f"  skill, the share of the way from the base to real images through its autoencoder: {gained}")
    print(
        f"right caption {named.right.value:.0%}, held-out images {named.real_right.value:.0%}, a guess "
        f"{named.chance:.0%}; none of the captions {named.none.value:.0%}"
    )


def _with_interval(estimate: Any) -> str:
    from pipelines.metrics.estimates import interval_text

    return interval_text(estimate.value, estimate.low, estimate.high)


def _written(estimate: Any) -> Any:
    from pipelines.metrics.estimates import written

    return written(estimate)


def _refuse_without_base(folder: Path) -> None:
    manifest = read_manifest(folder)
    if "base" not in manifest:
        judge = f" Judge it so: python pipelines/judge_pixels.py --model {shlex.quote(str(folder))}"
        advice = judge if "pixel_model" in manifest else ""
        raise SettingsError(str(folder), f"is a run of {manifest.get('method')}, which fine-tunes no base.{advice}")


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
