"""Decoding of many pictures at once, whole and strictly, in several processes, and never twice for the same content.

The check and training call the same function, so what one of them accepts the other has accepted too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.checks.facts import ImageFacts, image_facts
from data.checks.facts_cache import FactsCache, FileState
from data.checks.processes import parallel_map, usable_processes
from data.environment import cache_folder
from data.errors import DataError
from data.image_files import ImageFile
from data.images import decode_image, read_picture
from data.progress import Progress

if TYPE_CHECKING:
    from data.gathered_images import EncodedImage

# below both, decoding takes less time than starting processes and opening the cache
SMALL_WORK_IMAGES = 256
SMALL_WORK_BYTES = 8 << 20
_BATCH = 512  # pictures whose facts are kept together: what an interrupted check loses at most


@dataclass(frozen=True)
class Refused:
    """A picture that cannot be used, and every reason."""

    problems: tuple[str, ...]


Outcome = ImageFacts | Refused
Task = Path | bytes | Refused
_DIED = (
    "ended the process that decoded it (a defect of a decoder, or memory that did not suffice). Save the picture anew, "
    "or remove it."
)


def decode_images(sources: Sequence[EncodedImage], *, num_workers: int | None = None) -> list[Outcome]:
    """Return for each picture what was found in it, or why it cannot be used; all are decoded, whatever is wrong.

    num_workers: processes that decode, by default one for each core. What was found is kept in `cache_folder`, by
    content, and a file that has not been written since is not even read again. A small number of pictures is decoded in
    this process and not kept.
    """
    states = [FileState.of(source.path) if isinstance(source, ImageFile) else None for source in sources]
    if _is_small(states):
        outcomes = dict(_decoded(sources, range(len(sources)), 1))
    else:
        with closing(FactsCache(cache_folder())) as cache:
            outcomes = _known(sources, states, cache)
            left = [place for place in range(len(sources)) if place not in outcomes]
            num_processes = usable_processes() if num_workers is None else num_workers
            outcomes |= _decoded_and_kept(sources, states, left, cache, num_processes)
    return [outcomes[place] for place in range(len(sources))]


def decode_tasks(sources: Iterable[EncodedImage]) -> Iterator[Task]:
    """Yield what another process needs to decode each picture: its path, or the bytes of one that is no file."""
    for source in sources:
        if isinstance(source, ImageFile):
            yield source.path
            continue
        try:
            yield source.content()
        except DataError as error:
            yield Refused(error.problems)


def _is_small(states: Sequence[FileState | None]) -> bool:
    return (
        len(states) <= SMALL_WORK_IMAGES
        and sum(state.size for state in states if state is not None) <= SMALL_WORK_BYTES
    )


def _known(
    sources: Sequence[EncodedImage], states: Sequence[FileState | None], cache: FactsCache
) -> dict[int, Outcome]:
    """Return what was found in these pictures before, by place."""
    known: dict[int, Outcome] = {}
    for place, (source, state) in enumerate(zip(sources, states, strict=True)):
        content = cache.content_of(state)
        if not isinstance(source, ImageFile):
            with suppress(DataError):  # told when it is decoded
                content = hashlib.sha256(source.content()).hexdigest()
        facts = cache.facts_of(content)
        if facts is not None:
            known[place] = facts
    return known


def _decoded_and_kept(
    sources: Sequence[EncodedImage],
    states: Sequence[FileState | None],
    places: Sequence[int],
    cache: FactsCache,
    num_processes: int,
) -> dict[int, Outcome]:
    """Decode the pictures at some places under a progress bar, and keep what is found as the work goes on."""
    outcomes: dict[int, Outcome] = {}
    new: list[tuple[FileState | None, ImageFacts]] = []
    # torch's launcher numbers the processes of a machine: one of them shows how far it is
    hidden = not places or os.environ.get("LOCAL_RANK", "0") != "0"
    try:
        with Progress(total=len(places), unit="image", desc="decoding", delay=0.5, disable=hidden) as bar:
            for place, outcome in _decoded(sources, places, num_processes):
                outcomes[place] = outcome
                if isinstance(outcome, ImageFacts):
                    new.append((states[place], outcome))
                if len(new) >= _BATCH:
                    cache.keep(new)
                    new = []
                bar.update()
    finally:
        cache.keep(new)
    return outcomes


def _decoded(
    sources: Sequence[EncodedImage], places: Sequence[int], num_processes: int
) -> Iterator[tuple[int, Outcome]]:
    tasks = decode_tasks(sources[place] for place in places)
    for number, outcome in parallel_map(_outcome, tasks, num_processes=num_processes):
        yield places[number], Refused((_DIED,)) if outcome is None else outcome


def _outcome(task: Task) -> Outcome:
    if isinstance(task, Refused):
        return task
    try:
        content = read_picture(task) if isinstance(task, Path) else task
        return image_facts(content, decode_image(content, ""))
    except DataError as error:
        return Refused(error.problems)
