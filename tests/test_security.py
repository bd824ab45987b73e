"""Nothing in the packages runs what it reads: no pickle, no evaluation of text, no shell, no code from elsewhere."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "pipelines", "finetune", "benchmarks")

# modules whose formats are pickles, or hold them
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# plain names: the builtins. A method of that name is another thing: module.eval(), re.compile()
BUILTINS = {"eval", "exec", "compile", "__import__"}
# <owner>.<name>
FUNCTIONS = {
    ("torch", "load"),
    ("torch", "save"),
    ("yaml", "load"),
    ("yaml", "load_all"),
    ("yaml", "unsafe_load"),
    ("yaml", "unsafe_load_all"),
    ("yaml", "full_load"),
    ("yaml", "full_load_all"),
    ("yaml", "Loader"),
    ("yaml", "FullLoader"),
    ("yaml", "UnsafeLoader"),
    ("yaml", "CLoader"),
    ("os", "system"),
    ("os", "popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
}
# methods, whatever they belong to
METHODS = {"extractall", "read_pickle", "to_pickle", "load_checkpoint_in_model", "load_checkpoint_and_dispatch"}
# arguments, with the only value they may be given
ARGUMENTS = {
    "shell": False,
    "trust_remote_code": False,
    "allow_pickle": False,
    "weights_only": True,
    "use_safetensors": True,
}
# what a class has to be told when it reads a folder, by what it is; without these a library may take a pickle for
# weights, the network for a folder, or code that comes with the files
_LOCAL, _SAFE, _NO_CODE = "local_files_only", "use_safetensors", "trust_remote_code"
NEEDED = (
    (re.compile(r"Pipeline$"), {_SAFE, _NO_CODE}),
    (re.compile(r"[Tt]okenizer\w*$"), {_NO_CODE}),
    (re.compile(r"^Auto(Config|Model|Processor)"), {_NO_CODE}),
    (re.compile(r"[Cc]onfig\w*$|[Ss]cheduler\w*(\[\w+\])?$"), set()),
    (re.compile(""), {_SAFE}),
)
# Pillow tries every decoder it has unless it is told which
_OPEN = re.compile(r"(PIL\.)?Image\.open")
MAY_FETCH = {"benchmarks"}  # they compare with what others write, and are for repositories that their user trusts
# arguments that may not be given at all
FORBIDDEN_ARGUMENTS = {"custom_pipeline"}


def violations(source: str, *, local: bool = True) -> list[str]:
    """Return "<line>: <what>" for everything in a source text that could run foreign code.

    local: whether folders are to be read without asking the network.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        found += [f"{node.lineno}: {what}" for what in _violations_of(node)]  # type: ignore[attr-defined]
        found += [f"{node.lineno}: {what}" for what in _missing_of(node, local)]  # type: ignore[attr-defined]
    return found


def _missing_of(node: ast.AST, local: bool) -> list[str]:
    """Return the arguments that what reads files of others lacks."""
    match node:
        case ast.Call(func=function, keywords=keywords) if local and _OPEN.fullmatch(ast.unparse(function)):
            return [] if "formats" in {k.arg for k in keywords} else ["Image.open without formats"]
        case ast.Call(func=ast.Attribute(value=owner, attr="from_pretrained"), keywords=keywords):
            name = ast.unparse(owner)
            needed = next(each for pattern, each in NEEDED if pattern.search(name)) | ({_LOCAL} if local else set())
            return [
                f"{name}.from_pretrained without {each}"
                for each in sorted(needed - {k.arg for k in keywords if _is(k.value, k.arg != _NO_CODE)})
            ]
    return []


