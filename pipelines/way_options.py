"""The options of how a pixel model's pictures are drawn, for every script that draws them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from data.exits import positive

if TYPE_CHECKING:
    from pipelines.diffusion.drawing import Way


def add_way_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a way of sampling to a parser."""
    parser.add_argument(
        "--sampler", default="ddim", help="ancestral, ddim, or a scheduler of diffusers by class name (default: ddim)"
    )
    parser.add_argument("--num_inference_steps", type=positive, default=50, help="denoising steps (default: 50)")
    parser.add_argument("--eta", type=float, default=0.0, help="of ddim: 0 without chance, 1 as ancestral (default: 0)")
    parser.add_argument(
        "--variance", choices=("small", "large", "learned"), default="small", help="of ancestral (default: small)"
    )
    parser.add_argument(
        "--spacing", choices=("linear", "quadratic"), default="linear", help="of the steps (default: linear)"
    )
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="to the label; 1 is none (default: 1)")
    parser.add_argument(
        "--clip", action=argparse.BooleanOptionalAction, default=True, help="keep what the model sees in its range"
    )


def chosen_way(arguments: argparse.Namespace, *, classifier_scale: float = 0.0) -> Way:
    """Return the way that the options say; SettingsError for options that do not go together."""
    from pipelines.diffusion.drawing import Way

    return Way(
        sampler=arguments.sampler,
        num_steps=arguments.num_inference_steps,
        eta=arguments.eta,
        variance=arguments.variance,
        spacing=arguments.spacing,
        guidance_scale=arguments.guidance_scale,
        classifier_scale=classifier_scale,
        clip=arguments.clip,
    )
