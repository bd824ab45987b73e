"""Every optimizer learns, goes on bit for bit after a restart, and leaves alone what has no gradient."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from data.environment import install_extra
from data.errors import SettingsError
from finetune.core import files
from finetune.core.optimizer_options import OPTIONS, OptimizerName, contradictions
from finetune.core.optimizer_state import load_optimizer, optimizer_to_tensors
from finetune.core.optimizers import build_optimizer, evaluation_weights, learning_rate, require

NAMES: tuple[OptimizerName, ...] = get_args(OptimizerName)
RATE: dict[OptimizerName, float] = dict.fromkeys(NAMES, 0.02) | {"prodigy": 1.0}
MAX_STEPS = 120


def _model() -> nn.ModuleDict:
    """A toy with a matrix large enough to be kept in 8 bits, a convolution, vectors, and zeros as an adapter has."""
    torch_generator = torch.Generator().manual_seed(1)
    model = nn.ModuleDict({"conv": nn.Conv1d(1, 2, 3), "wide": nn.Linear(28, 160), "last": nn.Linear(160, 2)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch_generator))
        model["last"].weight.zero_()
    return model


def _loss(model: nn.ModuleDict, step: int) -> Tensor:
    x = torch.randn(6, 1, 16, generator=torch.Generator().manual_seed(step % 3))
    wanted = torch.stack([x.sum((1, 2)), x.square().mean((1, 2))], 1)
    return (model["last"](torch.tanh(model["wide"](model["conv"](x).flatten(1)))) - wanted).square().mean()


def _build(name: OptimizerName, model: nn.ModuleDict, **options: Any) -> Optimizer:
    rate = options.pop("lr", RATE[name])
    groups = [
        {"params": [*model["conv"].parameters(), *model["wide"].parameters()], "lr": rate},
        {"params": list(model["last"].parameters()), "lr": rate},
    ]
    values = {"betas": (0.9, 0.99), "weight_decay": 0.1, "eps": 1e-8, "max_steps": MAX_STEPS, "warmup_steps": 0}
    return build_optimizer(name, groups, **{**values, **options})


def _train(model: nn.ModuleDict, optimizer: Optimizer, steps: range, *, look: bool = False) -> list[float]:
    """Train, the convolution only from the third step on; look: use the model in between, as previews do."""
    losses = []
    for step in steps:
        for parameter in model["conv"].parameters():
            parameter.requires_grad_(step >= 2)
        loss = _loss(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if look:
            with evaluation_weights(optimizer), torch.no_grad():
                _loss(model, step)
    return losses


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stop", [1, 2, 5])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_equals_an_uninterrupted_one(name: OptimizerName, stop: int, tmp_path: Path) -> None:
    straight = _model()
    _train(straight, _build(name, straight, warmup_steps=3), range(9))

    first = _model()
    optimizer = _build(name, first, warmup_steps=3)
    _train(first, optimizer, range(stop))
    tensors, groups = optimizer_to_tensors(optimizer, first.named_parameters())
    files.save_tensors(tmp_path / "optimizer.safetensors", tensors, {})
    files.write_json(tmp_path / "optimizer.json", groups)

    second = _model()
    second.load_state_dict(first.state_dict())
    without_state = _model()
    without_state.load_state_dict(first.state_dict())
    fresh = _build(name, second, warmup_steps=3)
    loaded = files.load_tensors(tmp_path / "optimizer.safetensors")
    load_optimizer(fresh, second.named_parameters(), loaded, json.loads((tmp_path / "optimizer.json").read_bytes()))
    again, groups_again = optimizer_to_tensors(fresh, second.named_parameters())
    assert json.loads(files.json_bytes(groups_again)) == json.loads(files.json_bytes(groups))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) and again[key].dtype == tensors[key].dtype for key in tensors)
    _train(second, fresh, range(stop, 9))
    assert _equal(_weights(second), _weights(straight))
    # the negative control: the state counts
    _train(without_state, _build(name, without_state, warmup_steps=3), range(stop, 9))
    assert not _equal(_weights(without_state), _weights(straight))


@pytest.mark.parametrize("name", NAMES)
def test_looking_at_the_model_changes_nothing(name: OptimizerName) -> None:
    blind, looking = _model(), _model()
    _train(blind, _build(name, blind), range(12))
    _train(looking, _build(name, looking), range(12), look=True)
    assert _equal(_weights(blind), _weights(looking))


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns(name: OptimizerName) -> None:
    """Prodigy among them, which is told no rate: it starts from 1e-6 and takes some fifty steps to find one."""
    model = _model()
    losses = _train(model, _build(name, model, weight_decay=0.0), range(MAX_STEPS))
    assert sum(losses[-3:]) < 0.1 * sum(losses[:3])


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_gradient_stays_bit_equal(name: OptimizerName) -> None:
    model = _model()
    optimizer = _build(name, model)
    _train(model, optimizer, range(5))
    before = _weights(model)
    for parameter in model["last"].parameters():
        parameter.requires_grad_(False)
    _train(model, optimizer, range(5, 8))
    after = _weights(model)
    for weight in before:
        assert torch.equal(before[weight], after[weight]) == weight.startswith("last."), weight


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "adafactor", "schedule_free"])
def test_weight_decay_is_decoupled_and_times_the_rate(name: OptimizerName) -> None:
    """Without a gradient's force, a weight shrinks by 1 - rate x decay at a step."""
    model = _model()
    optimizer = _build(name, model, lr=0.2, weight_decay=0.3)
    before = _weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with evaluation_weights(optimizer):
        for weight, value in _weights(model).items():
            torch.testing.assert_close(value, before[weight] * (1 - 0.2 * 0.3), rtol=1e-5, atol=1e-8)


