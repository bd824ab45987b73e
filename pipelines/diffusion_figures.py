"""See why diffusion works: one figure and its numbers for each command.

python pipelines/diffusion_figures.py schedules
python pipelines/diffusion_figures.py offset
python pipelines/diffusion_figures.py forward --images my_pictures --timesteps 0 100 300 600 999
python pipelines/diffusion_figures.py bands --model runs/sf_dry-ddpm
python pipelines/diffusion_figures.py bits --model runs/sf_dry-ddpm
python pipelines/diffusion_figures.py rate --model runs/sf_dry-ddpm
python pipelines/diffusion_figures.py progressive --model runs/sf_dry-ddpm
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DataError, SettingsError, nearest
from data.exits import Parser, exit_code, positive

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.diffusion.bound import Bound
    from pipelines.diffusion.posterior import Variance
    from pipelines.pixel_model import PixelModel


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    from data.output_folders import free_folder
    from pipelines.whole_files import write_json

    folder = free_folder(arguments.output_dir, arguments.model or Path("runs"), f"figure-{arguments.figure}")
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{arguments.figure}.png"
    try:
        numbers = arguments.write(picture, arguments)
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
    write_json(numbers, picture.with_suffix(".json"))
    print(f"Look at {picture}, its numbers in {picture.with_suffix('.json')}")


def _forward(picture: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.diffusion.figures import forward

    pixels = _pixels(arguments, arguments.num_images)
    return forward.write(
        picture,
        {f"picture {number}": each for number, each in enumerate(pixels)},
        schedules=tuple(arguments.schedules),
        num_train_timesteps=arguments.num_train_timesteps,
        timesteps=arguments.timesteps,
        seed=arguments.seed,
    )


def _bands(picture: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.diffusion.figures import bands

    numbers = bands.write(
        picture,
        _pixels(arguments, arguments.num_images),
        schedule=arguments.schedule,
        num_train_timesteps=arguments.num_train_timesteps,
        num_bands=arguments.bands,
        seed=arguments.seed,
    )
    for band in numbers["bands"]:
        lost = ", ".join(f"{name} {t}" for name, t in band["lost_at_t"].items())
        print(f"{band['from_cycles_per_px']:.2f} to {band['to_cycles_per_px']:.2f} cycles per px: lost at t: {lost}")
    return numbers


def _schedules(picture: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.diffusion.figures import schedules

    return schedules.write(picture, num_train_timesteps=arguments.num_train_timesteps)


def _offset(picture: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.diffusion.figures import schedules

    offsets = tuple(step / 50 for step in range(16))
    return schedules.write_offset(
        picture,
        num_train_timesteps=arguments.num_train_timesteps,
        sides=tuple(arguments.sides),
        offsets=offsets,
    )


def _bits(picture: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.diffusion.figures import bits
    from pipelines.pixel_model import load_pixel_model

    model = load_pixel_model(arguments.model)
    numbers = bits.write_bits(picture, _bound(model, arguments))
    _tell_bits(numbers)
    return _said(model, arguments) | numbers


def _rate(picture: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from pipelines.diffusion.figures import bits
    from pipelines.pixel_model import load_pixel_model

    model = load_pixel_model(arguments.model)
    numbers = bits.write_rate(picture, _bound(model, arguments), model)
    _tell_bits(numbers)
    return _said(model, arguments) | numbers


def _progressive(picture: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from data.progress import Progress
    from pipelines.diffusion.figures import progressive
    from pipelines.pixel_model import load_pixel_model

    model = load_pixel_model(arguments.model)
    label = _label(model, arguments.label)
    with Progress(total=arguments.rows, unit="row", desc="draw") as bar:
        return {"model": str(arguments.model), "fingerprint": model.fingerprint} | progressive.write(
            picture,
            model,
            num_steps=arguments.num_inference_steps,
            num_rows=arguments.rows,
            num_pictures=arguments.num_images,
            label=label,
            seed=arguments.seed,
            progress=bar.update,
        )


def _label(model: PixelModel, asked: str | None) -> str | None:
    if asked is None:
        return model.class_labels[0] if model.class_labels else None
    if asked not in model.class_labels:
        known = nearest(asked, model.class_labels) if model.class_labels else " This model knows no labels."
        raise SettingsError("--label", f"found {asked!r}.{known}")
    return asked


def _bound(model: PixelModel, arguments: argparse.Namespace) -> Bound:
    from data.progress import Progress
    from pipelines.diffusion.figures import bits
    from pipelines.diffusion.pictures import open_pictures, pictures

    if arguments.variance == "learned" and not model.learned_variance:
        raise SettingsError("--variance", "this model was trained without a learned variance. Use small or large.")
    held_out = pictures(model, open_pictures(arguments.model), "held-out", arguments.num_images)
    with Progress(total=arguments.num_steps * len(held_out), unit="step", desc="bound") as bar:
        return bits.measure(
            model,
            held_out,
            num_steps=arguments.num_steps,
            variance=_variance(model, arguments),
            num_values=arguments.num_values,
            seed=arguments.seed,
            progress=bar.update,
        )


def _variance(model: PixelModel, arguments: argparse.Namespace) -> Variance:
    chosen: Variance = arguments.variance or ("learned" if model.learned_variance else "large")
    return chosen


def _said(model: PixelModel, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": str(arguments.model),
        "fingerprint": model.fingerprint,
        "num_steps": arguments.num_steps,
        "variance": _variance(model, arguments),
        "num_values": arguments.num_values,
        "seed": arguments.seed,
    }


def _tell_bits(numbers: dict[str, Any]) -> None:
    found = numbers["bits_per_dimension"]
    print(f"at most {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] bits per dimension")


def _pixels(arguments: argparse.Namespace, num_images: int) -> Tensor:
    """Return pictures (N, C, n, n) in [-1, 1]: held-out ones of a run, or the middle squares of a folder's."""
    import torch

    if (arguments.model is None) == (arguments.images is None):
        raise SettingsError(
            "pictures", "expected --model, a run of finetune/ddpm.py, or --images, a folder of pictures."
        )
    if arguments.model is not None:
        from pipelines.diffusion.pictures import open_pictures, pictures
        from pipelines.pixel_model import load_pixel_model

        model = load_pixel_model(arguments.model)
        found = pictures(model, open_pictures(arguments.model), "held-out", num_images)
        return model.to_unit(torch.cat(list(found.values()))) * 2 - 1
    import numpy as np

    from data.image_files import find_images
    from data.images import read_image, resized
    from data.transforms import center_crop_origin, crop

    files = find_images(arguments.images)[:num_images]
    if not files:
        raise DataError(str(arguments.images), "holds no picture.")
    square = arguments.resolution, arguments.resolution
    squares = []
    for file in files:
        picture = resized(read_image(file.path), arguments.resolution)
        squares.append(crop(picture, center_crop_origin(picture.shape[:2], square), square))
    return torch.from_numpy(np.stack(squares).transpose(0, 3, 1, 2).copy()) * 2 - 1


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")

    def figure(name: str, write: Any, about: str) -> argparse.ArgumentParser:
        made = figures.add_parser(name, help=about, description=about, allow_abbrev=False)
        made.set_defaults(write=write, model=None)
        made.add_argument(
            "--output_dir", type=Path, help="empty folder (default: the model's, or runs/, figure-NAME-N)"
        )
        return made

    def seeded(made: argparse.ArgumentParser) -> None:
        made.add_argument("--seed", type=int, default=0)

    def of_pictures(made: argparse.ArgumentParser, num_images: int) -> None:
        made.add_argument("--model", type=Path, help="run folder of finetune/ddpm.py: its held-out pictures")
        made.add_argument("--images", type=Path, help="folder of pictures")
        made.add_argument("--resolution", type=positive, default=64, help="side of --images in px (default: 64)")
        made.add_argument("--num_images", type=positive, default=num_images, help=f"(default: {num_images})")
        seeded(made)

    def of_schedule(made: argparse.ArgumentParser) -> None:
        made.add_argument("--num_train_timesteps", type=positive, default=1000, help="(default: 1000)")

    def of_bound(made: argparse.ArgumentParser) -> None:
        made.add_argument("--model", type=Path, required=True, help="run folder of finetune/ddpm.py")
        made.add_argument("--num_images", type=positive, default=16, help="held-out pictures (default: 16)")
        made.add_argument("--num_steps", type=positive, default=100, help="of the process bounded (default: 100)")
        made.add_argument(
            "--variance", choices=("small", "large", "learned"), help="(default: learned where it is, else large)"
        )
        made.add_argument("--num_values", type=positive, default=256, help="grey values told apart (default: 256)")
        seeded(made)

    names = ("linear", "cosine", "sigmoid")
    made = figure("forward", _forward, "pictures going into the noise, at chosen t")
    of_pictures(made, 2)
    of_schedule(made)
    made.add_argument("--schedules", nargs="+", choices=names, default=["linear", "cosine"])
    made.add_argument("--timesteps", nargs="+", type=int, default=[0, 50, 150, 300, 500, 700, 999])
    made = figure("bands", _bands, "Fourier bands destroyed over t")
    of_pictures(made, 64)
    of_schedule(made)
    made.add_argument("--schedule", choices=names, default="linear")
    made.add_argument("--bands", type=positive, default=6, help="rings of frequency (default: 6)")
    of_schedule(figure("schedules", _schedules, "noise schedules side by side"))
    made = figure("offset", _offset, "what is left of a picture's mean at the last t, against offset noise")
    of_schedule(made)
    made.add_argument("--sides", nargs="+", type=positive, default=[32, 64], help="of pictures in px (default: 32 64)")
    of_bound(figure("bits", _bits, "bits per dimension from the variational bound"))
    of_bound(figure("rate", _rate, "distortion against rate"))
    made = figure("progressive", _progressive, "pictures from a shared x_t")
    made.add_argument("--model", type=Path, required=True, help="run folder of finetune/ddpm.py")
    made.add_argument("--label", help="of a model with labels (default: its first)")
    made.add_argument("--num_images", type=positive, default=6, help="pictures of a row (default: 6)")
    made.add_argument("--rows", type=positive, default=5, help="shared x_t (default: 5)")
    made.add_argument("--num_inference_steps", type=positive, default=100, help="denoising steps (default: 100)")
    seeded(made)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "diffusion_figures"))
