"""Averages of a network's weights: kept while it is trained, and made afterwards."""
