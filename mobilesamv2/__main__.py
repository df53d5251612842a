"""Entry point of ``python -m mobilesamv2``, the same as the command ``mobilesamv2``."""

from mobilesamv2.cli.main import main

if __name__ == "__main__":
    main()
