"""The mathematics of DDPM. It imports only torch, so it can be read, tested and used on its own."""
