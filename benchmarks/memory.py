"""What training a Stable Diffusion takes of memory: computed for graphics cards, and held against what a CPU takes.

    python benchmarks/memory.py                                          # the table of docs/memory.md, computed
    python benchmarks/memory.py --measure lora -- --concept sf_dry       # computed and measured, for any options

No weights are needed for the table. For the measurement the run makes two steps and its checkpoint; what follows a run
(pictures, the check of the export) is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from random_base import write_random_base

from data.freed_memory import keep_freed_memory
from finetune.core.cli import CONFIG_DIR, load_settings
from finetune.core.cost import peak_memory_mib
from finetune.core.memory import forecast
from finetune.core.method import Method
from finetune.core.run import run

SETTINGS = {
    "full_unet": "FullUnetSettings",
    "dreambooth": "DreamboothSettings",
    "lora": "LoraSettings",
    "lora_dreambooth": "LoraDreamboothSettings",
    "textual_inversion": "TextualInversionSettings",
    "pivotal_tuning": "PivotalTuningSettings",
    "ddpm": "DdpmSettings",
}


RESOLUTIONS_PX = {"sd15": 512, "sd21": 768}
WORD = ["--placeholder_token", "<dry>", "--initializer_token", "slice"]
ROWS: dict[str, tuple[str, list[str]]] = {
    "textual_inversion": ("textual_inversion", WORD),
    "lora": ("lora", []),
    "lora, --load_in_4bit": ("lora", ["--load_in_4bit"]),
    "lora, text encoder too": ("lora", ["--train_text_encoder"]),
    "lora, every layer, DoRA": ("lora", ["--target", "all", "--use_dora"]),
    "lora_dreambooth, class kept": ("lora_dreambooth", ["--with_prior_preservation"]),
    "pivotal_tuning": ("pivotal_tuning", WORD),
    "full_unet": ("full_unet", []),
    "dreambooth, class kept": ("dreambooth", ["--with_prior_preservation"]),
}


def main() -> None:
    arguments = _arguments()
    if arguments.measure:
        print(json.dumps(_both(arguments.measure, arguments.options)))
    elif arguments.forecast:
        print(json.dumps(_forecast(arguments.forecast, arguments.options)))
    elif arguments.alone:
        print(json.dumps(_measured(arguments.alone, arguments.options)))
    else:
        _table(arguments.shapes, arguments.rows)


def _settings(method: str, options: list[str]) -> Any:
    settings_class = getattr(import_module("finetune.core.settings"), SETTINGS[method])
    return load_settings(settings_class, method, options, CONFIG_DIR)


def _forecast(method: str, options: list[str]) -> dict[str, Any]:
    settings = _settings(method, [*options, "--dry_run"])
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    expected = forecast(import_module(f"finetune.{method}").build, settings, accelerator)[1]
    return {"phase": expected.phase, "peak_mib": expected.peak_bytes / 2**20, "parts": expected.parts}


def _measured(method: str, options: list[str]) -> dict[str, float]:
    """Run two steps of a method, and return the peak of this process before anything is exported."""
    keep_freed_memory()  # as scripts do
    script = import_module(f"finetune.{method}")
    peak = []

    def build(settings: Any, accelerator: Accelerator) -> Method:
        method: Method = script.build(settings, accelerator)

        def export(_: Path) -> list[str]:
            peak.append(peak_memory_mib())
            return []

        return replace(method, export=export, preview=None, validate=None)

    with tempfile.TemporaryDirectory() as folder:
        two_steps = ["--max_train_steps", "2", "--lr_warmup_steps", "0", "--lr_scheduler", "constant"]
        run(_settings(method, [*options, *two_steps, "--output_dir", f"{folder}/run"]), build, default_dir="unused")
    return {"peak_mib": peak[0]}


def _both(method: str, options: list[str]) -> dict[str, Any]:
    """Return forecast and measurement, each made in a process of its own."""
    table = {}
    for what in ("--alone", "--forecast"):
        command = [sys.executable, __file__, what, method, "--", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        table[what] = json.loads(done.stdout.splitlines()[-1])
    computed, measured = table["--forecast"], table["--alone"]
    return {"ratio": computed["peak_mib"] / measured["peak_mib"], "measured_mib": measured["peak_mib"], **computed}


def _table(shapes: list[str], rows: list[str]) -> None:
    """Print the computed peaks of every method on bases of the published shapes, as a table in Markdown."""
    columns = {name: ["--config", f"configs/memory/{name}.yaml"] for name in ("8gb", "12gb", "24gb")}
    with tempfile.TemporaryDirectory() as folder:
        images = _images(Path(folder) / "images")
        for shape in shapes:
            resolution = RESOLUTIONS_PX[shape]
            base = write_random_base(Path(folder) / shape, shape, weights=False)
            common = ["--train_data_dir", str(images), "--pretrained_model_name_or_path", str(base)]
            common += ["--resolution", str(resolution)]
            print(f"\n{shape}, {resolution} px\n\n| method | its recipe | {' | '.join(columns)} |\n|---|{'---|' * 4}")
            for name in rows:
                method, options = ROWS[name]
                cells = []
                for config in ([], *columns.values()):
                    forecast = _forecast(method, [*common, *config, *options])
                    on_card = sum(forecast["parts"].values()) - forecast["parts"]["interpreter, libraries and images"]
                    cells.append(f"{on_card / 2**30:.1f}")
                print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _images(folder: Path) -> Path:
    """Write a folder of a few pictures, as large as the runs of the table take them."""
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (768, 768), (20 * number,) * 3).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a dry slice")
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=RESOLUTIONS_PX, default=list(RESOLUTIONS_PX))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--measure", choices=SETTINGS, help="hold the forecast of a method against a run of two steps")
    parser.add_argument("--alone", choices=SETTINGS, help=argparse.SUPPRESS)
    parser.add_argument("--forecast", choices=SETTINGS, help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", help="after --, options of the method's script")
    return parser.parse_args()


if __name__ == "__main__":
    main()
