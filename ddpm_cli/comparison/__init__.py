"""Runs side by side: found, read as anybody's, ranked where their figures may be, in tables, pages and TensorBoard."""
