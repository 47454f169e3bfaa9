"""The status line: nothing for a pipe, nothing within the first second, and no trace afterwards."""

from __future__ import annotations

import io
import time

from memplan.reports.progress import Progress
from tests.waiting import until


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_nothing() -> None:
    stream = io.StringIO()
    progress = Progress(stream, patience_seconds=0)
    progress.tell("recording")
    time.sleep(0.05)
    progress.close()
    assert stream.getvalue() == ""


def test_what_is_quick_is_not_announced() -> None:
    stream = Terminal()
    progress = Progress(stream, patience_seconds=60)
    progress.tell("recording")
    progress.close()
    assert stream.getvalue() == ""


def test_what_takes_long_is_said_and_wiped_away() -> None:
    stream = Terminal()
    progress = Progress(stream, patience_seconds=0.01)
    progress.tell("building")
    assert until(lambda: "building ..." in stream.getvalue())
    progress.tell("on")
    progress.close()
    progress.tell("too late")
    shown = stream.getvalue()
    assert "\ron ...      " in shown, "a shorter text wipes out the longer one"
    assert shown.endswith("\r")
    assert shown.split("\r")[-2].strip() == ""
