"""Whether exported files are what was trained: read back bit by bit, loaded, and compared in one prediction.

No second base is opened: what the files hold is put beside the modules that are there, or takes the place of their
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTokenizer

from data.errors import OutputError
from finetune.core import draws
from finetune.core.token_rows import TokenRows
from pipelines.adapters import load_adapter
from pipelines.components import Components, build_pipeline, present
from pipelines.conditioning import TextConditioner
from pipelines.embeddings import load_embeddings
from pipelines.sampling import evaluating

_TIMESTEP_SHARE = 0.5  # of the schedule, at which the prediction is compared
_NUM_NAMED = 3


@dataclass(frozen=True)
class Artefact:
    """A part of a run's result.

    write: into a folder, with entries for the headers of its files. read_back: says how the files in a folder differ
    from what was trained. reloaded: the components with what a folder holds in the place of what was trained, for a
    while; the modules that are there serve it, and no weights but the trained ones take memory.
    """

    write: Callable[[Path, Mapping[str, str]], None]
    read_back: Callable[[Path], list[str]]
    reloaded: Callable[[Path, Components], AbstractContextManager[Components]]


def verify(artefacts: Sequence[Artefact], folder: Path, components: Components, prompt: str, size_px: int) -> None:
    """Raise OutputError where files are not what was trained: other tensors, or another prediction once loaded.

    size_px: side of the image that is noised. A frozen text encoder is in memory while it reads the prompt, and no
    longer. The prediction is compared in the precision of the modules, and must be equal to the last bit.
    """
    problems = [problem for artefact in artefacts for problem in artefact.read_back(folder)]
    if not problems:
        with present(components, ("text_encoder",)):
            states = prompt_states(components, prompt)
        expected = predicted(components, states, size_px)
        there = components
        with ExitStack() as stack:
            with present(components, ("text_encoder",)):
                for artefact in artefacts:
                    there = stack.enter_context(artefact.reloaded(folder, there))
                states = prompt_states(there, prompt)
            found = predicted(there, states, size_px)
        if not torch.equal(found, expected):
            largest = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
            problems.append(
                f"loaded from its files, the U-Net predicts other noise for {prompt!r} than the trained one: by "
                f"{largest:.2g} of the largest value, expected 0."
            )
    if problems:
        raise OutputError(
            str(folder), *problems, "The checkpoints hold the trained weights; do not use the exported files."
        )


@torch.no_grad()
def prompt_states(components: Components, prompt: str) -> Tensor:
    """Return what the U-Net reads of a prompt, (1, tokens, width)."""
    with evaluating(components.text_encoder):
        return TextConditioner(components.tokenizer, components.text_encoder).encode([prompt])


@torch.no_grad()
def predicted(components: Components, states: Tensor, size_px: int) -> Tensor:
    """Return what the U-Net predicts with a prompt's states for fixed noise in mid-schedule, (1, C, h, w)."""
    unet, side = components.unet, size_px // components.vae_scale_factor
    noisy = draws.normal(0, "verification", [0], (unet.config.in_channels, side, side))
    timestep = torch.tensor([int(_TIMESTEP_SHARE * len(components.scheduler.alphas_cumprod))], device=unet.device)
    with evaluating(unet):
        prediction: Tensor = unet(
            noisy.to(unet.device, unet.dtype), timestep, states.to(unet.device, unet.dtype), return_dict=False
        )[0]
    return prediction


