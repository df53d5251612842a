"""``python -m mobilesamv2`` is the command ``mobilesamv2``."""

from mobilesamv2.cli import main

if __name__ == "__main__":
    main()
