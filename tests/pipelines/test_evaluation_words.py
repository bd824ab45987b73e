"""What is said of forgetting and of copies, and when it is good news."""

from __future__ import annotations

import pytest

from pipelines.evaluation.judging import copied_words, forgotten
from pipelines.evaluation.result import Score


def score(value: float, words: str = "", floor: float | None = None) -> Score:
    return Score(value, value - 0.02, value + 0.02, 16, "x", words, floor)


@pytest.mark.parametrize(
    ("prior", "drift", "unrelated", "said", "tone"),
    [
        (0.4, 0.5, 0.8, "It forgets: pictures of other prompts are no longer the base's; the noise", "bad"),
        (0.01, 1.1, 2.7, "It forgets: the noise prediction has changed by 1.1 of the base's own error, 2.7 on", "bad"),
        (0.01, 0.5, 0.6, "Not decided by 16 pictures of each other prompt: the noise", "open"),
        (0.01, 0.02, 0.03, "Hardly anything: the noise prediction has changed by 0.02", "good"),
    ],
)
def test_forgetting_is_said_and_is_good_news_only_where_little_has_moved(
    prior: float, drift: float, unrelated: float, said: str, tone: str
) -> None:
    scores = {"prior": score(prior, floor=0.05), "drift": score(drift), "drift_unrelated": score(unrelated)}
    assert forgotten(scores)[0].startswith(said)
    assert forgotten(scores)[1] == tone
    assert forgotten({})[1] == "open"


@pytest.mark.parametrize(
    ("auc", "rung", "said", "tone"),
    [
        (0.9, 4, "Nearer to the training images", "bad"),
        (0.9, 1, "Nearer to the training images", "bad"),  # copies with noise may be like nothing else
        (0.02, 1, "Cannot be judged: nothing drawn is near the data", "open"),
        (0.02, None, "Cannot be judged: nothing drawn is near the data", "open"),
        (0.02, 2, "No copies: farther", "good"),
        (0.5, 3, "No copies: as near", "good"),
    ],
)
def test_far_from_the_training_images_is_no_news_below_the_second_rung(
    auc: float, rung: int | None, said: str, tone: str
) -> None:
    found = copied_words({"copy_auc": score(auc)}, rung)
    assert found[0].startswith(said)
    assert found[1] == tone
    assert copied_words({"copy_auc": Score.none("not calibrated")}, rung)[0] == "Cannot be judged: not calibrated."
