"""A cache that cannot change a result."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from finetune.core.cache import CachedConditioner, CachedSpace
from pipelines.components import load_components
from pipelines.conditioning import TextConditioner
from pipelines.spaces import LatentSpace


class _Counting:
    """The sum of each image, and the length of each caption, with a count of how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += len(pixels)
        return pixels.sum((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
        return mean + std * eps

    def encode(self, captions: tuple[str, ...]) -> Tensor:
        self.asked += len(captions)
        return torch.tensor([[[float(len(caption))]] for caption in captions])


def test_each_image_keeps_its_own_latents_in_any_order_and_with_flips() -> None:
    """diffusers' advanced script pairs latents with another image's caption once the loader shuffles."""
    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    flipped = images.flip(-1) + torch.linspace(0, 1, 4)  # another content
    direct, counting = _Counting(), _Counting()
    cached = CachedSpace(counting)
    for order in ([0, 1, 2, 3], [3, 5, 0, 4], [5, 4, 3, 2, 1, 0]):
        for variant in (images, flipped):
            batch = variant[order]
            for a, b in zip(cached.moments(batch), direct.moments(batch), strict=True):
                assert torch.equal(a, b)
    assert counting.asked == 12


def test_a_full_cache_computes_and_keeps_no_more() -> None:
    counting = _Counting()
    cached = CachedSpace(counting, limit_bytes=2 * 8)  # two entries of two float32 numbers
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    first, second = cached.moments(images), cached.moments(images)
    assert torch.equal(first[0], second[0])
    assert counting.asked == 4


def test_captions_are_read_once() -> None:
    counting = _Counting()
    cached = CachedConditioner(counting)
    for captions in (("a", "bb"), ("bb", "bb", "a"), ("ccc",)):
        assert cached.encode(captions).flatten().tolist() == [len(caption) for caption in captions]
    assert counting.asked == 3


def test_cached_and_uncached_parts_of_a_real_model_agree_bit_for_bit(tiny_base_dir: Path) -> None:
    components = load_components(str(tiny_base_dir))
    space = LatentSpace(components.vae)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    cached = CachedSpace(space)
    cached.moments(images[:1])  # the rest is filled in a batch of another size
    with torch.no_grad():
        for a, b in zip(cached.moments(images), space.moments(images), strict=True):
            assert torch.equal(a, b)
    captions = ("a dry slice", "sf_dry sf_warp")
    alone = CachedConditioner(TextConditioner(components.tokenizer, components.text_encoder))
    first = alone.encode(captions)
    assert torch.equal(alone.encode(captions[::-1]), first.flip(0))
