"""How near a model's images are to the training images of its run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from pipelines.evaluation.measuring import Images, Subject
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.real_images import RealImages
from pipelines.evaluation.result import Copied, Score
from pipelines.evaluation.store import ImageStore
from pipelines.metrics.copying import Copying, Group, calibrated, comparer_id, searched_in
from pipelines.metrics.training_images import Match, TrainingImages
from pipelines.whole_pictures import WholePictures


@dataclass(frozen=True, eq=False)
class Search:
    """Whole training images, ready to be searched.

    num_training: how many there are, of which those of the index are an even choice.
    """

    index: TrainingImages
    pictures: WholePictures
    num_training: int
    _known: dict[str, Match] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What is searched in."""
        return searched_in(len(self.index), self.num_training)

    def num_unknown(self, images: np.ndarray) -> int:
        """Return how many of real images (N, H, W, 3) have not been searched for."""
        return len({_name(image) for image in images} - self._known.keys())

    def nearest_of_real(self, images: np.ndarray, progress: Callable[[int], object] | None = None) -> list[Match]:
        """Return the place most like each real image (N, H, W, 3); each image is searched for once, whoever asks.

        progress: called with 1 for each image that is searched for.
        """
        names = [_name(image) for image in images]
        new = {name: image for name, image in zip(names, images, strict=True) if name not in self._known}
        if new:
            self._known.update(zip(new, self.index.nearest(np.stack(list(new.values())), progress), strict=True))
        return [replace(self._known[name], image=number) for number, name in enumerate(names)]


def _name(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


class Searches:
    """The search of each set of training images, made once for all runs that learnt from them.

    most: training images to search in.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[tuple[str, tuple[int, int]], Search] = {}

    def of(self, real: RealImages, image_shape: tuple[int, int]) -> Search:
        """Return the search of real images for images of a shape (rows, columns)."""
        name = real.images_hash, image_shape
        if name not in self._known:
            pictures = WholePictures(real.whole).spread(self._most)
            self._known[name] = Search(TrainingImages(pictures, image_shape), pictures, len(real.whole))
        return self._known[name]


@dataclass(frozen=True, eq=False)
class Copies:
    """The search of a run's training images.

    held_out: by caption, what calibrates the search. asked: the captions that were asked, with their place in the plan.
    progress: called with 1 for each image that is searched for.
    """

    search: Search
    held_out: Mapping[str, np.ndarray]
    asked: Mapping[str, int]
    progress: Callable[[int], object] | None = None

    @property
    def num_unsearched(self) -> int:
        """How many held-out images have not been searched for yet."""
        return sum(self.search.num_unknown(images) for images in self.held_out.values())

    @cached_property
    def held_out_matches(self) -> dict[str, list[Match]]:
        """The place most like each held-out image by caption."""
        return {
            caption: self.search.nearest_of_real(images, self.progress) for caption, images in self.held_out.items()
        }

    @staticmethod
    def of(
        run: str,
        plan: Plan,
        real: RealImages,
        searches: Searches,
        progress: Callable[[int], object] | None = None,
    ) -> Copies | None:
        """Return it; None where the sizes differ, so that nothing can be compared pixel by pixel."""
        size_px = plan.axes.size_px, plan.axes.size_px
        if next(iter(real.training.values())).shape[1:3] != size_px:
            return None
        asked = {
            question.text: place
            for place, question in reversed(list(enumerate(plan.asked)))
            if run in question.caption_of
        }
        return Copies(searches.of(real, size_px), real.held_out, asked, progress)

    def measure(self, subject: Subject, images: Images, *, seed: int) -> Copying | None:
        """Return how near a model's images of its captions are to the training images; None where it was asked none."""
        drawn = {caption: images.pictures(subject, place) for caption, place in self.asked.items()}
        if not sum(map(len, drawn.values())):
            return None
        found = iter(self.search.index.nearest(np.concatenate(list(drawn.values())), self.progress))
        return calibrated(
            [
                Group([next(found) for _ in pictures], self.held_out_matches.get(caption, []))
                for caption, pictures in drawn.items()
            ],
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
        """Return the generated images most like a window of a training image, the most similar first.

        These windows, and the differences from them, are put into the store.
        """
        cells = [
            cell for place in self.asked.values() for cell in images.cells.get((subject.arm, subject.place, place), [])
        ]
        worst, index = found.worst[:limit], self.search.index
        drawn = store.read_all(plan.key(cells[match.image]) for match in worst).astype(np.float32) / 255
        windows = np.stack([index.window(match) for match in worst])
        differences = np.stack([index.difference(picture, match) for picture, match in zip(drawn, worst, strict=True)])
        kept = zip(
            worst, keep_beside(store, windows, "real"), keep_beside(store, differences, "difference"), strict=True
        )
        return [
            Copied(
                model,
                cells[match.image].asked,
                cells[match.image].seed,
                plan.key(cells[match.image]),
                window,
                difference,
                float(match.ncc),
                match.pose,
                index.beyond_px(match),
                match.image in found.flagged,
                self.search.pictures.place(match.training, index.origin_px(match)),
            )
            for match, window, difference in kept
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
