"""This disk: durable writes, locks, careful opens, what lies in a run directory, pictures, text safe to print."""
