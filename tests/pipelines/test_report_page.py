"""The page of an evaluation: one file, safe with any text, and alive in a real browser."""

from __future__ import annotations

import csv
import html.parser
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.result import (
    Between,
    Claim,
    Confusion,
    Copied,
    Curve,
    Described,
    Drifted,
    HeldOutLoss,
    Measured,
    Model,
    Picture,
    Profile,
    Question,
    Result,
    Score,
    Verdict,
)
from pipelines.evaluation.store import ImageStore
from pipelines.report import panels
from pipelines.report import pictures as page_pictures
from pipelines.report.charts import Point, Series, Value, curves, ticks, trade_off
from pipelines.report.page import write_page
from pipelines.report.script_data import script_json

EVIL = "</script><img src=x onerror=\"document.title='owned'\"> {{ 7*7 }} <!-- & 'quoted' \u2028"
MODELS = ("base", "lora @10", "lora @20", "<b>db</b> @20", "real, held out")
PROMPTS = ("sf_dry sf_warp", "a texture", "two red circles", EVIL)
SEEDS = (0, 1, 2)


def key_of(model: int, prompt: int, seed: int) -> str:
    return f"{model:02d}{prompt:02d}{seed:02d}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    store = ImageStore(tmp_path_factory.mktemp("evaluation"))
    rng = np.random.default_rng(3)
    for model in range(len(MODELS)):
        for prompt in range(len(PROMPTS)):
            for seed in SEEDS:
                picture = np.full((32, 32, 3), [40 * model + 40, 50 * prompt + 40, 60 * seed + 40], dtype=np.uint8)
                picture[:16] = rng.integers(0, 255, (16, 32, 3))
                store.keep(key_of(model, prompt, seed), picture, {})
    return store


def _curve(value: float) -> Curve:
    values = tuple(value * factor for factor in (1.0, 0.5, 0.25))
    return Curve(values, tuple(v - 0.02 for v in values), tuple(v + 0.02 for v in values), 24)


