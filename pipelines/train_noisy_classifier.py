"""Train a small classifier of noisy pictures on the data of a pixel model, to guide its sampling to a label.

python pipelines/train_noisy_classifier.py --model runs/composites-ddpm
python pipelines/generate_pixels.py --model runs/composites-ddpm --classifier runs/composites-ddpm/classifier-0 \\
    --classifier_scale 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.exits import Parser, exit_code, positive


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    from data.output_folders import free_folder

    folder = free_folder(arguments.output_dir, arguments.model, "classifier")
    from data.progress import Progress
    from pipelines.diffusion.noisy_classifier import accuracies, train_classifier
    from pipelines.diffusion.pictures import open_pictures, pictures
    from pipelines.pixel_model import load_pixel_model

    model = load_pixel_model(arguments.model)
    dataset = open_pictures(arguments.model)
    total = arguments.num_images * len(dataset.captions)
    training, held_out = (pictures(model, dataset, side, total) for side in ("training", "held-out"))
    common = [caption for caption in training if caption in held_out]
    if model.class_labels:
        common = [caption for caption in model.class_labels if caption in common]
    with Progress(total=arguments.max_train_steps, unit="step", desc="train") as bar:

        def progress(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        classifier = train_classifier(
            model,
            {caption: training[caption] for caption in common},
            num_steps=arguments.max_train_steps,
            batch_size=arguments.train_batch_size,
            seed=arguments.seed,
            progress=progress,
        )
    named = accuracies(model, classifier, held_out, num_levels=6, seed=arguments.seed)
    facts = {
        "num_train_timesteps": model.num_train_timesteps,
        "schedule": model.schedule,
        "normalized": model.normalized,
        "held_out_accuracy": {str(level): share for level, share in named.items()},
    }
    classifier.save(folder, facts)
    print("held-out pictures named by timestep: " + ", ".join(f"{t}: {share:.0%}" for t, share in named.items()))
    print(f"chance: {1 / len(common):.0%}. The classifier is in {folder}")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="run folder of finetune/ddpm.py")
    parser.add_argument("--num_images", type=positive, default=200, help="pictures of each label (default: 200)")
    parser.add_argument("--max_train_steps", type=positive, default=1000, help="optimiser steps (default: 1000)")
    parser.add_argument("--train_batch_size", type=positive, default=32, help="pictures in a step (default: 32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, help="empty folder (default: the model's classifier-N)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "train_noisy_classifier"))
