"""Several processes that train or sample together."""
