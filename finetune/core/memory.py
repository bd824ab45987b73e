"""The peak of a run's memory, by part, before anything is read: torch's fake tensors have shapes and no numbers.

The method's own `build` is called on them, then a step is made: forward, backward, and the optimizer's. A dispatch mode
counts the storages that are alive.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.core.encodings import EncodedConditioner, EncodedSpace, group_size
from finetune.core.loop import hold_still, make_optimizer
from finetune.core.method import Batch, Method
from finetune.core.objective import NoiseObjective
from finetune.core.settings import LoopSettings
from pipelines.conditioning import TextConditioner
from pipelines.spaces import LatentSpace

Settings = TypeVar("Settings", bound=LoopSettings)

FROZEN, TRAINED, AVERAGE, GRADIENTS, OPTIMIZER, WORKING, LIBRARIES = (
    "frozen weights",
    "trained weights",
    "their average",
    "gradients",
    "optimizer",
    "activations",
    "interpreter, libraries and images",
)


@dataclass(frozen=True)
class Forecast:
    """The highest moment of a run's memory.

    parts: bytes by part. device: where they are. free_bytes: what the device has for them. phase: "encoding" where it
    comes before the steps, "step" where it comes in one.
    """

    parts: dict[str, int]
    phase: str
    device: str
    free_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """Return the forecast for a plan."""
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in self.parts.items() if size)
        moment = "while images and captions are encoded" if self.phase == "encoding" else "in a step"
        fits = self.peak_bytes <= self.free_bytes
        verdict = "fits" if fits else "DOES NOT FIT"
        told = f"memory      {_gib(self.peak_bytes)} GiB at the peak, {moment}: {parts}"
        room = f"            {verdict}: {self.device} has {_gib(self.free_bytes)} GiB free"
        return [told, room if fits else f"{room}. {_REMEDY}"]


# On the CPU, set by three methods that were measured (docs/memory.md): what the heap keeps between blocks that were
# freed, as a share of the activations, and the pages of libraries that only a run reads.
_HEAP_SHARE = 0.25
_PAGES_READ_LATER = 40 << 20
_REMEDY = "See configs/memory/ for smaller batches, checkpointed gradients, 8-bit optimizers and 4-bit bases."


def forecast(
    build: Callable[[Settings, Accelerator], Method], settings: Settings, accelerator: Accelerator
) -> tuple[Method, Forecast]:
    """Return a method built of fake tensors, and the peak of its run's memory.

    settings: of a dry run, whose base is not read.
    """
    assert settings.dry_run, "the weights of the base are read otherwise"
    ledger = _Ledger()
    with _replaced_parameters(), FakeTensorMode(allow_non_fake_inputs=True), ledger:
        method = build(settings, accelerator)
        phase, parts = _highest(ledger, method, settings, accelerator)
    libraries = _resident_bytes() + _PAGES_READ_LATER if accelerator.device.type == "cpu" else 0
    if accelerator.device.type == "cuda":
        free = torch.cuda.mem_get_info(accelerator.device)[0]
    else:
        free = psutil.virtual_memory().available + libraries
    order = (FROZEN, TRAINED, AVERAGE, GRADIENTS, OPTIMIZER, WORKING)
    found = {part: parts[part] for part in order} | {LIBRARIES: libraries}
    if accelerator.device.type == "cpu":
        found[WORKING] = round(found[WORKING] * (1 + _HEAP_SHARE))
    return method, Forecast(found, phase, str(accelerator.device), free)


def _resident_bytes() -> int:
    """Return what this process holds once a first step has loaded the libraries that compute it."""
    layer, table = nn.Conv2d(8, 8, 3), nn.Linear(64, 64)
    loss = nn.functional.scaled_dot_product_attention(*[table(layer(torch.ones(1, 8, 66, 66)))] * 3).sum()
    loss.backward()
    torch.optim.AdamW([*layer.parameters(), *table.parameters()], fused=True).step()
    return int(psutil.Process().memory_info().rss)


def _highest(
    ledger: _Ledger, method: Method, settings: LoopSettings, accelerator: Accelerator
) -> tuple[str, Counter[str]]:
    """Go through the run's phases and return the name and the split of the one that takes most."""
    trained = [p for part in method.trainables for p in part.named_parameters().values()]
    kept = [tensor for part in method.trainables for tensor in part.state().values()]
    ledger.call_all(FROZEN)
    ledger.call(kept, AVERAGE)
    ledger.call(trained, TRAINED)
    batch = _batch(method, settings, accelerator)
    objective, encoders, encode = _encoded(method.objective, batch)
    optimizer = make_optimizer(method, settings, settings.train_batch_size, settings.max_train_steps + 10**6)
    steps = [ledger.highest_of(lambda: _first_update(ledger, optimizer, trained))]
    encoding = ledger.highest_of(encode)  # later images are encoded in between
    if method.prepare is not None:
        ledger.forget(encoders)
    on_known = replace(method, objective=objective)
    for share in sorted({start for start, _ in method.spans.values()} or {0.0}):
        hold_still(method, share)
        steps.append(ledger.highest_of(lambda: _gradients(ledger, on_known, settings, accelerator, batch)))
        for parameter in trained:
            parameter.grad = None
    peaks = [("encoding", encoding), *(("step", peak) for peak in steps)]
    return max(peaks, key=lambda peak: peak[1].total())


