"""`scripts/numerics`: the tables of docs/explanation/numerics.md. Each module makes one or two of them."""
