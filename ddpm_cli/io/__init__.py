"""This disk: durable writes, the layout of a run directory, pictures, text that is safe to print."""
