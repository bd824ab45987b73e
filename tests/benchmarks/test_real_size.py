"""The tables of real size: what a clock around real scripts finds, and that a run which is too slow is seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import real_size
from benchmarks.random_base import write_random_base
from benchmarks.timed_runs import PARTS, ROOT, Part, Phase, TimedRun

SLEEP_S = 2.0


def _run(
    *,
    unet: float = 1.8,
    optimizer: float = 0.1,
    closing: float = 40.0,
    peak_mib: float = 5000.0,
    closing_peak_mib: float | None = None,
    first_encoding: float | None = None,
) -> TimedRun:
    """A run that starts at 0, begins its first step at 10, and takes 2 s for each of four steps."""

    def phase(end: float, seconds: float, spent: Mapping[str, float], peak: float) -> Phase:
        return Phase(end, seconds, seconds, peak, {name: Part(spent.get(name, 0.0), 0.0, 1, 1) for name in PARTS})

    steps = [phase(12.0 + 2 * k, 2.0, {"unet": unet, "optimizer": optimizer}, peak_mib) for k in range(4)]
    last_peak = peak_mib if closing_peak_mib is None else closing_peak_mib
    return TimedRun(
        phase(10.0, 10.0, {}, 100.0), tuple(steps), phase(18.0 + closing, closing, {}, last_peak), first_encoding, 2
    )


def test_every_aim_that_is_missed_is_named_and_no_other() -> None:
    assert real_size.missed({"lora": {"ours": _run(), "plain": _run()}}) == []
    table = [
        (_run(unet=1.6), "85.0 % of a step in U-Net and optimizer"),
        (_run(closing=60.0), "closing takes 6.0 % of 500 steps"),
        (_run(peak_mib=6144.0), "peak 6.00 GiB, the aim is the plain loop's 4.88 GiB"),
        (_run(peak_mib=4000.0, closing_peak_mib=4512.0), "closing holds 0.50 GiB more than training"),
    ]
    for ours, told in table:
        (line,) = real_size.missed({"lora": {"ours": ours, "plain": _run()}})
        assert line.startswith(f"lora: {told}")


def test_what_is_encoded_before_the_first_step_belongs_to_the_first_epoch() -> None:
    assert _run().epoch_step_seconds(2) == (2.0, 2.0)
    assert _run(first_encoding=4.0).epoch_step_seconds(2) == (5.0, 2.0)  # from 4 to 14, two steps
    assert _run(first_encoding=11.0).epoch_step_seconds(2) == (2.0, 2.0)  # within the first step


def test_one_command_measures_a_method_beside_the_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pivotal tuning stands for all methods: it trains words, and adapters."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import atexit, runpy, time\n"
        f"atexit.register(time.sleep, {SLEEP_S})\n"
        f"runpy.run_path({str(ROOT / 'finetune' / 'pivotal_tuning.py')!r}, run_name='__main__')\n"
    )
    monkeypatch.setitem(real_size.SCRIPTS, "pivotal_tuning", slow)
    write_random_base(tmp_path / "table" / "base-small", "small")
    small = {"shape": "small", "resolution": 64, "max_train_steps": 4, "num_pictures": 5, "num_threads": 1}
    options = {**small, "methods": "pivotal_tuning", "output_dir": tmp_path / "table"}
    real_size.main([word for name, value in options.items() for word in (f"--{name}", str(value))])

    record = json.loads((tmp_path / "table" / "real_size.json").read_text())["pivotal_tuning"]
    lines = (tmp_path / "table" / "real_size.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("| pivotal")]
    assert [row[:2] for row in rows] == [["pivotal_tuning", "ours"], ["pivotal_tuning", "plain"]]
    assert all(len(row) == len(real_size.COLUMNS) and all(row) for row in rows)
    printed = capsys.readouterr().out
    assert all(line in printed for line in lines)

    for loop in record.values():
        assert len(loop["steps"]) == 4
        for step in loop["steps"]:
            taken = {name: part["seconds"] for name, part in step["parts"].items()}
            assert 0 < sum(taken.values()) <= step["seconds"] + 1e-6
            assert min(taken["unet"], taken["optimizer"]) > 0
        assert loop["before"]["parts"]["unet"]["calls"] == 0
        assert 0 < loop["before"]["peak_mib"] <= loop["steps"][-1]["peak_mib"] <= loop["closing"]["peak_mib"]
    # a step goes through the U-Net there and back, and back through the text encoder while the word is learnt
    ours, plain = record["ours"]["steps"], record["plain"]["steps"]
    assert [step["parts"]["unet"]["calls"] for step in (*ours, *plain)] == [2] * 8
    assert [step["parts"]["text_encoder"]["calls"] for step in plain[1:]] == [2] * 3
    assert record["ours"]["closing"]["parts"]["unet"]["calls"] > 0  # it validates and draws
    assert record["plain"]["closing"]["parts"]["unet"]["calls"] == 0
    assert record["ours"]["closing"]["seconds"] > SLEEP_S
