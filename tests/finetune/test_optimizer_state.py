"""A restored optimizer goes on bit for bit; a state that does not fit is refused whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from data.errors import OutputError
from finetune.core import files
from finetune.core.optimizer_state import load_optimizer, optimizer_to_tensors


def _model(seed: int) -> torch.nn.Module:
    torch_generator = torch.Generator().manual_seed(seed)
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(3, 4), "second": torch.nn.Linear(4, 2, bias=False)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch_generator))
    return model


def _train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))

        def loss(x: torch.Tensor = x) -> float:
            optimizer.zero_grad()
            value = model["second"](torch.tanh(model["first"](x))).square().mean()  # type: ignore[index]
            value.backward()
            return float(value.detach())

        optimizer.step(loss)  # type: ignore[arg-type]


def _groups(model: torch.nn.Module) -> list[dict[str, object]]:
    first, second = model["first"], model["second"]  # type: ignore[index]
    return [{"params": list(first.parameters()), "lr": 0.01}, {"params": list(second.parameters())}]


OPTIMIZERS: dict[str, Callable[[torch.nn.Module], torch.optim.Optimizer]] = {
    "adamw": lambda model: torch.optim.AdamW(_groups(model), lr=0.02, betas=(0.8, 0.95), weight_decay=0.1),
    "adamw_amsgrad": lambda model: torch.optim.AdamW(_groups(model), lr=0.02, amsgrad=True),
    "adamw_tensor_lr": lambda model: torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.02)),
    "nadam": lambda model: torch.optim.NAdam(_groups(model), lr=0.02),
    "rprop": lambda model: torch.optim.Rprop(_groups(model), lr=0.02),
    "adagrad": lambda model: torch.optim.Adagrad(_groups(model), lr=0.02),
    "adafactor": lambda model: torch.optim.Adafactor(_groups(model), lr=0.02),
    "sgd": lambda model: torch.optim.SGD(_groups(model), lr=0.02, momentum=0.9, nesterov=True),
    "sgd_plain": lambda model: torch.optim.SGD(_groups(model), lr=0.02),
    "lbfgs": lambda model: torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    straight = _model(1)
    optimizer = OPTIMIZERS[name](straight)
    _train(straight, optimizer, range(8))

    first = _model(1)
    optimizer = OPTIMIZERS[name](first)
    _train(first, optimizer, range(4))
    tensors, groups = optimizer_to_tensors(optimizer, first.named_parameters())
    files.save_tensors(tmp_path / "optimizer.safetensors", tensors, {})
    files.write_json(tmp_path / "optimizer.json", groups)

    second = _model(2)
    second.load_state_dict(first.state_dict())
    fresh = OPTIMIZERS[name](second)
    fresh.param_groups[0]["weight_decay"] = 0.5  # what was saved wins
    loaded = files.load_tensors(tmp_path / "optimizer.safetensors")
    load_optimizer(fresh, second.named_parameters(), loaded, json.loads((tmp_path / "optimizer.json").read_bytes()))
    again, groups_again = optimizer_to_tensors(fresh, second.named_parameters())
    assert groups_again == groups
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    _train(second, fresh, range(4, 8))
    for parameter, expected in zip(second.parameters(), straight.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_a_run_without_its_optimizer_state_does_not_end_alike() -> None:
    straight, resumed = _model(1), _model(1)
    _train(straight, OPTIMIZERS["adamw"](straight), range(8))
    _train(resumed, OPTIMIZERS["adamw"](resumed), range(4))
    _train(resumed, OPTIMIZERS["adamw"](resumed), range(4, 8))
    assert not torch.equal(resumed["first"].weight, straight["first"].weight)  # type: ignore[index]


def test_the_state_of_a_parameter_follows_its_name() -> None:
    model = _model(1)
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW([named["first.weight"], named["second.weight"]])
    _train(model, optimizer, range(3))
    tensors, groups = optimizer_to_tensors(optimizer, model.named_parameters())
    assert set(tensors) == {f"{p}.weight/{e}" for p in ("first", "second") for e in ("step", "exp_avg", "exp_avg_sq")}
    swapped = torch.optim.AdamW([named["second.weight"], named["first.weight"]])
    load_optimizer(swapped, model.named_parameters(), tensors, groups)
    for name in ("first.weight", "second.weight"):
        for entry in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(swapped.state[named[name]][entry], optimizer.state[named[name]][entry])


def test_parameters_without_a_gradient_have_no_state_before_and_after() -> None:
    model = _model(1)
    model["first"].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    optimizer = OPTIMIZERS["adamw"](model)
    _train(model, optimizer, range(2))
    tensors, groups = optimizer_to_tensors(optimizer, model.named_parameters())
    assert not any(key.startswith("first.bias/") for key in tensors)
    fresh = OPTIMIZERS["adamw"](model)
    load_optimizer(fresh, model.named_parameters(), tensors, groups)
    assert len(fresh.state) == len(optimizer.state) == 2


class _Shared(torch.optim.SGD):
    """Keeps one tensor in the state of all parameters, as 8-bit optimizers do, and values that JSON lacks."""

    def fill(self) -> None:
        table = torch.arange(4)
        for group in self.param_groups:
            group["growth"] = float("inf")
            for parameter in group["params"]:
                self.state[parameter] = {"table": table, "nested": {"scale": (1, None, [0.1, torch.ones(2)])}}


def test_shared_tensors_nested_values_and_infinities_survive(tmp_path: Path) -> None:
    model = _model(1)
    optimizer = _Shared(model.parameters(), lr=0.1)
    optimizer.fill()
    tensors, groups = optimizer_to_tensors(optimizer, model.named_parameters())
    files.save_tensors(tmp_path / "optimizer.safetensors", tensors, {})
    files.write_json(tmp_path / "optimizer.json", groups)
    fresh = _Shared(model.parameters(), lr=0.2)
    loaded = files.load_tensors(tmp_path / "optimizer.safetensors")
    load_optimizer(fresh, model.named_parameters(), loaded, json.loads((tmp_path / "optimizer.json").read_bytes()))
    assert fresh.param_groups[0]["growth"] == float("inf")
    for parameter in model.parameters():
        state = fresh.state[parameter]
        scale = state["nested"]["scale"]
        assert type(scale) is tuple
        assert scale[:2] == (1, None)
        assert scale[2][0] == 0.1
        assert torch.equal(scale[2][1], torch.ones(2))
        assert torch.equal(state["table"], torch.arange(4).float())  # torch gives state the parameter's type


@dataclass
class _Restore:
    """The arguments of load_optimizer, fitting each other until a case changes one."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    named: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]
    groups: dict[str, object]


