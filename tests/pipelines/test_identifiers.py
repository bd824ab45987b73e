"""The report on an identifier says what its tokens are, and measures how strongly the base reacts to it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.errors import SettingsError
from data.exits import exit_code
from pipelines.components import Components, load_components
from pipelines.conditioning import TextConditioner
from pipelines.identifiers import (
    IdentifierReport,
    _x0_and_noise,
    examine,
    examine_all,
    most_broken,
    num_predictions,
    rare,
    told,
    words_of,
)
from pipelines.identify import main

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["w17h3r", "Dry", "dry", "drytexture", "texture dry"]


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> Components:
    return load_components(str(tiny_base_dir))


@pytest.fixture(scope="module")
def reports(base: Components) -> dict[str, IdentifierReport]:
    return {report.identifier: report for report in examine_all(base, NAMES, "texture", num_noises=2)}


def test_the_pieces_are_the_tokens_of_the_prompt(base: Components, reports: dict[str, IdentifierReport]) -> None:
    for name, report in reports.items():
        ids = [piece.id for piece in report.pieces]
        assert report.prompt == f"a {name} texture"
        inside = base.tokenizer(report.prompt).input_ids
        assert inside[2 : 2 + len(ids)] == ids
    assert reports["w17h3r"].spelling == "w 1 7 h 3 r"
    assert reports["texture dry"].spelling == "texture dry"


def test_each_piece_has_its_nearest_words_and_is_not_its_own(
    base: Components, reports: dict[str, IdentifierReport]
) -> None:
    table = base.text_encoder.get_input_embeddings().weight.detach()
    for piece in reports["w17h3r"].pieces:
        cosines = torch.nn.functional.cosine_similarity(table[piece.id][None], table)
        cosines[[piece.id, *base.tokenizer.all_special_ids]] = -2
        assert [cosine for _, cosine in piece.nearest] == pytest.approx(cosines.topk(3).values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "field", "value", "note"),
    [
        ("dry", "is_word", True, "a word of the vocabulary"),
        ("w17h3r", "is_word", False, ""),
        ("Dry", "same_tokens_as", ("dry",), "same tokens as dry"),
        ("dry", "same_tokens_as", ("Dry",), "same tokens as Dry"),
        ("w17h3r", "same_tokens_as", (), ""),
        ("texture dry", "shared_with_noun", ("texture",), "shares texture with the class noun texture"),
        ("drytexture", "shared_with_noun", ("texture",), "shares texture"),
        ("dry", "shared_with_noun", (), ""),
        ("dry", "num_unknown", 0, ""),
        ("dry", "num_truncated", 0, ""),
        ("dry", "added", (), ""),
    ],
)
def test_collisions_are_told(
    reports: dict[str, IdentifierReport], name: str, field: str, value: object, note: str
) -> None:
    assert asdict(reports[name])[field] == value
    if note:
        assert any(note in line for line in told([reports[name]], ()))


def test_tokens_that_cannot_be_read_are_told(tiny_base_dir: Path) -> None:
    base = load_components(str(tiny_base_dir))
    base.tokenizer.add_tokens(["17"])
    base.text_encoder.resize_token_embeddings(len(base.tokenizer), mean_resizing=False)
    long = "7" * 100
    inside, special, cut = examine_all(base, ["w17h3r", "<|endoftext|>", long], "texture", num_noises=2)
    assert inside.added == ("17",)
    assert special.num_unknown == 1
    assert not special.is_word
    # start, "a", one token for each pair or digit, "texture", end
    assert cut.num_truncated == len(cut.pieces) + 4 - 77
    assert [len(report.notes) for report in (inside, special, cut)] == [1, 1, 1]


def test_no_identifier_is_measured_twice(reports: dict[str, IdentifierReport], base: Components) -> None:
    assert list(reports) == NAMES
    assert [r.identifier for r in examine_all(base, ["dry", "dry"], "texture", num_noises=2)] == ["dry"]


def test_the_report_depends_on_the_seed_and_on_nothing_else(
    base: Components, reports: dict[str, IdentifierReport]
) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    alone, other = examine_all(base, ["w17h3r", "dry"], "texture", num_noises=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert alone.relative_strength == pytest.approx(reports["w17h3r"].relative_strength, rel=1e-4)
    assert examine_all(base, ["w17h3r", "dry"], "texture", num_noises=2) == (alone, other)
    reseeded = examine_all(base, ["w17h3r"], "texture", seed=1, num_noises=2)[0]
    assert reseeded.prior_strength != pytest.approx(alone.prior_strength, rel=1e-3)
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_the_same_tokens_have_the_same_strength(reports: dict[str, IdentifierReport]) -> None:
    assert reports["Dry"].relative_strength == pytest.approx(reports["dry"].relative_strength, rel=1e-4)


def test_the_unit_of_strength_is_the_median_word(base: Components, reports: dict[str, IdentifierReport]) -> None:
    report = reports["dry"]
    assert report.relative_strength == pytest.approx(report.prior_strength / report.word_strength)
    # whole words of four letters or more in the order of the vocabulary, without the class noun and without fragments
    assert report.words == tuple(sorted(report.words, key=lambda w: base.tokenizer.convert_tokens_to_ids(f"{w}</w>")))
    assert {"composite", "striped", "photo"} <= set(report.words)
    assert not {"texture", "dry", "posite"} & set(report.words)
    strengths = sorted(r.relative_strength for r in examine_all(base, report.words, "texture", num_noises=2))
    assert strengths[(len(strengths) - 1) // 2] == pytest.approx(1.0, rel=1e-3)


class _FlatDenoiser(torch.nn.Module):
    """Predicts the first number of the caption's last state, everywhere; keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(sample_size=(6, 8), in_channels=4)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.seen: list[tuple[int, torch.Tensor]] = []

    def forward(self, noisy: torch.Tensor, timestep: int, states: torch.Tensor) -> SimpleNamespace:
        self.seen.append((timestep, noisy))
        return SimpleNamespace(sample=states[:, -1, 0].view(-1, 1, 1, 1).expand_as(noisy))


