"""A U-Net whose matrices are kept in 4 bits (nf4), through diffusers' quantization and bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from diffusers import BitsAndBytesConfig
from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer
from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

_BLOCK_SIZE = 64  # numbers with one scale, bitsandbytes' default


def _config(dtype: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


@contextmanager
def quantizing(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    """Give the options of diffusers' from_pretrained for a model in 4 bits, and let it be read on the CPU too.

    dtype: of the products, and of all that is no matrix.
    """
    # diffusers (0.42.1) refuses without a GPU, which bitsandbytes needs no longer since 0.46
    checked = BnB4BitDiffusersQuantizer.validate_environment
    BnB4BitDiffusersQuantizer.validate_environment = lambda *_, **__: None
    try:
        yield {"quantization_config": _config(dtype), "dtype": dtype, "device_map": {"": device}}
    finally:
        BnB4BitDiffusersQuantizer.validate_environment = checked


def prepare(module: nn.Module, dtype: torch.dtype) -> None:
    """Make a module in 4 bits ready to be trained through, on a CPU and under autocast too. dtype: of its products."""

    def lowered(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(dtype) for tensor in inputs)

    for layer in module.modules():
        if isinstance(layer, Linear4bit):
            # autocast knows these layers not: they would answer in the precision of what goes in
            layer.register_forward_pre_hook(lowered)
            # evaluated on a CPU, bitsandbytes (0.50.2) would bring the weights into a form that no gradient passes
            # through afterwards; it fails at widths like 48, too
            layer.support_avx512bf16_for_cpu = False


def without_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Put layers of 4 bits, holding what the memory holds, in the place of a module's matrices."""
    module.to(dtype)
    with _disable_current_modes():  # the layers are made on the meta device, which a FakeTensorMode would change
        replace_with_bnb_linear(module, modules_to_not_convert=[], quantization_config=_config(dtype))
    module.is_loaded_in_4bit = True  # type: ignore[assignment]
    for layer in module.modules():
        if isinstance(layer, Linear4bit):
            numbers = layer.in_features * layer.out_features
            state = QuantState(
                absmax=torch.empty(-(-numbers // _BLOCK_SIZE)),
                shape=torch.Size((layer.out_features, layer.in_features)),
                code=torch.empty(16),
                blocksize=_BLOCK_SIZE,
                quant_type="nf4",
                dtype=dtype,
            )
            weight = nn.Parameter(torch.empty((numbers + 1) // 2, 1, dtype=torch.uint8), requires_grad=False)
            # what bitsandbytes' own class of parameters carries, which cannot be made of a fake tensor
            for name, value in (("quant_state", state), ("quant_type", "nf4"), ("compress_statistics", False)):
                setattr(weight, name, value)
            layer.weight = weight
            layer.quant_state = state
            if layer.bias is not None:
                layer.bias = nn.Parameter(torch.empty(layer.out_features, dtype=dtype))
    prepare(module, dtype)
