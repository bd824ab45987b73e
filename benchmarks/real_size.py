"""What training costs at real size: every method beside diffusers' plain loop, on a base of Stable Diffusion's shape.

    python benchmarks/real_size.py [--methods lora full_unet ...]

Writes a base of random weights, and runs each method's script and the plain loop (`benchmarks/plain_loop.py`) in turn
on it, in float32 on two cores, for a few steps of one 256 px picture. Prints a table and which aims are missed, and
ends with 1 where one is. Logs, real_size.json and real_size.md stay in --output_dir. What else the machine does is in
the times, too: only what stands in one table can be compared. It takes 18 GiB of memory and 20 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.timed_runs import ROOT, TimedRun, timed_run

PLAIN = ROOT / "benchmarks" / "plain_loop.py"
SCRIPTS = {
    name: ROOT / "finetune" / f"{name}.py"
    for name in ("full_unet", "textual_inversion", "dreambooth", "lora", "lora_dreambooth", "pivotal_tuning")
}
RANK = 4
PROMPT = "a w17h3r texture"
CAPTIONS = ("a striped texture", "a dotted texture", "a woven texture", "a grey texture")
WHOLE = ["--no-use_ema"]
ADAPTER = ["--target", "attention", "--rank", str(RANK)]
WORD = ["--placeholder_token", "<dry-slice>", "--initializer_token", "texture"]
# the same work as the plain loop does
OPTIONS = {
    "full_unet": WHOLE,
    "textual_inversion": WORD,
    "dreambooth": [*WHOLE, "--instance_prompt", PROMPT],
    "lora": ADAPTER,
    "lora_dreambooth": [*ADAPTER, "--instance_prompt", PROMPT],
    "pivotal_tuning": [*ADAPTER, *WORD],
}
COMMON = [
    *("--mixed_precision", "no"),
    *("--optimizer", "adamw"),
    *("--lr_scheduler", "constant"),
    *("--lr_warmup_steps", "0"),
    *("--snr_gamma", "none"),
    *("--gradient_accumulation_steps", "1"),
    "--no-gradient_checkpointing",
    "--no-random_flip",
    "--overwrite_output_dir",
]
LEARNING_RATE = "1e-5"

LONG_RUN = 500  # steps, against which the closing is held
SMALLEST_SHARE = 0.9  # of a step in U-Net and optimizer
LARGEST_CLOSING = 0.05  # of a long run
COLUMNS = (
    "method",
    "loop",
    "step, s",
    "CPU s",
    "U-Net",
    "optimizer",
    "both",
    "text",
    "VAE",
    "clip",
    "before step 1, s",
    "closing, s",
    f"of {LONG_RUN} steps",
    "peak in training, GiB",
    "peak, GiB",
    "pictures into the VAE",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the table, and return 1 where an aim is missed."""
    arguments = _arguments(argv)
    folder: Path = arguments.output_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    base = random_base(folder, arguments.shape)
    pictures = write_pictures(folder / "pictures", arguments.num_pictures, arguments.resolution)
    runs: dict[str, dict[str, TimedRun]] = {}
    for method in arguments.methods:
        runs[method] = {}
        for loop in ("ours", "plain"):
            runs[method][loop] = run_method(
                method,
                loop,
                base=base,
                pictures=pictures,
                folder=folder,
                resolution=arguments.resolution,
                batch_size=1,
                num_steps=arguments.max_train_steps,
                num_threads=arguments.num_threads,
            )
            shutil.rmtree(folder / f"{method}-{loop}")  # a checkpoint of a whole U-Net is 10 GB
            print("| " + " | ".join(row(method, loop, runs[method][loop])) + " |", flush=True)
    misses = missed(runs)
    what = (
        f"`python benchmarks/real_size.py`: a base of the shape {arguments.shape}, float32, {arguments.num_threads} "
        f"threads, {arguments.resolution} px, one picture a step, {arguments.max_train_steps} steps, "
        f"{arguments.num_pictures} pictures of which our loop holds a fifth out. Times are medians of the steps after "
        "the first, shares of their sum."
    )
    lines = [what, "", *table(runs), "", *(misses or ["All aims are met."])]
    (folder / "real_size.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = {method: {loop: asdict(run) for loop, run in both.items()} for method, both in runs.items()}
    (folder / "real_size.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print("\n".join(["", *lines]))
    return 1 if misses else 0


def run_method(
    method: str,
    loop: str,
    *,
    base: str,
    pictures: Path,
    folder: Path,
    resolution: int,
    batch_size: int,
    num_steps: int,
    num_threads: int,
    cache: Path | None = None,
) -> TimedRun:
    """Train a method for a few steps with our script or the plain loop, on the same pictures, and return what it took.

    loop: "ours" or "plain". cache: where our script keeps what it has encoded; None: an empty folder.
    """
    run = folder / f"{method}-{loop}"
    shutil.rmtree(run, ignore_errors=True)
    common = ["--output_dir", str(run), "--resolution", str(resolution), "--train_batch_size", str(batch_size)]
    common += ["--max_train_steps", str(num_steps), "--learning_rate", LEARNING_RATE]
    if loop == "ours":
        script = SCRIPTS[method]
        arguments = ["--pretrained_model_name_or_path", base, "--train_data_dir", str(pictures)]
        arguments += [*COMMON, *OPTIONS[method], "--num_threads", str(num_threads)]
    else:
        script = PLAIN
        arguments = ["--method", method, "--base", str(ROOT / "pipelines" / "swatch") if base == "swatch" else base]
        arguments += ["--images", str(pictures), "--rank", str(RANK)]
        arguments += ["--prompt", PROMPT] if "dreambooth" in method else []
    emptied = cache is None
    cache = folder / "cache" if cache is None else cache
    if emptied:
        shutil.rmtree(cache, ignore_errors=True)
    return timed_run(
        script,
        [*arguments, *common],
        log=folder / f"{method}-{loop}.log",
        num_threads=num_threads,
        environment={"FILROUGE_CACHE": str(cache)},
    )


def random_base(folder: Path, shape: str) -> str:
    """Return the folder of a base of random weights, written where it is not there yet."""
    base = folder / f"base-{shape}"
    if not base.exists():
        # in a process of its own: the memory of this one counts as the least that a child has had
        unfinished = base.with_suffix(".unfinished")
        command = [sys.executable, "-m", "benchmarks.random_base", str(unfinished), "--shape", shape]
        subprocess.run(command, cwd=ROOT, check=True)
        unfinished.rename(base)
    return str(base)


def write_pictures(folder: Path, count: int, size_px: int) -> Path:
    """Write grey clouds with captions, NAME.png and NAME.txt, and return their folder; the same for the same count."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(CAPTIONS[number % len(CAPTIONS)], encoding="utf-8")
    return folder


def table(runs: Mapping[str, Mapping[str, TimedRun]]) -> list[str]:
    """Return the table in lines of markdown, a row for each run."""
    rows = [row(method, loop, run) for method, both in runs.items() for loop, run in both.items()]
    return ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]


def row(method: str, loop: str, run: TimedRun) -> list[str]:
    """Return the cells of a run, in the order of COLUMNS."""
    return [
        method,
        loop,
        f"{run.step_seconds:.3f}",
        f"{run.step_cpu_seconds:.3f}",
        *(f"{100 * share:.1f} %" for share in (run.share("unet"), run.share("optimizer"), computing_share(run))),
        *(f"{100 * run.share(part):.1f} %" for part in ("text_encoder", "vae", "clip")),
        f"{run.before.seconds:.1f}",
        f"{run.closing.seconds:.1f}",
        f"{100 * closing_share(run):.1f} %",
        f"{run.training_peak_mib / 1024:.2f}",
        f"{run.closing.peak_mib / 1024:.2f}",
        str(run.items("vae")),
    ]


def computing_share(run: TimedRun) -> float:
    """Return the share of a step that is spent in the U-Net, there and back, and in the optimizer."""
    return run.share("unet") + run.share("optimizer")


def closing_share(run: TimedRun) -> float:
    """Return what comes after the last step as a share of the time of a long run's steps."""
    return run.closing.seconds / (LONG_RUN * run.step_seconds)


def missed(runs: Mapping[str, Mapping[str, TimedRun]]) -> list[str]:
    """Return a line for each aim that our loop misses; none where all are met."""
    lines = []
    for method, both in runs.items():
        ours, plain = both["ours"], both["plain"]
        if computing_share(ours) < SMALLEST_SHARE:
            lines.append(
                f"{method}: {100 * computing_share(ours):.1f} % of a step in U-Net and optimizer, the aim is "
                f"{100 * SMALLEST_SHARE:.0f} % or more."
            )
        if closing_share(ours) > LARGEST_CLOSING:
            lines.append(
                f"{method}: closing takes {100 * closing_share(ours):.1f} % of {LONG_RUN} steps, the aim is "
                f"{100 * LARGEST_CLOSING:.0f} % or less."
            )
        if ours.closing.peak_mib > plain.closing.peak_mib:
            lines.append(
                f"{method}: peak {ours.closing.peak_mib / 1024:.2f} GiB, the aim is the plain loop's "
                f"{plain.closing.peak_mib / 1024:.2f} GiB or less."
            )
        if ours.closing.peak_mib > ours.training_peak_mib:
            lines.append(
                f"{method}: closing holds {(ours.closing.peak_mib - ours.training_peak_mib) / 1024:.2f} GiB more than "
                "training, the aim is none."
            )
    return lines


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--shape", default="sd15", help="of the base, as benchmarks/random_base.py knows it")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--max_train_steps", type=int, default=6)
    parser.add_argument("--num_pictures", type=int, default=80)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/real_size"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
