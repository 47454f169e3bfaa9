"""The real models that the slow tests run on, from ``corpus.txt`` beside this file."""

from __future__ import annotations

from pathlib import Path

_LINES = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()

#: Source specs, each once, in the order of the alphabet.
CORPUS = sorted({line for line in _LINES if line and not line.startswith("#")})
