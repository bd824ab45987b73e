"""From the command line to a run: settings are gathered from every source, the script's main is called, errors end it.

Values come from the defaults, then the recipe (`configs/bases/<family of the base>.yaml`; for a method without a base
`configs/methods/<method>.yaml`), then the files after --config in their order, then (data_root only) the environment,
then the command line. What contradicts a value from further on gives way to it, and the plan says so.

argparse only splits the words; YAML scalars are taken as the text that stands there. So pydantic reads both by the same
rules: `mixed_precision: no` is the word no, and 1e-4 is a number.
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
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from data.environment import DATA_VARIABLE, data_root
from data.errors import SettingsError, nearest
from data.exits import exit_code, show_bitsandbytes
from data.strict_yaml import read_yaml_nodes
from finetune.core.contradictions import DEFAULT, RECIPE, TYPED, Contradiction, ContradictoryError, Origin
from finetune.core.option_groups import (
    ALIASES,
    LENGTHS,
    PART_RATES,
    SWITCHES,
    AdapterSettings,
    OptimiseSettings,
    Settings,
)
from finetune.core.recipes import Recipe, recipe_of, unusual_rates
from finetune.core.settings import ConceptSettings, DdpmSettings
from pipelines.base_folders import BaseShape, read_shape

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.core.method import Method

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"

S = TypeVar("S", bound=Settings)
C = TypeVar("C", bound=ConceptSettings | DdpmSettings)


class _Given(NamedTuple):
    value: Any  # text or a list of it, None, or what an option that gave way has in its place
    source: str  # as the user finds it again: a flag, a line of a file, a variable


@dataclass
class _Layer:
    """Values of one source. name: of the source, as it is told. rank: how strong it is, one of `contradictions`."""

    name: str
    rank: int
    values: dict[str, _Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class _Sizes(BaseModel):
    """What says how large the images of a run are, read by the rules of all options."""

    resolution: int | None = None
    aspect_buckets: bool = False


def load_settings(model_class: type[S], method: str, argv: Sequence[str], config_dir: Path) -> S:
    """Return the settings that the defaults, the files, the environment and the command line make together.

    argv: the command line without the script's name; --help prints the options and ends with code 0.
    Raises SettingsError with every problem of every source.
    """
    flags, config_files = _read_flags(model_class, [word for word in argv if word not in ("--help", "-h")])
    configs = [
        _read_yaml(model_class, Path(file), TYPED + place, sections=("all", method))
        for place, file in enumerate(config_files)
    ]
    flags.rank = TYPED + len(configs)
    shape = _base_shape(model_class, [*configs, flags])
    recipe = recipe_of(method, shape, config_dir)
    suited = _Layer(recipe.name, RECIPE)
    if recipe.path.exists():
        suited = _read_yaml(model_class, recipe.path, RECIPE, name=recipe.name, sections=recipe.sections)
    if "--help" in argv or "-h" in argv:
        _print_help(model_class, suited)
        raise SystemExit(0)
    environment = _Layer(DATA_VARIABLE, DEFAULT)
    if "data_root" in model_class.model_fields and (root := data_root()) is not None:
        environment.values["data_root"] = _Given(str(root), DATA_VARIABLE)
    settings, gave_way = _resolve(model_class, method, [suited, *configs, environment, flags], shape)
    warnings = _unusual(settings, suited)
    plan = [*_recipe_line(recipe, suited), *(f"gives way   {line}" for line in gave_way)]
    return settings.coming_from(Origin(settings.origin.ranks, tuple(plan), warnings))


def _base_shape(model_class: type[Settings], typed: Sequence[_Layer]) -> BaseShape | None:
    """Return what is known of the base that is asked for; None for a method without a base."""
    if "pretrained_model_name_or_path" not in model_class.model_fields:
        return None
    said = {name: given.value for layer in typed for name, given in layer.values.items()}
    name, revision = said.get("pretrained_model_name_or_path", "swatch"), said.get("revision")
    return read_shape(name if isinstance(name, str) else "", revision if isinstance(revision, str) else None)


def _recipe_line(recipe: Recipe, suited: _Layer) -> list[str]:
    if not suited.values:
        return []
    section = f", {recipe.sections[-1]}" if recipe.sections else ""
    return [f"recipe      {recipe.name}{section}" + (f": {recipe.why}" if recipe.why else "")]


def _unusual(settings: Settings, suited: _Layer) -> tuple[str, ...]:
    if "pretrained_model_name_or_path" not in type(settings).model_fields or not isinstance(settings, OptimiseSettings):
        return ()
    usual = {name: suited.values[name].value for name in ("learning_rate", *PART_RATES) if name in suited.values}
    return unusual_rates(settings, {name: float(str(value)) for name, value in usual.items()}, suited.name)


def _resolve(
    model_class: type[S], method: str, layers: Sequence[_Layer], shape: BaseShape | None
) -> tuple[S, list[str]]:
    """Return the settings, and in lines what gave way. shape: of the base."""
    problems = [problem for layer in layers for problem in layer.problems]
    merged: dict[str, _Given] = {}
    whence: dict[str, _Layer] = {}
    for layer in layers:
        for error in _errors(model_class, layer.values):
            if error["loc"] and error["type"] != "missing":
                problems.append(_problem(error, layer.values[str(error["loc"][0])].source))
        given_lengths = [name for name in LENGTHS if name in layer.values and layer.values[name].value is not None]
        if len(given_lengths) == 1:  # it replaces an earlier length of the other kind
            merged = {name: given for name, given in merged.items() if name not in LENGTHS}
        merged.update(layer.values)
        whence |= dict.fromkeys(layer.values, layer)
    errors = _errors(model_class, merged)
    for error in errors:
        if error["type"] == "missing":
            name = str(error["loc"][0])
            problems.append(f"--{name}: missing ({model_class.model_fields[name].description}).")
    wrong = {str(error["loc"][0]) for error in errors if error["loc"]}
    gave_way = _settle(model_class, merged, whence, wrong)
    problems += [each.text for each in _contradictions(model_class, merged, wrong)]
    problems += _size_problems(shape, {name: given for name, given in merged.items() if name not in wrong})
    if problems:
        raise SettingsError(f"settings of {method}", *problems)
    ranks = {name: whence[name].rank for name in merged}
    return model_class.model_validate(_plain(merged)).coming_from(Origin(ranks)), gave_way


def _settle(
    model_class: type[Settings], merged: dict[str, _Given], whence: dict[str, _Layer], wrong: set[str]
) -> list[str]:
    """Let what is weaker of values that cannot stand together give way, and return that in lines.

    merged, whence: the value of each option and the layer that it is from; both are changed. wrong: options whose
    values are wrong by themselves.
    """
    told: list[str] = []
    while True:
        ranks = {name: whence[name].rank for name in merged}
        found = [(each, weak) for each in _contradictions(model_class, merged, wrong) if (weak := each.weakest(ranks))]
        if not found:
            return told
        idle = [weak for each, weak in found if max(ranks.get(name, DEFAULT) for name in each.names) < TYPED]
        if idle:  # the recipe has it for a part that is not in use
            del merged[idle[0]]
            continue
        each, weak = found[0]
        stronger = max((name for name in each.names if name != weak), key=lambda name: ranks.get(name, DEFAULT))
        default = model_class.model_fields[weak].get_default()
        was = _word(merged[weak].value if weak in merged else default)
        source = whence[weak].name if weak in merged else "the default"
        asked = _as_typed(model_class.model_fields[stronger], stronger, merged[stronger].value)
        told.append(f"--{weak} {was} ({source}) is {_word(each.gives_way[weak])} here, as {asked} is asked for")
        merged[weak] = _Given(each.gives_way[weak], f"--{weak}")
        whence[weak] = whence[stronger]


def _as_typed(option: FieldInfo, name: str, value: Any) -> str:
    if option.annotation is not bool:
        return f"--{name} {_word(value)}"
    return f"--{name}" if TypeAdapter(bool).validate_python(value) else f"--no-{name}"


def _contradictions(model_class: type[Settings], merged: Mapping[str, _Given], wrong: set[str]) -> list[Contradiction]:
    """Return what disagrees among the values that are right by themselves."""
    right = {name: given for name, given in merged.items() if name not in wrong}
    errors = [error["ctx"]["error"] for error in _errors(model_class, right) if not error["loc"] and "ctx" in error]
    found = [each for error in errors if isinstance(error, ContradictoryError) for each in error.found]
    return [each for each in found if not wrong & set(each.names)]


def _size_problems(shape: BaseShape | None, right: Mapping[str, _Given]) -> list[str]:
    """Return why the base cannot take images of the size that is asked for."""
    if shape is None:
        return []
    asked = _Sizes.model_validate({name: right[name].value for name in _Sizes.model_fields if name in right})
    side = asked.resolution or shape.resolution
    if side is None or (asked.resolution is None and not asked.aspect_buckets):
        return []
    problem = shape.size_problem(side, aspect_buckets=asked.aspect_buckets)
    return [] if problem is None else [f"--resolution: {problem}"]


def _plain(values: Mapping[str, _Given]) -> dict[str, Any]:
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


def _read_yaml(
    model_class: type[Settings], path: Path, rank: int, *, name: str | None = None, sections: Sequence[str] = ()
) -> _Layer:
    """Return the options in a YAML file.

    sections: of the file, in which a later one wins. A user's file may do without: it is one where "all" is a key.
    """
    layer = _Layer(name or str(path), rank)
    try:
        root = read_yaml_nodes(path, "a YAML file")
    except SettingsError as error:
        layer.problems += [_with_line(path, problem) for problem in error.problems]
    else:
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        keys = {key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)}
        if not sections or (rank >= TYPED and "all" not in keys):
            _read_options(model_class, path, root, layer)
            return layer
        if root is not None and not isinstance(root, yaml.MappingNode):
            layer.problems.append(f"{path}: found {_kind(root)}, expected sections of options.")
            return layer
        found = {key.value: node for key, node in pairs if isinstance(key, yaml.ScalarNode)}
        for section in sections:
            part = _Layer(layer.name, rank)
            _read_options(model_class, path, found.get(section), part)
            layer.values |= part.values
            layer.problems += part.problems
    return layer


def _with_line(path: Path, problem: str) -> str:
    """Return what a YAML file's reader says in the form of all that is told of a line here: mine.yaml:3 …"""
    match = re.match("line ([0-9]+): ", problem)
    return f"{path}: {problem}" if match is None else f"{path}:{match[1]} {problem[match.end() :]}"


