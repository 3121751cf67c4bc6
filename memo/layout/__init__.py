"""The command `memo layout`: others' layout problems, solved by the planner's solvers.

Read `cli.py`. The solvers are `planner.layout`'s; what is here reads options and prints.
"""