def _result() -> Result:
    skills = {1: 0.2, 2: 0.7, 3: 0.5}
    measured = [
        Measured(
            number,
            0,
            {
                "skill": Score(value, value - 0.2, value + 0.2, 40, "TexStat-v1"),
                "times": Score(3 - value, 2.8 - value, 3.2 - value, 40, "TexStat-v1"),
                "drift": Score(value / 4, value / 5, value / 3, 40, "U-Net"),
                "copy_auc": Score(0.5, 0.4, 0.6, 40, "ncc", "inconclusive", 0.5),
                "vendi": Score.none("too few"),
                "pairwise": Score(0.9, 0.8, 1.0, 40, "TexStat-v1"),
                "class_coverage": Score(0.0, -0.0, 0.2, 40, "TexStat-v1", "", 0.5),
            },
        )
        for number, value in skills.items()
    ]
    return Result(
        title=f"lora · {EVIL}",
        models=(
            Model(MODELS[0], "base", None, 1.0, "", is_base=True),
            Model(MODELS[1], "lora", 10, 1.0, "lora", is_base=False, image_visits=80, epochs=1.5),
            Model(MODELS[2], "lora", 20, 1.0, "lora", is_base=False, image_visits=160, epochs=3.0),
            Model(MODELS[3], "<b>db</b>", 20, 1.0, "dreambooth", is_base=False),
            Model(MODELS[4], "", None, 1.0, "", is_base=False, is_real=True),
        ),
        prompts=(
            Question(PROMPTS[0], PROMPTS[0], "learnt", None, ""),
            Question(PROMPTS[1], PROMPTS[1], "class", 0, ""),
            Question(PROMPTS[2], PROMPTS[2], "unrelated", 2, "blurry"),
            Question(EVIL, EVIL, "odd", None, EVIL, num_tokens_cut=5),
        ),
        samplings=("own, 20 steps, guidance 3",),
        pictures=tuple(
            Picture(model, prompt, 0, seed, key_of(model, prompt, seed))
            for model in range(len(MODELS))
            for prompt in range(len(PROMPTS))
            for seed in SEEDS
            if (model, prompt) not in ((4, 1), (4, 2), (4, 3))
        ),
        measured=tuple(measured),
        verdicts=(
            Verdict(
                "lora",
                2,
                20,
                "the best skill",
                3,
                "Overlapping: a classifier is right.",
                "",
                "Pictures of other prompts are no longer the base's.",
                "bad",
                "No copies.",
                "good",
                (EVIL,),
                20,
            ),
            Verdict(
                "<b>db</b>",
                3,
                None,
                EVIL,
                1,
                "Moved: 4% of the captions are right.",
                "Train longer.",
                "Not measured.",
                "open",
                "Cannot be judged.",
                "open",
            ),
        ),
        drifted=tuple(
            Drifted(model, prompt, seed, key_of(0, prompt, seed), key_of(model, prompt, seed), 0.3 * seed)
            for model in (1, 2)
            for prompt in (1, 2)
            for seed in SEEDS
        ),
        copied=(
            Copied(
                2, 0, 1, key_of(2, 0, 1), key_of(4, 0, 0), key_of(4, 0, 1), 0.93, "as it is", (0, 3), True, "dry.tif 7"
            ),
        ),
        held_out_ncc={EVIL: (0.2, 0.4, 0.6)},
        losses=tuple(HeldOutLoss("lora", step, 8 * step, 0.15 * step, 1 / step) for step in (5, 10, 20)),
        described=(Described(2, 0, "pitch", "tow pitch", "um", 400.0, 410.0, 1.2, 0.9, 1.6, "near"),),
        between=(
            Between(
                2,
                0,
                "sf_dry",
                EVIL,
                Score(0.3, 0.2, 0.4, 12, "TexStat-v1", "between the two"),
                Score(0.5, 0.1, 0.9, 12, "TexStat-v1"),
                Score(0.1, -0.1, 0.3, 12, "TexStat-v1"),
                ((-0.1, 0.1), (0.2, 0.4), (0.9, 1.1)),
            ),
        ),
        confusions=(
            Confusion(
                2,
                ("sf_dry sf_warp", EVIL),
                "nearest centroid",
                ((7, 1, 0), (0, 8, 2)),
                ((9, 10), (10, 10)),
                Score(15 / 16, 0.7, 0.99, 16, "TexStat-v1"),
                Score(0.95, 0.75, 0.99, 20, "TexStat-v1"),
            ),
        ),
        profiles=tuple(
            Profile(2, name, (0.1, 0.2, 0.3), _curve(0.3), _curve(0.2)) for name in ("spectrum", "grey", "red")
        ),
        cost=({"run": "lora", "steps": "20"}, {"run": "<b>db</b>", "memory": "1 GB"}),
        claims=(Claim(EVIL, "confirmed", "d = 0.4"),),
        statements=(EVIL,),
        provenance={"command": f"python x --prompts '{EVIL}'"},
    )


@pytest.fixture(scope="module")
def page(store: ImageStore) -> Path:
    return write_page(_result(), store, store.folder / "index.html")


