"""A whole evaluation: plan, draw on one or more processes, measure, write the page."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from data.errors import SettingsError, nearest
from data.plain_text import plain_lines
from data.progress import Progress
from pipelines.evaluation.bases import BaseModel, load_bases
from pipelines.evaluation.claims import claimed, judge_claims
from pipelines.evaluation.drawing import batches, count_tokens_cut, described, parse_schedulers
from pipelines.evaluation.grid import Asked, Sampling, asked_of
from pipelines.evaluation.judging import Effort, judge
from pipelines.evaluation.plan import Axes, Plan, make_plan
from pipelines.evaluation.prompt_sets import Prompt, PromptFile
from pipelines.evaluation.real_images import NUM_REAL, captions_of, num_captions_left_out
from pipelines.evaluation.states import AskedRun, State
from pipelines.evaluation.store import ImageStore
from pipelines.evaluation.workers import draw_batches
from pipelines.metrics.extractors import open_extractor
from pipelines.metrics.selection import Limits
from pipelines.report.page import write_page
from pipelines.whole_files import write_text

RESULT, PAGE = "result.json", "index.html"
_LONGEST_WAIT = timedelta(days=7)  # of a process for the others, which draw as many images
_LIBRARIES = ("filrouge", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")
_SEED = 0  # of resamples, splits and frozen noise


@dataclass(frozen=True)
class Tier:
    """How large an evaluation is. prompts_per_group: at most as many of each set or ring; None is all."""

    num_seeds: int
    prompts_per_group: int | None
    effort: Effort


TIERS = {
    "smoke": Tier(8, 1, Effort(num_real=32, num_searched=500, num_timesteps=4, images_per_prompt=4)),
    "standard": Tier(16, None, Effort(num_real=NUM_REAL, num_searched=2000, num_timesteps=8, images_per_prompt=16)),
    "full": Tier(100, None, Effort(num_real=512, num_searched=5000, num_timesteps=8, images_per_prompt=32)),
}


@dataclass(frozen=True)
class _Drawn:
    """What was drawn by all processes together."""

    num_images: int
    seconds: float
    num_processes: int


@dataclass(frozen=True)
class Request:
    """What a user asks for. runs: with their states. schedulers: as written. resolution: None is the base's own.

    extractor: a name of `open_extractor`. num_processes: that draw beside each other on the CPU; None is as many as
    cores and memory have room for.
    """

    prompt_file: PromptFile
    runs: tuple[tuple[AskedRun, tuple[State, ...]], ...]
    all_checkpoints: bool
    folder: Path
    base: str | None
    weights: tuple[float, ...]
    schedulers: str
    steps: tuple[int, ...]
    guidance: tuple[float, ...]
    seeds: tuple[int, ...] | None
    batch_size: int
    num_processes: int | None
    resolution: int | None
    tier: str
    extractor: str
    forgetting_limit: float | None
    copying_limit: float
    command: str


def evaluate(request: Request) -> Path | None:
    """Draw what is missing, measure, and return the page; None in all processes but the first.

    Raises SettingsError, DataError or OutputError for what cannot be evaluated, before anything is drawn.
    """
    schedulers = parse_schedulers(request.schedulers)
    process = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)])
    tier = TIERS[request.tier]
    prompts, statements = _chosen_prompts(request.prompt_file, tier)
    bases, base_of = load_bases([run for run, _ in request.runs], request.base, process.device)
    axes = Axes(
        request.weights,
        tuple(Sampling(*each) for each in product(schedulers, request.steps, request.guidance)),
        request.seeds or tuple(range(tier.num_seeds)),
        request.resolution or next(iter(bases.values())).components.resolution,
    )
    asked = _asked(prompts, request.runs)
    plan = make_plan(asked, axes, bases, [(run, base_of[run.label], states) for run, states in request.runs])
    _check_claims(request.prompt_file, plan)
    extractor = open_extractor(request.extractor, axes.size_px)  # before anything is drawn: it may not be at hand
    statements += _statements(request, plan, next(iter(bases.values())))
    store = ImageStore(request.folder)
    drawn = _draw(plan, store, request, process)
    process.wait_for_everyone()
    if not process.is_main_process:
        process.end_training()
        return None
    keyed = plan.keyed()
    store.write_index(
        {"key": key, "file": str(store.path(key).relative_to(store.folder)), **described(cell)}
        for key, cell in keyed.items()
    )
    with Progress(unit="image", desc="measure") as bar:
        result = judge(
            plan,
            store,
            title=" · ".join(run.label for run, _ in request.runs),
            extractor=extractor,
            effort=tier.effort,
            limits=Limits(request.forgetting_limit, request.copying_limit),
            seed=_SEED,
            device=process.device,
            statements=statements,
            provenance=_provenance(request, plan, drawn, process),
            progress=bar,
        )
        bar.total = bar.n  # what an earlier session has looked at was not looked at again
    result = replace(result, claims=tuple(judge_claims(request.prompt_file.claims, claimed(result))))
    write_text(store.folder / RESULT, result.as_json())
    page = write_page(result, store, store.folder / PAGE)
    process.end_training()
    lines = list(result.statements)
    for verdict in result.verdicts:
        rung = "" if verdict.rung is None else f" {verdict.rung} of 4."
        lines.append(
            f"{verdict.run}:{rung} {verdict.learnt} {verdict.forgot} {verdict.copied} Checkpoint: {verdict.reason}"
        )
        if verdict.advice:
            lines.append(f"  Next: {verdict.advice}")
    print(plain_lines(lines))
    return page


def _draw(plan: Plan, store: ImageStore, request: Request, process: Accelerator) -> _Drawn:
    """Draw this process's share of what is missing."""
    keyed = plan.keyed()
    missing = [(key, cell) for key, cell in keyed.items() if not store.has(key)]
    process.wait_for_everyone()  # no process draws before every one has seen what is missing
    share = batches(missing[process.process_index :: process.num_processes], request.batch_size)
    if process.is_main_process:
        print(f"{len(keyed)} images, of which {len(keyed) - len(missing)} are there: {store.folder}", flush=True)
    start = time.perf_counter()
    of = f" (share of process 1 of {process.num_processes})" if process.num_processes > 1 else ""
    count = sum(len(batch) for batch in share)
    with Progress(total=count, unit="image", desc=f"draw{of}", disable=not process.is_main_process) as bar:
        workers = draw_batches(
            share,
            plan,
            store,
            process.device,
            num_processes=request.num_processes if process.num_processes == 1 else 1,
            progress=bar.update,
        )
    return _Drawn(len(missing), time.perf_counter() - start, process.num_processes * workers)


