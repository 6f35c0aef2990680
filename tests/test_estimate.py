"""What the estimate of a run counts: of the teachers' answers those that nobody has yet."""

from types import SimpleNamespace

import pytest

from compress import catalog, estimate, recipe
from compress.sampling import VIEW_COUNT


def asked(method="kd", views=16, **changes):
    wanted = recipe.from_values({"data": "digits", "views": views} | changes)
    job = SimpleNamespace(recipe=wanted, methods=(catalog.load("methods", method),))
    return estimate._Asked(job, seconds_per_epoch=10.0)


def test_kept_answers_are_asked_for_once():
    of = asked()
    assert [of.seconds(epochs) for epochs in (30, 8, 30)] == [160, 0, 0]
    of = asked()
    assert [of.seconds(epochs) for epochs in (4, 6, 20)] == [40, 20, 100], "each goes on where the longest ended"


@pytest.mark.parametrize(
    "changes", [{"keep_answers": False}, {"mixup": 0.5}, {"views": VIEW_COUNT}, {"method": "attention"}]
)
def test_answers_that_are_not_kept_are_asked_for_every_time(changes):
    of = asked(**changes)
    assert [of.seconds(epochs) for epochs in (30, 8)] == [300, 80]
