"""From the command line to a run: settings are gathered from every source, the script's main is called, errors end it.

Values come from the defaults, then `configs/methods/<method>.yaml`, then `--config FILE`, then (data_root only) the
environment, then the command line. argparse only splits the words; YAML scalars are taken as the text that stands
there. So pydantic reads both by the same rules: `mixed_precision: no` is the word no, and 1e-4 is a number.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import get_annotations, getdoc
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from data.environment import DATA_VARIABLE, data_root
from data.errors import SettingsError, nearest
from data.exits import exit_code
from finetune.core.option_groups import ALIASES, LENGTHS, SWITCHES, Settings
from finetune.core.settings import ConceptSettings, DdpmSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"

S = TypeVar("S", bound=Settings)
C = TypeVar("C", bound=ConceptSettings | DdpmSettings)


class _Given(NamedTuple):
    value: str | list[str] | None
    source: str  # as the user finds it again: a flag, a line of a file, a variable


@dataclass
class _Layer:
    values: dict[str, _Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def load_settings(model_class: type[S], method: str, argv: Sequence[str], config_dir: Path) -> S:
    """Return the settings that the defaults, the files, the environment and the command line make together.

    argv: the command line without the script's name; --help prints the options and ends with code 0.
    Raises SettingsError with every problem of every source.
    """
    method_file = config_dir / "methods" / f"{method}.yaml"
    method_layer = _read_yaml(model_class, method_file) if method_file.exists() else _Layer()
    if "--help" in argv or "-h" in argv:
        _print_help(model_class, method, method_layer)
        raise SystemExit(0)
    flags, config_file = _read_flags(model_class, argv)
    config = _read_yaml(model_class, Path(config_file)) if config_file is not None else _Layer()
    environment = _Layer()
    if "data_root" in model_class.model_fields and (root := data_root()) is not None:
        environment.values["data_root"] = _Given(str(root), DATA_VARIABLE)
    return _resolve(model_class, method, [method_layer, config, environment, flags])


def _resolve(model_class: type[S], method: str, layers: Sequence[_Layer]) -> S:
    problems = [problem for layer in layers for problem in layer.problems]
    merged: dict[str, _Given] = {}
    for layer in layers:
        for error in _errors(model_class, layer.values):
            if error["loc"] and error["type"] != "missing":
                problems.append(_problem(error, layer.values[str(error["loc"][0])].source))
        given_lengths = [name for name in LENGTHS if name in layer.values and layer.values[name].value is not None]
        if len(given_lengths) == 1:  # it replaces an earlier length of the other kind
            merged = {name: given for name, given in merged.items() if name not in LENGTHS}
        merged.update(layer.values)
    errors = _errors(model_class, merged)
    for error in errors:
        if error["type"] == "missing":
            name = str(error["loc"][0])
            problems.append(f"--{name}: missing ({model_class.model_fields[name].description}).")
    problems += _contradictions(model_class, merged, {str(error["loc"][0]) for error in errors if error["loc"]})
    if problems:
        raise SettingsError(f"settings of {method}", *problems)
    return model_class.model_validate(_plain(merged))


def _contradictions(model_class: type[Settings], merged: Mapping[str, _Given], wrong: set[str]) -> list[str]:
    """Return what disagrees among the values that are right by themselves."""
    right = {name: given for name, given in merged.items() if name not in wrong}
    found = [
        line
        for error in _errors(model_class, right)
        if not error["loc"]
        for line in error["msg"].removeprefix("Value error, ").split("\n")
    ]
    return [line for line in found if not wrong & set(re.findall(r"--(\w+)", line))]


def _plain(values: Mapping[str, _Given]) -> dict[str, str | list[str] | None]:
    return {name: given.value for name, given in values.items()}


def _errors(model_class: type[Settings], values: Mapping[str, _Given]) -> list[Any]:
    try:
        model_class.model_validate(_plain(values))
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _problem(error: Any, source: str) -> str:
    expected = error["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")
    return f"{source}: found {error['input']!r}, {expected.split(', unable')[0]}."


def _is_list(option: FieldInfo) -> bool:
    return get_origin(option.annotation) in (list, tuple)


def _allows_none(option: FieldInfo) -> bool:
    return NoneType in get_args(option.annotation)


def _read_yaml(model_class: type[Settings], path: Path) -> _Layer:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        return _Layer(problems=[f"{path}: {error.strerror}. Expected a YAML file."])
    except UnicodeDecodeError as error:
        return _Layer(problems=[f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8."])
    except yaml.YAMLError as error:
        return _Layer(problems=[f"{path}: expected YAML, but {' '.join(str(error).split())}."])
    if root is not None and not isinstance(root, yaml.MappingNode):
        return _Layer(problems=[f"{path}: found {_kind(root)}, expected lines of the form `option: value`."])
    layer = _Layer()
    for key, node in root.value if root is not None else []:
        name = key.value if isinstance(key, yaml.ScalarNode) else _kind(key)
        source = f"{path}:{key.start_mark.line + 1} {name}"
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        is_null = node.tag == "tag:yaml.org,2002:null"
        if name not in model_class.model_fields:
            layer.problems.append(f"{source}: unknown key.{nearest(name, model_class.model_fields)}")
        elif name in layer.values:
            layer.problems.append(f"{source}: the key stands there twice. Leave one of them.")
        elif not all(isinstance(item, yaml.ScalarNode) for item in items):
            layer.problems.append(f"{source}: found a nested structure, expected a value or a list of values.")
        elif isinstance(node, yaml.SequenceNode) or (_is_list(model_class.model_fields[name]) and not is_null):
            layer.values[name] = _Given([item.value for item in items], source)
        else:
            layer.values[name] = _Given(None if is_null else node.value, source)
    return layer


def _kind(node: yaml.Node) -> str:
    return {yaml.ScalarNode: "a single value", yaml.SequenceNode: "a list"}.get(type(node), "a mapping")


class _Collect(argparse.Action):
    """Keeps every option with whatever words follow it, so that all of them can be judged together."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, words: Any, flag: str | None = None) -> None:
        namespace.given.append((flag, words))


