"""The page of a check: whole in itself, every text escaped, charts drawn to scale; and the same in the terminal."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data.checks.page import plot, render, write_page
from data.checks.pictures import LONG_SIDE_PX, picture
from data.checks.report import Chart, Fault, Gallery, Mark, Picture, Report, Section, Table, counted
from data.checks.terminal import WIDTH, terminal_page
from data.checks.verdict import verdict

NASTY = '<script>alert("x")</script>&\'"><img src=http://evil.example/x.png>'
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: the tags with their attributes, and the texts; every tag is closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def report_of(text: str) -> Report:
    pixels = np.linspace(0, 1, 40 * 30).reshape(40, 30)
    shown = picture(pixels, text)
    section = Section(
        text,
        (text,),
        (Table((text, "number"), ((text, "1,234"), (text, "-")), text, 3),),
        (Chart(text, (1.0, 3.0), (0.0, 2.0), text, text, marks=(Mark(1.0, text),)),),
        (Gallery(text, (shown,)), Gallery(text, (shown,), captioned=True)),
    )
    return Report(
        subject=text,
        verdict=text,
        refused=True,
        overview=[(text, text)],
        faults=[Fault(text, text)],
        warnings=[text],
        sections=[section],
        ignored=[text],
        numbers={"of": {text: 1}},
    )


def test_every_text_is_escaped_and_nothing_comes_from_elsewhere() -> None:
    page = Page(render(report_of(NASTY)))
    assert page.texts.count(NASTY) >= 15
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in ("href", "onload", "onerror", "srcset", "style"), (tag, name)
            if name == "src":
                assert (value or "").startswith("data:image/jpeg;base64,")
    policy = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not re.search(r"url\(|@import|https?://", render(report_of("plain")))


def test_a_page_without_findings_is_whole_too() -> None:
    page = Page(render(Report("empty", "Training would go on with this data.", False, [("images", "0")])))
    assert "What training refuses" not in page.texts
    assert "No part of the data" not in page.texts
    assert ("p", {"class": "verdict"}) in page.tags


def test_the_parts_of_a_report_stand_on_the_page() -> None:
    page = Page(render(report_of("words")))
    assert ("p", {"class": "verdict refused"}) in page.tags
    assert sum(tag == "img" for tag, _ in page.tags) == 2
    assert sum(tag == "rect" for tag, _ in page.tags) == 2
    assert "and 3 more" in page.texts
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "td"][-4:] == [None, "number"] * 2


def test_a_long_table_stands_in_parts_and_loses_no_row() -> None:
    table = Table(("name", "number"), tuple((f"name {number}", f"{number}") for number in range(45)))
    page = Page(render(Report("x", "x", False, [("a", "b")], sections=[Section("long", tables=(table,))])))
    assert sum(tag == "table" for tag, _ in page.tags) == 3
    assert [text for text in page.texts if text.startswith("name ")] == [f"name {number}" for number in range(45)]


def test_both_files_are_written_and_replaced_as_a_whole(tmp_path: Path) -> None:
    page = write_page(report_of("first"), tmp_path / "a" / "b")
    assert page == tmp_path / "a" / "b" / "check.html"
    write_page(report_of("na\udce9me"), page.parent)  # as the system gives the name of a file that is no text
    found = json.loads((page.parent / "check.json").read_text("utf-8"))
    assert found["subject"] == "na\udce9me"  # which JSON can hold
    assert "<h1>na\\udce9me</h1>" in page.read_text("utf-8")
    assert sorted(path.name for path in page.parent.iterdir()) == ["check.html", "check.json"]


def test_bars_are_as_high_as_their_values_and_fill_the_axis() -> None:
    drawn = plot(Chart("t", (2.0, 0.0, 4.0, 1.0), (10.0, 50.0), "x", "y", marks=(Mark(30.0, "m"), Mark(99.0, "out"))))
    height = drawn.bottom - drawn.top
    assert [round(bar[3] / height, 3) for bar in drawn.bars] == [0.5, 1.0, 0.25]
    assert drawn.bars[0][0] == drawn.left
    assert drawn.bars[-1][0] + drawn.bars[-1][2] == pytest.approx(drawn.right, abs=0.02)
    assert [(mark.label, mark.place) for mark in drawn.x_marks] == [("m", (drawn.left + drawn.right) / 2)]
    assert [tick.label for tick in drawn.x_ticks] == ["10", "20", "30", "40", "50"]
    assert [tick.label for tick in drawn.y_ticks] == ["0", "1", "2", "3", "4"]


def test_a_curve_runs_from_end_to_end_of_its_range() -> None:
    drawn = plot(Chart("t", (1.0, 0.0, -0.5), (0.0, 2.0), "x", "y", bars=False, y_range=(-0.5, 1.0)))
    points = [tuple(map(float, point.split(","))) for point in drawn.line.split()]
    assert [x for x, _ in points] == [drawn.left, (drawn.left + drawn.right) / 2, drawn.right]
    assert (points[0][1], points[2][1]) == (drawn.top, drawn.bottom)
    assert drawn.bars == ()


@pytest.mark.parametrize("values", [(), (0.0,), (0.0, 0.0), (5.0,)])
def test_a_chart_of_nothing_can_be_drawn(values: tuple[float, ...]) -> None:
    drawn = plot(Chart("t", values, (3.0, 3.0), "x", "y"))
    assert len(drawn.bars) == sum(value > 0 for value in values)


def test_a_picture_is_made_small_and_keeps_its_proportions() -> None:
    made = picture(np.zeros((400, 800, 3)), "words")
    assert made.size_px == (LONG_SIDE_PX // 2, LONG_SIDE_PX)
    assert picture(np.zeros((10, 20)), "").size_px == (10, 20)
    assert isinstance(made, Picture)


def test_numbers_stand_at_the_right() -> None:
    table = Table(("a", "b", "c", "d"), (("1", "x", "1,000", "-"), ("-2.5%", "3", "-", "")))
    assert [table.is_numeric(column) for column in range(4)] == [True, False, True, False]


# The terminal


def test_the_terminal_shows_verdict_figures_faults_and_what_was_left_out() -> None:
    faults = [Fault(f"file {number}.png", "is damaged. " * 12) for number in range(25)]
    table = Table(("class", "images"), tuple((f"name {number}", str(10**number)) for number in range(14)))
    report = Report(
        "mine",
        verdict(faults),
        True,
        [("images", "12"), ("captions", "words " * 30)],
        faults,
        ["Look here. " * 15],
        [Section("Images", tables=(table,))],
        [f"stray {number}" for number in range(9)],
    )
    text = terminal_page(report)
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[:2] == [
        "mine",
        "Training would refuse this data: 25 faults, in file 0.png, file 1.png, file 2.png and 22 more.",
    ]
    assert "  images    12" in lines
    assert f"  name 0   {1:>12}" in lines
    assert f"  name 11  {10**11}" in lines
    assert text.count("  and 2 more") == 1  # classes
    assert text.count("  and 5 more") == 1  # faults
    assert "No part of the data (9): stray 0, stray 1, stray 2, stray 3, stray 4 and 4 more" in text


def test_a_name_cannot_steer_the_terminal() -> None:
    steering = "\x1b[2Jname\r"
    table = Table((steering, "b"), ((steering, "1"), ("x", "2")))
    report = Report(
        steering,
        steering,
        True,
        [("a", steering)],
        [Fault(steering, steering)],
        [steering],
        [Section("s", tables=(table,))],
        [steering],
    )
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", terminal_page(report))
    assert "\\x1b[2Jname\\r" in terminal_page(report)


def test_counted_says_one_and_many() -> None:
    assert [counted(number, "image") for number in (0, 1, 5000)] == ["0 images", "1 image", "5,000 images"]
    assert verdict([]) == "Training would go on with this data."
    assert verdict([Fault("a", "x"), Fault("a", "y")]) == "Training would refuse this data: 2 faults, in a."