class _Elements(html.parser.HTMLParser):
    """Every element with its attributes, and the text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, _: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def _data(page: Path) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert match is not None
    data: dict[str, Any] = json.loads(match[1])
    return data


def test_texts_are_shown_and_never_become_elements(page: Path) -> None:
    elements = _Elements(page.read_text("utf-8"))
    sources = [attributes.get("src") or "" for tag, attributes in elements.found if tag == "img"]
    assert all(source.startswith("data:image/webp;base64,") or not source for source in sources)
    assert not [a for _, a in elements.found if any(name.startswith("on") for name in a)]
    assert "b" not in {tag for tag, _ in elements.found}
    assert len([tag for tag, _ in elements.found if tag == "script"]) == 2
    # in the title, a heading, a caveat, a reason, a claim, a statement and the provenance, as it was written
    assert elements.text.count("</script><img src=x onerror=") >= 6
    assert "{{ 7*7 }}" in elements.text
    assert _data(page)["prompts"][3]["text"] == EVIL


def test_nothing_is_asked_of_a_network(page: Path) -> None:
    elements = _Elements(page.read_text("utf-8"))
    asked = [a[name] or "" for _, a in elements.found for name in ("src", "href", "srcset", "data") if name in a]
    assert not [url for url in asked if re.match(r"(https?:)?//", url)]
    policy = next(a["content"] for tag, a in elements.found if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_each_picture_is_in_the_page_once(page: Path) -> None:
    data = _data(page)
    assert len(data["pictures"]) == len(set(data["pictures"])) == len(_result().pictures) == 51
    text = page.read_text("utf-8")
    assert all(text.count(picture) == 1 for picture in data["pictures"])
    for model, prompt, _, seed, reference, _ in data["cells"]:
        assert data["names"][reference] == f"images/{key_of(model, prompt, seed)[:2]}/{key_of(model, prompt, seed)}.png"


def test_a_page_takes_so_many_pictures_and_names_the_files_of_the_others(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_pictures, "MOST_PICTURES", 21)
    page = write_page(_result(), store, tmp_path / "small.html")
    data = _data(page)
    assert len(data["pictures"]) == 21
    assert len(data["files"]) == 30
    assert "21 of them are in this page" in page.read_text("utf-8")
    # what a panel shows comes first, then every model's first seed
    assert all(isinstance(pair["key"], int) for pair in data["drifted"] + data["copied"])


def test_only_what_an_interval_decides_is_set_in_bold(page: Path) -> None:
    text = page.read_text("utf-8")
    by_value = {value: kind for kind, value in re.findall(r'class="(sure|unsure)"[^>]*>([\d.–]+)<small>', text)}
    # skills of 0.2 and 0.7 with intervals of 0.2 to each side; the AUC of 0.5 is chance
    assert by_value["0.7"] == "sure"
    assert by_value["0.2"] == "unsure"
    assert by_value["–"] == "unsure"


def test_what_is_at_the_base_or_at_chance_is_not_bold(store: ImageStore, tmp_path: Path) -> None:
    scores = {
        "right_caption": Score(0.52, 0.3, 0.7, 40, "TexStat-v1", "", 0.5),
        "drift": Score(0.0, 0.0, 0.0, 40, "U-Net"),
        "drift_unrelated": Score(0.31, 0.2, 0.4, 40, "U-Net"),
        "paired": Score(0.021, 0.0, 0.04, 40, "TexStat-v1"),
        "class_coverage": Score(0.66, 0.6, 0.7, 40, "TexStat-v1"),  # beside nothing
    }
    learnt = {"right_caption": Score(0.92, 0.8, 0.97, 40, "TexStat-v1", "", 0.5)}
    result = replace(_result(), measured=(Measured(1, 0, scores), Measured(2, 0, learnt)))
    text = write_page(result, store, tmp_path / "bold.html").read_text("utf-8")
    found = {value: kind for kind, value in re.findall(r'class="(sure|unsure)"[^>]*>([\d.]+)<small>', text)}
    sure = {value for value, kind in found.items() if kind == "sure"}
    assert (sure, set(found) - sure) == ({"0.31", "0.92"}, {"0.52", "0", "0.021", "0.66"})


def test_it_leads_with_pictures_and_the_rung_and_only_a_high_rung_is_green(page: Path) -> None:
    text = page.read_text("utf-8")
    verdict = text.partition('<section id="verdict">')[2].partition("</section>")[0]
    assert verdict.index('class="overview"') < verdict.index('class="rung good"') < verdict.index('class="rung bad"')
    first, second = verdict.split("<article")[1:]
    shown = [_Elements(f"<article{each}").text for each in (first, second)]
    assert "3 of 4: overlapping" in shown[0]
    assert "1 of 4: moved" in shown[1]
    assert "Train longer." in shown[1]
    assert first.count('class="reached"') == 4
    assert second.count('class="reached"') == 2
    tones = [re.findall(r'<dt class="(\w+)"', each) for each in (first, second)]
    assert tones == [["good", "bad", "good"], ["bad", "bad", "open", "open"]]


def test_copies_of_a_run_that_draws_nothing_near_the_data_cannot_be_judged(page: Path) -> None:
    copies = page.read_text("utf-8").partition('<section id="copies">')[2].partition("</section>")[0]
    assert "Cannot be judged for <b>db</b>: nothing drawn is near the data" in _Elements(copies).text


def test_the_scores_lie_beside_it(page: Path) -> None:
    lines = page.with_name("scores.csv").read_text("utf-8").splitlines()
    assert lines[0].startswith("model,sampler,measure,value,low,high,num_images")
    assert any(line.startswith('lora @20,"own, 20 steps, guidance 3",skill,0.7,') for line in lines)
    assert len(lines) == 1 + 3 * 7


@given(st.recursive(st.text() | st.none() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_json_in_a_script_reads_back_and_cannot_end_it(value: Any) -> None:
    text = str(script_json(value))
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_ticks_are_round_and_within(low: float, width: float) -> None:
    if low + width <= low or width < 1e-9 * abs(low):
        return
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 8
    tolerance = 1e-6 * width + 1e-9 * abs(low)
    assert low - tolerance <= min(found)
    assert max(found) <= low + width + tolerance
    step = found[1] - found[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-6), 3) in (1, 2, 5, 10)


def test_a_trade_off_puts_better_models_higher_and_more_forgetful_ones_further_right() -> None:
    points = [
        Point("good", 0, Value(0.1, 0.05, 0.15), Value(0.9, 0.8, 1.0)),
        Point("bad <i>", 1, Value(0.4, 0.3, 0.5), Value(0.1, 0.0, 0.2)),
    ]
    svg = str(trade_off(points, x_title="x", y_title="y"))
    circle = re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="6"', svg)
    square = re.search(r'<rect x="([\d.]+)" y="([\d.]+)"', svg)
    assert circle is not None
    assert square is not None
    assert float(circle[1]) < float(square[1])
    assert float(circle[2]) < float(square[2])
    assert "bad &lt;i&gt;: 0.10 [0.00, 0.20]" in svg
    assert "<i>" not in svg


def test_runs_are_never_joined_and_no_two_of_nine_look_alike() -> None:
    points = [Point(f"run {n}", n, Value(0.1 * n, 0, 1), Value(0.5, 0, 1)) for n in range(9)]
    chart = str(trade_off(points, x_title="x", y_title="y"))
    assert chart.count("<polyline") == 9
    assert all(len(path.split()) == 1 for path in re.findall(r'<polyline[^>]*points="([^"]*)"', chart))
    looks = re.findall(r'class="marker (run-\d)"><(\w+)', chart)
    paths = re.findall(r'class="marker run-\d"><path d="M[\d.]+ [\d.]+([^"]*)"', chart)
    assert len(looks) == 9
    assert len(paths) == len(set(paths)) == 7  # and a circle and a square


def test_a_wide_interval_does_not_flatten_a_chart() -> None:
    series = [Series("run", 0, ((1.0, Value(0.5, -50.0, 60.0)), (2.0, Value(1.0, 0.9, 1.1))))]
    svg = str(curves(series, x_title="step", y_title="skill", holds=(0.0, 1.0)))
    heights = [float(y) for y in re.findall(r'<circle class="dot[^>]*cy="([\d.]+)"', svg)]
    assert heights[0] - heights[1] > 25


def test_what_held_out_images_reach_is_said_once_for_runs_of_the_same_value() -> None:
    likeness = {f"run {n}": (0.2, 0.9, 0.6) for n in range(4)} | {"other": (0.1, 0.3, 0.2)}
    assert panels.held_out_likeness(replace(_result(), held_out_ncc=likeness)) == [
        {"runs": "run 0, run 1, run 2, … (4)", "most": "0.90", "middle": "0.60"},
        {"runs": "other", "most": "0.30", "middle": "0.20"},
    ]


def test_a_result_without_measures_is_a_page_of_images(store: ImageStore, tmp_path: Path) -> None:
    bare = replace(
        _result(),
        measured=(),
        verdicts=(),
        drifted=(),
        copied=(),
        described=(),
        confusions=(),
        profiles=(),
        cost=(),
        claims=(),
        losses=(),
        held_out_ncc={},
    )
    text = write_page(bare, store, tmp_path / "bare.html").read_text("utf-8")
    ids = {a["id"] for _, a in _Elements(text).found if "id" in a}
    assert {"images", "provenance"} <= ids
    panels = {"numbers", "course", "forgetting", "copies", "diversity", "classes", "profiles", "descriptors", "cost"}
    assert not ids & (panels | {"claims"})


def test_classes_named_are_numbers_in_a_table_beside_real_images(page: Path) -> None:
    table = page.read_text("utf-8").partition('class="confusion"')[2].partition("</table>")[0]
    shares = re.findall(r'class="(share(?: right)?)" style="--share: (\d+)%">(\d+)</td>', table)
    assert shares == [
        ("share right", "88", "7"),
        ("share", "12", "1"),
        ("share", "0", "0"),
        ("share", "0", "0"),
        ("share right", "80", "8"),
        ("share", "20", "2"),  # none of these
    ]
    assert ">9 of 10<" in table
    assert (
        "right on 0.94 [0.70, 0.99] of 18 generated images, 0.95 [0.75, 0.99] of 20"
        in _Elements(page.read_text("utf-8")).text
    )


def test_the_loss_of_held_out_images_is_a_curve_of_its_own(page: Path) -> None:
    figure = page.read_text(encoding="utf-8").split("loss of held-out images, fixed noise")[1].split("</figure>")[0]
    by_step, by_visits, _ = figure.split('<div class="by-')[1:]
    assert "<title>lora, 5: 0.2 [0.2, 0.2]</title>" in by_step
    assert "<title>lora, 160: 0.05 [0.05, 0.05]</title>" in by_visits
    assert by_step.count("<circle") == 3


def test_diversity_is_a_row_of_bars_for_each_model(page: Path) -> None:
    table = page.read_text("utf-8").partition('class="bars"')[2].partition("</table>")[0]
    assert "Vendi" not in table  # no model has a number of it
    assert table.count("0.90 [0.80, 1.00]") == 3
    assert table.count(">0.00 [0.00, 0.20]<") == 3  # a zero has no sign
    # from 0 at 2 to 1.2 at 118: the neutral 1 lies at 98.7, the value at 89
    assert 'class="neutral" x1="98.7"' in table
    assert table.count('cx="89.0"') == 3


def test_images_lie_between_two_captions(page: Path) -> None:
    panel = page.read_text("utf-8").partition('id="between"')[2].partition("</section>")[0]
    assert "lora @20 · sf_dry sf_warp: " in panel
    assert "between the two" in panel
    assert "0.30 [0.20, 0.40] of the way from sf_dry to &lt;" in panel
    strokes = re.findall(r'class="strokes (run-\w+)" d="M([\d.]+) [\d.]+v16M([\d.]+)', panel)
    assert [colour for colour, *_ in strokes] == ["run-real", "run-0", "run-real"]
    first, drawn, second = ([float(x) for x in places] for _, *places in strokes)
    zero, one = (float(x) for x in re.findall(r'class="level" x1="([\d.]+)"', panel))
    assert sum(first) / 2 == pytest.approx(zero, abs=0.1)
    assert sum(second) / 2 == pytest.approx(one, abs=0.1)
    assert sum(drawn) / 2 == pytest.approx(zero + 0.3 * (one - zero), abs=0.1)
    (dot,) = re.findall(r'class="dot run-0" cx="([\d.]+)"', panel)
    assert float(dot) == pytest.approx(zero + 0.3 * (one - zero), abs=0.1)


def test_real_images_are_dashed_beside_generated_ones(page: Path) -> None:
    charts = page.read_text("utf-8").partition('id="profiles"')[2].partition("</section>")[0]
    assert charts.count('class="line run-real"') == charts.count('class="line run-0"') == 3
    assert "24 generated, 24 real images" in charts
    # shares of a tone are in percent, the spectrum is not
    assert charts.count(">30</text>") == 2


def test_a_mark_shows_an_image_of_what_its_model_learnt(page: Path) -> None:
    data = _data(page)
    peeks = re.findall(r'role="img" aria-label="([^"]*)" [^>]* data-peek="(\d+)"', page.read_text("utf-8"))
    names = {label.partition(":")[0]: data["names"][int(number)] for label, number in peeks}
    assert names["lora @20"] == f"images/02/{key_of(2, 0, 0)}.png"
    assert len(names) == 3


def test_a_mark_without_an_image_in_the_page_shows_none(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_pictures, "MOST_PICTURES", 22)
    text = write_page(_result(), store, tmp_path / "one.html").read_text("utf-8")
    assert len(re.findall(r'data-peek="\d', text)) == 1


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if chromium is None or sync_playwright is None:
        assert not os.environ.get("FILROUGE_BROWSER"), "FILROUGE_BROWSER is set, and chromium or playwright is missing"
        pytest.skip("needs chromium, and playwright from PyPI")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    """The page, open; fails where it complains or asks for anything but itself."""
    complaints: list[str] = []
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: complaints.append(request.url) if not _is_local(request.url, page) else None)
    tab.goto(page.as_uri())
    yield tab
    assert complaints == []
    tab.close()


def _is_local(url: str, page: Path) -> bool:
    return url.startswith(("data:", "blob:")) or url == page.as_uri()  # a blob is what the page itself made


def _until(tab: Any, expression: str) -> None:
    """Wait for an expression to be true; playwright's own way would need eval, which the page forbids."""
    for _ in range(100):
        if tab.evaluate(expression):
            return
        tab.wait_for_timeout(50)
    pytest.fail(f"never true: {expression}")


