"""The style of figures, where drawings in several threads overlap."""

from __future__ import annotations

import threading

from matplotlib import rcParams

from sigeo.drawing import styled


def test_one_that_ends_after_another_leaves_matplotlib_as_it_was():
    before = dict(rcParams)
    inside, left = threading.Event(), threading.Event()

    def draw():
        with styled({"font.size": 3}):
            inside.set()
            left.wait(timeout=60)

    other = threading.Thread(target=draw)
    with styled({"font.size": 2}):
        other.start()
        inside.wait(timeout=0.2)  # it would be, if it had not to wait
        assert rcParams["font.size"] == 2
    left.set()
    other.join()
    assert dict(rcParams) == before
