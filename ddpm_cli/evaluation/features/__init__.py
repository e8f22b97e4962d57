"""What images are compared by: each module turns images into vectors in which a distance means something."""
