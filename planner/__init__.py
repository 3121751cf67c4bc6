"""Planning ahead of the run: trace, hardware, costs, swap plan, memory layout, simulation.

The package knows neither models nor the runtime (`offload`): `memo` hands it a step to trace and
turns the plan that it returns, which is plain data, into placements. `contracts.py` says what is
asked, `plan.py` what is answered.
"""
