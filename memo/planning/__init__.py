"""Planning ahead of the run, for a user: `plan` from Python, `memo plan` from the command line.

`request.py` and `node.py` check what is asked, `public.py` has `plan`, and `making.py` goes from a
request to a plan. On its way `states.py` says where model states may lie, `costing.py` what a step
costs, `choosing.py` which plan is taken, `storing.py` what it stores of what ranks exchange,
`longest.py` how long a sequence may get, `lives.py` and `arena.py` what a layout takes.
`figures.py`, `show.py` and `page.py` say what was found, `sweep.py` at several lengths;
`applied.py` is a plan in the runtime's words, `live.py`, `here.py` and `wrapping.py` are what
`wrap` asks for. Nothing is imported here: it takes a solver.
"""
