"""Every method from its first step to its export, in each precision, with each optimizer, with and without checkpoints.

A method's runs take one optimizer each, and go round over precision and gradient checkpointing: each method meets every
optimizer and every pair of the others. AdamW in float32 without checkpoints is tests/finetune/test_contract.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
from accelerate.state import AcceleratorState

from finetune.core.optimizer_options import OptimizerName
from tests.finetune.test_contract import EVERY_ROW, _run, arguments, scans  # noqa: F401

OPTIMIZERS: tuple[OptimizerName, ...] = tuple(name for name in get_args(OptimizerName) if name != "adamw")
WAYS = tuple(product(("bf16", "no"), (True, False)))  # precision, gradient checkpointing
RATES = {"prodigy": {"learning_rate": 1.0, "text_encoder_lr": None}}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """The precision of one test's accelerator is not that of the next."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", EVERY_ROW)
def test_a_run_comes_to_its_export(name: str, optimizer: OptimizerName, arguments: dict[str, Any]) -> None:  # noqa: F811
    row = EVERY_ROW[name]
    precision, checkpointing = WAYS[(list(EVERY_ROW).index(name) + OPTIMIZERS.index(optimizer)) % len(WAYS)]
    rates = {key: value for key, value in RATES.get(optimizer, {}).items() if key in row.settings.model_fields}
    more = {"mixed_precision": precision, "gradient_checkpointing": checkpointing, "optimizer": optimizer, **rates}
    _run(row, arguments, max_train_steps=2, num_validation_images=0, **more)
    folder: Path = arguments["output_dir"]
    assert json.loads((folder / "status.json").read_text())["status"] == "done"
    assert all((folder / file).exists() for file in (*row.leaves, "final.png", "README.md"))


def test_every_method_meets_every_pair_of_precision_and_checkpointing() -> None:
    assert len(OPTIMIZERS) == len(WAYS)  # so that each row goes round once