def _batch(method: Method, settings: LoopSettings, accelerator: Accelerator) -> Batch:
    """Return a micro-batch as the run has them, without its pixels' values."""
    first = method.dataset.sample(0)
    size = settings.train_batch_size * (1 if method.prior is None else 2)
    return Batch(
        positions=tuple(range(size)),
        pixels=torch.empty(size, *first.pixels.shape, device=accelerator.device),
        captions=(first.caption,) * size,
        is_prior=torch.zeros(size, dtype=torch.bool, device=accelerator.device),
        sources=("",) * size,
    )


class _Known:
    """What a frozen part made of one input, in the place of the part: one of that shape for each input."""

    def __init__(self, made: Sequence[Tensor]) -> None:
        self._made = [(tensor.shape[1:], tensor.dtype, tensor.device) for tensor in made]

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self._of(len(pixels))
        return mean, std

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
        return mean + std * eps

    def encode(self, captions: tuple[str, ...]) -> Tensor:
        return self._of(len(captions))[0]

    def _of(self, size: int) -> list[Tensor]:
        return [torch.empty(size, *shape, dtype=dtype, device=device) for shape, dtype, device in self._made]


def _encoded(objective: Any, batch: Batch) -> tuple[Any, list[nn.Module], Callable[[], None]]:
    """Return an objective that is given what its frozen parts make, these parts, and a call of them."""
    if not isinstance(objective, NoiseObjective):
        return objective, [], lambda: None
    calls: list[Callable[[], Sequence[Tensor]]] = []
    encoders: list[nn.Module] = []
    known: dict[str, Any] = {}
    with torch.no_grad():
        if isinstance(objective.space, EncodedSpace):
            space = objective.space.space
            assert isinstance(space, LatentSpace)
            group = torch.empty(group_size(batch.pixels.shape[1:]), *batch.pixels.shape[1:], device=batch.pixels.device)
            encoders.append(space.module)
            calls.append(lambda: space.moments(group))
            known["space"] = _Known(calls[-1]())
        if isinstance(objective.conditioner, EncodedConditioner):
            conditioner = objective.conditioner.conditioner
            assert isinstance(conditioner, TextConditioner)
            encoders.append(conditioner.module)
            calls.append(lambda: [conditioner.encode(batch.captions[:1])])
            known["conditioner"] = _Known(calls[-1]())

    def encode() -> None:
        with torch.no_grad():
            for call in calls:
                call()

    return replace(objective, **known), encoders, encode


def _first_update(ledger: _Ledger, optimizer: torch.optim.Optimizer, trained: Sequence[nn.Parameter]) -> None:
    """Let an optimizer make its first step, and keep its state."""
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    ledger.call([p.grad for p in trained if p.grad is not None], GRADIENTS)
    ledger.new = OPTIMIZER
    if hasattr(optimizer, "init_state"):  # bitsandbytes, whose kernels take no fake tensors
        for number, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                optimizer.init_state(group, parameter, number, index)
    else:
        optimizer.step()
    ledger.new = WORKING
    for parameter in trained:
        parameter.grad = None