def _violations_of(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [f"import {n.name}" for n in names if n.name.split(".")[0] in PICKLES]
        case ast.ImportFrom(module=str(module), names=names):
            owner = module.split(".")[0]
            return [
                f"from {module} import {n.name}"
                for n in names
                if owner in PICKLES or (owner, n.name) in FUNCTIONS or n.name in METHODS
            ]
        # not only calls: a function that is handed on is called elsewhere
        case ast.Name(id=name) if name in BUILTINS:
            return [name]
        case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in FUNCTIONS:
            return [f"{owner}.{name}"]
        case ast.Attribute(attr=name) if name in METHODS:
            return [name]
        case ast.Call(keywords=keywords):
            return [
                f"{k.arg}={ast.unparse(k.value)}"
                for k in keywords
                if k.arg in FORBIDDEN_ARGUMENTS or (k.arg in ARGUMENTS and not _is(k.value, ARGUMENTS[k.arg]))
            ]
    return []


def _is(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import torch\ntorch.load('a.pt', weights_only=True)", "2: torch.load"),
        ("loader = torch.load", "1: torch.load"),
        ("from torch import load", "1: from torch import load"),
        ("torch.save({}, 'a.pt')", "1: torch.save"),
        ("import pickle", "1: import pickle"),
        ("def f():\n    from pickle import loads", "2: from pickle import loads"),
        ("import joblib.numpy_pickle as j", "1: import joblib.numpy_pickle"),
        ("eval('1')", "1: eval"),
        ("exec('1')", "1: exec"),
        ("list(map(eval, texts))", "1: eval"),
        ("__import__(name)", "1: __import__"),
        ("builtins.exec(text)", "1: builtins.exec"),
        ("subprocess.run(line, shell=True)", "1: shell=True"),
        ("subprocess.run(line, shell=flag)", "1: shell=flag"),
        ("os.system('ls')", "1: os.system"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", "1: trust_remote_code=True"),
        ("AutoModel.from_pretrained(name, use_safetensors=None)", "1: use_safetensors=None"),
        ("Pipeline.from_pretrained(name, custom_pipeline='x')", "1: custom_pipeline='x'"),
        ("yaml.load(text, Loader=yaml.SafeLoader)", "1: yaml.load"),
        ("from yaml import full_load", "1: from yaml import full_load"),
        ("tarfile.open(path).extractall(folder)", "1: extractall"),
        ("np.load(path, allow_pickle=True)", "1: allow_pickle=True"),
        ("pandas.read_pickle(path)", "1: read_pickle"),
        ("yaml.compose(text, Loader=yaml.FullLoader)", "1: yaml.FullLoader"),
        ("model = UNet2DModel.from_pretrained(folder)", "1: UNet2DModel.from_pretrained without use_safetensors"),
        ("classes[kind].from_pretrained(folder)", "1: classes[kind].from_pretrained without use_safetensors"),
        ("CLIPTextModel.from_pretrained(f)", "1: CLIPTextModel.from_pretrained without local_files_only"),
        ("DDPMPipeline.from_pretrained(f)", "1: DDPMPipeline.from_pretrained without trust_remote_code"),
        ("AutoConfig.from_pretrained(f)", "1: AutoConfig.from_pretrained without trust_remote_code"),
        (
            "self.tokenizer_class.from_pretrained(f)",
            "1: self.tokenizer_class.from_pretrained without trust_remote_code",
        ),
        ("with Image.open(path) as picture: pass", "1: Image.open without formats"),
        (
            "CLIPTextModel.from_pretrained(f, local_files_only=offline)",
            "1: CLIPTextModel.from_pretrained without local_files_only",
        ),
    ],
)
def test_the_scan_finds(source: str, what: str) -> None:
    assert what in violations(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "self.unet.eval().requires_grad_(False)",
        "re.compile('a')",
        "torch.compile(model)",
        "yaml.safe_load(text)",
        "np.load(path, allow_pickle=False)",
        "subprocess.run(arguments, shell=False)",
        "UNet2DConditionModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)",
        "CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)",
        "schedulers[name].from_pretrained(folder, local_files_only=True)",
        "DDPMScheduler.from_pretrained(folder, local_files_only=True)",
        "kind.config_class.from_pretrained(folder, local_files_only=True)",
        "model.from_config(config)",
        "Image.open(path, formats=['PNG'])",
        "'''eval( exec( pickle torch.load( yaml.load( extractall shell=True'''",
        "# pickle, eval(",
        "json.loads(text)",
    ],
)
def test_the_scan_passes(source: str) -> None:
    assert violations(source) == []


def _problems(path: Path) -> list[str]:
    local = path.relative_to(ROOT).parts[0] not in MAY_FETCH
    return violations(path.read_text(encoding="utf-8"), local=local)


def test_no_module_can_run_what_it_reads() -> None:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    scanned = {path.relative_to(ROOT).as_posix() for path in paths}
    assert {"data/errors.py", "finetune/core/files.py", "finetune/core/checkpoint.py"} <= scanned
    assert {path.split("/")[0] for path in scanned} == set(PACKAGES)
    found = {path.relative_to(ROOT).as_posix(): problems for path in paths if (problems := _problems(path))}
    assert found == {}


def test_diffusers_is_told_to_run_no_code_that_comes_with_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is imported, by every script."""
    from data.exits import exit_code

    monkeypatch.delenv("DIFFUSERS_DISABLE_REMOTE_CODE", raising=False)
    assert exit_code(lambda: None, "test") == 0
    assert os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] == "true"