def _without_a_tensor(restore: _Restore) -> None:
    del restore.tensors["first.weight/exp_avg"]


def _with_a_tensor_too_many(restore: _Restore) -> None:
    restore.tensors["other/exp_avg"] = torch.ones(1)


def _with_a_transposed_tensor(restore: _Restore) -> None:
    restore.tensors["first.weight/exp_avg"] = restore.tensors["first.weight/exp_avg"].T


def _with_another_optimizer(restore: _Restore) -> None:
    restore.optimizer = OPTIMIZERS["sgd"](restore.model)


def _with_one_group(restore: _Restore) -> None:
    restore.optimizer = torch.optim.AdamW(restore.model.parameters())


def _with_another_name(restore: _Restore) -> None:
    restore.named["new.weight"] = restore.named.pop("first.weight")


def _with_a_wider_parameter(restore: _Restore) -> None:
    restore.model["second"] = torch.nn.Linear(7, 2, bias=False)  # type: ignore[operator]
    restore.named = dict(restore.model.named_parameters())
    restore.optimizer = OPTIMIZERS["adamw"](restore.model)


def _with_no_description(restore: _Restore) -> None:
    restore.groups = {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_a_tensor, [r"tensors missing: first\.weight/exp_avg\."]),
        (_with_a_tensor_too_many, [r"tensors unexpected: other/exp_avg\."]),
        (_with_a_transposed_tensor, [r"tensors of another shape: first.weight/exp_avg \(3, 4\) instead of \(4, 3\)"]),
        (_with_another_optimizer, ["was saved by AdamW, this run uses SGD"]),
        (_with_one_group, ["has 2 groups of parameters, expected 1", "group 0: parameters missing: second.weight"]),
        (_with_another_name, ["parameters missing: new.weight", "parameters unexpected: first.weight"]),
        (_with_a_wider_parameter, [r"parameters of another shape: second.weight \(2, 4\) instead of \(2, 7\)"]),
        (_with_no_description, ["not the description of an optimizer's state"]),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    change: Callable[[_Restore], None], words: list[str]
) -> None:
    model = _model(1)
    trained = OPTIMIZERS["adamw"](model)
    _train(model, trained, range(2))
    tensors, groups = optimizer_to_tensors(trained, model.named_parameters())
    restore = _Restore(model, OPTIMIZERS["adamw"](model), dict(model.named_parameters()), tensors, groups)
    change(restore)
    before = str(restore.optimizer.state_dict())
    with pytest.raises(OutputError) as caught:
        load_optimizer(restore.optimizer, restore.named.items(), restore.tensors, restore.groups)
    for expected in words:
        assert re.search(expected, str(caught.value))
    assert str(restore.optimizer.state_dict()) == before