def _read_options(model_class: type[Settings], path: Path, root: yaml.Node | None, layer: _Layer) -> None:
    """Add the options of a mapping in a YAML file to a layer."""
    if root is not None and not isinstance(root, yaml.MappingNode):
        layer.problems.append(f"{path}: found {_kind(root)}, expected lines of the form `option: value`.")
        return
    for key, node in root.value if root is not None else []:
        name = key.value if isinstance(key, yaml.ScalarNode) else _kind(key)
        source = f"{path}:{key.start_mark.line + 1} {name}"
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        is_null = node.tag == "tag:yaml.org,2002:null"
        if name not in model_class.model_fields:
            layer.problems.append(f"{source}: unknown key.{nearest(name, model_class.model_fields)}")
        elif not all(isinstance(item, yaml.ScalarNode) for item in items):
            layer.problems.append(f"{source}: found a nested structure, expected a value or a list of values.")
        elif isinstance(node, yaml.SequenceNode) or (_is_list(model_class.model_fields[name]) and not is_null):
            layer.values[name] = _Given([item.value for item in items], source)
        else:
            layer.values[name] = _Given(None if is_null else node.value, source)


def _kind(node: yaml.Node) -> str:
    return {yaml.ScalarNode: "a single value", yaml.SequenceNode: "a list"}.get(type(node), "a mapping")


