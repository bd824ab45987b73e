"""Options of how pictures are drawn: each reaches the way, and what does not go together is refused."""

from dataclasses import asdict

import pytest

from data.errors import SettingsError
from data.exits import Parser
from pipelines.diffusion.drawing import Way
from pipelines.way_options import add_way_options, chosen_way


def _way(*options: str) -> Way:
    parser = Parser(allow_abbrev=False)
    add_way_options(parser)
    return chosen_way(parser.parse_args(options))


def test_without_options_it_is_the_way_that_everything_else_draws_with() -> None:
    assert _way() == Way()


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["--sampler", "ancestral"], {"sampler": "ancestral"}),
        (["--num_inference_steps", "7"], {"num_steps": 7}),
        (["--eta", "0.5"], {"eta": 0.5}),
        (["--sampler", "ancestral", "--variance", "large"], {"sampler": "ancestral", "variance": "large"}),
        (["--spacing", "linear"], {"spacing": "linear"}),
        (["--spacing", "quadratic"], {"spacing": "quadratic"}),
        (["--guidance_scale", "2"], {"guidance_scale": 2.0}),
        (["--no-clip"], {"clip": False}),
    ],
)
def test_each_option_changes_what_it_names(options: list[str], changed: dict[str, object]) -> None:
    assert asdict(_way(*options)) == asdict(Way()) | changed


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(SettingsError, match="--eta: ancestral has none"):
        _way("--sampler", "ancestral", "--eta", "0.5")
