"""The model card of a run: README.md by the conventions of the Hugging Face Hub, with no path of this machine in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download

from data.dataset import ConceptDataset
from data.plain_text import code_block, code_span, escaped
from finetune.core import files
from finetune.core.option_groups import Settings
from finetune.core.settings import (
    ConceptSettings,
    DdpmSettings,
    DreamboothSettings,
    LoopSettings,
    LoraDreamboothSettings,
)
from pipelines.components import Components
from pipelines.embeddings import EMBEDDINGS_NAME
from pipelines.runs import is_whole

CARD_NAME = "README.md"
_SHOWN_PROMPTS = 4  # of the widget on the model's page
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LIBRARIES = ("filrouge", "diffusers", "transformers", "peft", "accelerate", "torch")


def write_fine_tuned_card(
    folder: Path, settings: ConceptSettings, components: Components, dataset: ConceptDataset, code: Sequence[str]
) -> None:
    """Write the card of a fine-tuned Stable Diffusion. code: the lines that use it, with the real places of things."""
    base = _Base.of(components, settings.revision)
    captions = dataset.captions
    is_dreambooth = isinstance(settings, (DreamboothSettings, LoraDreamboothSettings))
    has_adapter, has_word = ((folder / name).exists() for name in (LORA_WEIGHT_NAME_SAFE, EMBEDDINGS_NAME))
    instance_prompt = captions[0] if is_dreambooth or len(captions) == 1 else None
    if has_word and (word := re.search(r"<[^<>\s]+>", captions[0])):
        instance_prompt = word[0]
    kinds = {"lora": has_adapter, "textual_inversion": has_word, "dreambooth": is_dreambooth}
    data = ModelCardData(
        library_name="diffusers",
        license=base.license,
        license_name=base.license_name,
        license_link=base.license_link,
        base_model=base.hub_id,
        datasets=_dataset_id(settings),
        tags=[
            *("text-to-image", "diffusers", "diffusers-training", "stable-diffusion", "stable-diffusion-diffusers"),
            *(tag for tag, is_so in kinds.items() if is_so),
            "filrouge",
        ],
        inference=True,
        instance_prompt=instance_prompt,
        widget=[
            {"text": captions[0], "output": {"url": "final.png"}},
            *({"text": caption} for caption in captions[1:_SHOWN_PROMPTS]),
        ],
    )
    parts = ["a new word (Textual Inversion)"] if has_word else []
    parts += ["low-rank adapters (LoRA)"] if has_adapter else []
    what = "Stable Diffusion, fine-tuned as a whole" if is_whole(folder) else " and ".join(parts)
    of = "from" if is_whole(folder) else "for"
    intro = [
        f"{what[0].upper()}{what[1:]}, {of} {base.named}. Trained on {len(dataset)} images of {dataset.resolution} px."
        + (f" DreamBooth, with the prompt {code_span(captions[0])}." if is_dreambooth else ""),
        *base.notes,
    ]
    written = {components.source: base.place}
    _write(folder, settings, data, dataset, intro, [_replaced(line, written) for line in code], [])


def write_pixel_card(
    folder: Path, settings: DdpmSettings, dataset: ConceptDataset, intro: str, code: Sequence[str], notes: Sequence[str]
) -> None:
    """Write the card of a diffusion model of pixels. intro: what it is. notes: what its user has to know."""
    data = ModelCardData(
        library_name="diffusers",
        datasets=_dataset_id(settings),
        tags=["unconditional-image-generation", "diffusers", "diffusers-training", "ddpm", "filrouge"],
    )
    said = [intro, "No licence is stated: it is trained from nothing, so choose one and write it at the top."]
    _write(folder, settings, data, dataset, said, code, notes)


def without_paths(value: Any) -> Any:
    """Return settings or facts as JSON knows them, with only the last name of every absolute path or folder in them."""
    if isinstance(value, Mapping):
        return {key: without_paths(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(each) for each in value]
    if isinstance(value, str) and "\n" not in value:
        path = Path(value)
        if len(path.parts) > 1 and (path.is_absolute() or value.startswith(("~", "..")) or path.is_dir()):
            return path.name
    return value


def _write(
    folder: Path,
    settings: DdpmSettings | ConceptSettings,
    data: ModelCardData,
    dataset: ConceptDataset,
    intro: Sequence[str],
    code: Sequence[str],
    notes: Sequence[str],
) -> None:
    place = _place(settings, folder)
    versions = ", ".join(f"{library} {version(library)}" for library in _LIBRARIES)
    paragraphs = [
        f"# {escaped(settings.subject)}",
        *intro,
        f"![{escaped(dataset.captions[0])}](final.png)",
        "Prompts in training:",
        "\n".join(f"- {code_span(caption)}" for caption in dataset.captions),
        code_block("\n".join(_replaced(line, {str(folder): place}) for line in code), "python"),
        "\n".join(f"- {note}" for note in notes),
        "## Training",
        "![loss and what was measured](curves.png)",
        f"Course: `metrics.jsonl`. Versions: {versions}. Settings:",
        code_block(yaml.safe_dump(_public(settings), sort_keys=False, allow_unicode=True).rstrip(), "yaml"),
    ]
    body = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")
    files.write_bytes_atomic(folder / CARD_NAME, str(card).encode())


def _place(settings: LoopSettings, folder: Path) -> str:
    """Return where the result will be found: its repository, or the folder's name where it is not uploaded."""
    return settings.hub_model_id if settings.push_to_hub and settings.hub_model_id is not None else folder.name


