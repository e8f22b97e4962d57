"""From a checkpoint to images: what is drawn, the loop that draws it, the images on the disk, the pictures of them."""
