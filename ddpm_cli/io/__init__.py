"""This disk: durable writes, locks, careful opens, the layout of a run directory, pictures, text that is safe to print."""
