"""What a run asks of the machine, checked before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from data.environment import install_extra
from data.errors import SettingsError
from finetune.core import optimizers
from finetune.core.option_groups import AdapterSettings
from finetune.core.settings import LoopSettings
from finetune.core.tracking import require_trackers


def require(settings: LoopSettings) -> None:
    """Raise SettingsError naming every option that this machine cannot serve; switch on what it can."""
    problems = []
    has_cuda = torch.cuda.is_available()
    if settings.enable_xformers_memory_efficient_attention:
        if find_spec("xformers") is None:
            problems.append(
                "--enable_xformers_memory_efficient_attention: xformers is not installed. Leave the option out "
                f"(torch's own attention is as good), or install it: {install_extra('gpu')}"
            )
        elif not has_cuda:
            problems.append("--enable_xformers_memory_efficient_attention: needs a GPU, and there is none.")
    if isinstance(settings, AdapterSettings) and settings.load_in_4bit and find_spec("bitsandbytes") is None:
        problems.append(
            f"--load_in_4bit: bitsandbytes is not installed. Leave the option out, or {install_extra('gpu')}"
        )
    if settings.allow_tf32 and not has_cuda:
        problems.append("--allow_tf32: is for NVIDIA GPUs, and there is none. Leave it out.")
    if settings.mixed_precision == "fp16" and not has_cuda:
        problems.append("--mixed_precision fp16: needs a GPU, and there is none. Use bf16, or leave it out.")
    for check in (lambda: optimizers.require(settings.optimizer), lambda: require_trackers(settings.report_to)):
        try:
            check()
        except SettingsError as error:
            problems += [f"{error.where}: {problem}" for problem in error.problems]
    if problems:
        raise SettingsError("options that this machine cannot serve", *problems)
    if settings.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
