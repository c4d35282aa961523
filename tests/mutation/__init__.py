"""Guards and patch steps of repfuse, taken away one at a time: a test has to turn red.

The requires of the passes have a runner of their own, `python -m tests.mutate_requires`.
"""
