"""Train: ``python train.py experiment=distill_tinyvit``. The same as ``mobilesamv2 train``; see ``--help``."""

from mobilesamv2.recipes.train import main

if __name__ == "__main__":
    main()
