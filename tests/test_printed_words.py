"""Words of the data in what people read and run: captions, folders and labels that would be more than words."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from markdown_it import MarkdownIt

from data.errors import DataError, FilrougeError
from data.exits import exit_code
from data.plain_text import code_block, code_span, escaped, plain, plain_lines, plain_message
from finetune.core import card
from finetune.core.exports import _how_to_use
from finetune.core.pixel_exports import how_to_use
from finetune.core.settings import DdpmSettings, DreamboothSettings, LoraSettings

ROOT = Path(__file__).parents[1]

HOSTILE = (
    'red").images[0]\nimport os; os.system("touch owned")\n#',
    "red').images[0]\nimport os; os.system('touch owned')\n#",
    "\\",
    "'''\"\"\"",
    "```\n# A heading\n```python\n",
    "red](https://example.org) ![x](https://example.org/x.png)",
    "`red` **bold** <script>alert(1)</script> | a | b |",
    "\x1b[2J\x1b]0;title\x07red",
    "red\r\x08\u202eblue\u2028green",
    "---\nlicense: mit\n---\n# A heading",
    "é漢字 🙂",
    "",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_plain_text_is_one_line_that_steers_no_terminal(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert shown.encode().decode("unicode_escape" if shown.isascii() and "\\" not in text else "utf-8") == text
    assert len(plain_lines([text, text]).splitlines()) == (2 if text else 1)
    assert plain_message(f"one\n{text}").split("\n")[0] == "one"
    assert "\x1b" not in plain_message(text)


def _tokens(markdown: str) -> list[Any]:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    return [*tokens, *(child for token in tokens for child in token.children or ())]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    (paragraph,) = [token for token in _tokens(f"- {code_span(text)} after") if token.type == "inline"]
    assert [child.type for child in paragraph.children] == ["code_inline", "text"]
    assert paragraph.children[0].content.strip() == plain(text).strip()
    for before, after in (("# ", ""), ("![", "](final.png)"), ("before ", " after")):
        tokens = _tokens(before + escaped(text) + after)
        kinds = {token.type.removesuffix("_open").removesuffix("_close") for token in tokens}
        assert kinds <= {"heading", "paragraph", "inline", "text", "image"}
        shown = "".join(token.content for token in _tokens(f"before {escaped(text)} after") if token.type == "text")
        assert shown == f"before {plain(text)} after"
    tokens = _tokens(f"{code_block(text, 'yaml')}\n\nafter")
    lines = text.replace("\r", "\n")  # which ends a line in Markdown
    assert [token.content for token in tokens if token.type == "fence"] == [f"{lines}\n"]


def _strings(line: str) -> list[str]:
    constants = [node.value for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_lines_of_plain_diffusers_hold_captions_and_folders_as_strings(text: str, tmp_path: Path) -> None:
    folder = tmp_path / re.sub(r"[/\0]", "-", text)[:40]
    folder.mkdir(exist_ok=True)
    (folder / "pytorch_lora_weights.safetensors").touch()
    (folder / "learned_embeds.safetensors").touch()
    components: Any = SimpleNamespace(
        source=text, predicts_otherwise=True, prediction_type="v_prediction", ends_in_pure_noise=True
    )
    settings = LoraSettings(concept="sf_dry", revision=text or None, variant=text or None)
    lines = _how_to_use(settings, components, folder, text)
    statements = ast.parse("\n".join(lines)).body
    assert [ast.unparse(ast.parse(line)) for line in lines] == [ast.unparse(statement) for statement in statements]
    assert _strings(lines[-1]) == [text]
    assert str(folder) in _strings(lines[-2])
    assert str(folder) in _strings(lines[-3])
    assert text in _strings(next(line for line in lines if line.startswith("pipe = ")))
    model: Any = SimpleNamespace(class_labels=(text,), no_label=1)
    assert str(folder) in _strings("\n".join(how_to_use(model, folder)))


def _card(folder: Path, captions: tuple[str, ...], code: list[str], **settings: Any) -> str:
    """Write the card of a DreamBooth run and return it."""
    components: Any = SimpleNamespace(source=str(folder / "base"), name=str(folder / "base"))
    dataset: Any = SimpleNamespace(captions=captions, resolution=32, __len__=lambda: 2)
    dataset = cast(Any, type("Images", (), {**vars(dataset), "__len__": lambda _: 2})())
    (folder / "base").mkdir(exist_ok=True)
    (folder / "pytorch_lora_weights.safetensors").touch()
    chosen = DreamboothSettings(train_data_dir=folder, instance_prompt=captions, **settings)
    card.write_fine_tuned_card(folder, chosen, components, dataset, code)
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [text for text in HOSTILE if text])
def test_a_card_is_no_more_than_its_writer_meant(text: str, tmp_path: Path) -> None:
    code = ["from diffusers import StableDiffusionPipeline", f"image = pipe({text!r}).images[0]"]
    harmless = _shape(_card(tmp_path, ("red", "blue"), code))
    written = _card(tmp_path, (text, "blue"), code)
    assert _shape(written) == harmless
    fences = {token.info: token.content for token in _tokens(written.split("\n---\n", 1)[1]) if token.type == "fence"}
    assert fences["python"] == "\n".join(code) + "\n"
    found = card.ModelCard(written).data.to_dict()
    assert found["instance_prompt"] == text
    assert found["widget"][0]["text"] == text
    assert "license" not in found


def _shape(markdown: str) -> list[str]:
    """Return the kinds of what a card's Markdown consists of; the kinds of its settings' words are none."""
    return [token.type for token in _tokens(markdown.split("\n---\n", 1)[1])]


def test_a_subject_is_a_heading_and_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "[red](https:evil)"
    folder.mkdir()
    settings = DdpmSettings(train_data_dir=folder)
    dataset: Any = cast(Any, type("Images", (), {"captions": ("a",), "resolution": 8, "__len__": lambda _: 1})())
    card.write_pixel_card(tmp_path, settings, dataset, "A model.", ["image = pipe()"], [])
    links = [token for token in _tokens((tmp_path / "README.md").read_text()) if token.type == "link_open"]
    assert links == []


def test_an_error_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise DataError("\x1b[2Jdata", "one\x07", "two\u202e")

    assert exit_code(fail, "test") == DataError.exit_code
    assert capsys.readouterr().err == "filrouge: \\x1b[2Jdata: 2 problems\n  one\\x07\n  two\\u202e\n"


# the commands that messages tell people to type


def _texts() -> Iterator[tuple[str, str]]:
    """Yield the texts in the packages, with X in the place of what is filled in, and where each stands."""
    for package in ("data", "pipelines", "finetune"):
        for path in sorted((ROOT / package).rglob("*.py")):
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            parts_of_others = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
            for node in nodes:
                if id(node) in parts_of_others:
                    continue
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
                    yield "".join(map(str, parts)), f"{path.relative_to(ROOT)}:{node.lineno}"
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value, f"{path.relative_to(ROOT)}:{node.lineno}"


_COMMAND = re.compile(r"python ((?:data|pipelines|finetune)/\w+\.py)((?: [^\n()`]*)?)$", re.MULTILINE)
COMMANDS = {
    f"{where} {script}": (script, options)
    for text, where in _texts()
    for script, options in _COMMAND.findall(text.replace("\\\n", ""))
    if options != " X"  # the record of a command that was typed
    and (ROOT / script).exists()
    and "def _arguments(" in (ROOT / script).read_text(encoding="utf-8")
}


def test_commands_are_found() -> None:
    told = {key.partition(":")[0] for key in COMMANDS}
    assert {"finetune/points.py", "pipelines/compare.py", "pipelines/adapters.py"} <= told
    assert {"pipelines/evaluation/states.py", "pipelines/diffusion/noisy_classifier.py"} <= told


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_people_are_told_is_taken(command: str) -> None:
    """One lacked an option that its script requires."""
    script, options = COMMANDS[command]
    words = shlex.split(options)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            import_module(script.removesuffix(".py").replace("/", "."))._arguments(words)
        except FilrougeError as error:
            pytest.fail(f"{command}{options}: {error}")


def test_a_command_ends_where_its_message_ends() -> None:
    """A full stop behind a file or an option would be typed too."""
    command = re.compile(r"(python \S+\.py|pip install [^\s()`]+|hf [a-z]+ [^\s()`]+)[^`\n()]*\.( |$)")
    assert [where for text, where in _texts() if command.search(text)] == []


def test_nobody_is_told_to_install_this_project_from_a_registry() -> None:
    """It is in none: what is found there under its name is somebody else's."""
    assert [where for text, where in _texts() if re.search(r"pip install \"?filrouge", text)] == []
