"""What a base model already makes of identifiers: their tokens, their nearest words, how strongly it reacts to them.

python pipelines/identify.py --identifier dtd_honeycombed sf_thickness sks w17h3r --class_noun texture
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.exits import Parser, exit_code

if TYPE_CHECKING:
    from pipelines.identifiers import IdentifierReport


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    from data.progress import Progress
    from pipelines.components import load_components
    from pipelines.devices import drawing_device, move
    from pipelines.identifiers import examine_all

    components = load_components(arguments.pretrained_model_name_or_path)
    move(components, drawing_device())
    with Progress(unit="prediction", desc="examine") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        reports = examine_all(
            components,
            arguments.identifier,
            arguments.class_noun,
            seed=arguments.seed,
            num_noises=arguments.num_noises,
            progress=advance,
        )
    for report in reports:
        print("\n".join(report.lines()), end="\n\n")
    print("\n".join(table(reports)))
    print(f"\nAn ordinary word is the median of {', '.join(reports[0].words)} before {arguments.class_noun}.")


def table(reports: Sequence[IdentifierReport]) -> list[str]:
    """Return the lines of a table of the identifiers, from the weakest prior to the strongest."""
    ordered = sorted(reports, key=lambda report: report.relative_strength)
    rows = [("identifier", "prior", "", "tokens", "pieces")]
    rows += [(r.identifier, f"{r.relative_strength:.2f}", r.verdict, str(len(r.pieces)), r.spelling) for r in ordered]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--identifier", nargs="+", required=True, help="words that are to name a new concept")
    parser.add_argument("--class_noun", required=True, help="what the concept is one of, such as texture")
    parser.add_argument("--pretrained_model_name_or_path", default="swatch", help="base model (default: swatch)")
    parser.add_argument("--num_noises", type=int, default=4, help="more are slower and more exact (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise it is measured with (default: 0)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "identify"))
