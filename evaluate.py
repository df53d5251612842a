"""Evaluate: ``python evaluate.py dataset=lvis``. The same as ``mobilesamv2 evaluate``; see ``--help``."""

from mobilesamv2.recipes.evaluate import main

if __name__ == "__main__":
    main()