def _headers(tab: Any) -> list[str]:
    texts: list[str] = tab.locator("#grid thead th").all_inner_texts()
    return texts


def test_the_grid_shows_every_model_of_every_prompt(tab: Any) -> None:
    assert _headers(tab) == ["prompt", *MODELS]
    assert tab.locator("#grid tbody tr").count() == 4
    assert tab.locator("#grid button.cell").count() == 4 * 4 + 1
    assert tab.locator("#grid .empty").count() == 3
    assert tab.title().startswith("lora · </script><img src=x")
    tab.locator("#images").scroll_into_view_if_needed()
    _until(tab, "[...document.querySelectorAll('#grid img')].every(i => i.complete && i.naturalWidth === 32)")


def test_axes_are_chosen_by_selectors(tab: Any) -> None:
    tab.select_option("#axis-columns", "seed")
    assert _headers(tab) == ["prompt", "seed 0", "seed 1", "seed 2"]
    tab.select_option("#axis-model", label="lora @20")
    first = tab.locator("#grid button.cell img").first
    assert first.get_attribute("alt").endswith("sf_dry sf_warp, lora @20, own, 20 steps, guidance 3, seed 0")
    assert tab.locator(".badge").count() == 1
    tab.select_option("#axis-rows", "model")
    assert _headers(tab) == ["model", "seed 0", "seed 1", "seed 2"]
    tab.select_option("#axis-columns", "model")  # the two swap
    assert _headers(tab) == ["seed", *MODELS]


