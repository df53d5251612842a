"""The programs: compose a configuration, check it, build, run. The one room that knows Hydra, omegaconf and wandb.

A task of conf/task names its recipe, a module of this package or any other that can be imported. A recipe that trains
has

- ``NEEDS``: the groups of conf/ that it can't do without,
- ``READS``: those of ``checks.NETWORKS`` that it reads beside them where they are chosen,
- ``OPTIONS``: keys of the task that the recipe itself reads, with their types,
- ``missing_files(cfg)``: checks of the files that it reads,
- ``build(cfg)``: a ``training.TrainingSetup``.

One that evaluates has ``evaluate(cfg)``, which returns an ``evaluation.Evaluation``, in place of ``build``.
"""
