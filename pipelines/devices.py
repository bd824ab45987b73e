"""Where the modules of a model compute."""

from __future__ import annotations

import torch

from pipelines.components import Components


def drawing_device() -> torch.device:
    """Return the device that a command draws on: the GPU where torch finds one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def move(components: Components, device: torch.device | str) -> None:
    """Move the modules of a model, which its pipelines share, to a device, with what has been attached to them."""
    for module in (components.unet, components.vae, components.text_encoder):
        module.to(device)
