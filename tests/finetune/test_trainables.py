"""What is trained, and what must stay as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from data.errors import OutputError
from finetune.core.trainables import TEXT_ATTENTION, Lora, LoraShape, WholeModule, copy_strictly, unet_layers


def _lora(unet: UNet2DConditionModel, *, alpha: float = 4, seed: int = 0, target: str = "attention") -> Lora:
    return Lora("unet_lora", unet, unet_layers(unet, target), LoraShape(4, alpha), seed=seed)


@pytest.fixture
def unet(tiny_base_dir: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_base_dir / "unet", use_safetensors=True)


def _inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([10, 900]),
        "encoder_hidden_states": torch.randn(2, 77, 32, generator=generator),
    }


def test_a_fresh_adapter_changes_nothing(unet: UNet2DConditionModel) -> None:
    with torch.no_grad():
        before = unet(**_inputs()).sample
        _lora(unet)
        assert torch.equal(unet(**_inputs()).sample, before)


def test_one_step_changes_the_adapter_and_leaves_the_base_bit_equal(unet: UNet2DConditionModel) -> None:
    base = {name: p.detach().clone() for name, p in unet.named_parameters()}
    part = _lora(unet)
    parameters = part.named_parameters()
    assert parameters
    assert all("lora" in name for name in parameters)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    unet(**_inputs()).sample.square().mean().backward()
    optimizer.step()
    after = {name.replace(".base_layer", ""): p for name, p in unet.named_parameters() if "lora" not in name}
    assert after.keys() == base.keys()
    assert all(torch.equal(after[name], base[name]) for name in base)
    # the first factor gets no gradient while the second is zero
    second = [name for name in parameters if "lora_B" in name]
    assert second
    assert not any(torch.equal(parameters[name], before[name]) for name in second)


def test_adapters_are_float32_on_a_bf16_base(unet: UNet2DConditionModel) -> None:
    """diffusers' text-to-image LoRA script leaves them in bf16, and the optimizer's state with them."""
    part = _lora(unet.to(torch.bfloat16))
    assert {p.dtype for p in part.named_parameters().values()} == {torch.float32}
    frozen = {p.dtype for p in unet.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}


def test_convolutions_are_adapted_when_asked(unet: UNet2DConditionModel, tiny_base_dir: Path) -> None:
    other = UNet2DConditionModel.from_pretrained(tiny_base_dir / "unet", use_safetensors=True)
    attention = _lora(unet).named_parameters()
    both = _lora(other, target="attention+conv").named_parameters()
    assert all(".attn" in name for name in attention)
    assert attention.keys() < both.keys()
    assert any(".resnets.0.conv1.lora_A" in name for name in both)


def test_every_layer_is_adapted_when_asked_and_convolutions_have_a_size_of_their_own(
    unet: UNet2DConditionModel,
) -> None:
    every = [path for path, layer in unet.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    shape = LoraShape(4, 8.0, conv_rank=2, conv_alpha=1.0)
    parameters = Lora("unet_lora", unet, unet_layers(unet, "all"), shape, seed=0).named_parameters()
    first = {name: p for name, p in parameters.items() if "lora_A" in name}
    assert len(first) == len(every)
    assert {p.shape[0] for p in first.values() if p.ndim == 4} == {2}
    assert {p.shape[0] for p in first.values() if p.ndim == 2} == {4}
    assert unet.conv_in.scaling == {"filrouge": 0.5}
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.scaling == {"filrouge": 2.0}


def test_dora_learns_lengths_and_changes_nothing_at_first(unet: UNet2DConditionModel) -> None:
    with torch.no_grad():
        before = unet(**_inputs()).sample
        shape = LoraShape(4, 4.0, use_dora=True)
        part = Lora("unet_lora", unet, unet_layers(unet, "attention"), shape, seed=0)
        torch.testing.assert_close(unet(**_inputs()).sample, before, rtol=1e-5, atol=1e-5)
    lengths = [p for name, p in part.named_parameters().items() if "magnitude" in name]
    assert len(lengths) == sum("lora_A" in name for name in part.named_parameters())


def test_the_text_encoder_is_adapted_in_its_attention(tiny_base_dir: Path) -> None:
    encoder = CLIPTextModel.from_pretrained(tiny_base_dir / "text_encoder")
    part = Lora("text_encoder_lora", encoder, TEXT_ATTENTION, LoraShape(3, 3.0), seed=0)
    adapted = [name for name in part.named_parameters() if "lora_A" in name]
    assert len(adapted) == 4 * encoder.config.num_hidden_layers
    assert all("self_attn" in name for name in adapted)


def test_adapters_depend_on_their_seed_and_on_nothing_else(tiny_base_dir: Path) -> None:
    def weights(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        unet = UNet2DConditionModel.from_pretrained(tiny_base_dir / "unet", use_safetensors=True)
        state = _lora(unet, seed=seed).state()
        return torch.cat([tensor.flatten() for tensor in state.values()])

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))


def test_alpha_over_rank_scales_the_change(unet: UNet2DConditionModel, tiny_base_dir: Path) -> None:
    other = UNet2DConditionModel.from_pretrained(tiny_base_dir / "unet", use_safetensors=True)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    changes = []
    for model, alpha in ((unet, 4.0), (other, 10.0)):
        part = _lora(model, alpha=alpha)
        with torch.no_grad():
            for name, parameter in part.named_parameters().items():
                if "lora_B" in name:
                    parameter.fill_(0.1)
            x = torch.ones(1, 64)
            module = model.get_submodule(layer)
            changes.append(module(x) - module.base_layer(x))
    torch.testing.assert_close(changes[1], 2.5 * changes[0])


def test_the_average_follows_the_weights_and_can_be_swapped_in_and_out() -> None:
    module = torch.nn.Linear(3, 2)
    start = module.weight.detach().clone()
    part = WholeModule("linear", module, ema_decay=0.5)
    with torch.no_grad():
        module.weight.add_(1.0)
    part.after_step(100)  # far beyond the warm-up of the decay
    torch.testing.assert_close(part.averaged["weight"], start + 0.5)
    part.swap_average()
    torch.testing.assert_close(module.weight.detach(), start + 0.5)
    part.swap_average()
    torch.testing.assert_close(module.weight.detach(), start + 1.0)


def test_state_restores_weights_and_average() -> None:
    part = WholeModule("linear", torch.nn.Linear(3, 2), ema_decay=0.9)
    with torch.no_grad():
        part.module.weight.add_(1.0)  # type: ignore[operator,union-attr]
    part.after_step(1)
    state = {name: tensor.clone() for name, tensor in part.state().items()}
    other = WholeModule("linear", torch.nn.Linear(3, 2), ema_decay=0.9)
    other.restore(state)
    assert all(torch.equal(other.state()[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"a": torch.zeros(2)}, "b is missing"),
        ({"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(1)}, "c is not part"),
        ({"a": torch.zeros(3), "b": torch.zeros(1)}, r"a has shape \(3,\), expected \(2,\)"),
        ({}, "2 problems"),
    ],
)
def test_a_state_of_another_shape_is_refused_and_changes_nothing(tensors: dict[str, torch.Tensor], word: str) -> None:
    into = {"a": torch.ones(2), "b": torch.ones(1)}
    with pytest.raises(OutputError, match=word):
        copy_strictly("unet_lora", into, tensors)
    assert torch.equal(into["a"], torch.ones(2))
