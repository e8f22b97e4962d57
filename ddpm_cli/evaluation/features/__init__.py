"""The features by which images are compared: each module turns images into vectors whose distances are meaningful."""
