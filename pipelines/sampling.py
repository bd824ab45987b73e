"""Images from prompts and seeds: each depends on its own prompt and seed, whatever it is drawn together with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from data.errors import NonFiniteError, SettingsError
from pipelines.spaces import LatentSpace

Awake = Callable[[Sequence[str]], AbstractContextManager[None]]

_SIZE_STEP_PX = 8  # a pipeline of diffusers takes no other sizes


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int,
    guidance_scale: float,
    batch_size: int,
    height: int | None = None,
    width: int | None = None,
    progress: Callable[[int], object] | None = None,
    negative_prompts: Sequence[str] | None = None,
    awake: Awake = lambda _: nullcontext(),
) -> np.ndarray:
    """Return one image for each pair of prompt and seed, float32 (N, H, W, 3) in [0, 1].

    An image is the one that `pipeline(prompt, generator=torch.Generator().manual_seed(seed))` draws. The U-Net and the
    text encoder may be in half precision; the autoencoder computes in float32. The pipeline's modules are put into
    evaluation mode and back; global generators are not touched.
    guidance_scale: of classifier-free guidance (Ho and Salimans 2022), 1 or less is none. batch_size: images drawn
    together. height, width: in pixels, multiples of 8; None is the model's own. progress: called after each batch with
    the number of images in it. negative_prompts: what each image is guided away from; None is the empty prompt. awake:
    has the parts it names in memory inside, "text_encoder" or "vae", where they are not there all the time.
    Raises SettingsError for sizes that cannot be drawn, NonFiniteError for images that are not finite. One that is
    black is told on standard error.
    """
    assert len(prompts) == len(seeds) > 0, f"{len(prompts)} prompts for {len(seeds)} seeds"
    size = _size(pipeline, height, width)
    negatives = [""] * len(prompts) if negative_prompts is None else negative_prompts
    assert len(negatives) == len(prompts), f"{len(negatives)} negative prompts for {len(prompts)} prompts"
    space = LatentSpace(pipeline.vae)
    pictures = np.empty((len(prompts), *size, 3), dtype=np.float32)
    with torch.no_grad(), evaluating(pipeline.unet, pipeline.vae, pipeline.text_encoder):
        with awake(("text_encoder",)):
            states = {text: _states(pipeline, text) for text in dict.fromkeys([*negatives, *prompts])}
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)
            latents = pipeline(
                prompt_embeds=torch.cat([states[prompt] for prompt in prompts[batch]]),
                negative_prompt_embeds=torch.cat([states[negative] for negative in negatives[batch]]),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[batch]],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                height=size[0],
                width=size[1],
                output_type="latent",
            ).images
            with awake(("vae",)):
                decoded = space.decode(latents)
            _refuse_not_finite(decoded, prompts[batch], seeds[batch])  # clamped, an infinite pixel would be black
            pictures[batch] = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
            _tell_black(pictures[batch], prompts[batch], seeds[batch])
            if progress is not None:
                progress(len(prompts[batch]))
    return pictures


def _states(pipeline: StableDiffusionPipeline, prompt: str) -> Tensor:
    """Return what the U-Net reads of a prompt, (1, tokens, width)."""
    states: Tensor = pipeline.encode_prompt(
        prompt, device=pipeline.text_encoder.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    return states


def _size(pipeline: StableDiffusionPipeline, height: int | None, width: int | None) -> tuple[int, int]:
    native = pipeline.unet.config.sample_size
    rows, columns = (native, native) if isinstance(native, int) else native
    size = height or rows * pipeline.vae_scale_factor, width or columns * pipeline.vae_scale_factor
    problems = [
        f"found {side} px, expected a multiple of {_SIZE_STEP_PX}."
        for side in size
        if side < _SIZE_STEP_PX or side % _SIZE_STEP_PX
    ]
    if problems:
        raise SettingsError("size of the images", *problems)
    return size


def _refuse_not_finite(decoded: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> None:
    is_finite = decoded.isfinite().flatten(1).all(1).tolist()
    problems = [
        f"the image of prompt {prompt!r} and seed {seed} is not finite."
        for finite, prompt, seed in zip(is_finite, prompts, seeds, strict=True)
        if not finite
    ]
    if problems:
        raise NonFiniteError(
            "sampling", *problems, "Expected an image. Draw in float32, with fewer steps of training, or less guidance."
        )


def _tell_black(pictures: np.ndarray, prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """Warn of pictures that are black in every pixel, which air and some classes rightly are."""
    for picture, prompt, seed in zip(pictures, prompts, seeds, strict=True):
        if not picture.any():
            print(
                f"filrouge: warning: the image of prompt {prompt!r} and seed {seed} is black in every pixel.",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode inside, and each of their parts back into its own mode afterwards."""
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes.items():
            part.training = training