def _read_flags(model_class: type[Settings], argv: Sequence[str]) -> tuple[_Layer, str | None]:
    options = model_class.model_fields
    aliases = {alias: name for alias, name in ALIASES.items() if name in options}
    switches = {f"no-{name}": (name, "false") for name, option in options.items() if option.annotation is bool}
    switches |= {switch: meant for switch, meant in SWITCHES.items() if meant[0] in options}
    known = [*options, *aliases, *switches, "config"]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in known:
        parser.add_argument(f"--{name}", nargs="*", action=_Collect)
    parsed, rest = parser.parse_known_args(_bind_negative_numbers(argv), argparse.Namespace(given=[]))

    layer, config_file = _Layer(problems=_unknown_words(rest, known)), None
    for flag, words in parsed.given:
        name = flag.removeprefix("--")
        name = aliases.get(name, name)
        if name in switches:
            if words:
                layer.problems.append(f"{flag}: found {' '.join(words)!r}, expected no value.")
            layer.values[switches[name][0]] = _Given(switches[name][1], flag)
        elif name != "config" and _is_list(options[name]) and words:
            earlier = layer.values[name].value if name in layer.values else []
            assert isinstance(earlier, list)
            layer.values[name] = _Given([] if words == ["none"] else [*earlier, *words], flag)
        elif name != "config" and options[name].annotation is bool and not words:
            layer.values[name] = _Given("true", flag)
        elif len(words) != 1:
            found = f"found {len(words)} values: {' '.join(words)!r}" if words else "a value is missing"
            layer.problems.append(f"{flag}: {found}. Expected one value, in quotes where it has spaces.")
        elif name == "config":
            config_file = words[0]
        else:
            is_none = words[0] == "none" and _allows_none(options[name])
            layer.values[name] = _Given(None if is_none else words[0], flag)
    return layer, config_file


