"""An evaluation from its images to its result: every model measured, every run judged."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.exits import DISK_ERRORS
from data.progress import Progress
from pipelines.evaluation.copies import Copies, Searches, copying_scores, keep_beside
from pipelines.evaluation.cost import cost_of
from pipelines.evaluation.drawing import count_tokens_cut
from pipelines.evaluation.grid import Arm
from pipelines.evaluation.measuring import (
    Images,
    Learning,
    Subject,
    class_coverage_score,
    confusion,
    described,
    learning_scores,
    lying_between,
    profiles,
    what_is_learnt,
)
from pipelines.evaluation.opener import PipelineOpener, result_first
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.real_images import RealImages, open_real_images
from pipelines.evaluation.result import (
    Between,
    Confusion,
    Copied,
    Described,
    Drifted,
    HeldOutLoss,
    Measured,
    Model,
    Picture,
    Profile,
    Question,
    Result,
    Score,
    Tone,
    Verdict,
)
from pipelines.evaluation.rings import Rings
from pipelines.evaluation.states import CHOICE, AskedRun
from pipelines.evaluation.store import ImageStore
from pipelines.metrics.ceiling import round_trips
from pipelines.metrics.copying import Copying
from pipelines.metrics.extractors import Extractor, Remembering
from pipelines.metrics.forgetting import PriorDistance
from pipelines.metrics.learnt import Learnt
from pipelines.metrics.selection import Choice, Judged, Limits, choose, onset
from pipelines.spaces import LatentSpace
from pipelines.whole_files import write_text

RECOGNISABLE = 2  # the rung from which on a distance to training images means something
# of the noise prediction, in units of the base's own error
MUCH_DRIFT, LITTLE_DRIFT = 1.0, 0.1
NUM_COPIES = 10  # pairs shown of each run


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    num_real: real images of each caption. num_searched: training images that copies are searched in, at most. The
    others: of the noise-prediction drift.
    """

    num_real: int
    num_searched: int
    num_timesteps: int
    images_per_prompt: int


@dataclass
class _Found:
    """What has been measured so far."""

    measured: list[Measured] = field(default_factory=list)
    drifted: list[Drifted] = field(default_factory=list)
    copied: list[Copied] = field(default_factory=list)
    described: list[Described] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    between: list[Between] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    held_out_ncc: dict[str, tuple[float, ...]] = field(default_factory=dict)
    searched: dict[str, list[str]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)
    learnt: dict[tuple[int, int], Learnt] = field(default_factory=dict)  # by model and sampler


@dataclass(frozen=True, eq=False)
class _Context:
    """What the measures of all runs share."""

    plan: Plan
    store: ImageStore
    searches: Searches
    images: Images
    models: Mapping[Arm, int]
    opener: PipelineOpener
    effort: Effort
    limits: Limits
    seed: int
    progress: Progress
    through: Mapping[str, Callable[[np.ndarray], np.ndarray]]  # by base, pictures after its autoencoder