class _Collect(argparse.Action):
    """Keeps every option with whatever words follow it, so that all of them can be judged together."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, words: Any, flag: str | None = None) -> None:
        namespace.given.append((flag, words))


def _read_flags(model_class: type[Settings], argv: Sequence[str]) -> tuple[_Layer, list[str]]:
    """Return the options of the command line, and the files after --config in their order."""
    options = model_class.model_fields
    aliases = {alias: name for alias, name in ALIASES.items() if name in options}
    switches = {f"no-{name}": (name, "false") for name, option in options.items() if option.annotation is bool}
    switches |= {switch: meant for switch, meant in SWITCHES.items() if meant[0] in options}
    known = [*options, *aliases, *switches, "config"]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in known:
        parser.add_argument(f"--{name}", nargs="*", action=_Collect)
    parsed, rest = parser.parse_known_args(_bind_negative_numbers(argv), argparse.Namespace(given=[]))

    layer, config_files = _Layer("the command line", TYPED, problems=_unknown_words(rest, known)), []
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
        elif name == "config" and words:
            config_files += words
        elif len(words) != 1:
            found = f"found {len(words)} values: {' '.join(words)!r}" if words else "a value is missing"
            layer.problems.append(f"{flag}: {found}. Expected one value, in quotes where it has spaces.")
        else:
            is_none = words[0] == "none" and _allows_none(options[name])
            layer.values[name] = _Given(None if is_none else words[0], flag)
    return layer, config_files


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


def _print_help(model_class: type[Settings], suited: _Layer) -> None:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--config FILE ...] [--option value ...]",
        description=getdoc(model_class),
        epilog=f"Values come from the defaults, {suited.name}, the files after --config, {DATA_VARIABLE} (for "
        "data_root) and the command line; the later wins. Another base has another recipe: --help beside "
        "--pretrained_model_name_or_path shows it. The word none empties an option that may be empty.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE ...",
        help="YAML files of options, as settings.yaml of a run folder is; a later one wins",
    )
    seen: set[str] = set()
    for group_class in reversed(model_class.__mro__):
        own = get_annotations(group_class).keys() & model_class.model_fields.keys() - seen
        seen |= own
        if not own:
            continue
        group = parser.add_argument_group((getdoc(group_class) or "").partition("\n")[0].rstrip("."))
        for name in (name for name in model_class.model_fields if name in own):
            option = model_class.model_fields[name]
            default = suited.values[name].value if name in suited.values else option.get_default()
            note = "required" if option.is_required() and name not in suited.values else f"default: {_word(default)}"
            text = f"{option.description} ({note})".replace("%", "%%")
            if option.annotation is bool:
                group.add_argument(f"--{name}", f"--no-{name}", action="store_true", help=text)
            else:
                group.add_argument(f"--{name}", metavar=_metavar(option), help=text)
    parser.print_help()


def _word(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
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
    if settings.optimizer == "adamw_8bit" or (isinstance(settings, AdapterSettings) and settings.load_in_4bit):
        show_bitsandbytes()

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
