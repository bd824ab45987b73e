"""Which caption a picture shows, by the real pictures of each, or that it shows none of them.

A classifier that has to choose names a caption for any picture, for a yellow star among grey slices too. This one may
say "none of these": of a picture that is nearer to noise than to the real pictures of its caption.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from data.randomness import generator
from pipelines.metrics.distances import Estimate, unit_vectors
from pipelines.metrics.estimates import mean_share
from pipelines.metrics.heads import Head, Labelled, fit_head
from pipelines.metrics.inputs import checked_features

NONE_OF_THESE = "none of these"
USUAL_QUANTILE = 0.95  # of the distances of held-out real pictures
NUM_NEIGHBOURS = 5
NUM_SHUFFLED = 16  # training pictures of each caption whose pixels are shuffled


@dataclass(frozen=True, eq=False)
class Namer:
    """captions: those it knows, sorted. head: what tells them apart; None where there is one only.

    directions: by caption, unit vectors of its training pictures. reach: by caption, how far from these a picture may
    be. held_out: features of the held-out real pictures by caption.
    """

    captions: tuple[str, ...]
    head: Head | None
    directions: Mapping[str, np.ndarray]
    reach: Mapping[str, float]
    held_out: Mapping[str, np.ndarray]

    @classmethod
    def fit(
        cls,
        training: Mapping[str, np.ndarray],
        held_out: Mapping[str, np.ndarray],
        shuffled: Mapping[str, np.ndarray],
        *,
        extractor_id: str,
    ) -> Namer:
        """Return the namer of real pictures, features (n, D) by caption, the same captions on all sides.

        shuffled: of real pictures after `shuffle_pixels`. The reach of a caption is half way from the distance that
        USUAL_QUANTILE of its held-out pictures stay within to that of half of the shuffled ones: a real picture that
        is blurred, or that an autoencoder has passed, is still of its caption, and the scale is that of the extractor.
        Raises DataError for features that are not finite or of different widths.
        """
        captions = tuple(sorted(training))
        directions = {c: unit_vectors(checked_features(training[c], f"training pictures of {c!r}")) for c in captions}
        reach = {}
        for c in captions:
            usual = np.quantile(_distance(directions[c], held_out[c]), USUAL_QUANTILE)
            reach[c] = float((usual + max(usual, np.median(_distance(directions[c], shuffled[c])))) / 2)
        head = None
        if len(captions) > 1:
            head = fit_head("caption", Labelled.of(training), Labelled.of(held_out), extractor_id=extractor_id)
        return cls(captions, head, directions, reach, held_out)

    @property
    def chance(self) -> float:
        """How often a guess among the captions is right; a half where there is one, which is then there or is not."""
        return 1 / max(2, len(self.captions))

    def names(self, features: np.ndarray) -> np.ndarray:
        """Return a caption, or NONE_OF_THESE, for each row of features (N, D)."""
        rows = checked_features(features, "pictures to name")
        named = np.full(len(rows), self.captions[0]) if self.head is None else self.head.classifier.predict(rows)
        found = np.array(named, dtype=object)
        for caption in self.captions:
            of_it = np.flatnonzero(named == caption)
            if len(of_it):
                found[of_it[_distance(self.directions[caption], rows[of_it]) > self.reach[caption]]] = NONE_OF_THESE
        return found


@dataclass(frozen=True, eq=False)
class Naming:
    """What drawn pictures are named. The captions that were asked count alike, however many pictures each has.

    right: share of the drawn pictures that are named after their own caption: "right caption" everywhere. real_right:
    of held-out real ones. none: share of the drawn pictures that show none of the captions. counts: (K, K + 1), rows by
    the caption asked for, columns by the one named, in the order of captions, the last for none of these. real_counts:
    by caption, of how many held-out pictures how many are named rightly. chance: see `Namer.chance`.
    """

    captions: tuple[str, ...]
    right: Estimate
    real_right: Estimate
    none: Estimate
    counts: np.ndarray
    real_counts: tuple[tuple[int, int], ...]
    chance: float
    classifier: str


def naming(namer: Namer, drawn: Mapping[str, np.ndarray], *, seed: int = 0) -> Naming:
    """Return what the drawn pictures of each caption, features (n, D), are named.

    Raises DataError for captions that the namer does not know, and for no picture.
    """
    if unknown := sorted(set(drawn) - set(namer.captions)):
        raise DataError("right caption", f"asks for {', '.join(unknown)}; real ones: {', '.join(namer.captions)}.")
    named = {caption: namer.names(features) for caption, features in drawn.items() if len(features)}
    real = {caption: namer.names(namer.held_out[caption]) == caption for caption in namer.captions}
    columns = (*namer.captions, NONE_OF_THESE)
    return Naming(
        namer.captions,
        mean_share([named[c] == c for c in named], seed=seed, purpose="right caption"),
        mean_share([real[c] for c in named], seed=seed, purpose="right caption, real"),
        mean_share([named[c] == NONE_OF_THESE for c in named], seed=seed, purpose=NONE_OF_THESE),
        np.array([[_count(named.get(row), column) for column in columns] for row in namer.captions]),
        tuple((int(real[c].sum()), len(real[c])) for c in namer.captions),
        namer.chance,
        "one caption" if namer.head is None else namer.head.kind,
    )


def shuffle_pixels(pictures: np.ndarray) -> np.ndarray:
    """Return pictures (N, H, W, C) with the pixels of each in an order of their own: noise of the same colours."""
    found = np.empty_like(pictures)
    for number, picture in enumerate(pictures):
        pixels = picture.reshape(-1, picture.shape[-1])
        found[number] = pixels[generator(0, "shuffled pixels", number).permutation(len(pixels))].reshape(picture.shape)
    return found


def _count(named: np.ndarray | None, column: str) -> int:
    return 0 if named is None else int((named == column).sum())


def _distance(directions: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The mean distance of pictures (N, D) to the nearest training pictures of a caption, (N,)."""
    squares = np.clip(2 - 2 * (unit_vectors(features) @ directions.T), 0, None)
    nearest = min(NUM_NEIGHBOURS, squares.shape[1])
    return np.asarray(np.sqrt(np.partition(squares, nearest - 1, axis=1)[:, :nearest]).mean(1))
