"""Add adapters into the weights of their base and write the model, a folder that diffusers loads by itself.

python pipelines/merge_adapters.py --adapter runs/sf_dry-lora runs/dtd-lora --weights 1 0.5 --output_dir merged
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import OutputError
from data.exits import Parser, exit_code
from data.output_folders import refuse_unwritable
from data.plain_text import plain_lines

if TYPE_CHECKING:
    import numpy as np
    from diffusers import StableDiffusionPipeline

    from pipelines.components import Components

# 8-bit grey levels by which an image of the merged model may differ from one of the adapters beside their base
LARGEST_DIFFERENCE = 2
_STEPS, _GUIDANCE_SCALE, _SEED = 10, 3.0, 0


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    folder = _empty_folder(arguments.output_dir)
    from pipelines.adapters import read_adapter_facts
    from pipelines.components import build_pipeline, load_components
    from pipelines.embeddings import EMBEDDINGS_NAME, load_embeddings
    from pipelines.merging import combine, merge
    from pipelines.runs import BaseNeed, combined_facts, predicting_as

    adapters = list(zip(arguments.adapter, arguments.weights, strict=True))
    asked = arguments.pretrained_model_name_or_path
    said = [read_adapter_facts(path) for path in arguments.adapter]
    facts, notes = combined_facts(arguments.adapter, said, base=asked)
    need = BaseNeed.of(facts, asked)
    facts |= {"revision": need.revision, "variant": need.variant}
    components = predicting_as(need.load(), facts)
    for path in arguments.adapter:
        if (path / EMBEDDINGS_NAME).exists():  # a new word goes into the tokenizer and the text encoder themselves
            load_embeddings(build_pipeline(components), path / EMBEDDINGS_NAME)
    prompt = arguments.prompt
    if prompt is None:
        prompt = next(iter(facts["grey_values"]), "a texture")

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        merge(components, adapters).save_pretrained(partial, safe_serialization=True)
        _write_origin(partial, components, adapters, facts)
        expected = _picture(combine(components, adapters), prompt)
        difference = _difference(_picture(build_pipeline(load_components(str(partial))), prompt), expected)
        if not difference < LARGEST_DIFFERENCE:
            raise OutputError(
                str(folder),
                f"the merged model, reloaded, draws an image that differs by {difference:.1f} grey levels of 255 from "
                f"the one drawn with the adapters beside their base; expected less than {LARGEST_DIFFERENCE}. "
                "Nothing was kept.",
            )
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(plain_lines(notes), end="\n" if notes else "")
    print(f"The merged model was reloaded and draws the same image (difference {difference:.2f} of 255). To use it:\n")
    print("    from diffusers import StableDiffusionPipeline")
    print(f"    pipe = StableDiffusionPipeline.from_pretrained({str(folder)!r}, safety_checker=None)")
    print(f"    image = pipe({prompt!r}).images[0]\n")


def _write_origin(
    folder: Path, components: Components, adapters: Sequence[tuple[Path, float]], facts: Mapping[str, Any]
) -> None:
    """Write what a merged model was made from, and the facts of its adapters, whose headers it lacks."""
    from pipelines.runs import FACTS_NAME
    from pipelines.whole_files import write_json

    base = {"base": components.name, "base_fingerprint": components.fingerprint}
    merged = [{"adapter": str(path), "weight": weight} for path, weight in adapters]
    write_json({**base, "adapters": merged}, folder / "merged.json")
    write_json({**facts, **base}, folder / FACTS_NAME)


def _picture(pipeline: StableDiffusionPipeline, prompt: str) -> np.ndarray:
    from pipelines.sampling import sample

    return sample(
        pipeline, [prompt], [_SEED], num_inference_steps=_STEPS, guidance_scale=_GUIDANCE_SCALE, batch_size=1
    )[0]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference between two images in [0, 1], in 8-bit grey levels."""
    return float(abs(a - b).max()) * 255


def _empty_folder(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(str(folder), "exists and is not empty; nothing is written over. Choose another one.")
    refuse_unwritable(folder.absolute().parent)  # the model takes its name there once it has proved right
    return folder


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, nargs="+", required=True, help="run folders or files of adapters")
    parser.add_argument("--weights", type=float, nargs="+", help="strength of each adapter (default: 1 each)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that does not exist yet or is empty")
    parser.add_argument("--pretrained_model_name_or_path", help="base model (default: the adapters' own, or swatch)")
    parser.add_argument("--prompt", help="of the image that is compared (default: a caption of the adapters)")
    arguments = parser.parse_args(argv)
    if arguments.weights is None:
        arguments.weights = [1.0] * len(arguments.adapter)
    if len(arguments.weights) != len(arguments.adapter):
        parser.error(f"found {len(arguments.weights)} weights for {len(arguments.adapter)} adapters, expected as many")
    return arguments


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "merge_adapters"))
