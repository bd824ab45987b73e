"""What a base model already makes of identifiers: their tokens, their nearest words, how strongly it reacts to them.

python pipelines/identify.py --identifier dtd_honeycombed sf_thickness sks w17h3r --class_noun texture

Rare words alone are examined, which are no ordinary words of the base's vocabulary.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data.errors import SettingsError
from data.exits import Parser, exit_code
from data.plain_text import plain_lines


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    from data.progress import Progress
    from pipelines.components import load_components
    from pipelines.devices import drawing_device, move
    from pipelines.identifiers import examine_all, num_predictions, rare, told

    components = load_components(arguments.pretrained_model_name_or_path)
    chosen, ordinary = rare(components.tokenizer, arguments.identifier)
    if not chosen and ordinary:
        raise SettingsError(
            "--identifier",
            f"found ordinary words only: {', '.join(ordinary)}. The base knows what they mean; expected a rare word, "
            "such as w17h3r.",
        )
    move(components, drawing_device())
    with Progress(total=num_predictions(len(chosen), arguments.num_noises), unit="prediction", desc="examine") as bar:
        reports = examine_all(
            components,
            chosen,
            arguments.class_noun,
            seed=arguments.seed,
            num_noises=arguments.num_noises,
            progress=bar.update,
        )
    print(plain_lines(told(reports, ordinary)))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--identifier", nargs="+", required=True, help="words that are to name a new concept")
    parser.add_argument("--class_noun", required=True, help="what the concept is one of, such as texture")
    parser.add_argument("--pretrained_model_name_or_path", default="swatch", help="base model (default: swatch)")
    parser.add_argument("--num_noises", type=int, default=2, help="more are slower and more exact (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise it is measured with (default: 0)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "identify"))
