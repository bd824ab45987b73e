"""How near a pixel model's pictures come to held-out ones, kind by kind, and whether they are copies.

    python pipelines/judge_pixels.py --model runs/sf_dry-ddpm --num_images 128

A kind is a label, or a caption of the data: slices of different planes are never judged together. Where the model has
no labels, a classifier of the training pictures says of which kind each drawn picture is. Writes judgement.json, a
picture of drawn pictures beside real ones, and one of each kind's pictures nearest to a training picture.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DataError
from data.exits import Parser, exit_code, positive

if TYPE_CHECKING:
    import numpy as np

    from pipelines.diffusion.drawing import Way
    from pipelines.pixel_model import PixelModel

COLUMNS = 8
FEWEST_OF_A_KIND = 10  # below, no verdict


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    from pipelines.diffusion.drawing import Way
    from pipelines.diffusion.outputs import free_folder
    from pipelines.diffusion.pictures import open_pictures, pictures, to_images
    from pipelines.pixel_model import load_pixel_model
    from pipelines.whole_files import write_json

    folder = free_folder(arguments.output_dir, arguments.model, "judged")
    model = load_pixel_model(arguments.model)
    dataset = open_pictures(arguments.model)
    count = arguments.num_images * len(dataset.captions)
    training, held_out = (
        {kind: to_images(model, pixels) for kind, pixels in pictures(model, dataset, side, count).items()}
        for side in ("training", "held-out")
    )
    way = Way(arguments.sampler, arguments.num_inference_steps, eta=arguments.eta)
    drawn, naming = _by_kind(model, way, training, held_out, arguments.num_images)
    record: dict[str, Any] = {
        "model": str(arguments.model),
        "fingerprint": model.fingerprint,
        "sampler": arguments.sampler,
        "num_inference_steps": arguments.num_inference_steps,
        "eta": arguments.eta,
        "naming": naming,
        "kinds": {kind: judged(drawn[kind], training[kind], held_out[kind], model.um_per_px) for kind in drawn},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, folder / "judgement.json")
    _draw_picture(drawn, held_out, training, record["kinds"], folder)
    print("\n".join(lines(record)))
    print(f"Look at {(folder / 'judgement.png').resolve()}")


def judged(drawn: np.ndarray, training: np.ndarray, held_out: np.ndarray, um_per_px: float | None) -> dict[str, Any]:
    """Return the distances of one kind's drawn pictures to held-out ones beside those of training pictures.

    Pictures: (N, H, W, C) float32 in [0, 1]. "texture": squared centroid distance. "slices": the physical descriptors
    of one-channel pictures, None for colours or too few. "copying": how near to training pictures, against held-out.
    """
    from pipelines.metrics.copying import TrainingImages, copying
    from pipelines.metrics.estimates import written
    from pipelines.metrics.slices import compare_slices

    is_grey = drawn.shape[-1] == 1
    slices = None
    if is_grey and len(drawn) > 1:
        compared = compare_slices(training[..., 0], held_out[..., 0], drawn[..., 0], um_per_px)
        slices = {name: each.to_json() for name, each in compared.items()}
    in_colour = [_in_colour(pictures) for pictures in (drawn, training, held_out)]
    found = copying(in_colour[0], TrainingImages(in_colour[1]), in_colour[2]).as_json()
    return {
        "num_images": {"drawn": len(drawn), "training": len(training), "held-out": len(held_out)},
        "texture": {
            "distance": written(_distance(drawn, held_out)),
            "floor": written(_distance(training, held_out)),
        },
        "slices": slices,
        "copying": found,
    }


def lines(record: Mapping[str, Any]) -> list[str]:
    """Return the judgement in words: for each kind its distances as multiples of real against real, and copies."""
    said = [record["naming"]] if record["naming"] else []
    for kind, found in record["kinds"].items():
        texture = found["texture"]
        said.append(
            f"{kind} ({found['num_images']['drawn']} drawn): squared centroid distance "
            f"{texture['distance']['value']:.4f}, training to held-out {texture['floor']['value']:.4f}"
        )
        for name, each in (found["slices"] or {}).items():
            if each["ratio"] is None:
                said.append(f"  {name:20s} not measured: {each['reason']}")
            else:
                low, high = each["ratio_interval"]
                said.append(f"  {name:20s} {each['ratio']:6.1f} [{low:.1f}, {high:.1f}] times real  {each['verdict']}")
        auc = found["copying"]["auc"]
        if auc is not None:
            said.append(
                f"  copy AUC {auc['value']:.2f} [{auc['low']:.2f}, {auc['high']:.2f}]: {found['copying']['verdict']}"
            )
    return said


def _by_kind(
    model: PixelModel,
    way: Way,
    training: Mapping[str, np.ndarray],
    held_out: Mapping[str, np.ndarray],
    num_images: int,
) -> tuple[dict[str, np.ndarray], str]:
    """Return drawn pictures by kind, num_images of each on average, and how their kinds were found."""
    import numpy as np
    from tqdm import tqdm

    from pipelines.diffusion.drawing import draw
    from pipelines.diffusion.pictures import to_images

    kinds = [kind for kind in training if kind in held_out]
    known = [kind for kind in kinds if kind in model.class_labels]
    labels = [model.class_labels.index(kind) for kind in known for _ in range(num_images)] if known else None
    seeds = [seed for _ in known for seed in range(num_images)] if known else list(range(num_images * len(kinds)))
    with tqdm(total=len(seeds), unit="image", desc="draw") as bar:
        images = to_images(model, draw(model, way, seeds, labels=labels, progress=bar.update))
    if known:
        return {kind: images[place * num_images :][:num_images] for place, kind in enumerate(known)}, ""
    if len(kinds) == 1:
        return {kinds[0]: images}, ""
    named, accuracy = _named(images, training, held_out, kinds)
    drawn = {kind: images[named == kind] for kind in kinds if (named == kind).sum() >= FEWEST_OF_A_KIND}
    if not drawn:
        raise DataError("drawn pictures", f"fewer than {FEWEST_OF_A_KIND} of each kind. Raise --num_images.")
    shares = ", ".join(f"{kind} {np.mean(named == kind):.0%}" for kind in kinds)
    return drawn, (
        f"The model has no labels: a classifier of training pictures (right for {accuracy:.0%} of the held-out ones) "
        f"names the kind of what it draws: {shares}"
    )


def _named(
    images: np.ndarray, training: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray], kinds: Sequence[str]
) -> tuple[np.ndarray, float]:
    """Return the kind of each picture, and the share of held-out pictures that are named rightly."""
    import numpy as np

    from pipelines.metrics.classifiers import NearestCentroid

    def labelled(group: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        names = np.repeat(kinds, [len(group[kind]) for kind in kinds])
        return _features(np.concatenate([group[kind] for kind in kinds])), names

    classifier = NearestCentroid.fit(*labelled(training))
    return classifier.predict(_features(images)), float(classifier.accuracy(*labelled(held_out)))


def _distance(pictures: np.ndarray, real: np.ndarray) -> Any:
    from pipelines.metrics.distances import Discrepancy, bootstrap_interval, linear_kernel

    pair = Discrepancy.between(_features(pictures), _features(real), linear_kernel)
    return bootstrap_interval(pair, pair.sizes, seed=0)


def _features(pictures: np.ndarray) -> np.ndarray:
    from pipelines.metrics.extractors import TextureStatistics

    return TextureStatistics.fitting(pictures.shape[1], grey=pictures.shape[-1] == 1).extract(_in_colour(pictures))


def _in_colour(pictures: np.ndarray) -> np.ndarray:
    """(N, H, W, 1 or 3) -> (N, H, W, 3)."""
    import numpy as np

    return np.repeat(pictures, 3, axis=-1) if pictures.shape[-1] == 1 else pictures


def _draw_picture(
    drawn: Mapping[str, np.ndarray],
    held_out: Mapping[str, np.ndarray],
    training: Mapping[str, np.ndarray],
    judgements: Mapping[str, Any],
    folder: Path,
) -> None:
    from pipelines.sheets import Row, save_png, sheet

    rows, pairs = [], []
    for kind, pictures in drawn.items():
        spread = held_out[kind][:: max(1, len(held_out[kind]) // COLUMNS)][:COLUMNS]
        rows += [Row(f"{kind}\nreal, held out", list(spread)), Row(f"{kind}\ndrawn", list(pictures[:COLUMNS]))]
        worst = judgements[kind]["copying"]["matches"][:COLUMNS]
        pairs += [
            Row(f"{kind}\ndrawn", [pictures[match["image"]] for match in worst]),
            Row(f"{kind}\nnearest in training", [training[kind][match["training"]] for match in worst]),
        ]
    save_png(sheet(rows, title="real pictures and drawn ones"), folder / "judgement.png")
    save_png(sheet(pairs, title="drawn pictures and the training pictures they are most like"), folder / "nearest.png")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="run folder of finetune/ddpm.py")
    parser.add_argument("--num_images", type=positive, default=64, help="pictures of each kind (default: 64)")
    parser.add_argument("--sampler", default="ddim", help="ancestral, ddim or a scheduler of diffusers (default: ddim)")
    parser.add_argument("--num_inference_steps", type=positive, default=50, help="denoising steps (default: 50)")
    parser.add_argument("--eta", type=float, default=0.0, help="noise of ddim, 0 to 1 (default: 0)")
    parser.add_argument("--output_dir", type=Path, help="new folder (default: judged-N in the run)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "judge_pixels"))