def test_strength_is_the_ratio_of_two_changes_along_the_path_of_the_noun(base: Components) -> None:
    """Where the predicted noise is a number for each caption, all is known in closed form."""
    denoiser = _FlatDenoiser()
    report = examine(replace(base, unet=denoiser), "w17h3r", "texture")
    with torch.no_grad():
        states = TextConditioner(base.tokenizer, base.text_encoder).encode(["", "a texture", "a w17h3r texture"])
    empty, noun, prompt = states[:, -1, 0].tolist()
    assert report.prior_strength == pytest.approx((prompt - noun) ** 2 / (empty - noun) ** 2, rel=1e-3)
    assert report.relative_error == pytest.approx(0, abs=1e-3 * report.relative_strength)  # no path differs

    timesteps = list(dict.fromkeys(t for t, _ in denoiser.seen))
    assert timesteps == [875, 625, 375, 125]
    assert sum(len(noisy) for _, noisy in denoiser.seen) == num_predictions(1)
    first, second = (next(noisy for t, noisy in denoiser.seen if t == timestep)[:2] for timestep in timesteps[:2])
    assert first.shape == (2, 4, 6, 8)
    assert first.std() == pytest.approx(1, abs=0.1)
    alpha, following = (float(base.scheduler.alphas_cumprod[t]) for t in timesteps[:2])
    x0 = (first - (1 - alpha) ** 0.5 * noun) / alpha**0.5
    torch.testing.assert_close(second, following**0.5 * x0 + (1 - following) ** 0.5 * noun)


def test_a_base_that_does_not_read_captions_reacts_to_nothing(tiny_base_dir: Path) -> None:
    base = load_components(str(tiny_base_dir))
    for name, parameter in base.unet.named_parameters():
        if "attn2.to_v" in name:
            parameter.data.zero_()
    report = examine(base, "w17h3r", "texture")
    assert (report.prior_strength, report.relative_strength, report.relative_error) == (0, 0, 0)
    assert report.verdict == "weak"


@pytest.mark.parametrize(
    ("strength", "verdict"), [(0.0, "weak"), (0.49, "weak"), (0.5, "ordinary"), (2.0, "ordinary"), (2.01, "strong")]
)
def test_the_verdict_follows_the_thresholds(
    reports: dict[str, IdentifierReport], strength: float, verdict: str
) -> None:
    report = replace(reports["dry"], relative_strength=strength)
    assert report.verdict == verdict
    assert f"{strength:.2f} ± " in told([report], ())[1]
    assert f"  {verdict}  " in told([report], ())[1]
    assert told([report], ())[-2].startswith(f"{verdict}: the base")


