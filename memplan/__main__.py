"""``python -m memplan`` is ``memplan``."""

from memplan.cli import main

main()
