"""The state of an optimizer as tensors and JSON, and back, bit for bit: no pickle, and names instead of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from data.errors import OutputError


def optimizer_to_tensors(
    optimizer: Optimizer, named: Iterable[tuple[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the state of any torch optimizer as tensors for safetensors and a value for JSON.

    named: all parameters of the optimizer with their names, as module.named_parameters() gives them; others too.

    The tensors are those of the optimizer, not copies: save them before its next step. Keys of the tensors are
    "<parameter>/<entry>".
    """
    packer = _Packer()
    state = optimizer.state_dict()
    names = _names_by_group(optimizer, named)
    flat = _flat(names)
    groups = [
        {
            "parameters": group_names,
            "options": packer.pack({k: v for k, v in options.items() if k != "params"}, f"group {number}"),
        }
        for number, (group_names, options) in enumerate(zip(names, state["param_groups"], strict=True))
    ]
    described: dict[str, object] = {
        "optimizer": type(optimizer).__name__,
        "groups": groups,
        "shapes": _shapes(optimizer, names),
        # in the order of the parameters: a tensor that stands in several places is called after the first of them
        "state": {flat[index]: packer.pack(state["state"][index], flat[index]) for index in sorted(state["state"])},
    }
    extra = {key: value for key, value in state.items() if key not in ("state", "param_groups")}
    described["extra"] = packer.pack(extra, "optimizer")
    return packer.tensors, described


def load_optimizer(
    optimizer: Optimizer,
    named: Iterable[tuple[str, Tensor]],
    tensors: Mapping[str, Tensor],
    groups: Mapping[str, object],
) -> None:
    """Restore into an optimizer what optimizer_to_tensors gave; its next step is the one that was due, bit for bit.

    named: as for optimizer_to_tensors. State follows the names, so the order of parameters within a group is free.

    Raises OutputError, before anything is changed, for another kind of optimizer, other groups or parameters, and
    for tensors that are missing, unexpected or of another shape.
    """
    names = _names_by_group(optimizer, named)
    problems = _differences(optimizer, names, tensors, groups)
    if problems:
        raise OutputError(
            "optimizer state", *problems, "Resume with the settings that the checkpoint was written with."
        )
    saved_groups, saved_state = groups["groups"], groups["state"]
    assert isinstance(saved_groups, list)
    assert isinstance(saved_state, dict)
    index_of = {name: index for index, name in enumerate(_flat(names))}
    param_groups = []
    for group_names, saved in zip(names, saved_groups, strict=True):
        options = _unpack(saved["options"], tensors)
        assert isinstance(options, dict)
        param_groups.append({**options, "params": [index_of[name] for name in group_names]})
    extra = _unpack(groups["extra"], tensors)
    assert isinstance(extra, dict)
    state = {index_of[name]: _unpack(entries, tensors) for name, entries in saved_state.items()}
    optimizer.load_state_dict({**extra, "state": state, "param_groups": param_groups})


def _flat(names: list[list[str]]) -> list[str]:
    return [name for group in names for name in group]


def _shapes(optimizer: Optimizer, names: list[list[str]]) -> dict[str, list[int]]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {name: list(parameter.shape) for name, parameter in zip(_flat(names), parameters, strict=True)}


def _names_by_group(optimizer: Optimizer, named: Iterable[tuple[str, Tensor]]) -> list[list[str]]:
    name_of = {id(parameter): name for name, parameter in named}  # tensors compare by value, not by identity
    names = [[name_of[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    flat = _flat(names)
    assert len(set(flat)) == len(flat), "each parameter has a name of its own"
    return names


class _Packer:
    """Takes the tensors out of nested values, so that what is left is JSON."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._key_of: dict[int, str] = {}

    def pack(self, value: object, key: str) -> object:
        """Return a value with each tensor in it replaced by its key; one that stands in two places is kept once."""
        match value:
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"float": repr(value)}
            case torch.Tensor():
                if id(value) not in self._key_of:
                    assert key not in self.tensors, f"two tensors are called {key}"
                    self._key_of[id(value)], self.tensors[key] = key, value
                return {"tensor": self._key_of[id(value)], "shape": list(value.shape)}
            case tuple() | list():
                packed = [self.pack(item, f"{key}/{number}") for number, item in enumerate(value)]
                return {"tuple": packed} if isinstance(value, tuple) else packed
            case dict():
                assert all(isinstance(name, str) for name in value), f"{key}: names are text"
                return {"dict": {name: self.pack(item, f"{key}/{name}") for name, item in value.items()}}
        raise AssertionError(f"{key}: a {type(value).__name__} cannot be kept in a checkpoint")


def _unpack(value: object, tensors: Mapping[str, Tensor]) -> object:
    match value:
        case {"float": str(text)}:
            return float(text)
        case {"tensor": str(key)}:
            return tensors[key]
        case {"tuple": list(items)}:
            return tuple(_unpack(item, tensors) for item in items)
        case {"dict": dict(entries)}:
            return {name: _unpack(item, tensors) for name, item in entries.items()}
        case list():
            return [_unpack(item, tensors) for item in value]
    return value


def _shapes_in(value: object) -> Iterator[tuple[str, list[int]]]:
    """Give the key and shape of each tensor that a packed value refers to."""
    match value:
        case {"tensor": str(key), "shape": list(shape)}:
            yield key, shape
        case dict():
            for item in value.values():
                yield from _shapes_in(item)
        case list():
            for item in value:
                yield from _shapes_in(item)


def _differences(
    optimizer: Optimizer, names: list[list[str]], tensors: Mapping[str, Tensor], groups: Mapping[str, object]
) -> list[str]:
    """Return all that keeps a saved state from being this optimizer's."""
    try:
        saved_groups, saved_shapes = groups["groups"], groups["shapes"]
        assert isinstance(saved_groups, list)
        assert isinstance(saved_shapes, dict)
        saved_names = [group["parameters"] for group in saved_groups]
        kind = groups["optimizer"]
        expected = dict(_shapes_in([groups["state"], groups["extra"], saved_groups]))
    except (KeyError, TypeError, AssertionError):
        return ["is not the description of an optimizer's state."]
    problems = []
    if kind != type(optimizer).__name__:
        problems.append(f"was saved by {kind}, this run uses {type(optimizer).__name__}.")
    if len(saved_names) != len(names):
        problems.append(f"has {len(saved_names)} groups of parameters, expected {len(names)}.")
    for number, (saved, present) in enumerate(zip(saved_names, names, strict=False)):
        problems += _set_problems(f"group {number}: parameters", set(saved), set(present))
    problems += _shape_problems("parameters", saved_shapes, _shapes(optimizer, names))
    problems += _set_problems("tensors", set(tensors), set(expected))
    problems += _shape_problems("tensors", {key: list(tensor.shape) for key, tensor in tensors.items()}, expected)
    return problems


def _set_problems(what: str, found: set[str], expected: set[str]) -> list[str]:
    differences = {"missing": expected - found, "unexpected": found - expected}
    return [f"{what} {how}: {_some(sorted(names))}." for how, names in differences.items() if names]


def _shape_problems(what: str, found: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> list[str]:
    wrong = [
        f"{name} {tuple(found[name])} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return [f"{what} of another shape: {_some(wrong)}."] if wrong else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
