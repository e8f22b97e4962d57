"""This disk: durable writes, careful opens, the layout of a run directory, pictures, text that is safe to print."""
