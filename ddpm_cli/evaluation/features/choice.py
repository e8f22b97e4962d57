"""The default features."""

from ddpm_cli.evaluation.features.classifier import Classifier
from ddpm_cli.evaluation.features.extractor import Extractor
from ddpm_cli.evaluation.features.pixels import Pixels


def default_extractor(has_labels: bool) -> Extractor:
    """A classifier of the data if they have labels, otherwise their pixels: both need nothing but the data."""
    return Classifier() if has_labels else Pixels()