def test_prodigy_decays_weights_times_the_rate_that_it_found() -> None:
    decayed, plain = _model(), _model()
    before = _weights(plain)
    for model, weight_decay in ((decayed, 0.3), (plain, 0.0)):
        _loss(model, 0).backward()
        _build("prodigy", model, lr=1e4, weight_decay=weight_decay).step()
    rate = 1e4 * 1e-6 * (1 - 0.99) ** 0.5 / (1 - 0.9)  # with Adam's correction of the first step
    for name, weight in _weights(decayed).items():
        shrunk = _weights(plain)[name] - 0.3 * rate * before[name]
        torch.testing.assert_close(weight, shrunk, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "adafactor", "schedule_free"])
def test_the_first_step_is_the_rate_in_the_direction_of_the_gradient(name: OptimizerName) -> None:
    """The rate is the one that was given, not one that a library finds from the step or the size of the weights."""
    model = _model()
    optimizer = _build(name, model, lr=0.01, weight_decay=0.0)
    before = _weights(model)
    signs = {}
    for weight, parameter in model.named_parameters():
        gradient = torch.where(torch.arange(parameter.numel()) % 2 == 0, 3.0, -0.5).view_as(parameter)
        parameter.grad, signs[weight] = gradient, gradient.sign()
    optimizer.step()
    with evaluation_weights(optimizer):
        for weight, value in _weights(model).items():
            torch.testing.assert_close(value, before[weight] - 0.01 * signs[weight], rtol=0, atol=1e-4 * 0.01)


# schedule-free: one point to train at, another one to use


def test_schedule_free_answers_with_the_mean_of_its_fast_weights() -> None:
    """Defazio et al. 2024, equation 5: under a constant rate x is the plain mean of z."""
    model = _model()
    optimizer = _build("schedule_free", model)
    visited: list[dict[str, Tensor]] = []
    for step in range(10):
        _loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        visited.append({name: optimizer.state[p]["z"].clone() for name, p in model.named_parameters()})
    trained = _weights(model)
    with evaluation_weights(optimizer):
        used = _weights(model)
    for name in trained:
        mean = torch.stack([z[name] for z in visited]).double().mean(0).float()
        torch.testing.assert_close(used[name], mean, rtol=1e-4, atol=1e-6)
        assert (used[name] - trained[name]).abs().max() > 1e-3


def test_schedule_free_treats_a_part_that_starts_late_as_if_the_run_began_with_it() -> None:
    def step(optimizer: Optimizer, model: nn.ModuleDict, part: str, number: int) -> None:
        torch_generator = torch.Generator().manual_seed(number)
        for parameter in model[part].parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch_generator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    late, fresh = _model(), _model()
    optimizer, other = (_build("schedule_free", model, warmup_steps=3) for model in (late, fresh))
    for number in range(20):  # the group of the other two layers alone
        step(optimizer, late, "wide", number)
    assert optimizer.param_groups[0]["k"] == 20
    for number in range(20, 25):
        step(optimizer, late, "last", number)
        step(other, fresh, "last", number)
    assert optimizer.param_groups[0]["k"] == 20
    assert _equal(_weights(late["last"]), _weights(fresh["last"]))
    with evaluation_weights(optimizer), evaluation_weights(other):
        assert _equal(_weights(late["last"]), _weights(fresh["last"]))
        assert not _equal(_weights(late["wide"]), _weights(fresh["wide"]))


def test_the_trained_weights_come_back_bit_for_bit_also_after_an_error_and_from_within() -> None:
    model = _model()
    optimizer = _build("schedule_free", model)
    _train(model, optimizer, range(30))
    trained = _weights(model)
    with evaluation_weights(optimizer):
        used = _weights(model)
        assert not _equal(used, trained)
        with evaluation_weights(optimizer):
            assert _equal(_weights(model), used)
        assert _equal(_weights(model), used)
    assert _equal(_weights(model), trained)
    with pytest.raises(ZeroDivisionError), evaluation_weights(optimizer):
        raise ZeroDivisionError
    assert _equal(_weights(model), trained)
    assert all(group["train_mode"] for group in optimizer.param_groups)
    # the library's own way back is not exact, or the copies would not be needed
    optimizer.eval()  # type: ignore[attr-defined]
    optimizer.train()  # type: ignore[attr-defined]
    assert not _equal(_weights(model), trained)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "schedule_free"])
