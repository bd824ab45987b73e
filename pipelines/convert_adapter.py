"""Write an adapter in the other form: kohya's, which the web UIs read, or the one that diffusers loads.

python pipelines/convert_adapter.py --adapter runs/sf_dry-lora --to kohya
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import OutputError
from data.exits import Parser, exit_code
from data.output_folders import refuse_unwritable

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.components import Components

# largest difference between what the two files make of one input, as a share of the largest value: float32's rounding
LARGEST_DIFFERENCE = 1e-4


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    from pipelines.adapters import adapter_file, read_adapter_facts
    from pipelines.kohya import from_kohya, to_kohya
    from pipelines.runs import BaseNeed, predicting_as

    source = adapter_file(arguments.adapter)
    stem = source.stem.removesuffix("_kohya")
    target = arguments.output or source.with_name(f"{stem}_{arguments.to}.safetensors")
    if target.exists():
        raise OutputError(str(target), "exists; nothing is written over. Choose another --output.")
    refuse_unwritable(target.parent, "--output")
    facts = read_adapter_facts(source)
    components = predicting_as(BaseNeed.of(facts, arguments.pretrained_model_name_or_path).load(), facts)

    partial = target.with_name(f".{target.stem}.partial.safetensors")
    try:
        if arguments.to == "kohya":
            difference = _difference(components, source, to_kohya(source, partial))
        else:
            difference = _difference(components, from_kohya(source, partial, components), source)
        if not difference <= LARGEST_DIFFERENCE:
            raise OutputError(
                str(target),
                f"the two forms of the adapter differ by {difference:.1e} in what the model makes of one input; "
                f"expected at most {LARGEST_DIFFERENCE:.0e}. Nothing was kept.",
            )
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{target}: both forms were loaded into {components.name} and do the same (difference {difference:.1e})")


def _difference(components: Components, ours: Path, kohya: Path) -> float:
    """Return the largest difference between what the two forms make of one input, as a share of the largest value.

    One is loaded by the adapters' libraries, the other added to the weights by its definition.
    """
    from pipelines.adapters import load_adapter
    from pipelines.components import build_pipeline
    from pipelines.kohya import apply_kohya

    defined = _outputs(apply_kohya(components, kohya))
    load_adapter(build_pipeline(components), ours, base_fingerprint=components.fingerprint)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(_outputs(components), defined, strict=True))


def _outputs(components: Components) -> tuple[Tensor, Tensor]:
    """Return what the U-Net and the text encoder make of one input each."""
    import torch

    from data.randomness import derive
    from pipelines.conditioning import TextConditioner

    unet = components.unet
    generator = torch.Generator().manual_seed(derive(0, "convert_adapter"))
    side = components.resolution // components.vae_scale_factor
    latents = torch.randn((1, unet.config.in_channels, side, side), generator=generator)
    with torch.no_grad():
        states = TextConditioner(components.tokenizer, components.text_encoder).encode(["a texture"])
        return unet(latents, torch.tensor([500]), states).sample, states


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, required=True, help="run folder or file of an adapter")
    parser.add_argument("--to", choices=("kohya", "diffusers"), required=True, help="the form to write")
    parser.add_argument("--output", type=Path, help="file that does not exist yet (default: beside the adapter)")
    parser.add_argument("--pretrained_model_name_or_path", help="base model (default: the adapter's own, or swatch)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "convert_adapter"))
