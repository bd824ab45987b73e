"""YAML files as users write them: read strictly, in bounded time and memory, with the line of whatever is wrong.

What YAML allows, no file here needs, and a reader pays for is refused: aliases (a few lines of them stand for billions
of values), tags, more than one document, keys that stand there twice (the last would win in silence), great depth.
Plain words are numbers, true or false, or nothing only where they look like it: 2024-10-30, 12:30 and 007 are text.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from data.errors import SettingsError

SMALL, LARGE = 1 << 16, 1 << 20  # bytes that a file may have: of settings, and of lists
MOST_DEPTH = 24
MOST_NODES = 100_000  # values and keys of a file
_MOST_DIGITS = 40  # of a whole number; longer ones take more time than their length, and nobody means them
_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]*[0-9a-fA-F])")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))"
    r"|\.(?:nan|NaN|NAN)"
)


def read_yaml(path: Path, expected: str, *, most_bytes: int = SMALL) -> Any:
    """Return what a YAML file holds: None, bool, int, float, str, lists and mappings of them; None for an empty one.

    expected: what the file should have been, for the message where it is none. Keys are text, numbers, bool or None.
    Raises SettingsError, with every line that is wrong, for a file that is missing, not UTF-8, too large, or not YAML
    without the parts that are refused here.
    """
    root = read_yaml_nodes(path, expected, most_bytes=most_bytes)
    return None if root is None else _value(root)


def read_yaml_nodes(path: Path, expected: str, *, most_bytes: int = SMALL) -> yaml.Node | None:
    """Return a YAML file as nodes, which keep their words and their lines; None for an empty one. See `read_yaml`."""
    text = _text(path, expected, most_bytes)
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.take(event)
    except _TooMuchError as error:
        raise SettingsError(str(path), *builder.problems, str(error)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(filter(None, (error.context, error.problem)))
        builder.tell(mark, f"not readable as YAML: {reason}. Correct the syntax there.")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = error.character if isinstance(error.character, int) else ord(error.character)
        builder.problems.append(f"line {line}: holds the character U+{character:04X}, which YAML forbids. Remove it.")
    except (ValueError, OverflowError) as error:  # "\UFFFFFFFF" is no character; PyYAML (6.0) leaves that to chr()
        builder.problems.append(
            f"not readable as YAML: a number or a character in it is out of range ({error}). Correct it."
        )
    if builder.problems:
        raise SettingsError(str(path), *builder.problems)
    return builder.root


def _text(path: Path, expected: str, most_bytes: int) -> str:
    try:
        if path.exists() and not path.is_file():
            found = "a folder" if path.is_dir() else "a pipe, a device or the like"
            raise SettingsError(str(path), f"found {found}, expected {expected}.")
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise SettingsError(str(path), f"{error.strerror}. Expected {expected}.") from None
    except ValueError:  # a name with a NUL
        raise SettingsError(repr(str(path)), f"is no name of a file. Expected {expected}.") from None
    if len(content) > most_bytes:
        raise SettingsError(str(path), f"has more than {most_bytes:,} bytes, expected {expected}. Split or shorten it.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SettingsError(str(path), "is UTF-16, expected UTF-8. Save the file as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError(
            str(path), f"line {line}: byte {error.start} is not UTF-8. Save the file as UTF-8."
        ) from None


class _TooMuchError(Exception):
    """A file that is too deep or holds too many values to go on with."""


class _Builder:
    """Makes nodes of the events of a parser, without recursion, and keeps what is wrong."""

    def __init__(self) -> None:
        self.root: yaml.Node | None = None
        self.problems: list[str] = []
        self._open: list[yaml.SequenceNode | yaml.MappingNode] = []
        self._keys: list[yaml.Node | None] = []  # of each open mapping, the key whose value comes next
        self._seen: list[dict[Any, int]] = []  # of each open node, the keys there were, with their lines
        self._num_nodes = 0

    def tell(self, mark: Any, problem: str) -> None:
        """Keep a problem with its line."""
        self.problems.append(f"line {mark.line + 1}: {problem}" if mark is not None else problem)

    def take(self, event: yaml.Event) -> None:
        """Take the next event. Raises _TooMuchError where it is better to stop."""
        mark, end = _marks(event)
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise _TooMuchError(f"line {mark.line + 1}: a second document begins there. Keep one in a file.")
        if isinstance(event, yaml.AliasEvent):
            self.tell(mark, f"*{event.anchor} is an alias, which is not read. Write out what it stands for.")
            self._add(yaml.ScalarNode(f"{_TAG}null", "", mark, end))
        elif isinstance(event, yaml.ScalarEvent):
            self._refuse_tag(event)
            self._add(self._scalar(event))
        elif isinstance(event, yaml.CollectionStartEvent):
            self._refuse_tag(event)
            if len(self._open) == MOST_DEPTH:
                raise _TooMuchError(
                    f"line {mark.line + 1}: is nested more than {MOST_DEPTH} deep. Nothing that is read here is."
                )
            is_list = isinstance(event, yaml.SequenceStartEvent)
            node = (yaml.SequenceNode if is_list else yaml.MappingNode)(
                f"{_TAG}{'seq' if is_list else 'map'}", [], mark, end
            )
            self._open.append(node)
            self._keys.append(None)
            self._seen.append({})
        elif isinstance(event, yaml.CollectionEndEvent):
            self._keys.pop()
            self._seen.pop()
            self._add(self._open.pop())

    def _refuse_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.tag is not None:
            self.tell(event.start_mark, f"has the tag {event.tag}; tags are not read. Leave it out.")

    def _scalar(self, event: yaml.ScalarEvent) -> yaml.ScalarNode:
        text, kind = event.value, "str"
        if event.style is None:  # neither in quotes nor a block
            for name, pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
                if pattern.fullmatch(text):
                    kind = name
                    break
        if kind == "int" and len(text) > _MOST_DIGITS:
            self.tell(event.start_mark, f"a number of {len(text)} digits. Put it in quotes if it is text.")
            text, kind = "0", "int"
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            self.tell(event.start_mark, "a text with a NUL or half a character (\\0, \\ud800). Write it anew.")
            text = ""
        return yaml.ScalarNode(f"{_TAG}{kind}", text, *_marks(event), style=event.style)

    def _add(self, node: yaml.Node) -> None:
        """Put a whole node where it belongs: into the list or mapping that is open, or at the top."""
        self._num_nodes += 1
        if self._num_nodes > MOST_NODES:
            raise _TooMuchError(f"holds more than {MOST_NODES:,} values. Split the file.")
        if not self._open:
            self.root = node
            return
        parent, key = self._open[-1], self._keys[-1]
        if isinstance(parent, yaml.SequenceNode):
            parent.value.append(node)
        elif key is not None:
            parent.value.append((key, node))
            self._keys[-1] = None
        else:
            self._keys[-1] = self._as_key(node)

    def _as_key(self, node: yaml.Node) -> yaml.Node:
        if not isinstance(node, yaml.ScalarNode):
            self.tell(node.start_mark, "found a list or a mapping as a key, expected a word.")
            return yaml.ScalarNode(f"{_TAG}str", "", node.start_mark, node.end_mark)
        value, line = _value(node), node.start_mark.line + 1
        if node.value == "<<" and node.style is None:
            self.tell(node.start_mark, "<< merges another mapping in, which is not read. Write out what it holds.")
        elif value in self._seen[-1]:
            first = self._seen[-1][value]
            self.tell(node.start_mark, f"{node.value}: stands there twice, first in line {first}. Keep one of the two.")
        self._seen[-1].setdefault(value, line)
        return node


def _marks(event: yaml.Event) -> tuple[Any, Any]:
    """Return where an event begins and ends; a parser of text always says both."""
    return event.start_mark, event.end_mark


def _value(node: yaml.Node) -> Any:
    """Return what a node stands for; its depth is bounded."""
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {_value(key): _value(item) for key, item in node.value}
    assert isinstance(node, yaml.ScalarNode)
    text, kind = node.value, node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("yes", "true", "on")
    plain = text.replace("_", "").lower()
    if kind == "int":
        return int(plain, 16 if "x" in plain else 10)
    if kind == "float":
        if plain.lstrip("+-") in (".inf", ".nan"):
            return math.nan if plain == ".nan" else -math.inf if plain.startswith("-") else math.inf
        return float(plain)
    return text