def test_a_group_of_prompts_can_be_shown_alone(tab: Any) -> None:
    tab.select_option("#axis-group", "unrelated")
    assert tab.locator("#grid tbody tr").count() == 1
    assert "two red circles" in tab.locator("#grid tbody th").inner_text()


def test_the_grid_and_the_viewer_are_used_by_keys_alone(tab: Any) -> None:
    tab.locator("#grid button.cell").first.focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    assert tab.locator("#viewer").is_visible()
    assert "lora @20 · own" in tab.locator("#viewer-facts").inner_text()
    tab.keyboard.press("ArrowDown")
    assert tab.locator("#viewer-title").inner_text() == "a texture"
    clip = "getComputedStyle(document.getElementById('viewer-b')).clipPath"
    assert tab.evaluate(clip) == "inset(0px 0px 0px 100%)"
    tab.locator("#viewer-title").click()
    tab.keyboard.press(" ")
    assert tab.evaluate(clip) == "inset(0px 0px 0px 0%)"
    tab.keyboard.press("f")
    assert tab.locator("#viewer-flicker").get_attribute("aria-pressed") == "true"
    _until(tab, f"{clip} === 'inset(0px 0px 0px 100%)'")
    _until(tab, f"{clip} === 'inset(0px 0px 0px 0%)'")
    tab.keyboard.press("Escape")
    assert not tab.locator("#viewer").is_visible()
    assert tab.locator("#viewer-flicker").get_attribute("aria-pressed") == "false"


