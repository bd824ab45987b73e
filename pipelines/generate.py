"""Draw prompts x seeds with a base model and an adapter: single images, a labelled grid, tif stacks in grey values.

python pipelines/generate.py --adapter runs/sf_dry-lora --prompts configs/prompts/composites.txt --seeds 0-7
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import SettingsError
from data.exits import Parser, exit_code, positive
from data.output_folders import free_folder
from data.plain_text import plain
from pipelines.drawing_sizes import drawing_size
from pipelines.evaluation.states import State, name_runs, parse_selections
from pipelines.prompts import file_stem, parse_seeds, read_prompts

if TYPE_CHECKING:
    import numpy as np


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    prompts, seeds = read_prompts(arguments.prompts), parse_seeds(arguments.seeds)
    folder = _output_folder(arguments)
    size_px = drawing_size(arguments.adapter, arguments.resolution, arguments.pretrained_model_name_or_path)
    from data.progress import Progress
    from pipelines.devices import drawing_device, move
    from pipelines.runs import open_tuned
    from pipelines.sampling import sample

    state = _selected(arguments)
    model = open_tuned(arguments.adapter, base=arguments.pretrained_model_name_or_path, weights=_weights(arguments))
    if state is not None and state.folder is not None:
        from pipelines.evaluation.checkpoints import restore_checkpoint

        restore_checkpoint(model.pipeline, arguments.adapter[0], state.folder)
    move(model.components, drawing_device())
    for note in model.notes:
        print(plain(note))
    with Progress(total=len(prompts) * len(seeds), unit="image", desc="draw") as bar:
        pictures = sample(
            model.pipeline,
            [prompt for prompt in prompts for _ in seeds],
            [seed for _ in prompts for seed in seeds],
            num_inference_steps=arguments.num_inference_steps,
            guidance_scale=arguments.guidance_scale,
            batch_size=arguments.batch_size,
            height=size_px,
            width=size_px,
            progress=bar.update,
        )
    pictures = pictures.reshape(len(prompts), len(seeds), *pictures.shape[1:])
    record = {
        "base": model.components.name,
        "base_fingerprint": model.components.fingerprint,
        "adapter": [str(path) for path in arguments.adapter],
        "weight": list(_weights(arguments)),
        "step": None if state is None else state.step,
        "num_inference_steps": arguments.num_inference_steps,
        "guidance_scale": arguments.guidance_scale,
        "seeds": seeds,
    }
    _write(folder, prompts, seeds, pictures, model.facts.get("grey_values", {}), record)
    print(f"{len(prompts) * len(seeds)} images in {folder}, side by side in {folder / 'grid.png'}")


def _write(
    folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    pictures: np.ndarray,
    grey_values: Mapping[str, dict[str, Any]],
    record: dict[str, Any],
) -> None:
    """Write every image as PNG, the grid, a tif stack for each prompt whose grey values are known, and images.json."""
    from pipelines.sheets import Row, save_png, sheet, to_picture

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, (prompt, row) in enumerate(zip(prompts, pictures, strict=True)):
        stem = file_stem(index, prompt)
        for seed, picture in zip(seeds, row, strict=True):
            save_png(to_picture(picture), folder / f"{stem}-seed{seed}.png")
        entry: dict[str, Any] = {"prompt": prompt, "stem": stem}
        if prompt in grey_values:
            entry["tint"] = _write_stack(folder / f"{stem}.tif", row, grey_values[prompt])
        elif grey_values:
            print(f"{stem}: no tif, as the model was not trained on this caption and its window is not known")
        files.append(entry)
    rows = [Row(prompt, list(row)) for prompt, row in zip(prompts, pictures, strict=True)]
    title = " + ".join(record["adapter"]) or record["base"]
    grid = sheet(rows, title=title, columns=[f"seed {seed}" for seed in seeds])
    save_png(grid, folder / "grid.png")
    text = json.dumps({**record, "images": files}, indent=1, ensure_ascii=False)
    (folder / "images.json").write_text(text + "\n", encoding="utf-8")


def _write_stack(path: Path, row: np.ndarray, grey: Mapping[str, Any]) -> float:
    """Write one prompt's images as a tif stack in the volume's grey values and return their largest colour tint.

    row: (seeds, H, W, 3) in [0, 1]. grey: window, dtype and um_per_px, as `combined_facts` gives them. The tint is the
    largest difference between channels, as a share of the window: an image that is grey has none.
    """
    import numpy as np

    from data.tif.writer import write_stack
    from data.windows import unit_to_native

    low, high = grey["window"]
    native = unit_to_native(row.mean(axis=-1), low=low, high=high, dtype=np.dtype(grey["dtype"]))
    um_per_px = grey["um_per_px"]
    write_stack(path, native, None if um_per_px is None else (um_per_px, um_per_px, um_per_px))
    return float((row.max(axis=-1) - row.min(axis=-1)).max())


def _selected(arguments: argparse.Namespace) -> State | None:
    """Return the state of a run that is drawn with: its result, a checkpoint, or the one that an evaluation chose."""
    if arguments.select == "last":
        return None
    selections = parse_selections(arguments.select)
    if len(arguments.adapter) != 1 or selections == "all" or len(selections) != 1:
        raise SettingsError(
            "--select",
            f"found {arguments.select} and {len(arguments.adapter)} adapters; expected best, last or a step of one.",
        )
    (run,) = name_runs(arguments.adapter)
    return run.state(selections[0])


def _weights(arguments: argparse.Namespace) -> tuple[float, ...]:
    """Return one strength for each adapter."""
    weights: list[float] = arguments.weight or [1.0] * len(arguments.adapter)
    if len(weights) != len(arguments.adapter):
        raise SettingsError(
            "--weight", f"found {len(weights)} strengths for {len(arguments.adapter)} adapters; expected one for each."
        )
    return tuple(weights)


def _output_folder(arguments: argparse.Namespace) -> Path:
    """Return a folder that holds nothing yet: the one asked for, or the first free one beside the adapter."""
    above: Path = arguments.adapter[0] if arguments.adapter else Path("runs")
    above = above if above.is_dir() or not arguments.adapter else above.parent
    return free_folder(arguments.output_dir, above, "generated")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--adapter", type=Path, nargs="+", default=[], help="run folders or files, combined; none: the base alone"
    )
    parser.add_argument("--prompts", type=Path, required=True, help="text file, one prompt in each line")
    parser.add_argument("--seeds", default="0-7", help="one image each for every prompt (default: 0-7)")
    parser.add_argument("--pretrained_model_name_or_path", help="base model (default: the adapter's own, or swatch)")
    parser.add_argument(
        "--weight", type=float, nargs="+", default=[], help="strength of each low-rank adapter (default: 1)"
    )
    parser.add_argument(
        "--select",
        default="last",
        help="checkpoint of the run: last, best (by an evaluation) or a step (default: last)",
    )
    parser.add_argument("--num_inference_steps", type=positive, default=30, help="denoising steps (default: 30)")
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="1 is none (default: 3)")
    parser.add_argument("--batch_size", type=positive, default=16, help="images drawn together (default: 16)")
    parser.add_argument("--resolution", type=positive, help="side in pixels (default: that of the run's training)")
    parser.add_argument("--output_dir", type=Path, help="empty folder (default: the adapter's generated-N)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "generate"))