def _bind_negative_numbers(argv: Sequence[str]) -> list[str]:
    # argparse takes -1e-4 for an option unless it is bound by an equals sign
    words: list[str] = []
    for word in argv:
        if re.match(r"-\.?[0-9]", word) and words and re.fullmatch(r"--[^=]+", words[-1]):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _unknown_words(words: Sequence[str], known: Sequence[str]) -> list[str]:
    problems = []
    belongs_to_unknown = False
    for word in words:
        if word.startswith("-"):
            flag = word.partition("=")[0]
            problems.append(f"{flag}: unknown option.{nearest(flag.lstrip('-'), known)}")
            belongs_to_unknown = True
        elif not belongs_to_unknown:
            problems.append(f"{word!r}: a value without an option. Expected --option value.")
    return problems


def _print_help(model_class: type[Settings], method: str, method_layer: _Layer) -> None:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--config FILE] [--option value ...]",
        description=getdoc(model_class),
        epilog=f"Values come from the defaults, configs/methods/{method}.yaml, --config FILE, {DATA_VARIABLE} (for "
        "data_root) and the command line; the later wins. The word none empties an option that may be empty.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of options, as settings.yaml of a run folder is")
    seen: set[str] = set()
    for group_class in reversed(model_class.__mro__):
        own = get_annotations(group_class).keys() & model_class.model_fields.keys() - seen
        seen |= own
        if not own:
            continue
        group = parser.add_argument_group((getdoc(group_class) or "").partition("\n")[0].rstrip("."))
        for name in (name for name in model_class.model_fields if name in own):
            option = model_class.model_fields[name]
            default = method_layer.values[name].value if name in method_layer.values else option.get_default()
            note = (
                "required" if option.is_required() and name not in method_layer.values else f"default: {_word(default)}"
            )
            text = f"{option.description} ({note})".replace("%", "%%")
            if option.annotation is bool:
                group.add_argument(f"--{name}", f"--no-{name}", action="store_true", help=text)
            else:
                group.add_argument(f"--{name}", metavar=_metavar(option), help=text)
    parser.print_help()


def _word(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _metavar(option: FieldInfo) -> str:
    kinds = [kind for kind in get_args(option.annotation) or (option.annotation,) if kind is not NoneType]
    if get_origin(option.annotation) is Literal:
        return "{" + ",".join(kinds) + "}"
    if get_origin(kinds[0]) is Literal:
        return "{" + ",".join(get_args(kinds[0])) + "}"
    words = {int: "N", float: "X", Path: "PATH"}
    return words.get(kinds[0], "TEXT") + (" ..." if _is_list(option) else "")


def run_script(
    main: Callable[[S], None], settings_class: type[S], method: str, argv: Sequence[str] | None = None
) -> int:
    """Return the exit code of a script: its main is called with the settings of the command line.

    How it ends is the affair of `data.exits.exit_code`.
    """
    settings: S | None = None

    def with_settings() -> None:
        nonlocal settings
        settings = load_settings(settings_class, method, sys.argv[1:] if argv is None else argv, CONFIG_DIR)
        main(settings)

    return exit_code(with_settings, method, lambda: _memory_hints(settings.model_dump()) if settings else [])


def fine_tune(settings: C, build: Callable[[C, Accelerator], Method], method: str) -> None:
    """Run a method that learns a concept: a wrong name of it is told before torch is loaded."""
    from data.sources import check_concept

    check_concept(settings.concept)

    from finetune.core.run import run

    run(settings, build, default_dir=f"{settings.subject}-{method}")


def _memory_hints(settings: Mapping[str, Any]) -> list[str]:
    hints = []
    size, micro_steps = settings.get("train_batch_size", 1), settings.get("gradient_accumulation_steps", 1)
    if size > 1:
        hints.append(
            f"Write --train_batch_size {size // 2} --gradient_accumulation_steps {2 * micro_steps} (found {size} and "
            f"{micro_steps})."
        )
    if settings.get("gradient_checkpointing") is False:
        hints.append("Write --gradient_checkpointing: less memory, more time.")
    if "resolution" in settings:
        hints.append(f"Write a smaller --resolution (found {_word(settings['resolution'])}).")
    return hints
