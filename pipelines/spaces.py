"""The latent space of an autoencoder: pixels in, latents out, and back."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor


class LatentSpace:
    """What an AutoencoderKL makes of images, in the scale on which the denoiser works.

    The autoencoder computes in float32, also where mixed precision is on: half precision overflows in it. Images are
    decoded one at a time, so that none depends on the others in its batch, and encoded together: the last bits of an
    image depend on the size of the batch.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        self.module = vae
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(vae.config.get("shift_factor") or 0.0)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the unscaled latents, each (B, C, h, w) float32.

        pixels: (B, 3, H, W) in [-1, 1].
        """
        with _full_precision(self.module.device):
            distribution = self.module.encode(pixels.to(self.module.device, torch.float32)).latent_dist
            return distribution.mean, distribution.std

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
        """Return scaled latents (mean + std * eps - shift) * scale. eps: standard normal noise, shaped as mean."""
        return (mean + std * eps - self._shift) * self._scale

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pixels (B, 3, H, W) of scaled latents (B, C, h, w), nominally in [-1, 1], float32."""
        with _full_precision(self.module.device):
            unscaled = latents.to(self.module.device, torch.float32) / self._scale + self._shift
            return torch.cat([self.module.decode(latent).sample for latent in unscaled.split(1)])


def _full_precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)
