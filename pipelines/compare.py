"""What an adapter learned, in one picture and two numbers: real slices / base / adapter, per caption, same seeds.

python pipelines/compare.py --adapter runs/sf_dry-lora --num_images 64
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DataError, OutputError
from data.exits import Parser, exit_code

if TYPE_CHECKING:
    import numpy as np

    from data.dataset import SliceDataset

COLUMNS = 8  # images of each kind in the picture


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    manifest = _read_run(arguments.adapter)
    from tqdm import tqdm

    from data.volumes import PLANES
    from pipelines.adapters import load_adapter
    from pipelines.components import build_pipeline, load_components
    from pipelines.sampling import sample

    dataset = _same_data(arguments.adapter, manifest)
    captions = dataset.captions
    count = arguments.num_images
    components = load_components(manifest["base"]).predicting(manifest["prediction_type"])
    drawn: dict[str, dict[str, np.ndarray]] = {}
    with tqdm(total=2 * count * len(captions), unit="image", desc="draw") as bar:
        for name in ("base", "adapter"):
            pipeline = build_pipeline(components)
            if name == "adapter":
                load_adapter(pipeline, arguments.adapter, base_fingerprint=components.fingerprint)
            pictures = sample(
                pipeline,
                [caption for caption in captions for _ in range(count)],
                [seed for _ in captions for seed in range(count)],
                num_inference_steps=arguments.num_inference_steps,
                guidance_scale=arguments.guidance_scale,
                batch_size=32,
                height=dataset.resolution,
                width=dataset.resolution,
                progress=bar.update,
            ).reshape(len(captions), count, dataset.resolution, dataset.resolution, 3)
            drawn[name] = dict(zip(captions, pictures, strict=True))
    real = {
        name: _pictures(pixels)
        for name, pixels in (("held-out", dataset.held_out_pixels(count)), ("training", dataset.training_pixels(count)))
    }
    planes = {cell.cell.caption: PLANES.index(cell.cell.plane) for cell in dataset.cells}
    scores = score(real["training"], real["held-out"], drawn["base"], drawn["adapter"], planes)
    scores |= {"num_inference_steps": arguments.num_inference_steps, "guidance_scale": arguments.guidance_scale}
    folder = arguments.adapter / "compare"
    folder.mkdir(exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    picture = _draw_picture(folder / "compare.png", captions, real["held-out"], drawn)
    _tell(scores)
    print(f"Look at {picture.resolve()}")


def score(
    training: Mapping[str, np.ndarray],
    held_out: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray],
    adapter: Mapping[str, np.ndarray],
    planes: Mapping[str, int],
) -> dict[str, Any]:
    """Return skill per caption and overall, and how often a classifier of real slices names the right plane.

    Pictures by caption: float32 (N, H, W, 3) in [0, 1]. Distance: the squared centroid distance to the held-out slices
    in TexStat features of the grey image; skill is 0 at the base's distance and 1 at that of the real training
    slices. The classifier is the nearest centroid of the real training slices of each plane.
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
        name: {caption: features(pictures) for caption, pictures in group.items()}
        for name, group in (("training", training), ("held-out", held_out), ("base", base), ("adapter", adapter))
    }

    def distance(name: str, caption: str) -> Estimate:
        pair = Discrepancy.between(vectors["held-out"][caption], vectors[name][caption], linear_kernel)
        return bootstrap_interval(pair, pair.sizes, seed=0)

    per_caption: dict[str, dict[str, Any]] = {}
    for caption in held_out:
        floor, start, end = (distance(name, caption) for name in ("training", "base", "adapter"))
        gained = skill(end, start, floor)
        per_caption[caption] = {
            "real_versus_real": floor.value,
            "base": start.value,
            "adapter": end.value,
            "skill": None if gained is None else gained.value,
            "skill_interval": None if gained is None else [gained.low, gained.high],
            "num_images": {name: len(vectors[name][caption]) for name in vectors},
        }
    classes = sorted(set(planes.values()))

    def accuracy(name: str) -> float | None:
        if len(classes) < 2:
            return None
        known = NearestCentroid.fit(*_labelled(vectors["training"], planes))
        return float(known.accuracy(*_labelled(vectors[name], planes)))

    skills = [entry["skill"] for entry in per_caption.values()]
    return {
        "extractor": extractor.extractor_id,
        "captions": per_caption,
        "skill": None if None in skills else float(np.mean(skills)),
        "plane_accuracy": {name: accuracy(name) for name in ("held-out", "adapter", "base")},
    }


def _labelled(features: Mapping[str, np.ndarray], planes: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    labels = [np.full(len(rows), planes[caption]) for caption, rows in features.items()]
    return np.concatenate(list(features.values())), np.concatenate(labels)


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
        rows.append(Row(f"{caption}\nadapter", list(drawn["adapter"][caption][:COLUMNS])))
    title = "real slices / base / adapter: same caption, same seeds"
    save_png(sheet(rows, title=title, columns=[f"seed {seed}" for seed in range(COLUMNS)]), path)
    return path


def _tell(scores: Mapping[str, Any]) -> None:
    print(f"squared centroid distance to held-out slices ({scores['extractor']}), and skill = 0 base ... 1 real")
    for caption, entry in scores["captions"].items():
        gained = (
            "undefined"
            if entry["skill"] is None
            else "{:.2f} [{:.2f}, {:.2f}]".format(entry["skill"], *entry["skill_interval"])
        )
        print(
            f"  {caption:36s} real {entry['real_versus_real']:.4f}  base {entry['base']:.4f}  "
            f"adapter {entry['adapter']:.4f}  skill {gained}"
        )
    if scores["skill"] is not None:
        print(f"  mean skill {scores['skill']:.2f}")
    if scores["plane_accuracy"]["adapter"] is not None:
        named = scores["plane_accuracy"]
        print(
            f"right plane named by a classifier of real slices: adapter {named['adapter']:.0%}, held-out slices "
            f"{named['held-out']:.0%}, base {named['base']:.0%}"
        )


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(str(path), f"{error.strerror}; expected the folder of a run that has ended.") from None
    except ValueError:
        raise OutputError(str(path), "is not JSON; expected the folder of a run that has ended.") from None
    return manifest


def _same_data(folder: Path, manifest: Mapping[str, Any]) -> SliceDataset:
    """Open the data of a run again; raise DataError when a volume is not the one it was trained on."""
    from data.concepts import CONCEPTS, load_concept
    from data.dataset import build_slice_dataset

    data = manifest["data"]
    dataset = build_slice_dataset(
        load_concept(manifest["concept"], CONCEPTS),
        Path(manifest["data_root"]),
        resolution=data["resolution_px"],
        seed=data["seed"],
        um_per_px=data["um_per_px"],
        held_out_fraction=manifest["held_out_fraction"],
    )
    now = json.loads(json.dumps(dataset.manifest()["volumes"]))
    changed = [
        f"{volume['file']} is not the volume of the run: its content has changed, or its window, planes or split."
        for state, volume in data["volumes"].items()
        if now[state] != volume
    ]
    if changed:
        raise DataError(str(folder), *changed)
    return dataset


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, required=True, help="run folder of finetune/lora.py")
    parser.add_argument("--num_images", type=int, default=64, help="images for each caption (default: 64)")
    parser.add_argument("--num_inference_steps", type=int, default=30, help="denoising steps (default: 30)")
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="1 is none (default: 3)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "compare"))
