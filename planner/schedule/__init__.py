"""One step of a swap plan, simulated: when everything runs, who waits for whom, and where every
byte is at any time.

`contracts.py` says what comes out, `simulation.py` runs a step, `transfers.py` moves its bytes as
the runtime does, `planning.py` returns plans whose simulation keeps the budgets.
"""
