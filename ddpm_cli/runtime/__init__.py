"""This process: device and precision, random streams, signals and exit codes, logging."""