def tensor_problems(path: Path, expected: Mapping[str, Tensor]) -> list[str]:
    """Say how the tensors of a safetensors file, or of the files in a folder, differ from the expected ones.

    Names, shapes, precision and bits are compared, one tensor at a time. A tensor that the file has in another name
    because two names share its memory counts as there.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found: set[str] = set()
    problems = []
    for file in files:
        try:
            # mapped, the pages of the whole file would stay in the memory
            with safe_open(file, framework="pt", backend="pread") as stored:
                for name in stored.keys():  # noqa: SIM118
                    found.add(name)
                    if name not in expected:
                        problems.append(f"{file.name} holds the tensor {name}, which was not trained.")
                    elif difference := _difference(stored.get_tensor(name), expected[name]):
                        problems.append(f"{file.name}: the tensor {name} {difference}.")
        except (SafetensorError, OSError) as error:
            problems.append(f"{file.name} cannot be read back ({error}).")
    memory = {_address(expected[name]) for name in found & expected.keys()}
    missing = [name for name, tensor in expected.items() if name not in found and _address(tensor) not in memory]
    problems += [f"{path.name} lacks the tensor {name}." for name in missing]
    more = len(problems) - _NUM_NAMED
    return problems if more <= 0 else [*problems[:_NUM_NAMED], f"... and {more} more tensors that differ."]


def _difference(stored: Tensor, trained: Tensor) -> str:
    if stored.shape != trained.shape:
        return f"has the shape {tuple(stored.shape)}, expected {tuple(trained.shape)}"
    if stored.dtype != trained.dtype:
        return f"is {stored.dtype}, expected {trained.dtype}"
    if not torch.equal(stored.view(torch.uint8), trained.detach().cpu().contiguous().view(torch.uint8)):
        return "has other numbers than the trained one"
    return ""


def _address(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


@contextmanager
def with_adapters(folder: Path, components: Components, trained: str) -> Iterator[Components]:
    """Have the adapters of a folder's file act in the modules, in the place of those called `trained`."""
    pipeline = build_pipeline(components)
    name = load_adapter(pipeline, folder)
    try:
        yield components
    finally:
        for module in (components.unet, components.text_encoder):
            if trained in (getattr(module, "peft_config", None) or {}):
                module.set_adapter(trained)  # first: peft warns where an active adapter is deleted
        pipeline.delete_adapters(name)


@contextmanager
def with_embeddings(
    folder: Path, components: Components, rows: TokenRows, tokenizer: CLIPTokenizer
) -> Iterator[Components]:
    """Give the components a tokenizer that does not know the new word yet, and read the word from a folder's file.

    tokenizer: the base's own. The text encoder shares all weights but the table of its tokens.
    """
    encoder = twin(components.text_encoder)
    table = encoder.get_input_embeddings()
    with torch.no_grad():
        fresh = table.weight.detach().clone()
        fresh[rows.ids] = 0  # what is learnt must come from the file
    table.weight = nn.Parameter(fresh, requires_grad=False)
    there = replace(components, tokenizer=tokenizer, text_encoder=encoder)
    load_embeddings(build_pipeline(there), folder)
    yield there


@contextmanager
def with_modules(folder: Path, components: Components, parts: Sequence[str]) -> Iterator[Components]:
    """Build modules as the configs of a folder say, and have the trained weights in them."""
    yield replace(components, **{part: twin(getattr(components, part), folder / part) for part in parts})


def twin(module: nn.Module, folder: Path | None = None) -> Any:
    """Return a new module of the same class that shares the weights of another, without its hooks.

    module: of diffusers or transformers. folder: with the config it is built by; None takes the module's own.
    Raises OutputError where the weights do not fit the config.
    """
    kind: Any = type(module)
    with torch.device("meta"):
        if isinstance(module, ModelMixin):
            made = kind.from_config(module.config if folder is None else kind.load_config(folder))
        else:
            made = kind(
                module.config if folder is None else kind.config_class.from_pretrained(folder, local_files_only=True)
            )
    try:
        made.load_state_dict(module.state_dict(), assign=True)
    except RuntimeError as error:
        raise OutputError(
            str(folder), f"config.json describes another model than the trained one: {str(error).splitlines()[-1]}"
        ) from None
    for name, buffer in module.named_buffers():  # those that no file holds
        owner, _, last = name.rpartition(".")
        made.get_submodule(owner).register_buffer(last, buffer, persistent=name in module.state_dict())
    return made.requires_grad_(False).eval()
