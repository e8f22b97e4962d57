"""Which features are taken when nothing is said."""

from ddpm_cli.evaluation.features.classifier import Classifier
from ddpm_cli.evaluation.features.extractor import Extractor
from ddpm_cli.evaluation.features.pixels import Pixels


def default_extractor(has_labels: bool) -> Extractor:
    """A classifier of the data where they have labels, else their pixels: both need nothing but the data."""
    return Classifier() if has_labels else Pixels()
