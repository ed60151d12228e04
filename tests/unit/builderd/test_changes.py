from __future__ import annotations

from ironworks.builderd.changes import Changes
from ironworks.builderd.types import Progress


def test_a_change_wakes_those_who_subscribed_before_it() -> None:
    changes = Changes()
    mine, others = changes.subscribe("a"), changes.subscribe("b")
    changes.announce("a")
    assert mine.is_set()
    assert not others.is_set()
    assert not changes.subscribe("a").is_set()


def test_progress_lasts_until_the_next_state() -> None:
    changes = Changes()
    event = changes.subscribe("a")
    changes.report("a", Progress(done_bytes=5, step="unpacking"))
    assert event.is_set()
    assert changes.progress("a").done_bytes == 5
    changes.forget("a")
    assert changes.progress("a") == Progress()
