"""The ``memplan`` command, and ``python -m memplan``."""

import gc


def run() -> None:
    """Run the command line in a process of its own, and exit."""
    # A command is short: its collector would only walk, again and again, the half million objects that torch imports.
    gc.disable()

    from memplan.cli import main

    main()


if __name__ == "__main__":
    run()
