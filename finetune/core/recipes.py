"""Which recipe a run begins from: the values that suit its base model, and what is unusual beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune.core.contradictions import TYPED
from finetune.core.optimizer_options import OPTIONS
from finetune.core.option_groups import PART_RATES, OptimiseSettings
from pipelines.base_folders import BaseShape, Family

CAREFUL: Family = "stable_diffusion_1"  # the family whose values a base of an unknown shape gets
SHARED = "all"  # the section of a family's file that every method reads
UNUSUAL = 10  # times the rate of the recipe, or its inverse


@dataclass(frozen=True)
class Recipe:
    """A file of values that a run begins from.

    path: the file; name: as it is told. sections: of the file, in which a later one wins; () is the whole file. why:
    this one was taken.
    """

    path: Path
    name: str
    sections: tuple[str, ...]
    why: str


def recipe_of(method: str, shape: BaseShape | None, config_dir: Path) -> Recipe:
    """Return the recipe of a method on a base model; shape: of the base, None for a method without one."""
    if shape is None:
        name = f"methods/{method}.yaml"
        return Recipe(config_dir / name, f"{config_dir.name}/{name}", (), "")
    name = f"bases/{shape.family or CAREFUL}.yaml"
    why = shape.why
    if shape.family is None:
        why = f"the shape of the base is not known ({shape.why}), so it gets the values of Stable Diffusion 1.x"
    return Recipe(config_dir / name, f"{config_dir.name}/{name}", (SHARED, method), why)


def unusual_rates(settings: OptimiseSettings, usual: Mapping[str, float], recipe: str) -> tuple[str, ...]:
    """Return a sentence for each learning rate that a user gave and that is far from the recipe's.

    usual: learning rates of the recipe, by option. recipe: its name.
    """
    if OPTIONS[settings.optimizer].finds_rate:
        return ()
    images = settings.train_batch_size * settings.gradient_accumulation_steps * int(os.environ.get("WORLD_SIZE") or 1)
    scaled = f" times {images} images (--scale_lr)" if settings.scale_lr else ""
    said = []
    for name, rate in settings:
        expected = usual.get(name, usual.get("learning_rate"))
        if name not in ("learning_rate", *PART_RATES) or rate is None or expected is None:
            continue
        is_typed = settings.strength(name) >= TYPED or (settings.scale_lr and settings.strength("scale_lr") >= TYPED)
        ratio = rate * (images if settings.scale_lr else 1) / expected
        if is_typed and not 1.001 / UNUSUAL < ratio < UNUSUAL / 1.001:
            far = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g} of"
            said.append(f"--{name}: {rate:g}{scaled} is {far} the {expected:g} that {recipe} has for this base.")
    return tuple(said)