def _gradients(ledger: _Ledger, method: Method, settings: LoopSettings, accelerator: Accelerator, batch: Batch) -> None:
    """Make the gradients of one step of the run."""
    moved = [p for part in method.trainables for p in part.named_parameters().values() if p.requires_grad]
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: ledger.call([p.grad] if p.grad is not None else [], GRADIENTS))
        for p in moved
    ]
    for part in method.trainables:
        part.module.train()
    for _ in range(min(settings.gradient_accumulation_steps, 2)):
        with accelerator.autocast():
            losses = method.objective.losses(batch)
        losses.sum().backward()
    if accelerator.num_processes > 1:  # they are summed in one piece
        torch.cat([p.grad.flatten() for p in moved if p.grad is not None]).clone()
    for hook in hooks:
        hook.remove()


def _tensors_in(value: object) -> Iterator[Tensor]:
    match value:
        case torch.Tensor():
            yield value
        case dict():
            yield from _tensors_in(list(value.values()))
        case list() | tuple():
            for item in value:
                yield from _tensors_in(item)


# on a CPU oneDNN copies what goes in and what comes out into a layout of its own
_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


class _Ledger(TorchDispatchMode):
    """Counts the bytes of the storages that fake tensors hold, by part, and keeps the split of the highest moment.

    new: the part that new storages belong to, until they are called another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.new = WORKING
        self._live: dict[int, tuple[weakref.ref[Any], int, str]] = {}
        self._held: Counter[str] = Counter()
        self._total = 0
        self._peak: Counter[str] = Counter()
        self._highest = 0
        self._num_numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # a number that a fake tensor does not have, and on which no memory depends; schedules fall from 1 towards 0
            self._num_numbers += 1
            return 0.999**self._num_numbers if args[0].is_floating_point() else 1
        made = func(*args, **(kwargs or {}))
        results = [tensor for tensor in _tensors_in(made) if isinstance(tensor, FakeTensor)]
        for tensor in results:
            self._note(tensor)
        if func in _CONVOLUTIONS and results and results[0].device.type == "cpu":
            self._look(sum(tensor.nbytes for tensor in (*_tensors_in(args), *results)))
        return made

    def call(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors as a part."""
        for tensor in tensors:
            if isinstance(tensor, FakeTensor):
                key = self._note(tensor)
                reference, size, before = self._live[key]
                self._held[before] -= size
                self._held[part] += size
                self._live[key] = (reference, size, part)

    def call_all(self, part: str) -> None:
        """Count everything that is alive as a part."""
        self._live = {key: (reference, size, part) for key, (reference, size, _) in self._live.items()}
        self._held = Counter({part: self._total})

    def forget(self, modules: Iterable[nn.Module]) -> None:
        """Take modules out of the memory."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._drop(id(tensor.untyped_storage()))

    def highest_of(self, phase: Callable[[], None]) -> Counter[str]:
        """Return the split of the highest moment of a phase."""
        self._peak, self._highest = Counter(self._held), self._total
        phase()
        return self._peak

    def _note(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._live:
            size = storage.nbytes()
            self._live[key] = (weakref.ref(storage, lambda _: self._drop(key)), size, self.new)
            self._held[self.new] += size
            self._total += size
            self._look()
        return key

    def _look(self, passing: int = 0) -> None:
        """Keep this moment where it is the highest. passing: bytes of work space beside what is held."""
        if self._total + passing > self._highest:
            self._highest, self._peak = self._total + passing, Counter(self._held)
            self._peak[WORKING] += passing

    def _drop(self, key: int) -> None:
        if key in self._live:
            _, size, part = self._live.pop(key)
            self._held[part] -= size
            self._total -= size


@contextmanager
def _replaced_parameters() -> Iterator[None]:
    """Have modules move and cast by new parameters: torch (2.13) exchanges fake ones in place, which fails."""

    def apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in self.children() if recurse else ():
            apply(child, fn)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if parameter is not None and (applied := fn(parameter)) is not parameter:
                    self._parameters[name] = nn.Parameter(applied, parameter.requires_grad)
            for name, buffer in self._buffers.items():
                if buffer is not None:
                    self._buffers[name] = fn(buffer)
        return self

    own = nn.Module._apply
    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = own  # type: ignore[method-assign]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