def test_the_other_model_of_the_viewer_is_chosen(tab: Any) -> None:
    tab.locator("#grid button.cell").nth(2).click()
    tab.select_option("#viewer-other", label="lora @10")
    assert tab.locator("#viewer-b").get_attribute("alt").startswith("lora @10: sf_dry sf_warp")
    assert tab.locator("#viewer-file").get_attribute("href") == f"images/02/{key_of(2, 0, 0)}.png"


def test_forgetting_and_copies_are_shown_in_pairs(tab: Any) -> None:
    assert tab.locator("#drifted .pair").count() == 3
    tab.select_option("#drift-ring", "0")
    assert "a texture · seed 0 · drift 0.00" in tab.locator("#drifted figcaption").first.inner_text()
    tab.select_option("#drift-ring", "1")
    assert tab.locator("#drifted .pair").count() == 0
    said = "ncc 0.93 · dry.tif 7 · as it is · moved by 0, 3 px · nearer than 95 % of held-out images"
    assert tab.locator("#copied figcaption").inner_text().endswith(said)
    assert tab.locator("#copied .pair span").all_inner_texts() == ["generated", "training", "difference"]


def test_the_course_is_shown_along_another_unit(tab: Any) -> None:
    assert tab.locator("#course .by-step svg").first.is_visible()
    tab.locator("#unit-visits").check()
    assert not tab.locator("#course .by-step svg").first.is_visible()
    assert tab.locator("#course .by-image_visits svg").first.is_visible()


