"""The shell: composing, checking overrides, one-message errors, sweeps. Only this room knows Hydra."""
