"""Where a run can be watched: TensorBoard, and services outside this process, behind one protocol; no torch."""