def test_a_mark_of_the_trade_off_shows_its_image_under_pointer_and_focus(tab: Any) -> None:
    assert not tab.locator("#peek").is_visible()
    mark = tab.locator("[data-peek]").nth(1)
    mark.hover()
    assert tab.locator("#peek").is_visible()
    assert tab.locator("#peek-words").inner_text().startswith("lora @20: skill 0.70 [0.50, 0.90], noise drift 0.17")
    _until(tab, "document.getElementById('peek-image').naturalWidth === 32")
    tab.mouse.move(0, 0)
    assert not tab.locator("#peek").is_visible()
    tab.locator("[data-peek]").first.focus()
    tab.keyboard.press("Tab")
    assert tab.locator("#peek-words").inner_text().startswith("lora @20")
    tab.keyboard.press("Escape")
    assert not tab.locator("#peek").is_visible()


def test_the_page_speaks_french_and_remembers_it(tab: Any) -> None:
    tab.select_option("#axis-columns", "seed")
    tab.locator("[data-language=fr]").click()
    assert tab.locator("#numbers h2").inner_text() == "Mesures"
    assert tab.evaluate("document.documentElement.lang") == "fr"
    assert _headers(tab) == ["prompt", "graine 0", "graine 1", "graine 2"]
    assert tab.locator(".scores tbody th[scope=row]").nth(1).inner_text().startswith("gain ↑")
    assert "apprentissage\N{NO-BREAK SPACE}: gain →" in tab.locator("#numbers .chart .title").all_text_contents()
    assert "graine 2 · dérive 0.60" in tab.locator("#drifted figcaption").last.inner_text()
    assert tab.locator(".overview img").get_attribute("alt").startswith("un rang d'images")
    assert tab.locator(".only-fr").is_visible()
    assert "gain 0.70 [0.50, 0.90], dérive" in tab.locator("[data-peek]").nth(1).get_attribute("aria-label")
    assert tab.title().startswith("lora · </script><img src=x")
    assert tab.title().endswith("· évaluation")
    tab.reload()
    assert tab.locator("#numbers h2").inner_text() == "Mesures"
    tab.locator("[data-language=en]").click()
    assert tab.locator("#numbers h2").inner_text() == "Numbers"
    assert not tab.locator(".only-fr").is_visible()


def test_a_vote_is_blind_until_the_tally_is_asked_for(tab: Any, page: Path) -> None:
    """The base is the red of 40 in its lower half, lora @20 that of 120: the test knows what the visitor does not."""
    tab.select_option("#vote-first", label="lora @20")
    tab.select_option("#vote-second", label="base")
    assert tab.locator("#vote-count").inner_text() == "0 of 12 pairs voted"
    assert tab.locator("#vote-left").get_attribute("alt") == "image on the left"
    data = _data(page)
    of_model = [{data["pictures"][c[4]] for c in data["cells"] if c[0] == model} for model in (2, 0)]
    lefts = []
    for number in range(5):
        shown = [tab.locator(f"#vote-{side}").get_attribute("src").partition(",")[2] for side in ("left", "right")]
        is_left = shown[0] in of_model[0]
        assert {shown[0] in of_model[0], shown[1] in of_model[0]} == {True, False}
        assert any(each in of_model[1] for each in shown)
        lefts.append(is_left)
        if number == 4:
            tab.locator("[data-vote=same]").click()
        elif number == 3:  # the one vote for the base
            tab.locator("[data-vote=right]" if is_left else "[data-vote=left]").click()
        else:
            tab.locator("#ballot").focus()
            tab.keyboard.press("ArrowLeft" if is_left else "ArrowRight")
        assert tab.locator("#vote-tally").inner_text() == ""
    assert tab.locator("#vote-count").inner_text() == "5 of 12 pairs voted"
    tab.locator("#vote-show").click()
    # Wilson's interval of 3 in 4: 30.1 to 95.4 %
    said = "lora @20: 3 · base: 1 · same: 1. lora @20 is preferred in 75 % of 4 decided votes"
    assert tab.locator("#vote-tally").inner_text() == f"{said}, 95 % interval 30 to 95 % (Wilson)."
    with tab.expect_download() as download:
        tab.locator("#vote-download").click()
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["first", "second", "prompt", "sampler", "seed", "left", "preferred"]
    assert [row[6] for row in rows] == ["lora @20"] * 3 + ["base", ""]
    assert [row[5] == "lora @20" for row in rows] == lefts
    assert {row[2] for row in rows} <= set(PROMPTS)
    tab.reload()  # the votes are kept, and the tally is hidden again
    tab.select_option("#vote-first", label="base")
    tab.select_option("#vote-second", label="lora @20")
    assert tab.locator("#vote-count").inner_text() == "5 of 12 pairs voted"
    assert tab.locator("#vote-tally").inner_text() == ""
    tab.locator("#vote-undo").click()
    assert tab.locator("#vote-count").inner_text() == "4 of 12 pairs voted"


