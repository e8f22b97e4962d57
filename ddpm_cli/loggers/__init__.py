"""Loggers of a run's progress: TensorBoard, and services outside this process, behind one protocol; no torch."""
