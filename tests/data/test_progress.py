"""What a long work tells: a bar on a terminal, whole lines in a file."""

from __future__ import annotations

import io
import re

import pytest

from data.progress import Progress


class _Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
    return clock


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_holds_a_line_for_each_interval_and_one_at_the_end(clock: _Clock) -> None:
    file = io.StringIO()
    with Progress(desc="train", unit="step", total=300, initial=100, file=file) as bar:
        for step in range(200):
            clock.now += 0.5
            bar.set_postfix_str(f"loss {1 / (step + 1):.4f}, 16.0 images/s", refresh=False)
            bar.update()
    lines = file.getvalue().splitlines()
    assert lines == [
        "train  step 160 of 300, loss 0.0167, 16.0 images/s, 70 s left",
        "train  step 220 of 300, loss 0.0083, 16.0 images/s, 40 s left",
        "train  step 280 of 300, loss 0.0056, 16.0 images/s, 10 s left",
        "train  step 300 of 300, loss 0.0050, 16.0 images/s, done after 100 s",
    ]
    assert "\r" not in file.getvalue()


def test_what_takes_longer_says_its_rate_and_what_is_left(clock: _Clock) -> None:
    file = io.StringIO()
    with Progress(desc="draw", unit="image", file=file, interval_s=10) as bar:
        bar.update()
        bar.total = 1000
        bar.refresh()  # too early
        clock.now += 40
        bar.update(3)
    assert file.getvalue().splitlines() == [
        "draw  image 4 of 1000, 10.0 s for each image, 2 h 46 min left",
        "draw  image 4 of 1000, 10.0 s for each image, stopped after 40 s",
    ]


def test_a_short_or_hidden_work_tells_nothing(clock: _Clock) -> None:
    file = io.StringIO()
    list(Progress(range(3), desc="look", unit="cell", delay=0.5, file=file))
    with Progress(desc="draw", unit="image", total=3, disable=True, file=file) as bar:
        clock.now += 100
        bar.update(3)
    assert file.getvalue() == ""
    for _ in Progress(range(3), desc="look", unit="cell", delay=0.5, file=file):
        clock.now += 1
    assert file.getvalue() == "look  cell 3 of 3, 1.0 cells/s, done after 3 s\n"


def test_a_terminal_shows_the_bar_of_tqdm(clock: _Clock) -> None:
    terminal = _Terminal()
    with Progress(desc="train", unit="step", total=4, file=terminal) as bar:
        for _ in range(4):
            clock.now += 2
            bar.set_postfix_str("loss 0.1234, 28.5 images/s", refresh=False)
            bar.update()
    shown = terminal.getvalue()
    assert shown.count("\r") >= 5
    assert re.search(r"train: 100%\|.*4/4 \[00:08<00:00, +2\.00s/step, loss 0\.1234, 28\.5 images/s\]", shown)
