"""What the processes of one run tell each other: sums of gradients and losses, and requests to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor

from data.errors import ProcessError
from finetune.core import stops


def join(timeout_minutes: float) -> None:
    """Make this process one of its run's, where a launcher started several, with a limit on waiting for the others."""
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(minutes=timeout_minutes))


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Raise ProcessError where the others, with which something is done inside, do not take part in it."""
    try:
        yield
    except RuntimeError as error:  # gloo's have no class of their own
        if accelerator.num_processes == 1:
            raise
        found = str(error).partition("\n")[0].rpartition("] ")[2]
        raise ProcessError(
            f"process {accelerator.process_index} of {accelerator.num_processes}",
            f"another process of the run has ended, or did not answer within --ddp_timeout_minutes ({found[:200]}). "
            "Look for its message above.",
        ) from error


def wait(accelerator: Accelerator) -> None:
    """Wait until all processes have come to this point."""
    with together(accelerator):
        accelerator.wait_for_everyone()


def sum_gradients(parameters: Sequence[torch.nn.Parameter], accelerator: Accelerator) -> None:
    """Put the sum over the processes in the place of each gradient."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    with together(accelerator):
        total: Tensor = accelerator.reduce(flat, reduction="sum")
    for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def summed(value: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the sum of a value over the processes, on the CPU."""
    if accelerator.num_processes == 1:
        return value
    with together(accelerator):
        total: Tensor = accelerator.reduce(value.to(accelerator.device), reduction="sum")
    return total.cpu()


def asked_to_stop(accelerator: Accelerator) -> int:
    """Return the signal by which any process is asked to stop, or 0: all of them stop after the same step."""
    if accelerator.num_processes == 1:
        return stops.requested()
    with together(accelerator):
        numbers: Tensor = accelerator.gather(torch.tensor([stops.requested()], device=accelerator.device))
    return int(numbers.max())