def judge(
    plan: Plan,
    store: ImageStore,
    *,
    title: str,
    extractor: Extractor,
    effort: Effort,
    limits: Limits,
    seed: int,
    device: Any,
    statements: Sequence[str],
    provenance: Mapping[str, str],
    progress: Progress,
) -> Result:
    """Return the result of an evaluation whose images are all in the store.

    extractor: by which images are compared, in colour, which slices have none of. limits: of what a checkpoint may
    forget (noise drift over all rings) and copy. progress: counts the images that are searched for, and those at which
    noise is predicted; its total grows as they are known. A run with two states or more gets a choice.json that says
    which one to use.
    """
    models = {arm: number for number, arm in enumerate(plan.arms)}
    images = Images(plan, store, Remembering(extractor))
    opener = PipelineOpener(plan.bases, plan.runs, device)
    context = _Context(
        plan,
        store,
        Searches(effort.num_searched),
        images,
        models,
        opener,
        effort,
        limits,
        seed,
        progress,
        {label: round_trips(LatentSpace(base.components.vae)) for label, base in plan.bases.items()},
    )
    found = _Found(statements=list(statements))
    shown = [_model(plan, arm) for arm in plan.arms]
    pictures = [Picture(models[cell.arm], cell.asked, cell.place, cell.seed, plan.key(cell)) for cell in plan.cells]
    real_models: dict[str, int] = {}
    _expect(progress, _num_looked_at(plan, effort))
    for run in plan.runs.values():
        real, missing = open_real_images(run, effort.num_real)
        if missing:
            found.statements.append(f"{run.label}: {missing}")
        _measure_run(run, real, context, found)
        source = json.dumps(run.manifest.get("source"), sort_keys=True)
        if real is not None and real.held_out:
            if source not in real_models:
                real_models[source] = len(shown)
                name = "real, held out" if len(real_models) == 1 else f"real, held out ({len(real_models)})"
                shown.append(Model(name, "", None, 1.0, "", is_base=False, is_real=True))
            pictures += _real_pictures(run, real, real_models[source], context)
    for words, labels in found.searched.items():
        found.statements.append(words if len(found.searched) == 1 else f"{', '.join(labels)}: {words}")
    found.statements += _write_choices(plan, store, found.choices)
    return Result(
        title=title,
        models=tuple(shown),
        prompts=_questions(plan),
        samplings=tuple(sampling.label for sampling in plan.axes.samplings),
        pictures=tuple(dict.fromkeys(pictures)),
        measured=tuple(found.measured),
        verdicts=tuple(found.verdicts),
        drifted=tuple(found.drifted),
        copied=tuple(found.copied),
        held_out_ncc=found.held_out_ncc,
        described=tuple(found.described),
        confusions=tuple(found.confusions),
        between=tuple(found.between),
        profiles=tuple(found.profiles),
        losses=tuple(
            HeldOutLoss(run.label, step, *run.visits(step), loss)
            for run in plan.runs.values()
            for step, loss in run.held_out_losses.items()
        ),
        cost=tuple(cost_of(run, _skills(run, shown, found.measured)) for run in plan.runs.values()),
        statements=tuple(found.statements),
        provenance=dict(provenance) | {"extractor": images.extractor.extractor_id},
    )


def _num_looked_at(plan: Plan, effort: Effort) -> int:
    """Return how many drawn images are searched for, or have noise predicted at them, by every model."""
    count, ring_cells = 0, Counter((cell.arm, cell.place, cell.asked) for cell in plan.cells)
    for (arm, _, asked), num_cells in ring_cells.items():
        question = plan.asked[asked]
        if question.prompt.ring is not None:
            count += min(num_cells, effort.images_per_prompt)
        elif arm.run in question.caption_of:
            count += num_cells
    return count


def _expect(progress: Progress, num_images: int) -> None:
    progress.total = (progress.total or 0) + num_images


def _skills(run: AskedRun, models: Sequence[Model], measured: Sequence[Measured]) -> dict[int, float]:
    """Return the skill of a run's states at full strength by step, under the first sampler."""
    return {
        step: value
        for each in measured
        if models[each.model].run == run.label and each.sampling == 0 and models[each.model].weight == 1
        if (step := models[each.model].step) is not None
        if "skill" in each.scores and (value := each.scores["skill"].value) is not None
    }


@dataclass(frozen=True, eq=False)
class _Reference:
    """What a run is held against.

    choosing: what its states are chosen by, where that is not what is reported; None where it is the same.
    """

    run: AskedRun
    real: RealImages | None
    learning: Learning | None
    choosing: Learning | None
    copies: Copies | None


