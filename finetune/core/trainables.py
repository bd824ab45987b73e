"""What can be trained: a whole module, with or without an average of its weights, or low-rank adapters of the U-Net."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor, nn

from data.errors import OutputError
from data.randomness import derive

ADAPTER = "filrouge"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")


class WholeModule:
    """All the weights of one module, in float32.

    ema_decay: keeps an exponential moving average of the weights, `averaged`, with the decay warmed up as
    min(ema_decay, (1 + step) / (10 + step)).
    """

    def __init__(self, name: str, module: nn.Module, ema_decay: float | None = None) -> None:
        self.name, self.module, self.ema_decay = name, module, ema_decay
        module.requires_grad_(True).float()
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


class UNetLora:
    """Low-rank adapters in a U-Net (Hu et al. 2021), the U-Net's own weights frozen.

    They sit on the attention projections and, with convolutions, on those of the ResNet blocks and on what feeds them
    the timestep.
    The adapters' weights are float32 whatever the precision of the U-Net. Their change to a layer's output is scaled
    by alpha / rank; it is zero before the first step, as the second factor starts at zero.
    """

    name = "unet_lora"

    def __init__(
        self, unet: nn.Module, *, rank: int, alpha: float, dropout: float, seed: int, convolutions: bool = False
    ) -> None:
        self.module = unet
        unet.requires_grad_(False)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            init_lora_weights="gaussian",
            target_modules=[*ATTENTION, *(CONVOLUTIONS if convolutions else ())],
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "lora"))
            unet.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
        cast_training_params([unet], dtype=torch.float32)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def after_step(self, step: int) -> None:
        """Nothing: adapters have no average."""

    def state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        copy_strictly(self.name, self.state(), tensors)


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
