"""Runs side by side: found, read with care, ranked where figures allow it; in tables, a page and TensorBoard."""