def _reference(run: AskedRun, real: RealImages | None, context: _Context, found: _Found) -> _Reference:
    """Return the real images of a run, ready to be compared with; say what cannot be."""
    plan, extractor = context.plan, context.images.extractor
    if real is None:
        return _Reference(run, None, None, None, None)
    halves = real.halves() if _num_states(run, plan) > 1 else None
    chosen_by, reported = halves or (None, real)
    base = next(arm.base for arm in plan.arms if arm.run == run.label)
    through = context.through[base]
    learning = Learning.of(run.label, plan, reported, extractor, through)
    choosing = None if chosen_by is None else Learning.of(run.label, plan, chosen_by, extractor, through)
    if not learning.asked and real.captions:
        found.statements.append(
            f"{run.label}: none of its captions ({', '.join(real.captions)}) is asked, so what it learnt is not "
            "measured. Write {caption} into the prompt file."
        )
    copies = Copies.of(run.label, plan, real, context.searches, context.progress.update)
    if copies is None:
        found.statements.append(
            f"{run.label}: images are not of the size of its training images: copying is not measured."
        )
    else:
        _expect(context.progress, copies.num_unsearched)
        if copies.held_out_matches:
            found.held_out_ncc[run.label] = tuple(
                float(match.ncc) for matches in copies.held_out_matches.values() for match in matches
            )
        found.searched.setdefault(copies.search.words, []).append(run.label)
    return _Reference(run, reported, learning, choosing, copies)


def _num_states(run: AskedRun, plan: Plan) -> int:
    return len({arm.state for arm in plan.arms if arm.run == run.label})


def _measure_run(run: AskedRun, real: RealImages | None, context: _Context, found: _Found) -> None:
    """Measure every model of a run under every sampler, and judge the run by the first, at one strength."""
    plan = context.plan
    reference = _reference(run, real, context, found)
    arms = [arm for arm in plan.arms if arm.run == run.label]
    base = next(arm for arm in plan.arms if arm.is_base and arm.run == arms[0].base)
    judged: dict[int | None, Judged] = {}
    prior: list[tuple[int, PriorDistance]] = []
    for place in range(len(plan.axes.samplings)):
        rings = Rings(
            plan,
            context.images,
            place=place,
            base=base,
            num_timesteps=context.effort.num_timesteps,
            images_per_prompt=context.effort.images_per_prompt,
            seed=context.seed,
            progress=context.progress.update,
        )
        for arm in sorted(arms, key=result_first):
            assert arm.state is not None
            subject, step = Subject(arm, place), arm.state.step
            one = _measure_model(subject, reference, rings, context, found)
            if place == 0 and arm.weight == plan.axes.judged_weight:
                judged[step] = one
                if rings and step is not None:
                    prior.append((step, rings.prior(subject)))
    _conclude(run, judged, prior, context, found, is_apart=reference.choosing is not None)


def _measure_model(subject: Subject, reference: _Reference, rings: Rings, context: _Context, found: _Found) -> Judged:
    """Return what a choice among checkpoints needs of a model; its scores and panels go to what was found."""
    number, seed = context.models[subject.arm], context.seed
    learning, copies = reference.learning, reference.copies
    scores: dict[str, Score] = {}
    skill = forgetting = None
    if learning is not None:
        known = what_is_learnt(subject, context.images, learning, seed=seed)
        if known is not None:
            scores, skill = learning_scores(known, subject, context.images, learning, seed=seed), known.skill
            found.learnt[number, subject.place] = known
    if reference.choosing is not None:
        chosen_by = what_is_learnt(subject, context.images, reference.choosing, seed=seed)
        skill = None if chosen_by is None else chosen_by.skill
    if rings:
        drift = rings.drift(subject, context.opener, context.store.folder / "drift")
        concept = learning.concept if learning is not None and learning.asked else None
        scores |= rings.scores(subject, drift, concept, context.images)
        if learning is not None:
            scores |= class_coverage_score(subject, context.images, learning, rings.of_ring(0), seed=seed)
        forgetting = drift.estimate(tuple(drift.changes), seed=seed)
        found.drifted += rings.drifted(subject, number) if subject.place == 0 else []
    copied = None if copies is None else copies.measure(subject, context.images, seed=seed)
    if copies is not None:
        scores |= copying_scores(copied)
    found.measured.append(Measured(number, subject.place, scores))
    state = subject.arm.state
    assert state is not None
    if subject.place == 0 and subject.arm.weight == context.plan.axes.judged_weight and state.folder is None:
        _show_result(subject, reference, copied, context, found)
    return Judged(state.step or 0, skill, forgetting, None if copied is None else copied.auc)