def test_the_others_are_used_as_they_are_trained(name: OptimizerName) -> None:
    model = _model()
    optimizer = _build(name, model)
    _train(model, optimizer, range(4))
    trained = _weights(model)
    with evaluation_weights(optimizer):
        assert _equal(_weights(model), trained)


# rates


def test_the_rate_that_is_told_is_the_one_that_acts() -> None:
    def rates(name: OptimizerName, num_steps: int = 5, **options: Any) -> list[float]:
        model = _model()
        optimizer = _build(name, model, **options)
        told = []
        for step in range(num_steps):
            _train(model, optimizer, range(step, step + 1))
            told.append(learning_rate(optimizer.param_groups[0]))
        return told

    assert rates("adamw", lr=0.03) == [0.03] * 5
    assert rates("schedule_free", lr=0.2, warmup_steps=4) == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])
    found = rates("prodigy", num_steps=80)
    assert found[0] == 1e-6
    assert sorted(found) == found
    assert 1e-3 < found[-1] < 0.1


def test_prodigy_refuses_a_rate_for_each_part() -> None:
    model = _model()
    groups = [{"params": list(model[part].parameters()), "lr": lr} for part, lr in (("conv", 1.0), ("wide", 0.5))]
    with pytest.raises(SettingsError, match=r"one learning rate .* factors 0\.5, 1\.0"):
        build_optimizer("prodigy", groups, betas=(0.9, 0.999), weight_decay=0.0, eps=1e-8, max_steps=10, warmup_steps=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_up_as_long_as_the_run_is_refused(name: OptimizerName) -> None:
    with pytest.raises(SettingsError, match="found 120, expected fewer than the 120 steps"):
        _build(name, _model(), warmup_steps=MAX_STEPS)


def test_the_groups_are_left_as_they_are_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("adamw", "prodigy", "adafactor", "schedule_free"):
        group = {"params": list(_model().parameters()), "lr": RATE[name]}
        build_optimizer(name, [group], betas=(0.9, 0.99), weight_decay=0.1, eps=1e-8, max_steps=2, warmup_steps=0)
        assert group.keys() == {"params", "lr"}
    assert capsys.readouterr().out == ""


# what a machine and an option must offer


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("adamw_8bit", "bitsandbytes", "gpu"),
        ("prodigy", "prodigyopt", "optimizers"),
        ("schedule_free", "schedulefree", "optimizers"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: OptimizerName, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError) as caught:
        require(name)
    assert f"{name} needs the package {package}" in str(caught.value)
    assert str(caught.value).endswith(f"install it: {install_extra(extra)}")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", NAMES)
def test_no_optimizer_needs_a_gpu(name: OptimizerName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require(name)


def _contradictions(name: OptimizerName, **given: Any) -> list[str]:
    values: dict[str, Any] = {"learning_rate": 1e-4, "scale_lr": False, "lr_scheduler": "constant", "adam_beta1": 0.9}
    values |= {"changed": frozenset(given), "other_rates": {}}
    return [each.text for each in contradictions(name, **{**values, **given})]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("prodigy", {}, ["--learning_rate: found 0.0001", "Write --learning_rate 1."]),
        ("prodigy", {"learning_rate": 1.0, "scale_lr": True}, ["--scale_lr"]),
        ("prodigy", {"learning_rate": 1.0, "other_rates": {"embedding_lr": 0.5}}, ["--embedding_lr: found 0.5"]),
        ("adafactor", {"changed": {"adam_beta1", "adam_epsilon", "seed"}}, ["--adam_beta1: does noth", "--adam_eps"]),
        ("schedule_free", {"lr_scheduler": "cosine"}, ["--lr_scheduler: found cosine", "--lr_scheduler constant"]),
        ("schedule_free", {"adam_beta1": 0.0}, ["--adam_beta1: found 0"]),
    ],
)
def test_options_that_an_optimizer_cannot_have_are_named(
    name: OptimizerName, given: dict[str, Any], words: list[str]
) -> None:
    problems = "\n".join(_contradictions(name, **given))
    assert all(word in problems for word in words), problems


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("adamw", {"learning_rate": 1e-6, "scale_lr": True, "lr_scheduler": "cosine", "adam_beta1": 0.0}),
        ("adamw_8bit", {"scale_lr": True, "lr_scheduler": "cosine", "adam_beta1": 0.0}),
        ("prodigy", {"learning_rate": 0.1, "lr_scheduler": "cosine", "adam_beta1": 0.0}),
        ("prodigy", {"learning_rate": 1.0, "other_rates": {"embedding_lr": 1.0}}),
        ("adafactor", {"lr_scheduler": "constant_with_warmup", "changed": {"learning_rate", "adam_weight_decay"}}),
        ("schedule_free", {"scale_lr": True, "changed": {"adam_beta2", "adam_epsilon"}}),
    ],
)
def test_options_that_an_optimizer_can_have_pass(name: OptimizerName, given: dict[str, Any]) -> None:
    assert _contradictions(name, **given) == []


def test_every_optimizer_says_what_its_options_mean() -> None:
    assert tuple(OPTIONS) == NAMES
