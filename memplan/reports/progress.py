"""One line on a terminal that says what is being done, once that takes longer than a second."""

from __future__ import annotations

import shutil
import threading
from typing import Final, TextIO

_PATIENCE_SECONDS: Final = 1.0


class Progress:
    """A status line that appears after a second and is wiped away at the end; nothing at all where nobody watches."""

    def __init__(self, stream: TextIO, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._stream = stream
        self._text = ""
        self._shown = 0
        self._visible = False
        self._closed = False
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        if stream.isatty():
            self._timer = threading.Timer(patience_seconds, self._appear)
            self._timer.daemon = True
            self._timer.start()

    def tell(self, text: str) -> None:
        """Say what is being done now."""
        with self._lock:
            self._text = text
            if self._visible and not self._closed:
                self._draw()

    def close(self) -> None:
        """Wipe the line away."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._visible:
                self._text = ""
                self._draw()
                self._stream.write("\r")
                self._stream.flush()

    def _appear(self) -> None:
        with self._lock:
            if not self._closed:
                self._visible = True
                self._draw()

    def _draw(self) -> None:
        width = shutil.get_terminal_size().columns - 1
        text = f"{self._text} ..."[:width] if self._text else ""
        self._stream.write(f"\r{text.ljust(self._shown)}")
        self._stream.flush()
        self._shown = len(text)