def _show_result(
    subject: Subject, reference: _Reference, copied: Copying | None, context: _Context, found: _Found
) -> None:
    """Keep the nearest copies, the confusions, the profiles and the physical descriptors of a run's result."""
    number, real, learning = context.models[subject.arm], reference.real, reference.learning
    if copied is not None and reference.copies is not None:
        found.copied += reference.copies.worst(
            copied, subject, context.images, context.plan, number, NUM_COPIES, context.store
        )
    if learning is None or real is None:
        return
    placed, missing = lying_between(subject, context.images, context.plan.asked, real, number, seed=context.seed)
    found.between += placed
    found.statements += [f"{reference.run.label}: {each}" for each in missing]
    if (known := found.learnt.get((number, subject.place))) is not None:
        found.confusions.append(confusion(known, learning.sets.extractor_id, number))
    curves, left_out = profiles(subject, context.images, learning, real, number, seed=context.seed)
    found.profiles += curves
    if left_out:
        found.statements.append(f"{reference.run.label}: {left_out}")
    if real.are_slices:
        descriptors, why = described(subject, context.images, learning, number, seed=context.seed)
        found.described += descriptors
        if why:
            found.statements.append(f"{reference.run.label}: no physical descriptors: {why}")


def _conclude(
    run: AskedRun,
    judged: Mapping[int | None, Judged],
    prior: Sequence[tuple[int, PriorDistance]],
    context: _Context,
    found: _Found,
    *,
    is_apart: bool,
) -> None:
    """Choose a state of a run and say what it learnt, forgot and copied.

    is_apart: whether it is chosen by other held-out images than those of the report.
    """
    choice = choose(list(judged.values()), context.limits)
    caveats = []
    if len(judged) > 1:
        found.choices[run.label] = choice
        caveats.append(
            "chosen on one half of the held-out images, reported on the other"
            if is_apart
            else "chosen and reported on the same held-out images, which is a little optimistic"
        )
    else:
        reason = "the only state that was evaluated"
        choice = Choice(choice.step, f"{reason}; {choice.reason}" if choice.dropped else reason, None, choice.dropped)
    step = choice.step if choice.step is not None else max((s for s in judged if s is not None), default=None)
    arms = [arm for arm in context.plan.arms if arm.run == run.label and arm.weight == context.plan.axes.judged_weight]
    arm = next((arm for arm in arms if arm.state is not None and (arm.state.step or 0) == (step or 0)), arms[-1])
    number = context.models[arm]
    scores = next(m.scores for m in found.measured if (m.model, m.sampling) == (number, 0))
    caveats += sorted({s.words for s in scores.values() if s.words.startswith("no verdict")})
    known = found.learnt.get((number, 0))
    standing = None if known is None else known.standing
    forgot, forgot_tone = forgotten(scores)
    copied, copied_tone = copied_words(scores, None if standing is None else standing.rung)
    found.verdicts.append(
        Verdict(
            run.label,
            number,
            choice.step,
            choice.reason,
            None if standing is None else standing.rung,
            "What it learnt was not measured." if standing is None else standing.words,
            "" if standing is None else standing.advice,
            forgot,
            forgot_tone,
            copied,
            copied_tone,
            tuple(caveats),
            onset([(at, each.distance) for at, each in prior], prior[-1][1].limit) if prior else None,
            prior[-1][1].limit if prior else None,
        )
    )


