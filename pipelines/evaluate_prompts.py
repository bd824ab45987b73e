"""Draw a prompt file with adapters, their checkpoints and their base; measure what was learnt, forgotten and copied.

    python pipelines/evaluate_prompts.py --adapter runs/sf_dry-lora --prompts configs/prompts/composites.yaml

writes one HTML page, its numbers as JSON, and every image as PNG. Images are kept by what they depend on: the same
command goes on where it was stopped, and another one draws only what is new. The cores of one machine are used as they
are; on several GPUs:

    accelerate launch --multi_gpu --num_processes 2 pipelines/evaluate_prompts.py …
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from data.errors import OutputError, SettingsError
from data.exits import Parser, exit_code, positive
from data.output_folders import refuse_unwritable
from pipelines.drawing_sizes import drawing_size
from pipelines.evaluation.prompt_sets import read_prompt_file
from pipelines.evaluation.states import name_runs, parse_selections
from pipelines.prompts import parse_seeds

TIERS = ("smoke", "standard", "full")


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    prompt_file = read_prompt_file(arguments.prompts)
    runs = name_runs(arguments.adapter)
    folder = _output_folder(arguments)
    command = f"python pipelines/evaluate_prompts.py {shlex.join(argv)}"
    wanted = parse_selections(arguments.checkpoints)
    size_px = drawing_size(arguments.adapter, arguments.resolution, arguments.pretrained_model_name_or_path)

    from pipelines.evaluation.whole import Request, evaluate

    page = evaluate(
        Request(
            prompt_file=prompt_file,
            runs=tuple((run, run.states(wanted)) for run in runs),
            all_checkpoints=wanted == "all",
            folder=folder,
            base=arguments.pretrained_model_name_or_path,
            weights=_numbers("--weights", arguments.weights),
            schedulers=arguments.scheduler,
            steps=tuple(int(number) for number in _numbers("--steps", arguments.steps, whole=True)),
            guidance=_numbers("--guidance", arguments.guidance),
            seeds=None if arguments.seeds is None else tuple(parse_seeds(arguments.seeds)),
            batch_size=arguments.batch_size,
            num_processes=arguments.num_processes,
            resolution=size_px,
            tier=arguments.tier,
            extractor=arguments.extractor,
            forgetting_limit=arguments.forgetting_limit,
            copying_limit=arguments.copying_limit,
            command=command,
        )
    )
    if page is not None:
        print(f"Look at {page.resolve()}")


def _output_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder asked for, or one named after the prompts; it is new or of an earlier evaluation."""
    name = f"evaluation-{re.sub(r'[^A-Za-z0-9_-]+', '_', arguments.prompts.stem)[:40]}"
    first: Path = arguments.adapter[0]
    if len(arguments.adapter) == 1:
        default = (first if first.is_dir() else first.parent) / name
    else:
        default = Path("runs") / "-".join([name, *(path.resolve().stem[:20] for path in arguments.adapter[:3])])
    folder: Path = arguments.output_dir or default
    refuse_unwritable(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "images").is_dir():
        raise OutputError(
            str(folder), "holds other things than an evaluation; nothing is written beside them. Choose another one."
        )
    return folder


def _numbers(option: str, text: str, *, whole: bool = False) -> tuple[float, ...]:
    """Return the numbers of a list such as "0.5,1", each once."""
    found, problems = [], []
    for part in (part.strip() for part in text.split(",")):
        pattern = r"[1-9]\d{0,4}" if whole else r"\d{1,4}(\.\d{1,6})?"
        if re.fullmatch(pattern, part, re.ASCII):
            found.append(float(part))
        else:
            problems.append(
                f"found {part!r}, expected {'whole numbers from 1' if whole else 'numbers from 0'}, as 1,2."
            )
    if problems:
        raise SettingsError(option, *problems)
    return tuple(dict.fromkeys(found))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, nargs="+", required=True, help="run folders of any method, or files")
    parser.add_argument(
        "--prompts", type=Path, required=True, help="text, one prompt in each line; or YAML with sets and rings"
    )
    parser.add_argument("--checkpoints", default="last", help="all, or a list of last, best and steps (default: last)")
    parser.add_argument("--weights", default="1", help="strengths of low-rank adapters (default: 1)")
    parser.add_argument("--scheduler", default="own", help="samplers such as own,ddim,euler (default: own, the base's)")
    parser.add_argument("--steps", default="30", help="numbers of denoising steps (default: 30)")
    parser.add_argument("--guidance", default="3", help="guidance scales, 1 is none (default: 3)")
    parser.add_argument("--seeds", help="one image each for every prompt (default: by tier)")
    parser.add_argument("--batch_size", type=positive, default=16, help="images drawn together (default: 16)")
    parser.add_argument(
        "--num_processes",
        type=positive,
        help="that draw beside each other on the CPU (default: as many as cores and memory have room for)",
    )
    parser.add_argument("--resolution", type=positive, help="side in pixels (default: that of the runs' training)")
    parser.add_argument("--pretrained_model_name_or_path", help="base model (default: the one the runs name)")
    parser.add_argument("--output_dir", type=Path, help="folder, kept and added to (default: evaluation-… in the run)")
    parser.add_argument("--tier", choices=TIERS, default="standard", help="how many images (default: standard)")
    parser.add_argument(
        "--extractor",
        default="texstat",
        help="of the features that images are compared by: texstat (default), clip, dinov2, or a folder or hub id of "
        "such a network; its weights must be on this machine",
    )
    parser.add_argument(
        "--forgetting_limit", type=float, help="noise drift that a checkpoint may not exceed (default: none)"
    )
    parser.add_argument(
        "--copying_limit", type=float, default=0.75, help="copy AUC that a checkpoint may not exceed (default: 0.75)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "evaluate_prompts"))
