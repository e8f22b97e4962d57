"""Train and sample denoising diffusion probabilistic models from the shell."""

__version__ = "0.1.0"