def forgotten(scores: Mapping[str, Score]) -> tuple[str, Tone]:
    """Return what the rings of other prompts say: their pictures, and how far the noise predictions have moved.

    Few pictures decide little: that they are not told from the base's is good news only where the noise prediction,
    which needs no sampling, has hardly moved either.
    """
    prior, drift = scores.get("prior"), scores.get("drift")
    if prior is None or drift is None or prior.value is None or drift.value is None:
        return "What it forgot was not measured: the prompt file has no rings.", "open"
    unrelated = scores.get("drift_unrelated")
    others = [drift, *([unrelated] if unrelated is not None and unrelated.value is not None else [])]
    of_unrelated = f", {others[1].value:.2g} on unrelated ones" if len(others) > 1 else ""
    numbers = f"the noise prediction has changed by {drift.value:.2g} of the base's own error{of_unrelated}"
    limit = math.inf if prior.floor is None or prior.words.startswith("no verdict") else prior.floor
    if prior.low is not None and prior.low > limit:
        return f"It forgets: pictures of other prompts are no longer the base's; {numbers}.", "bad"
    if max(each.low or 0.0 for each in others) >= MUCH_DRIFT:
        return f"It forgets: {numbers}.", "bad"
    if max(each.high or 0.0 for each in others) < LITTLE_DRIFT:
        return f"Hardly anything: {numbers}.", "good"
    return f"Not decided by {prior.num_images} pictures of each other prompt: {numbers}.", "open"


def copied_words(scores: Mapping[str, Score], rung: int | None) -> tuple[str, Tone]:
    """Return what the search for copies says: near training images is no news where nothing is near the data."""
    score = scores.get("copy_auc")
    if score is None:
        return "Whether it copies was not measured.", "open"
    if score.value is None or score.low is None or score.high is None or score.words.startswith("no verdict"):
        return f"Cannot be judged: {score.words or 'not measured'}.", "open"
    if score.low > 0.5:
        return "Nearer to the training images than held-out real images are: copies.", "bad"
    if rung is None or rung < RECOGNISABLE:
        return "Cannot be judged: nothing drawn is near the data.", "open"
    if score.high < 0.5:
        return "No copies: farther from the training images than held-out real images are.", "good"
    return "No copies: as near to the training images as held-out real images may be.", "good"


def _model(plan: Plan, arm: Arm) -> Model:
    if arm.state is None:
        return Model(arm.label, arm.run, None, 1.0, "", is_base=True)
    run = plan.runs[arm.run]
    visits, epochs = run.visits(arm.state.step)
    return Model(
        arm.label, arm.run, arm.state.step, arm.weight, run.method, is_base=False, image_visits=visits, epochs=epochs
    )


def _questions(plan: Plan) -> tuple[Question, ...]:
    tokenizer = next(iter(plan.bases.values())).components.tokenizer
    cut = count_tokens_cut(tokenizer, [asked.text for asked in plan.asked])
    return tuple(
        Question(a.text, a.base_text, a.prompt.group, a.prompt.ring, a.prompt.negative, num_cut)
        for a, num_cut in zip(plan.asked, cut, strict=True)
    )


def _real_pictures(run: AskedRun, real: RealImages, model: int, context: _Context) -> list[Picture]:
    """Return held-out images beside the generated ones of their caption, one for each seed."""
    found = []
    for number, asked in enumerate(context.plan.asked):
        images = real.held_out.get(asked.text)
        if images is None or run.label not in asked.caption_of:
            continue
        seeds = asked.prompt.seeds or context.plan.axes.seeds
        spread = images[np.linspace(0, len(images) - 1, min(len(seeds), len(images))).round().astype(int)]
        keys = keep_beside(context.store, spread, "real")
        found += [Picture(model, number, 0, seed, key) for seed, key in zip(seeds, keys, strict=False)]
    return found


def _write_choices(plan: Plan, store: ImageStore, choices: Mapping[str, Choice]) -> list[str]:
    """Write what was chosen into the run's folders; return what could not be written, in words."""
    problems = []
    for label, choice in choices.items():
        path = plan.runs[label].path
        if path.is_dir() and choice.step is not None:
            content = choice.as_json() | {"evaluation": str(store.folder)}
            try:
                write_text(path / CHOICE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            except OSError as error:
                if error.errno in DISK_ERRORS:
                    raise
                problems.append(
                    f"{label}: {CHOICE} cannot be written into its folder ({error.strerror}): --select best will not "
                    f"know that step {choice.step} was chosen."
                )
    return problems
