"""Averages of a network's weights: kept during training, and reconstructed after it."""
