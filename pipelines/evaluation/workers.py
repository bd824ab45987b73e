"""Drawing on what a machine has: a GPU, or all cores by processes of few threads, one batch after the other.

One process with all threads leaves most of them waiting, as the U-Net of a small image has little to share out.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from pathlib import Path

import psutil
import torch

from data.freed_memory import keep_freed_memory
from pipelines.evaluation.bases import BaseModel
from pipelines.evaluation.drawing import Drawing, Keyed
from pipelines.evaluation.plan import Plan
from pipelines.evaluation.states import AskedRun
from pipelines.evaluation.store import ImageStore
from pipelines.runs import BaseNeed

IMAGES_WORTH_A_PROCESS = 64  # the first ones take some ten seconds to start
_OVERHEAD_BYTES = 1.5e9  # of a process without a model: interpreter, libraries, activations
# a process that has imported everything once, of which the others are copies, where the system has such
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_drawing: Drawing | None = None  # of a worker's process


def num_workers(bases: Mapping[str, BaseModel], num_images: int) -> int:
    """Return how many processes draw on the CPU: as many as threads may run, memory holds and the images are worth."""
    parts = [part for base in bases.values() for part in (base.components.unet, base.components.vae)]
    parts += [base.components.text_encoder for base in bases.values()]
    weights = sum(tensor.numel() * tensor.element_size() for part in parts for tensor in part.parameters())
    # a run's pipeline stands beside its base
    by_memory = int(psutil.virtual_memory().available // (2 * weights + _OVERHEAD_BYTES))
    return max(1, min(torch.get_num_threads(), by_memory, num_images // IMAGES_WORTH_A_PROCESS))


def draw_batches(
    batches: Sequence[Sequence[Keyed]],
    plan: Plan,
    store: ImageStore,
    device: torch.device,
    *,
    num_processes: int | None,
    progress: Callable[[int], object],
) -> int:
    """Draw batches of a plan into a store, and return by how many processes.

    num_processes: that draw beside each other on the CPU; None is as many as `num_workers` finds. progress: called with
    the number of images of each batch that is kept.
    """
    workers = 1
    if device.type == "cpu":
        num_images = sum(len(batch) for batch in batches)
        workers = min(num_processes or num_workers(plan.bases, num_images), len(batches))
    if workers > 1:
        draw_in_processes(
            batches,
            store.folder,
            plan.bases,
            plan.runs,
            size_px=plan.axes.size_px,
            num_processes=workers,
            progress=progress,
        )
    else:
        drawing = Drawing(store, plan.bases, plan.runs, size_px=plan.axes.size_px, device=device)
        for batch in batches:
            drawing.draw(batch)
            progress(len(batch))
    return max(1, workers)


def draw_in_processes(
    batches: Sequence[Sequence[Keyed]],
    folder: Path,
    bases: Mapping[str, BaseModel],
    runs: Mapping[str, AskedRun],
    *,
    size_px: int,
    num_processes: int,
    progress: Callable[[int], object],
) -> None:
    """Draw batches into the store of a folder by processes that share the threads of this one.

    A batch is drawn as it would be here. progress: called with the number of images of each batch that is kept. The
    first error of a process is raised here; the processes end with this one, however it ends.
    """
    needs = {label: base.need for label, base in bases.items()}
    threads = max(1, torch.get_num_threads() // num_processes)
    context = multiprocessing.get_context(_METHOD)
    context.set_forkserver_preload(["data.without_bitsandbytes", __name__])
    with ProcessPoolExecutor(
        num_processes,
        mp_context=context,
        initializer=_begin,
        initargs=(needs, dict(runs), folder, size_px, threads),
    ) as pool:
        waiting = {pool.submit(_draw, batch): len(batch) for batch in batches}
        try:
            for future in as_completed(waiting):
                future.result()
                progress(waiting[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(
    needs: Mapping[str, BaseNeed], runs: Mapping[str, AskedRun], folder: Path, size_px: int, threads: int
) -> None:
    global _drawing
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(threads)
    bases = {label: BaseModel.load(label, need, "cpu") for label, need in needs.items()}
    _drawing = Drawing(ImageStore(folder), bases, runs, size_px=size_px, device="cpu")


def _end_with_parent() -> None:
    """End this process when the one that started it is killed, which could not tell it to."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)


def _draw(batch: Sequence[Keyed]) -> None:
    assert _drawing is not None, "a worker begins before it draws"
    _drawing.draw(batch)
