"""Adapters of the tiny base: random factors in one kind of layer, with the facts that a test wants in their header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from pipelines.adapters import FACTS_KEY, export_lora
from pipelines.components import load_components


def tiny_adapter(base: Path, folder: Path, facts: Mapping[str, Any] | None, seed: int = 0) -> Path:
    """Write an adapter of a base and return its folder. facts: None for one that was made elsewhere."""
    unet = load_components(str(base)).unet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]), adapter_name="filrouge")
    generator = torch.Generator().manual_seed(seed)
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    export_lora(folder, {"unet": unet}, "filrouge", {} if facts is None else {FACTS_KEY: json.dumps(facts)})
    return folder
