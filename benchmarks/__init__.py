"""What memo claims, measured side by side with what users would pick instead.

In scope: `context` (memory and time of one training step at several lengths, per case) and `gpu`
(the same on a GPU, and the longest sequence there). Out of scope: correctness, which the tests
show. Nothing here is installed; run from the repository root.
"""
