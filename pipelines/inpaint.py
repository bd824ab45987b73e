"""Draw the unknown part of held-out pictures with a pixel model (RePaint), for each mask, beside plain fills.

python pipelines/inpaint.py --model runs/sf_dry-ddpm
python pipelines/inpaint.py --model runs/sf_dry-ddpm --masks half --mask_file my_mask.png --num_images 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import SettingsError, nearest
from data.exits import Parser, exit_code, positive

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pipelines.pixel_model import PixelModel

# written out, so that --help needs no torch; a test holds them against pipelines/diffusion/masks.py
MASK_NAMES = ("wide", "thin", "expand", "half", "every_second_pixel", "alternate_lines")
FILLS = ("biharmonic fill", "mean fill")


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    from data.output_folders import free_folder
    from pipelines.whole_files import write_json

    folder = free_folder(arguments.output_dir, arguments.model, "inpainted")
    from data.progress import Progress
    from pipelines.diffusion.pictures import open_pictures, pictures, to_images
    from pipelines.diffusion.repaint import walk
    from pipelines.diffusion.schedules import strided
    from pipelines.pixel_model import load_pixel_model
    from pipelines.sheets import save_png

    model = load_pixel_model(arguments.model)
    masks = _masks(arguments, model.size_px)
    steps = strided(model.alphas_cumprod, arguments.num_inference_steps)
    heights = walk(len(steps), arguments.jump_length, arguments.num_resamples)
    num_denoised = sum(after < before for before, after in pairwise(heights))
    by_caption = pictures(model, open_pictures(arguments.model), "held-out", arguments.num_images)
    results: dict[str, Any] = {}
    shown: dict[str, dict[str, np.ndarray]] = {}
    with Progress(total=len(masks) * len(by_caption) * num_denoised, unit="step", desc="inpaint") as bar:
        for name, known in masks.items():
            drawn = inpaint(model, by_caption, known, arguments, bar.update)
            truth = {caption: to_images(model, pixels) for caption, pixels in by_caption.items()}
            draws = [{c: to_images(model, p[d]) for c, p in drawn.items()} for d in range(arguments.num_draws)]
            results[name], shown[name] = _judged(known, truth, draws)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "model": str(arguments.model),
        "fingerprint": model.fingerprint,
        "num_inference_steps": arguments.num_inference_steps,
        "jump_length": arguments.jump_length,
        "num_resamples": arguments.num_resamples,
        "num_draws": arguments.num_draws,
        "moves": len(heights) - 1,
        "error": "root mean squared difference over the unknown pixels, pictures in [0, 1]",
        "masks": results,
    }
    write_json(record, folder / "inpainting.json")
    save_png(_sheet(shown), folder / "inpainting.png")
    for name, found in results.items():
        print(f"{name:20s} unknown {found['unknown_share']:.0%}  error " + _told(found))
    print(f"Look at {folder / 'inpainting.png'}")


def inpaint(
    model: PixelModel, by_caption: Mapping[str, Tensor], known: np.ndarray, arguments: argparse.Namespace, progress: Any
) -> dict[str, Tensor]:
    """Return pictures (draws, N, C, H, W) whose known part is that of the given ones, bit for bit, by caption.

    Draw d of picture i of a caption has the seed `arguments.seed` + d N + i. A model with labels is told the caption.
    """
    import torch

    from pipelines.diffusion import noise
    from pipelines.diffusion.drawing import Way, denoiser
    from pipelines.diffusion.repaint import repaint
    from pipelines.diffusion.schedules import strided

    drawn = {}
    for caption, pixels in by_caption.items():
        every, shape = pixels.repeat(arguments.num_draws, 1, 1, 1), tuple(pixels.shape[1:])
        seeds = range(arguments.seed, arguments.seed + len(every))
        labels = None
        if model.class_labels:
            labels = torch.full((len(every),), model.class_labels.index(caption))
        with torch.no_grad():
            found = repaint(
                denoiser(model, Way(), labels),
                noise.start(seeds, shape),
                strided(model.alphas_cumprod, arguments.num_inference_steps),
                known=every,
                mask=torch.from_numpy(known),
                noise=noise.seeded(seeds, shape),
                known_noise=noise.seeded(seeds, shape, "known-part"),
                jump_length=arguments.jump_length,
                num_resamples=arguments.num_resamples,
                callback=lambda _: progress(1),
            )
        drawn[caption] = found.view(arguments.num_draws, *pixels.shape)
    return drawn


def _judged(
    known: np.ndarray, truth: Mapping[str, np.ndarray], draws: Sequence[Mapping[str, np.ndarray]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the errors of one mask, ours and the plain fills', and the first picture in every form.

    A draw has the texture of the pictures, and so at best an error sqrt(2) times that of the mean of all draws, which
    is as smooth as a fill: with several draws the error of their mean stands beside that of the first.
    "error_over_fill" is paired, picture by picture: below 1 is nearer to the truth than the fill.
    """
    import numpy as np

    from pipelines.diffusion.fills import biharmonic_fill, mean_fill, unknown_error
    from pipelines.metrics.estimates import ratio_over_prompts, written

    true = np.concatenate(list(truth.values()))
    ours = np.stack([np.concatenate(list(drawn.values())) for drawn in draws])
    filled = {
        "inpainted": ours[0],
        **({"mean of draws": ours.mean(axis=0)} if len(ours) > 1 else {}),
        **{
            name: np.stack([fill(picture, known) for picture in true])
            for name, fill in zip(FILLS, (biharmonic_fill, mean_fill), strict=True)
        },
    }
    errors = {
        name: [np.array([unknown_error(picture, real, known) for picture, real in zip(images, true, strict=True)])]
        for name, images in filled.items()
    }
    result = {
        "unknown_share": float((~known).mean()),
        "num_images": len(true),
        "known_part_kept": bool((ours[:, :, known] == true[:, known]).all()),
        "error": {name: written(ratio_over_prompts(e, None, seed=0)) for name, e in errors.items()},
        "error_over_fill": {
            name: {fill: written(ratio_over_prompts(errors[name], errors[fill], seed=0)) for fill in FILLS}
            for name in errors
            if name not in FILLS
        },
    }
    masked = np.where(known[..., None], true[0], 1.0).astype(np.float32)
    return result, {"masked": masked, **{name: images[0] for name, images in filled.items()}, "truth": true[0]}


