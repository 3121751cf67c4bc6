"""`memo doctor`: what this machine has and allows, measured where that tells more than asking.

Read `contracts.py` first, then `probe.py`, which puts the parts together, and `verdicts.py`, which
judges. `hardware.py` hands the result to the planner.
"""

from memo.doctor.contracts import Finding, Machine, Verdict
from memo.doctor.hardware import hardware_of
from memo.doctor.probe import probe_machine
from memo.doctor.verdicts import findings

__all__ = ["Finding", "Machine", "Verdict", "findings", "hardware_of", "probe_machine"]
