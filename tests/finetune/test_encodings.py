"""A store of encodings that cannot change a result, is shared by runs, and notices damage."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.errors import SettingsError
from finetune.core.encodings import EncodedConditioner, EncodedSpace, EncodingStore, group_size, identity
from pipelines.components import Components, load_components, present, release
from pipelines.conditioning import TextConditioner
from pipelines.spaces import LatentSpace


class _Counting:
    """The sum of each image, and the length of each caption, with a count of how often it was asked."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(pixels))
        return pixels.sum((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)

    def sample(self, mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
        return mean + std * eps

    def encode(self, captions: tuple[str, ...]) -> Tensor:
        self.batches.append(len(captions))
        return torch.tensor([[[float(len(caption))]] for caption in captions])


def _in_memory() -> EncodingStore:
    return EncodingStore(None, limit_bytes=0)


def _on_disk(folder: Path, **options: int) -> EncodingStore:
    return EncodingStore(folder / "encodings", **{"limit_bytes": 1 << 30, **options})


def _images(count: int, side: int = 4) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_each_image_keeps_its_own_latents_in_any_order_and_with_flips() -> None:
    """diffusers' advanced script pairs latents with another image's caption once the loader shuffles."""
    images = _images(6)
    flipped = images.flip(-1) + torch.linspace(0, 1, 4)  # another content
    store = _in_memory()
    direct, cached = _Counting(), EncodedSpace(_Counting(), store)
    for order in ([0, 1, 2, 3], [3, 5, 0, 4], [5, 4, 3, 2, 1, 0]):
        for variant in (images, flipped):
            batch = variant[order]
            for a, b in zip(cached.moments(batch), direct.moments(batch), strict=True):
                assert torch.equal(a, b)
    assert store.num_made == 12


def test_a_full_memory_computes_and_keeps_no_more() -> None:
    store = EncodingStore(None, limit_bytes=0, memory_limit_bytes=2 * 8)  # two entries of two float32 numbers
    cached = EncodedSpace(_Counting(), store)
    first, second = cached.moments(_images(3)), cached.moments(_images(3))
    assert torch.equal(first[0], second[0])
    assert store.num_made == 4


def test_captions_are_read_once() -> None:
    store = _in_memory()
    cached = EncodedConditioner(_Counting(), store)
    for captions in (("a", "bb"), ("bb", "bb", "a"), ("ccc",)):
        assert cached.encode(captions).flatten().tolist() == [len(caption) for caption in captions]
    assert store.num_made == 3


def test_what_is_encoded_ahead_is_not_encoded_again_and_groups_have_one_size() -> None:
    counting, store = _Counting(), _in_memory()
    cached = EncodedSpace(counting, store)
    images = _images(11)
    cached.ahead(iter([*images, *images[:5]]))
    assert store.num_made == 11
    cached.moments(images[2:5])
    assert store.num_made == 11
    cached.moments(_images(12)[11:])
    assert set(counting.batches) == {group_size((3, 4, 4))} == {8}
    assert [group_size((3, side, side)) for side in (64, 96, 128, 256, 512)] == [8, 3, 2, 1, 1]


@pytest.mark.parametrize("base", ["swatch", "tiny"])
def test_an_image_has_the_same_bits_beside_any_others(base: str, tiny_base_dir: Path) -> None:
    """So a result does not depend on what a store held; and close to what the image gets alone."""
    components = load_components("swatch" if base == "swatch" else str(tiny_base_dir))
    space, images = LatentSpace(components.vae), _images(20, 32)
    orders = ([*range(20)], [*range(19, -1, -1)], [3, 17])
    found = []
    for order in orders:
        cached = EncodedSpace(space, _in_memory(), partial(identity, components.vae))
        cached.ahead(iter(images[order]))
        found.append(cached.moments(images[[3, 17]]))
    for mean, std in found[1:]:
        assert torch.equal(mean, found[0][0])
        assert torch.equal(std, found[0][1])
    with torch.no_grad():
        alone, _ = space.moments(images[[3]])
    torch.testing.assert_close(found[0][0][:1], alone, rtol=1e-4, atol=2e-5)

    captions = ("a dry slice", "sf_dry sf_warp", "", "red")
    text = TextConditioner(components.tokenizer, components.text_encoder)
    forward, backward = (EncodedConditioner(text, _in_memory()) for _ in range(2))
    assert torch.equal(forward.encode(captions), backward.encode(captions[::-1]).flip(0))


def test_a_second_run_encodes_nothing(tmp_path: Path) -> None:
    first, second = _on_disk(tmp_path), _on_disk(tmp_path)
    made = EncodedSpace(_Counting(), first, lambda: "part").moments(_images(5))
    again = EncodedSpace(_Counting(), second, lambda: "part").moments(_images(5))
    assert (first.num_made, second.num_made, second.num_found) == (5, 0, 5)
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    other = _on_disk(tmp_path)
    EncodedSpace(_Counting(), other, lambda: "another part").moments(_images(5))
    assert other.num_made == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
        lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        Path.unlink,
    ],
    ids=["cut", "empty", "a bit of the tensor", "a bit of the digest", "removed"],
)
def test_a_damaged_entry_is_noticed_and_made_again(damage: Callable[[Path], object], tmp_path: Path) -> None:
    made = EncodedSpace(_Counting(), _on_disk(tmp_path)).moments(_images(1))
    (path,) = (tmp_path / "encodings").glob("*/*")
    damage(path)
    store = _on_disk(tmp_path)
    again = EncodedSpace(_Counting(), store).moments(_images(1))
    assert store.num_made == 1
    assert torch.equal(made[0], again[0])
    assert _on_disk(tmp_path).has(path.parent.name + path.name)  # and is sound again