def _told(found: Mapping[str, Any]) -> str:
    said = [f"{name} {_interval(error, 3)}" for name, error in found["error"].items()]
    for name, ratios in found["error_over_fill"].items():
        said += [f"{name} over {fill} {_interval(ratio, 2)}" for fill, ratio in ratios.items()]
    return "  ".join(said)


def _interval(found: Mapping[str, Any], digits: int) -> str:
    from pipelines.metrics.estimates import interval_text

    return interval_text(found["value"], found["low"], found["high"], digits)


def _sheet(shown: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
    from pipelines.sheets import Row, sheet

    rows = [Row(name, list(forms.values())) for name, forms in shown.items()]
    columns = list(next(iter(shown.values())))
    return sheet(rows, title="the unknown part, drawn and filled", columns=columns)


def _masks(arguments: argparse.Namespace, size_px: int) -> dict[str, np.ndarray]:
    """Return the masks to use by name; those of files under the name of the file."""
    from pipelines.diffusion.masks import MASKS, read_mask

    unknown = [f"found {name!r}.{nearest(name, MASKS)}" for name in arguments.masks or () if name not in MASKS]
    if unknown:
        raise SettingsError("--masks", *unknown)
    names = MASK_NAMES if arguments.masks is None and not arguments.mask_file else arguments.masks or ()
    masks = {name: MASKS[name](size_px) for name in names}
    return masks | {path.name: read_mask(path, size_px) for path in arguments.mask_file}


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="run folder of finetune/ddpm.py")
    parser.add_argument("--masks", nargs="+", help=f"some of {', '.join(MASK_NAMES)} (default: all)")
    parser.add_argument("--mask_file", type=Path, nargs="+", default=[], help="pictures: white is drawn, black is kept")
    parser.add_argument("--num_images", type=positive, default=8, help="held-out pictures (default: 8)")
    parser.add_argument("--num_inference_steps", type=positive, default=100, help="denoising steps (default: 100)")
    parser.add_argument("--jump_length", type=positive, default=10, help="steps of a jump back (default: 10)")
    parser.add_argument(
        "--num_resamples", type=positive, default=5, help="times a jump is made; 1: no jump (default: 5)"
    )
    parser.add_argument(
        "--num_draws",
        type=positive,
        default=1,
        help="of each picture; with several their mean is judged too (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: 0)")
    parser.add_argument("--output_dir", type=Path, help="empty folder (default: the model's inpainted-N)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "inpaint"))
