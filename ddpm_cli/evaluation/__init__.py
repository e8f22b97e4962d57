"""How good images are: their features, distances between these, the bound, and the record of each figure."""
