"""Training for the command line: long text, a plain loop, and the comparison behind `memo demo`.

Not a trainer for everybody: schedules, evaluation, several devices and logging belong to HF
`Trainer`, which takes a wrapped model as it is. Nothing here is needed to use `memo.wrap`.

Read `contracts.py` first, then `finetune.py` (`memo train`) and `compare.py` (`memo demo`).
"""
