"""`python -m jala_ray COMMAND ...`, the same as `jala COMMAND ...`."""

from __future__ import annotations

import sys

from jala_ray.commands.shell import main

if __name__ == "__main__":
    sys.exit(main())
