"""The swap plan: what a step costs, and a mixed-integer program that says which tiles are kept,
moved or recomputed.

`contracts.py` says what goes in, `program.py` is the program, `memo_rule.py` the rule that it
contains as a special case.
"""