def test_a_vote_ends_when_every_pair_has_one(tab: Any) -> None:
    tab.select_option("#vote-first", label="real, held out")
    tab.select_option("#vote-second", label="<b>db</b> @20")
    for _ in range(3):
        tab.locator("[data-vote=left]").click()
    assert tab.locator("#vote-count").inner_text() == ("3 of 3 pairs voted Every pair of these two models has a vote.")
    assert not tab.locator("#ballot").is_visible()
    tab.select_option("#vote-second", label="real, held out")
    assert tab.locator("#vote-count").inner_text() == "These two have no pair of images in this page."


def test_without_script_and_on_paper_the_essentials_are_there(browser: Any, page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator(".card").count() == 2
    assert tab.locator("svg.chart").first.is_visible()
    assert tab.locator(".overview img").is_visible()
    assert "needs JavaScript" in tab.locator("#images").inner_text()
    assert not tab.locator("#axes").is_visible()
    tab.emulate_media(media="print")
    assert not tab.locator("nav").is_visible()
    assert tab.locator(".card").first.is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: str, browser: Any, page: Path) -> None:
    """WCAG 2.2: a contrast of at least 4.5."""
    tab = browser.new_page(color_scheme=scheme)
    tab.goto(page.as_uri())
    colours = tab.evaluate(
        "['--ink','--soft','--thread','--good','--bad','--open','--paper','--raised'].map("
        "n => getComputedStyle(document.documentElement).getPropertyValue(n).trim())"
    )
    *inks, paper, raised = (_luminance(colour) for colour in colours)
    for ground in (paper, raised):
        for ink in inks:
            assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5
    tab.close()


def _luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_page_of_1500_pictures_is_quick(browser: Any, tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    rng = np.random.default_rng(0)
    keys = [f"{number:06d}" for number in range(1500)]
    for key in keys:
        store.keep(key, rng.integers(0, 255, (24, 24, 3), dtype=np.uint8), {})
    result = replace(
        _result(),
        drifted=(),
        copied=(),
        prompts=tuple(Question(f"prompt {n}", f"prompt {n}", "set", None, "") for n in range(75)),
        pictures=tuple(
            Picture(model, prompt, 0, seed, keys[(model * 75 + prompt) * 5 + seed])
            for model in range(4)
            for prompt in range(75)
            for seed in range(5)
        ),
    )
    page = write_page(result, store, tmp_path / "index.html")
    tab = browser.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("#grid button.cell").count() == 300
    # those out of sight are not decoded
    assert tab.evaluate("[...document.querySelectorAll('#grid img')].filter(i => i.src).length") < 150
    tab.pdf()
    assert tab.evaluate("[...document.querySelectorAll('#grid img')].every(i => i.src)")  # but paper shows them
    milliseconds = tab.evaluate(
        "() => { const s = document.getElementById('axis-columns'); const t = performance.now(); s.value = 'seed';"
        " s.dispatchEvent(new Event('change')); return performance.now() - t }"
    )
    assert milliseconds < 1000
    tab.close()
