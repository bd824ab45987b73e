"""The fixed words of the page: each in both languages, all from one dictionary, none of them left unused."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines.evaluation.prompt_sets import RINGS
from pipelines.evaluation.result import KINDS
from pipelines.report import page as page_module
from pipelines.report.labels import LABELS, LANGUAGES
from pipelines.report.words import Key, attribute, keyed, label, said

FOLDER = Path(page_module.__file__).parent
SCRIPTS = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.js")}
TEMPLATE = (FOLDER / "page.html.j2").read_text("utf-8")
SOURCES = [*SCRIPTS.values(), TEMPLATE, *(p.read_text("utf-8") for p in FOLDER.glob("*.py") if p.name != "labels.py")]
# of a language or a file, each is called the same in all languages
OWN_NAMES = {"EN", "FR", "scores.csv", "result.json"}
# labels that are the same word in French
ALIKE = {
    "base",
    "claims.verdict",
    "classes.nav",
    "copies.nav",
    "descriptors.verdict",
    "images",
    "kind.cmmd",
    "kind.fid",
    "kind.kid",
    "prompt",
    "prompts",
    "provenance",
    "sections",
    "verdict",
    "vote.nav",
}  # fmt: skip


@pytest.mark.parametrize("key", LABELS)
def test_every_label_is_there_in_both_languages_with_the_same_data(key: str) -> None:
    english, french = LABELS[key]
    assert len(LABELS[key]) == len(LANGUAGES)
    assert english.strip() == english != ""
    assert french.strip() == french != ""
    assert sorted(re.findall(r"{(\w+)}", english)) == sorted(re.findall(r"{(\w+)}", french))
    assert (english == french) == (key in ALIKE)


def test_every_measure_ring_and_claim_has_its_words() -> None:
    for name, kind in KINDS.items():
        assert LABELS[f"kind.{name}"][0] == kind.title
        assert LABELS[f"meaning.{name}"][0] == kind.meaning
        assert f"section.{kind.section}" in LABELS
    assert {f"ring.{ring}" for ring in RINGS} <= LABELS.keys()


class _Literals(HTMLParser):
    """Texts of a template that stand between its tags or in attributes that are read out, its own expressions blank."""

    def __init__(self, template: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(re.sub(r"{%.*?%}|{{.*?}}", " ", template))

    def handle_data(self, data: str) -> None:
        self.found += [part for part in data.split() if re.search(r"[^\W\d_]", part)]

    def handle_starttag(self, _: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value.strip() for name, value in attrs if name in ("aria-label", "title", "alt") and value and value.strip()
        ]


def test_the_template_has_no_words_of_its_own() -> None:
    assert set(_Literals(TEMPLATE).found) - OWN_NAMES == set()
    assert _Literals('<p title="seen{{ x }}">read {{ t("x") }} {% if y %}this{% endif %}</p>').found == [
        "seen", "read", "this"
    ]  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_write_labels_and_data_only(name: str) -> None:
    """What is put on the page as text is said from the dictionary, or is no word."""
    literals = re.findall(r"(?:textContent|alt|title)\s*[:=]\s*([\"'`][^,;}]*)", SCRIPTS[name])
    assert [each for each in literals if re.search(r"[^\W\d_]", re.sub(r"\$\{[^}]*\}", "", each))] == []
    assert set(re.findall(r'say\("([\w.]+)"', SCRIPTS[name])) <= LABELS.keys()


def test_no_label_is_left_unused() -> None:
    text = "\n".join(SOURCES)
    quoted = set(re.findall(r"""["'`]([\w.]+)["'`]""", text))
    # those whose keys are put together
    families = ("rung.", "kind.", "meaning.", "section.", "ring.", "claim.", "axis.", "profile.", "course.")
    assert {key for key in LABELS if key not in quoted and not key.startswith(families)} == set()


def test_a_label_carries_its_key_and_its_data_as_text() -> None:
    assert label("verdict") == '<span data-t="verdict">Verdict</span>'
    evil = "</span>\"'{seed}"
    text = str(label("seed.of", seed=evil))
    assert text.count("<") == 2
    assert text.count('"') == 2
    assert "seed &lt;/span&gt;" in text
    assert said("seed.of", seed="{seed}") == "seed {seed}"
    assert said("chart.alt", x=Key("axis.step"), y="{x}") == "{x} along optimiser step"
    assert keyed("chart.alt", x=Key("axis.step"), y="a") == (
        'data-t="[&#34;chart.alt&#34;, {&#34;x&#34;: {&#34;t&#34;: &#34;axis.step&#34;}, &#34;y&#34;: &#34;a&#34;}]"'
    )
    assert attribute("alt", "vote.left.alt") == 'alt="image on the left" data-t-alt="vote.left.alt"'
