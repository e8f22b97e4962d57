"""How good images are: their features, distances between features, the bound, and the record of each figure."""
