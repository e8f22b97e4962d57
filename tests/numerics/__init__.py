"""`scripts/numerics`: the tables of docs/numerics.md. Each module makes one or two of them."""