def _chosen_prompts(file: PromptFile, tier: Tier) -> tuple[tuple[Prompt, ...], list[str]]:
    """Return the prompts of a tier, and what is to be said of the others."""
    statements = []
    if file.num_repeated:
        statements.append(f"{file.path}: {file.num_repeated} prompts stand there more than once and are asked once.")
    if not file.has_rings:
        statements.append(f"{file.path}: holds no rings of prompts, so forgetting is not measured.")
    if tier.prompts_per_group is None:
        return file.prompts, statements
    taken: dict[str, list[Prompt]] = {}
    for prompt in file.prompts:
        taken.setdefault(f"{prompt.ring} {prompt.group}", []).append(prompt)
    kept = {prompt for group in taken.values() for prompt in group[: tier.prompts_per_group]}
    if left_out := len(file.prompts) - len(kept):
        statements.append(f"{file.path}: {left_out} of {len(file.prompts)} prompts are left out by this tier.")
    return tuple(prompt for prompt in file.prompts if prompt in kept), statements


def _asked(prompts: Sequence[Prompt], runs: Sequence[tuple[AskedRun, tuple[State, ...]]]) -> tuple[Asked, ...]:
    base_prompts = {run.label: run.manifest.get("base_prompts", {}) for run, _ in runs}
    asked = asked_of(prompts, {run.label: captions_of(run) for run, _ in runs}, base_prompts)
    if not asked:
        raise SettingsError(
            "--prompts",
            "asks for nothing but {caption}, and none of the runs says what its captions are. Write prompts.",
        )
    return asked


def _check_claims(file: PromptFile, plan: Plan) -> None:
    known = [*plan.runs, *(arm.label for arm in plan.arms if not arm.is_base)]
    problems = [
        f"claims: {claim.text}: found the run {name!r}.{nearest(name, known)}"
        for claim in file.claims
        for name in claim.runs
        if name not in known
    ]
    if problems:
        raise SettingsError(str(file.path), *problems)


def _statements(request: Request, plan: Plan, base: BaseModel) -> list[str]:
    found = []
    for run, states in request.runs:
        if request.all_checkpoints and len(states) == 1:
            found.append(f"{run.label}: has no checkpoints, so its result alone is evaluated.")
        if not captions_of(run):
            found.append(f"{run.label}: nothing says its captions, so it is not asked {{caption}}.")
        if left_out := num_captions_left_out(run):
            found.append(f"{run.label}: {left_out} captions of one image each are not asked in place of {{caption}}.")
    texts = [asked.text for asked in plan.asked]
    cut = [count for count in count_tokens_cut(base.components.tokenizer, texts) if count]
    if cut:
        room = base.components.tokenizer.model_max_length
        found.append(
            f"{len(cut)} of {len(texts)} prompts are longer than the {room} tokens "
            f"that the text encoder reads: up to {max(cut)} tokens at their ends have no effect."
        )
    return found


def _provenance(request: Request, plan: Plan, drawn: _Drawn, process: Accelerator) -> dict[str, str]:
    device = torch.cuda.get_device_name() if process.device.type == "cuda" else f"{platform.machine()} CPU"
    facts = {
        "command": request.command,
        "prompts": f"{request.prompt_file.path} (sha256 {request.prompt_file.sha256[:16]})",
        **{
            f"base {label}".removesuffix(" base"): f"{base.components.name} (fingerprint {base.components.fingerprint})"
            for label, base in plan.bases.items()
        },
        **{f"{arm.label}": f"sha256 {plan.digests[arm][:16]}" for arm in plan.arms if not arm.is_base},
        "seeds": f"{', '.join(map(str, plan.axes.seeds))}; measures {_SEED}",
        "size": f"{plan.axes.size_px} px",
        "tier": request.tier,
        "device": f"{device}, {torch.get_num_threads()} threads",
        "versions": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
        + f", Python {platform.python_version()}",
    }
    if drawn.num_images:
        rate = f"{drawn.num_images / drawn.seconds:.2f} images/s by {drawn.num_processes} processes"
        facts["drawn in the last session"] = f"{drawn.num_images} images, {rate}"
    return facts
