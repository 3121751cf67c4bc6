"""Planning ahead of the run: trace, hardware, costs, swap plan, memory layout, simulation.

Nothing is here yet. The package is listed so that its name and its place are settled: it will know
neither models nor the runtime (`offload`); `memo` will hand it a step to trace and turn the plan
that it returns, which is plain data, into placements. Until then placements are given by hand, with
`memo.wrap(model, placement=...)`.
"""
