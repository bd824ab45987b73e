"""Every fine-tuning method on the embedded base and sf_dry: time, memory, size of the result, and what was learnt.

    python benchmarks/methods.py [--methods lora dreambooth ...]

Runs each script with the recipe of its base (configs/bases/), judges the result with pipelines/compare.py, and prints
one row of a table for each. Runs, logs and methods.json stay in --output_dir.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NINE_IMAGES = ["--images_per_class", "3", "--instance_prompt", "a w17h3r slice"]
WORD = ["--placeholder_token", "<dry-slice>"]
OPTIONS: dict[str, list[str]] = {
    "lora": [],
    "full_unet": [],
    "dreambooth": [],
    "lora_dreambooth": [],
    "lora_dreambooth, nine images": NINE_IMAGES,
    "textual_inversion": WORD,
    "pivotal_tuning": WORD,
}
RESULTS = ("pytorch_lora_weights.safetensors", "learned_embeds.safetensors")
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def main() -> None:
    arguments = _arguments()
    folder: Path = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "methods.json"
    table = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    for name in arguments.methods:
        run = folder / name.replace(", ", "-").replace(" ", "_")
        script = name.partition(",")[0]
        command = [f"finetune/{script}.py", "--concept", "sf_dry", *OPTIONS[name], "--output_dir", str(run)]
        log = folder / f"{run.name}.log"
        seconds, peak_mib = _timed([*command, "--overwrite_output_dir"], log)
        _timed(["pipelines/compare.py", "--adapter", str(run)], folder / f"{run.name}-compare.log")
        scores = json.loads((run / "compare" / "scores.json").read_text(encoding="utf-8"))
        trained = re.search(r"trained +([\d,]+) parameters", log.read_text(encoding="utf-8"))
        assert trained, "a run prints its plan"
        table[name] = {
            "trained": int(trained[1].replace(",", "")),
            "result_mib": _result_bytes(run) / 2**20,
            "seconds": seconds,
            "peak_mib": peak_mib,
            "rung": scores["verdict"]["rung"],
            "times": scores["times_drawn"]["value"],
            "skill": None if scores["skill"] is None else scores["skill"]["value"],
            "right_caption": scores["right_caption"]["value"],
            "noise drift": scores["forgetting"]["drift"]["value"],
            "verdict": scores["verdict"]["words"],
        }
        record.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        row = table[name]
        print(
            f"| {name} | {row['trained']:,} | {row['result_mib']:.2f} MiB | {seconds / 60:.1f} min | "
            f"{peak_mib / 1024:.1f} GiB | {row['rung']} | {row['times']:.2f} | {row['skill'] or float('nan'):.2f} | "
            f"{row['right_caption']:.0%} | {row['noise drift']:.2f} |",
            flush=True,
        )


def _timed(arguments: list[str], log: Path) -> tuple[float, float]:
    """Run a script and return its wall time in seconds and its largest memory in MiB."""
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}; see {log}")
    return time.monotonic() - started, usage.ru_maxrss / 1024


def _result_bytes(run: Path) -> int:
    files = [run / name for name in RESULTS if (run / name).exists()]
    files = files or [path for part in PARTS for path in (run / part).rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/methods"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
