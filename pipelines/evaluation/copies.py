"""How near a model's images are to the training images of its run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipelines.evaluation.measuring import Images, Subject
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.real_images import RealImages
from pipelines.evaluation.result import Copied, Score
from pipelines.evaluation.store import ImageStore
from pipelines.metrics.copying import Copying, Match, TrainingImages, calibrated, comparer_id


@dataclass(frozen=True, eq=False)
class Search:
    """Training images, ready to be searched, their keys in the store, and the held-out images that calibrate it."""

    index: TrainingImages
    training_keys: tuple[str, ...]
    held_out: np.ndarray

    @cached_property
    def held_out_matches(self) -> list[Match]:
        """The training image most like each held-out image: the same for all models of these training images."""
        return self.index.nearest(self.held_out) if len(self.held_out) else []


class Searches:
    """The search of each set of real images, made once for all runs that learnt from them."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._known: dict[tuple[tuple[str, ...], str], Search] = {}

    def of(self, real: RealImages) -> Search:
        """Return the search of real images; the training images are kept in the store, to be shown."""
        training = np.concatenate(list(real.training.values()))
        held_out = np.concatenate([*real.held_out.values(), np.empty((0, *training.shape[1:]), np.float32)])
        keys = tuple(keep_beside(self._store, training, "real"))
        name = keys, hashlib.sha256(held_out.tobytes()).hexdigest()
        if name not in self._known:
            self._known[name] = Search(TrainingImages(training), keys, held_out)
        return self._known[name]


@dataclass(frozen=True, eq=False)
class Copies:
    """The search of a run's training images. asked: the captions that were asked, with their place in the plan."""

    search: Search
    asked: Mapping[str, int]

    @staticmethod
    def of(run: str, plan: Plan, real: RealImages, searches: Searches) -> Copies | None:
        """Return it; None where the sizes differ, so that nothing can be compared pixel by pixel."""
        if next(iter(real.training.values())).shape[1:3] != (plan.axes.size_px,) * 2:
            return None
        asked = {
            question.text: place
            for place, question in reversed(list(enumerate(plan.asked)))
            if run in question.caption_of
        }
        return Copies(searches.of(real), asked)

    def measure(self, subject: Subject, images: Images, *, seed: int) -> Copying | None:
        """Return how near a model's images of its captions are to the training images; None where it was asked none."""
        drawn = [images.pictures(subject, place) for place in self.asked.values()]
        if not sum(map(len, drawn)):
            return None
        return calibrated(
            self.search.index.nearest(np.concatenate(drawn)),
            self.search.held_out_matches,
            num_training=len(self.search.index),
            comparer_id=comparer_id(self.search.index),
            seed=seed,
        )

    def worst(
        self,
        found: Copying,
        subject: Subject,
        images: Images,
        plan: Plan,
        model: int,
        limit: int,
        store: ImageStore,
    ) -> list[Copied]:
        """Return the generated images most like a training image, the most similar first.

        Their differences from it are put into the store.
        """
        cells = [
            cell for place in self.asked.values() for cell in images.cells.get((subject.arm, subject.place, place), [])
        ]
        worst = found.worst[:limit]
        drawn = store.read_all(plan.key(cells[match.image]) for match in worst).astype(np.float32) / 255
        differences = np.stack(
            [self.search.index.difference(picture, match) for picture, match in zip(drawn, worst, strict=True)]
        )
        return [
            Copied(
                model,
                cells[match.image].asked,
                cells[match.image].seed,
                plan.key(cells[match.image]),
                self.search.training_keys[match.training],
                difference,
                float(match.ncc),
                match.pose,
                match.shift_px,
                match.image in found.flagged,
            )
            for match, difference in zip(worst, keep_beside(store, differences, "difference"), strict=True)
        ]


def copying_scores(found: Copying | None) -> dict[str, Score]:
    """Return the scores of copying."""
    if found is None:
        return {"copy_auc": Score.none("the run was not asked any of its captions")}
    if found.auc is None or found.flagged_share is None:
        return {"copy_auc": Score.none(found.verdict)}
    return {
        "copy_auc": Score.of(found.auc, found.comparer_id, found.verdict, 0.5),
        "flagged": Score.of(found.flagged_share, found.comparer_id, "", 0.05),
    }


def keep_beside(store: ImageStore, pictures: np.ndarray, what: str) -> list[str]:
    """Keep other images, float32 (N, H, W, 3) in [0, 1], beside the drawn ones, and return their keys."""
    keys = []
    for picture in np.rint(pictures * 255).astype(np.uint8):
        key = hashlib.sha256(f"{what} {picture.shape}".encode() + picture.tobytes()).hexdigest()[:40]
        if not store.has(key):
            store.keep(key, picture, {"model": what})
        keys.append(key)
    return keys
