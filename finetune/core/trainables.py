"""What can be trained: a whole module, with or without an average of its weights, or low-rank adapters in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor, nn

from data.errors import OutputError
from data.randomness import derive

ADAPTER = "filrouge"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")


class WholeModule:
    """All the weights of one module, float32 as they were read: what was rounded on the way would stay so.

    ema_decay: keeps an exponential moving average of the weights, `averaged`, with the decay warmed up as
    min(ema_decay, (1 + step) / (10 + step)).
    """

    def __init__(self, name: str, module: nn.Module, ema_decay: float | None = None) -> None:
        self.name, self.module, self.ema_decay = name, module, ema_decay
        module.requires_grad_(True)
        self.averaged = {} if ema_decay is None else {k: v.detach().clone() for k, v in self._weights().items()}

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if self.ema_decay is None:
            return
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        for name, weight in self._weights().items():
            self.averaged[name].lerp_(weight, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        return {**self._weights(), **{f"ema/{name}": tensor for name, tensor in self.averaged.items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        copy_strictly(self.name, self.state(), tensors)

    def swap_average(self) -> None:
        """Exchange the weights in the module with their average: once to show or export it, once more to train on."""
        with torch.no_grad():
            for name, weight in self._weights().items():
                if name in self.averaged:
                    live = weight.clone()
                    weight.copy_(self.averaged[name])
                    self.averaged[name].copy_(live)

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.module.state_dict().items() if tensor.is_floating_point()}


@contextmanager
def averages(parts: tuple[WholeModule, ...]) -> Iterator[None]:
    """Put the averages of modules in the place of their weights for a while, where they keep one."""
    for part in parts:
        part.swap_average()
    try:
        yield
    finally:
        for part in parts:
            part.swap_average()


@dataclass(frozen=True)
class LoraShape:
    """Size and kind of a module's adapters; the change to a layer's output is scaled by alpha / rank.

    conv_rank, conv_alpha: those of the convolutions, where they differ. use_dora: learn the length of each layer's
    weights apart from their direction (Liu et al. 2024, arXiv:2402.09353, equation 5).
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    conv_rank: int | None = None
    conv_alpha: float | None = None
    use_dora: bool = False


class Lora:
    """Low-rank adapters in a module (Hu et al. 2021, arXiv:2106.09685), the module's own weights frozen.

    The adapters' weights are float32 whatever the precision of the module. Their change to a layer's output is zero
    before the first step, as the second factor starts at zero.
    """

    def __init__(self, name: str, module: nn.Module, layers: Sequence[str], shape: LoraShape, *, seed: int) -> None:
        """layers: full names, or last parts of names, of the layers that get an adapter."""
        self.name, self.module = name, module
        module.requires_grad_(False)
        convolutions = [
            path
            for path, layer in module.named_modules()
            if isinstance(layer, nn.Conv2d) and any(path == name or path.endswith(f".{name}") for name in layers)
        ]
        config = LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            lora_dropout=shape.dropout,
            init_lora_weights="gaussian",
            target_modules=list(layers),
            use_dora=shape.use_dora,
            rank_pattern={} if shape.conv_rank is None else dict.fromkeys(convolutions, shape.conv_rank),
            alpha_pattern={} if shape.conv_alpha is None else dict.fromkeys(convolutions, shape.conv_alpha),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "lora", name))
            module.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
        cast_training_params([module], dtype=torch.float32)
        self._parameters = {path: p for path, p in module.named_parameters() if p.requires_grad}

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self._parameters

    def after_step(self, step: int) -> None:
        """Nothing: adapters have no average."""

    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        copy_strictly(self.name, self.state(), tensors)


def unet_layers(unet: nn.Module, target: str) -> list[str]:
    """Return which layers of a U-Net are adapted: "attention", "attention+conv" (the ResNet blocks too), or "all"."""
    if target == "attention":
        return [*ATTENTION]
    if target == "attention+conv":
        return [*ATTENTION, *CONVOLUTIONS]
    return [path for path, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


@torch.no_grad()
def copy_strictly(name: str, into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of the same names; raise OutputError when names or shapes are not exactly the same."""
    problems = [f"tensor {key} is missing." for key in into.keys() - tensors.keys()]
    problems += [f"tensor {key} is not part of this run." for key in tensors.keys() - into.keys()]
    problems += [
        f"tensor {key} has shape {tuple(tensors[key].shape)}, expected {tuple(into[key].shape)}."
        for key in into.keys() & tensors.keys()
        if into[key].shape != tensors[key].shape
    ]
    if problems:
        more = [f"... and {len(problems) - 5} more."] if len(problems) > 5 else []
        raise OutputError(f"checkpoint weights of {name}", *sorted(problems)[:5], *more)
    for key, tensor in into.items():
        tensor.copy_(tensors[key])