@pytest.mark.parametrize("alpha_bar", [0.9, 0.3, 0.005])
def test_what_is_predicted_does_not_matter(alpha_bar: float) -> None:
    """Noise, v and x0 say the same: each output made of known x0 and noise gives them back."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    signal, spread = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    noisy = signal * x0 + spread * noise
    outputs: dict[Any, torch.Tensor] = {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": signal * noise - spread * x0,
    }
    for prediction_type, output in outputs.items():
        found = _x0_and_noise(output, noisy, alpha_bar, prediction_type)
        torch.testing.assert_close(found, (x0, noise))


@pytest.mark.parametrize(
    ("names", "noun", "num_problems", "word"),
    [
        ([], "texture", 1, "no identifier"),
        (["dry", " "], "texture", 1, "identifier 2 is empty"),
        (["", "x", ""], "", 3, "class noun is empty"),
    ],
)
def test_what_cannot_be_examined_is_refused(
    base: Components, names: list[str], noun: str, num_problems: int, word: str
) -> None:
    with pytest.raises(SettingsError, match=word) as caught:
        examine_all(base, names, noun)
    assert len(caught.value.problems) == num_problems


def test_one_noise_is_no_sample(base: Components) -> None:
    with pytest.raises(SettingsError, match="found 1 noises, expected 2 or more"):
        examine_all(base, ["dry"], "texture", num_noises=1)


def test_reports_can_be_written_as_json(reports: dict[str, IdentifierReport]) -> None:
    written = json.loads(json.dumps(asdict(reports["dry"])))
    assert written["pieces"][0]["text"] == "dry"
    assert written["relative_strength"] == reports["dry"].relative_strength


def test_the_table_goes_from_weak_to_strong(reports: dict[str, IdentifierReport]) -> None:
    strengths = {"w17h3r": 3.0, "drytexture": 0.1, "texture dry": 1.0}
    lines = told([replace(reports[name], relative_strength=value) for name, value in strengths.items()], ("a", "b"))
    header, *rows = lines[:4]
    assert header.split() == ["identifier", "prior", "tokens", "nearest", "words"]
    assert [row.split("  ")[0] for row in rows] == ["drytexture", "texture dry", "w17h3r"]
    assert "  0.10 ± " in rows[0]
    assert "  6: w 1 7 h 3 r  " in rows[2]
    assert len(lines) == 4 + 2 + 3 + 2  # notes, what the verdicts mean, the unit, what was left out
    assert lines[-1] == "not examined, as ordinary words: a, b"
    many = told([reports["w17h3r"]], (), list("abcdefghij"))[-1]
    assert many.startswith("not examined, to save time: a, b, c, d, e, f, g, h and 2 more;")


def test_the_nearest_word_of_a_piece_is_told_where_it_is_nearer_than_chance(
    reports: dict[str, IdentifierReport],
) -> None:
    report = reports["drytexture"]
    first, second = report.pieces[:2]
    far = replace(first, nearest=(("red", 0.2),))
    near = replace(second, nearest=(("blue", 0.7), ("weft", 0.6)))
    assert replace(report, pieces=(far, near), chance_cosine=0.3).near == f"{near.text}: blue 0.70"
    assert replace(report, pieces=(far,), chance_cosine=0.3).near == "none nearer than chance, 0.30"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("w17h3r dry sf_dry Striped zigzagged", "w17h3r sf_dry zigzagged"),
        ("a of dry", ""),  # ordinary words and single letters
        ("dry dry sks sks", "sks"),
        ("<|endoftext|>", "<|endoftext|>"),
    ],
)
def test_a_word_is_rare_where_it_is_no_token_of_its_own(base: Components, words: str, expected: str) -> None:
    found, ordinary = rare(base.tokenizer, words.split())
    assert found == tuple(expected.split())
    assert {*found, *ordinary} == set(words.split())
    assert len(found) + len(ordinary) == len(set(words.split()))


def test_a_word_of_several_is_rare_where_one_of_them_is(base: Components) -> None:
    assert rare(base.tokenizer, ["texture dry", "dry w17h3r", ""]) == (("dry w17h3r", ""), ("texture dry",))


def test_a_token_that_text_seldom_has_is_rare(base: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of a vocabulary stand by their rank; the last of CLIP's, such as sks, are no words of English."""
    rank = base.tokenizer.convert_tokens_to_ids("texture</w>")
    for num_common, expected in ((rank + 1, ()), (rank, ("texture",))):
        monkeypatch.setattr("pipelines.identifiers._NUM_COMMON", num_common)
        assert rare(base.tokenizer, ["texture"])[0] == expected


def test_the_words_of_captions_are_taken_without_what_stands_around_them(base: Components) -> None:
    assert words_of(["A sf_dry, texture.", "(sf_dry) of w17h3r!", "a -"], "fine texture") == (
        "A", "sf_dry", "of", "w17h3r", "a",
    )  # fmt: skip
    assert most_broken(base.tokenizer, ["drytexture", "w17h3r", "sf_dry"], 2) == ("w17h3r", "sf_dry")


def test_the_script_examines_rare_words_in_about_ten_lines(
    tiny_base_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = "--pretrained_model_name_or_path", str(tiny_base_dir), "--num_noises", "2"
    main(["--identifier", "w17h3r", "dry", "sks", "sf_dry", "--class_noun", "texture", *base])
    printed = capsys.readouterr().out
    assert "  6: w 1 7 h 3 r  " in printed
    assert "not examined, as ordinary words: dry\n" in printed
    assert "word: the median of" in printed
    assert len(printed.splitlines()) <= 10


def test_ordinary_words_alone_are_refused(tiny_base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--identifier", "dry", "striped", "--class_noun", "texture"]
    command = [*arguments, "--pretrained_model_name_or_path", str(tiny_base_dir)]
    assert exit_code(lambda: main(command), "identify") == 2
    assert "found ordinary words only: dry, striped." in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--identifier", "sks"], ["--identifier", " ", "--class_noun", "texture"]])
def test_a_wrong_command_ends_with_a_message_and_code_2(
    tiny_base_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    command = [*arguments, "--pretrained_model_name_or_path", str(tiny_base_dir)]
    assert exit_code(lambda: main(command), "identify") == 2
    assert "filrouge: " in capsys.readouterr().err


def test_the_script_is_light_before_it_has_read_its_arguments() -> None:
    code = "import sys, pipelines.identify; assert not {'torch', 'diffusers', 'tqdm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
