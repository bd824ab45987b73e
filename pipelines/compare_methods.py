"""Train methods on the same images with the same steps and seeds, evaluate them alike, and put them side by side.

    python pipelines/compare_methods.py --study configs/studies/methods.yaml

writes one page, one table and its numbers. What is there is not done again: the same command goes on where it was
stopped, and a line added to the study adds its runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import SettingsError
from data.exits import Parser, exit_code, positive
from data.output_folders import refuse_unwritable
from pipelines.base_folders import read_shape
from pipelines.drawing_sizes import drawing_size
from pipelines.evaluation.prompt_sets import PromptFile, read_prompt_file
from pipelines.studies.study import Options, Study, read_study

if TYPE_CHECKING:
    from pipelines.studies.summary import Summary
    from pipelines.studies.training import TrainedRun


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    study = read_study(arguments.study)
    _refuse_several_sizes(study)
    prompts = read_prompt_file(study.prompts)
    folder = refuse_unwritable(arguments.output_dir or Path("runs") / f"study-{study.path.stem}")

    from data.progress import Progress
    from pipelines.studies.report import html, markdown
    from pipelines.studies.summary import Summary, judged, summarise
    from pipelines.studies.training import check_runs, train_all
    from pipelines.whole_files import write_text

    started = time.monotonic()
    check_runs(study.runs, folder / "runs", num_jobs=arguments.num_jobs)
    trained: list[TrainedRun] = []
    parts: list[Summary] = []
    pages: dict[str, str] = {}
    for data in study.data:
        runs = [run for run in study.runs if run.data == data]
        with Progress(total=len(runs), unit="run", desc=f"train on {data}") as bar:
            of_data = train_all(runs, folder / "runs", num_jobs=arguments.num_jobs, on_done=lambda _: bar.update())
        trained += of_data
        labels = [f"{each.run.method} · seed {each.run.seed}" for each in of_data]
        page = _evaluate(study, prompts, of_data, labels, folder, argv)
        result = json.loads((page.parent / "result.json").read_text(encoding="utf-8"))
        parts.append(summarise(data, of_data, labels, result))
        pages[data] = str(page.relative_to(folder))
        rows = tuple(row for part in parts for row in part.rows)
        claims = [claim for claim in study.claims if claim.data in pages]
        whole = Summary(rows, tuple(each for part in parts for each in part.differences), tuple(judged(claims, rows)))
        hours = sum(each.cost.cpu_seconds for each in trained) / 3600
        provenance = {
            "command": f"python pipelines/compare_methods.py {shlex.join(argv)}",
            "study": str(study.path),
            "prompts": f"{prompts.path} (sha256 {prompts.sha256[:16]})",
            "evaluation": f"{study.tier}, {study.num_inference_steps} denoising steps",
            "training seeds": ", ".join(map(str, study.seeds)),
            "training": f"{len(trained)} runs, {hours:.1f} h of one core in all, {arguments.num_jobs} at a time",
        }
        write_text(folder / "summary.json", json.dumps(whole.as_json(), indent=1, ensure_ascii=False) + "\n")
        write_text(folder / "table.md", markdown(whole))
        write_text(folder / "index.html", html(study, whole, pages, provenance))
    print((folder / "table.md").read_text(encoding="utf-8"))
    print(f"{(time.monotonic() - started) / 60:.0f} min this time. Look at {(folder / 'index.html').resolve()}")


def _refuse_several_sizes(study: Study) -> None:
    """Raise SettingsError for data whose runs are of several sizes: they are drawn and compared at one."""
    problems = []
    for data in study.data:
        sizes = {run.method: _size_px(run.options) for run in study.runs if run.data == data}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{method} {size}" for method, size in sizes.items())
            problems.append(f"{data}: the methods have several sizes, {told}. Put one resolution into common or data.")
    if problems:
        raise SettingsError(str(study.path), *problems)


def _size_px(options: Options) -> Any:
    base = options.get("pretrained_model_name_or_path", "swatch")
    return options.get("resolution") or read_shape(str(base), options.get("revision")).resolution


def _evaluate(
    study: Study,
    prompts: PromptFile,
    trained: Sequence[TrainedRun],
    labels: Sequence[str],
    folder: Path,
    argv: Sequence[str],
) -> Path:
    """Return the page of one data's evaluation: every method and seed under the same prompts."""
    from pipelines.evaluation.states import AskedRun
    from pipelines.evaluation.whole import Request, evaluate
    from pipelines.metrics.extractors import TEXSTAT

    runs = [AskedRun.read(each.folder, label) for each, label in zip(trained, labels, strict=True)]
    page = evaluate(
        Request(
            prompt_file=prompts,
            runs=tuple((run, (run.result,)) for run in runs),
            all_checkpoints=False,
            folder=folder / "evaluations" / trained[0].folder.name.partition("--")[0],
            base=None,
            weights=(1.0,),
            schedulers="own",
            steps=(study.num_inference_steps,),
            guidance=(3.0,),
            seeds=None if study.images_per_prompt is None else tuple(range(study.images_per_prompt)),
            batch_size=16,
            num_processes=None,
            resolution=drawing_size([each.folder for each in trained], None),
            tier=study.tier,
            extractor=TEXSTAT,
            forgetting_limit=None,
            copying_limit=0.75,
            command=f"python pipelines/compare_methods.py {shlex.join(argv)}",
        )
    )
    assert page is not None, "one process evaluates"
    return page


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--study", type=Path, required=True, help="YAML file with methods, data and seeds")
    parser.add_argument("--output_dir", type=Path, help="folder, kept and added to (default: runs/study-NAME)")
    parser.add_argument(
        "--num_jobs", type=positive, default=1, help="trainings beside each other, sharing the cores (default: 1)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:]), "compare_methods"))
