"""What a YAML tree means: checked against what consumes it, compared with a run's, turned into objects."""
