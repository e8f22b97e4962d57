"""The mathematics of DDPM. Imports torch and nothing of ours: it can be read, tested and used on its own."""