def _public(settings: Settings) -> dict[str, Any]:
    values: dict[str, Any] = settings.model_dump(mode="json")
    for name, value in settings:
        if name in values:
            values[name] = value.name if isinstance(value, Path) else without_paths(values[name])
    return {name: value for name, value in values.items() if value not in (None, [])}


def _replaced(line: str, places: Mapping[str, str]) -> str:
    """Return a line of code with other places in its strings."""
    for real, shown in places.items():
        line = line.replace(repr(real), repr(shown))
    return line


def _dataset_id(settings: ConceptSettings | DdpmSettings) -> str | None:
    name = settings.dataset_name
    return name if name is not None and not Path(name).is_dir() else None


@dataclass(frozen=True)
class _Base:
    """A base model as a card names it.

    hub_id: its repository, or of a local folder the one that its own card names. place: what stands in the code for it.
    named: what it is called in a sentence. notes: what a reader has to know of it.
    """

    hub_id: str | None
    place: str
    named: str
    license: str | None
    license_name: str | None
    license_link: str | None
    notes: tuple[str, ...]

    @staticmethod
    def of(components: Components, revision: str | None) -> _Base:
        folder = Path(components.source).expanduser()
        is_local = folder.is_dir()
        own = _own_card(folder / CARD_NAME if is_local else None, components.name, revision)
        notes: list[str] = []
        hub_id: str | None
        if not is_local:
            hub_id, place = components.name, components.name
            named = f"[{hub_id}](https://huggingface.co/{hub_id})"
        else:
            found = own.get("base_model")
            hub_id = found if isinstance(found, str) and _HUB_ID.fullmatch(found) else None
            place = "pipelines/swatch" if components.name == "swatch" else folder.resolve().name
            named = code_span(place)
            where = "the repository of filrouge" if components.name == "swatch" else "a folder of this name"
            notes.append(f"The base model is found in {where}; it was not loaded from the Hub.")
        if own.get("license") is None:
            notes.append("The base model's licence holds for this model too; no file of the base states it.")
        return _Base(
            hub_id,
            place,
            named,
            own.get("license"),
            own.get("license_name"),
            own.get("license_link"),
            tuple(notes),
        )


def _own_card(local: Path | None, hub_id: str, revision: str | None) -> dict[str, Any]:
    """Return the metadata of a base model's own card; empty where there is none that can be read."""
    try:
        path = local or hf_hub_download(hub_id, CARD_NAME, revision=revision, etag_timeout=5)
        found: dict[str, Any] = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # no card, none in the cache, no network, no YAML: a card is no reason to lose a run
        return {}
    return found
