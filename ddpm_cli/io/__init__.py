"""This disk: durable writes, locks, careful opens, the layout of a run directory, pictures, text safe to print."""
