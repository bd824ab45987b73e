"""What is trained, and what must stay as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from data.errors import OutputError
from finetune.core.trainables import UNetLora, WholeModule, copy_strictly


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
        UNetLora(unet, rank=4, alpha=4, dropout=0.0, seed=0)
        assert torch.equal(unet(**_inputs()).sample, before)


def test_one_step_changes_the_adapter_and_leaves_the_base_bit_equal(unet: UNet2DConditionModel) -> None:
    base = {name: p.detach().clone() for name, p in unet.named_parameters()}
    part = UNetLora(unet, rank=4, alpha=4, dropout=0.0, seed=0)
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
    part = UNetLora(unet.to(torch.bfloat16), rank=4, alpha=4, dropout=0.0, seed=0)
    assert {p.dtype for p in part.named_parameters().values()} == {torch.float32}
    frozen = {p.dtype for p in unet.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}


def test_convolutions_are_adapted_when_asked(unet: UNet2DConditionModel, tiny_base_dir: Path) -> None:
    other = UNet2DConditionModel.from_pretrained(tiny_base_dir / "unet", use_safetensors=True)
    attention = UNetLora(unet, rank=4, alpha=4, dropout=0.0, seed=0).named_parameters()
    both = UNetLora(other, rank=4, alpha=4, dropout=0.0, seed=0, convolutions=True).named_parameters()
    assert all(".attn" in name for name in attention)
    assert attention.keys() < both.keys()
    assert any(".resnets.0.conv1.lora_A" in name for name in both)


def test_adapters_depend_on_their_seed_and_on_nothing_else(tiny_base_dir: Path) -> None:
    def weights(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        unet = UNet2DConditionModel.from_pretrained(tiny_base_dir / "unet", use_safetensors=True)
        state = UNetLora(unet, rank=4, alpha=4, dropout=0.0, seed=seed).state()
        return torch.cat([tensor.flatten() for tensor in state.values()])

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))


def test_alpha_over_rank_scales_the_change(unet: UNet2DConditionModel, tiny_base_dir: Path) -> None:
    other = UNet2DConditionModel.from_pretrained(tiny_base_dir / "unet", use_safetensors=True)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    changes = []
    for model, alpha in ((unet, 4.0), (other, 10.0)):
        part = UNetLora(model, rank=4, alpha=alpha, dropout=0.0, seed=0)
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
