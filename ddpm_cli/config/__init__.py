"""Configurations: checked against the code that uses them, compared with a run's, and turned into objects."""
