"""What the precision in which a model is used changes in a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from safetensors import safe_open
from torch import Tensor, nn

from pipelines.base_folders import WEIGHTS
from pipelines.components import Components, present
from pipelines.conditioning import TextConditioner
from pipelines.sampling import evaluating
from pipelines.spaces import LatentSpace

NUM_STEPS, LARGEST_PX = 2, 128  # of the quick picture, which must not cost what training does
LOWER = (torch.bfloat16, torch.float16)


def precision_notes(components: Components, prompt: str, size_px: int) -> tuple[str, ...]:
    """Return in lines by how much a quick picture of a prompt differs in bfloat16 and float16 from float32's.

    The picture is drawn in NUM_STEPS steps of DDIM (Song et al. 2021) without guidance, at size_px or LARGEST_PX,
    whichever is smaller; each time the U-Net's weights and what each layer gives are rounded to the precision, and the
    sums are taken in float32, which every device can do. Frozen weights that a run keeps in fewer bits are read in full
    from the base's files, layer by layer: no second U-Net is made. A U-Net that is kept in 4 bits is told of too, as it
    was trained on.
    """
    latent_px = components.vae_scale_factor
    size_px = min(size_px, LARGEST_PX // latent_px * latent_px)
    kept_in_4bit = getattr(components.unet, "is_loaded_in_4bit", False)
    ways: dict[str, torch.dtype | None] = {str(dtype).removeprefix("torch."): dtype for dtype in LOWER}
    ways |= {"4 bits, as it was trained": None} if kept_in_4bit else {}
    exact, *pictures = _pictures(components, prompt, size_px, [torch.float32, *ways.values()])
    told = []
    for name, picture in zip(ways, pictures, strict=True):
        difference = 255 * np.abs(picture - exact)
        if np.isfinite(difference).all():
            told.append(f"{difference.mean():.2g} on average and {difference.max():.2g} at most in {name}")
        else:
            told.append(f"{name} overflows, do not draw in it")
    return (
        f"Precision of use: of 255 grey levels, a quick picture ({NUM_STEPS} steps, {size_px} px) differs from "
        f"float32's by {'; by '.join(told)}.",
    )


@torch.no_grad()
def _pictures(
    components: Components, prompt: str, size_px: int, dtypes: Sequence[torch.dtype | None]
) -> list[np.ndarray]:
    """Return a quick picture (3, H, W) in [0, 1] for each precision that is rounded to; None takes the U-Net as it is.

    Each of the other parts is in memory once, and not beside another.
    """
    with evaluating(components.unet, components.vae, components.text_encoder):
        with present(components, ("text_encoder",)):
            states = TextConditioner(components.tokenizer, components.text_encoder).encode([prompt]).float()
        latents = [_latents(components, states, size_px, dtype) for dtype in dtypes]
        with present(components, ("vae",)):
            pixels = LatentSpace(components.vae).decode(torch.cat(latents))
    return list((pixels / 2 + 0.5).clamp(0, 1).cpu().numpy())


def _latents(components: Components, states: Tensor, size_px: int, dtype: torch.dtype | None) -> Tensor:
    unet, side = components.unet, size_px // components.vae_scale_factor
    scheduler = DDIMScheduler.from_config(components.scheduler.config)
    scheduler.set_timesteps(NUM_STEPS)
    noise = torch.randn((1, unet.config.in_channels, side, side), generator=torch.Generator().manual_seed(0))
    latents, states = noise.to(unet.device), states.to(unet.device)
    computed_in = unet.dtype if dtype is None else torch.float32
    with nullcontext() if dtype is None else _rounded(components, dtype):
        for timestep in scheduler.timesteps:
            given = latents.to(computed_in), timestep, states.to(computed_in)
            latents = scheduler.step(unet(*given, return_dict=False)[0].float(), timestep, latents).prev_sample
    return latents


@contextmanager
def _rounded(components: Components, dtype: torch.dtype) -> Iterator[None]:
    """Have every layer of the U-Net compute with weights and results rounded to a precision, in float32."""
    with ExitStack() as stack:
        weight_of = _full_weights(components, stack)
        for path, layer in components.unet.named_modules():
            if not any(True for _ in layer.children()) and any(True for _ in layer.parameters()):
                stack.enter_context(_rounding(path, layer, dtype, weight_of))
        yield


@contextmanager
def _rounding(
    path: str, layer: nn.Module, dtype: torch.dtype, weight_of: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    own: dict[str, Tensor] = {}
    in_4bit = not all(parameter.is_floating_point() for parameter in layer.parameters())

    def lower(_: nn.Module, __: tuple[Any, ...]) -> None:
        for name, parameter in layer.named_parameters(recurse=False):
            own[name] = parameter.data
            if not in_4bit:  # whose matrices are for its own product alone
                parameter.data = weight_of(f"{path}.{name}", parameter.data).to(dtype).float()

    def restore(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        for name, parameter in layer.named_parameters(recurse=False):
            parameter.data = own[name]
        if in_4bit:
            given = [weight_of(f"{path}.{name}", p.data) for name, p in layer.named_parameters(recurse=False)]
            output = nn.functional.linear(inputs[0].float(), *[weight.to(dtype).float() for weight in given])
        return output.to(dtype).float()

    handles = [layer.register_forward_pre_hook(lower), layer.register_forward_hook(restore)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in layer.named_parameters(recurse=False):  # a layer that raised was not restored
            parameter.data = own.get(name, parameter.data)


def _full_weights(components: Components, stack: ExitStack) -> Callable[[str, Tensor], Tensor]:
    """Return a function from a weight's name and its live value to its value in float32."""
    path = None
    if components.folder is not None:
        ending = "" if components.variant is None else f".{components.variant}"
        path = components.folder / "unet" / f"{WEIGHTS['unet']}{ending}.safetensors"
    if path is None or not path.is_file():
        return lambda _, live: live.float()
    file = stack.enter_context(safe_open(path, framework="pt"))
    stored = set(file.keys())

    def weight(name: str, live: Tensor) -> Tensor:
        original = name.replace(".base_layer.", ".")
        if live.dtype == torch.float32 or original not in stored:
            return live.float()
        full: Tensor = file.get_tensor(original)
        return full.to(live.device, torch.float32)

    return weight
