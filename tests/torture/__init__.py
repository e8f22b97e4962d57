"""Faults of every kind against runs and checkpoints, counted: `scripts/torture`.

Each row of the table is a function `(Setting) -> Row`. A fault is put into a process forked from this one, which has
imported everything already: a trial costs a fraction of a second instead of the seconds that importing torch takes.
"""
