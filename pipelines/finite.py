"""Whether numbers can be used: finite, and not beyond what half precision holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

LARGEST_HALF = float(torch.finfo(torch.float16).max)  # 65,504


def largest(tensors: Iterable[Tensor]) -> float:
    """Return the largest absolute value in tensors, which is not finite where one of their numbers is not."""
    ends = [end.float().cpu() for tensor in tensors if tensor.numel() for end in torch.aminmax(tensor.detach())]
    return float(torch.stack(ends).abs().max())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold a number which is not finite."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    # quicker than to look at each number, and finite only where all of them are
    if math.isfinite(torch.nn.utils.get_total_norm([tensor.detach() for tensor in floating.values()])):
        return []
    return [name for name, tensor in floating.items() if not torch.isfinite(tensor).all()]


def module_problems(module: nn.Module) -> list[str]:
    """Say, in one sentence or none, which weights of a module that was read are not finite."""
    names = not_finite({**dict(module.named_parameters()), **dict(module.named_buffers())})
    if not names:
        return []
    some = ", ".join(names[:3]) + (", …" if names[3:] else "")
    return [f"holds numbers that are not finite, in {some}. Fetch it again, or choose another one."]
