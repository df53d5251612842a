"""Time of the command line's help and of the import of the package, best of three processes each.

    python benchmarks/help.py

Aims on an idle machine: 1 s for ``mobilesamv2 --help``, 1.5 s for the help of a subcommand.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from mobilesamv2.cli.main import COMMANDS
from mobilesamv2.cli.report import REPORTS

REPEATS = 3


def fastest(command: Sequence[str]) -> float:
    """Return the seconds of the fastest of ``REPEATS`` runs of a command."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Print a line per command."""
    print(f"{fastest([sys.executable, '-c', 'import mobilesamv2']):6.2f} s  python -c 'import mobilesamv2'")
    for words in ([], *([command.name] for command in COMMANDS), *(["report", name] for name in REPORTS)):
        line = [*words, "--help"]
        print(f"{fastest([sys.executable, '-m', 'mobilesamv2', *line]):6.2f} s  mobilesamv2 {' '.join(line)}")


if __name__ == "__main__":
    main()
