"""From a checkpoint to images: the plan, the sampling loop, the images on the disk, and the grids of them."""