def test_a_store_that_cannot_be_written_keeps_the_run_going(tmp_path: Path) -> None:
    (tmp_path / "encodings").write_text("a file in the way")
    store = _on_disk(tmp_path)
    EncodedSpace(_Counting(), store).moments(_images(2))
    assert store.num_made == 2


def test_the_longest_unused_entries_go_when_the_store_is_full(tmp_path: Path) -> None:
    images = _images(4)
    store = _on_disk(tmp_path)
    space = EncodedSpace(_Counting(), store)
    for place in range(3):
        space.moments(images[place : place + 1])
    paths = {path: path.stat().st_size for path in (tmp_path / "encodings").glob("*/*")}
    for age, path in enumerate(sorted(paths)):
        os.utime(path, (1000 - age, 1000 - age))
    used = sorted(paths)[-1]  # the oldest, until it is read
    limited = _on_disk(tmp_path, limit_bytes=2 * max(paths.values()))
    assert limited.has(used.parent.name + used.name)
    EncodedSpace(_Counting(), limited).moments(images[3:])
    limited.prune()
    left = set((tmp_path / "encodings").glob("*/*"))
    assert len(left) == 2
    assert used in left


def test_another_weight_config_or_number_of_threads_is_another_identity(tiny_base_dir: Path) -> None:
    vae = load_components(str(tiny_base_dir)).vae
    known = [identity(vae)]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    known.append(identity(vae))
    torch.set_num_threads(threads)
    vae.register_to_config(norm_num_groups=4)
    known.append(identity(vae))
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] += 1e-6
    known.append(identity(vae))
    assert len(set(known)) == 4


def _nbytes(components: Components, part: str) -> int:
    return sum(parameter.nbytes for parameter in getattr(components, part).parameters())


def test_released_parts_take_no_memory_and_come_back_bit_for_bit(tiny_base_dir: Path) -> None:
    components = load_components(str(tiny_base_dir))
    components.text_encoder.to(torch.bfloat16)
    before = {part: getattr(components, part).state_dict() for part in ("vae", "text_encoder")}
    before = {part: {name: tensor.clone() for name, tensor in state.items()} for part, state in before.items()}
    release(components, ["vae", "text_encoder"])
    assert _nbytes(components, "vae") == _nbytes(components, "text_encoder") == 0
    with present(components, ["vae"]):
        assert _nbytes(components, "vae") > 0 == _nbytes(components, "text_encoder")
    assert _nbytes(components, "vae") == 0
    with present(components):
        for part, state in before.items():
            for name, tensor in getattr(components, part).state_dict().items():
                assert tensor.dtype == state[name].dtype
                assert torch.equal(tensor, state[name]), name


def test_parts_whose_files_have_changed_are_refused(make_tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    components = load_components(str(base))
    release(components, ["vae"])
    other = make_tiny_base(tmp_path / "other", seed=1)
    name = "vae/diffusion_pytorch_model.safetensors"
    (other / name).replace(base / name)
    with pytest.raises(SettingsError, match="files were changed while it ran"), present(components):
        pass


def test_a_space_is_woken_only_for_what_is_missing(tmp_path: Path) -> None:
    woken = []

    def awake() -> nullcontext[None]:
        woken.append(1)
        return nullcontext()

    for _ in range(2):
        space = EncodedSpace(_Counting(), _on_disk(tmp_path), awake=awake)
        space.ahead(iter(_images(9)))
        space.moments(_images(9))
    assert len(woken) == 1
