"""Pictures as a source names them, before any of them is decoded, with everything that is wrong so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from data.faults import Fault


class EncodedImage(Protocol):
    """A picture as it was encoded, wherever it is kept, with its words."""

    @property
    def name(self) -> str:
        """What reports and errors call it."""

    @property
    def caption(self) -> str:
        """Its words; "" for none."""

    @property
    def label(self) -> str:
        """The name of its class; "" for none."""

    @property
    def group(self) -> str:
        """What it has in common with those that a split keeps on its side; "" for nothing."""

    def content(self) -> bytes:
        """Return its bytes. Raises DataError for a picture that cannot be reached."""


class GatheredImage(EncodedImage, Protocol):
    """A picture whose words are still to be judged."""

    @property
    def lacks(self) -> Fault | None:
        """Why it has no caption although others have one; None where it has one, or where no picture has."""

    def captioned(self, caption: str) -> Self:
        """Return the same picture under other words."""


@dataclass(frozen=True)
class GatheredImages:
    """Pictures in natural order, and all there is to say of them.

    images: every picture, whatever its words are. faults: what is wrong with the layout, with captions, and with
    pictures that no decoder here takes; not what is wrong with their pixels. faulty: the names of images whose caption
    is among the faults. ignored: files and folders that are no part of the data. notes: what a user should know.
    """

    images: Sequence[GatheredImage]
    faults: tuple[Fault, ...] = ()
    faulty: frozenset[str] = frozenset()
    ignored: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def group_note(images: Sequence[EncodedImage]) -> list[str]:
    """Return what to say where some pictures belong to a group and others do not: those are split one by one."""
    without = sum(not image.group for image in images)
    if without in (0, len(images)):
        return []
    return [f"groups      {without} of {len(images)} images name no group, and each of them is a group by itself"]
