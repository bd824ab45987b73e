"""What the precision in which a model is used changes in a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipelines.base_folders import WEIGHTS
from pipelines.components import Components, build_pipeline
from pipelines.conditioning import TextConditioner
from pipelines.sampling import evaluating
from pipelines.spaces import LatentSpace

NUM_STEPS = 4  # of the quick picture: enough to see what is rounded, few enough to be cheap
LOWER = (torch.bfloat16, torch.float16)


def precision_notes(components: Components, prompt: str, size_px: int) -> tuple[str, ...]:
    """Return in lines by how much a quick picture of a prompt differs in bfloat16 and float16 from float32's.

    The picture is drawn in NUM_STEPS steps without guidance; each time the U-Net's weights and what each layer gives
    are rounded to the precision, and the sums are taken in float32, which every device can do. Frozen weights that a
    run keeps in half precision are read in full from the base's files, layer by layer: no second U-Net is made. Of a
    base in 4 bits it is told that the pictures are not those of the base itself.
    """
    if getattr(components.unet, "is_loaded_in_4bit", False):
        return ("The base was kept in 4 bits: on the base itself, the result draws other pictures than final.png.",)
    exact = _picture(components, prompt, size_px, torch.float32)
    told = []
    for dtype in LOWER:
        difference = 255 * np.abs(_picture(components, prompt, size_px, dtype) - exact)
        name = str(dtype).removeprefix("torch.")
        if np.isfinite(difference).all():
            told.append(f"{difference.mean():.2g} on average and {difference.max():.2g} at most in {name}")
        else:
            told.append(f"{name} overflows, do not draw in it")
    return (
        f"Precision of use: of 255 grey levels, a quick picture ({NUM_STEPS} steps) differs from float32's by "
        f"{'; by '.join(told)}.",
    )


@torch.no_grad()
def _picture(components: Components, prompt: str, size_px: int, dtype: torch.dtype) -> np.ndarray:
    pipeline = build_pipeline(components)
    with evaluating(components.unet, components.vae, components.text_encoder):
        states = TextConditioner(components.tokenizer, components.text_encoder).encode([prompt]).float()
        with _rounded(components, dtype):
            latents = pipeline(
                prompt_embeds=states,
                generator=[torch.Generator().manual_seed(0)],
                num_inference_steps=NUM_STEPS,
                guidance_scale=1.0,
                height=size_px,
                width=size_px,
                output_type="latent",
            ).images
        pixels = LatentSpace(components.vae).decode(latents)
    drawn: np.ndarray = (pixels / 2 + 0.5).clamp(0, 1).cpu().numpy()
    return drawn


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

    def lower(_: nn.Module, __: tuple[Any, ...]) -> None:
        for name, parameter in layer.named_parameters(recurse=False):
            own[name] = parameter.data
            parameter.data = weight_of(f"{path}.{name}", parameter.data).to(dtype).float()

    def restore(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        for name, parameter in layer.named_parameters(recurse=False):
            parameter.data = own[name]
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
    if components.folder is not None and components.unet.dtype != torch.float32:
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
