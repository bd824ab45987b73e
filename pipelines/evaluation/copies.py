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
from pipelines.metrics.copying import Copying, TrainingImages, copying


@dataclass(frozen=True, eq=False)
class Copies:
    """The training images of a run, ready to be searched, and the held-out ones that calibrate it, by caption."""

    index: TrainingImages
    training_keys: tuple[str, ...]
    held_out: np.ndarray
    asked: Mapping[str, int]

    @staticmethod
    def of(run: str, plan: Plan, real: RealImages, store: ImageStore) -> Copies | None:
        """Return it; None where the sizes differ, so that nothing can be compared pixel by pixel."""
        training = np.concatenate(list(real.training.values()))
        if training.shape[1:3] != (plan.axes.size_px,) * 2:
            return None
        held_out = np.concatenate([*real.held_out.values(), np.empty((0, *training.shape[1:]), np.float32)])
        asked = {
            question.text: place
            for place, question in reversed(list(enumerate(plan.asked)))
            if run in question.caption_of
        }
        return Copies(TrainingImages(training), tuple(keep_beside(store, training, "real")), held_out, asked)

    @cached_property
    def held_out_matches(self) -> list[float]:
        """The greatest correlation of every held-out image with a training image."""
        return [match.ncc for match in self.index.nearest(self.held_out)] if len(self.held_out) else []

    def measure(self, subject: Subject, images: Images, *, seed: int) -> Copying | None:
        """Return how near a model's images of its captions are to the training images; None where it was asked none."""
        drawn = [images.pictures(subject, place) for place in self.asked.values()]
        if not sum(map(len, drawn)):
            return None
        return copying(np.concatenate(drawn), self.index, self.held_out, seed=seed)

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
        drawn = np.concatenate([images.pictures(subject, place) for place in self.asked.values()])
        worst = found.worst[:limit]
        differences = np.stack([self.index.difference(drawn[match.image], match) for match in worst])
        cells = [
            cell for place in self.asked.values() for cell in images.cells.get((subject.arm, subject.place, place), [])
        ]
        return [
            Copied(
                model,
                cells[match.image].asked,
                cells[match.image].seed,
                plan.key(cells[match.image]),
                self.training_keys[match.training],
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
