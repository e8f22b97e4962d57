"""What `ddpm-sample` calls the files that it writes."""

GRID_FILE = "samples.png"
IMAGES_DIRECTORY = "images"
NPZ_FILE = "samples.npz"
STRIP_FILE = "steps.png"
FILM_FILE = "steps.gif"

ALL = (GRID_FILE, IMAGES_DIRECTORY, NPZ_FILE, STRIP_FILE, FILM_FILE)
