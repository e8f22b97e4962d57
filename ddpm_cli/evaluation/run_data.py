"""The images that a run was trained on, out of the configuration in its checkpoint: anybody's, so checked before."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ddpm_cli.checkpoint.metadata import Metadata
from ddpm_cli.checkpoint.validate import check_node
from ddpm_cli.config.common_options import without_common
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.eval_options import DataPlace
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.paths import seen_from
from ddpm_cli.config.schema import check_untrusted, options_of
from ddpm_cli.data.same_data import difference
from ddpm_cli.io.run_identity import identity_of

if TYPE_CHECKING:
    from pathlib import Path

    from ddpm_cli.data.image_set import ImageSet

_WELL_KNOWN, _THEIR_CLASSES = "ddpm_cli.data.datasets.", 10
_OTHERS = "To compare with other images, set reference=images reference.path=DIR"


def data_node(metadata: Metadata, run: "Path | None", place: DataPlace, *, trust: Iterable[str]) -> dict[str, Any]:
    """The configuration of a run's data, as it is to be read here.

    Args:
        run: its directory; None: it is not known.
        place: where they lie now.
        trust: names of classes that are not ours.

    Raises:
        ConfigError: if the checkpoint has none, asks for what it may not, or has no option that `place` sets.
    """
    if metadata.imported:
        raise ConfigError(f"ckpt: the model was imported, and its training data is not known. {_OTHERS}")
    with naming("ckpt"):
        node = metadata.config.get("data")
        check_node("data", node, trust=trust)
        identity = None if run is None else identity_of(run)
    assert isinstance(node, dict)
    if "download" in node:  # fetching takes the user's word every time, never a checkpoint's
        node = node | {"download": False}
    given = place.given()
    for key in given:
        if key not in node:
            has = ", ".join(f"data.{name}" for name in vars(place) if name in node)
            raise ConfigError(f"data.{key}: the run's data have no such option; they have {has or 'none of them'}")
    config = {"data": node | given}
    config = seen_from(None if identity is None else identity.begun_in, config, [f"data.{key}" for key in given])
    check_untrusted("data", config["data"], trust=trust)
    return config["data"]


class RunImages(NamedTuple):
    """The images of a run's data; with labels wherever they have some."""

    trained_on: "ImageSet"
    held_out: "ImageSet | None"  # kept from training; None: none were


def run_images(metadata: Metadata, node: dict[str, Any]) -> RunImages:
    """The images of that configuration, which are those that the run knew.

    Raises:
        ConfigError: if they cannot be read, or are others.
    """
    from ddpm_cli.data.holdout import hold_out, others, selected

    node, common = without_common(node)
    try:
        images = _labelled(node).numbered_as(metadata.classes)
    except (ConfigError, OSError) as error:
        raise ConfigError(f"{error}. If the images have been moved, set data.path= or data.root=. {_OTHERS}") from error
    differs = difference(
        images if metadata.classes else replace(images, labels=None, class_names=()),
        count=metadata.images,
        classes=metadata.classes,
        digests=metadata.data,
        pillow=metadata.versions.get("pillow"),
    )
    if differs is not None:
        raise ConfigError(f"data: {differs}. {_OTHERS}")
    if common.holdout == 0:
        return RunImages(images, None)
    seed = metadata.config.get("seed")
    if not isinstance(seed, int):
        raise ConfigError("ckpt: the checkpoint has no seed, which determines the held-out images")
    with naming("data.holdout"):
        held_out = hold_out(images, common.holdout, seed)
    return RunImages(selected(images, others(images, held_out)), selected(images, held_out))


def test_images(metadata: Metadata, node: dict[str, Any]) -> "ImageSet":
    """The images of the test split of that configuration's data set, at the size of those trained on.

    Raises:
        ConfigError: if it has none, or they cannot be read.
    """
    with naming("data"):
        node, _ = without_common(node)
    target = str(node["_target_"])
    if "split" not in options_of(target):
        raise ConfigError(
            f"reference.split=test: data={target.rpartition('.')[2]} has no test split; choose train, or holdout "
            f"for a run trained with data.holdout=N. {_OTHERS}"
        )
    return _labelled(node | {"split": "test"}).numbered_as(metadata.classes)


def _labelled(node: dict[str, Any]) -> "ImageSet":
    """The images with their labels, where the run was trained without: the well-known sets have some all the same."""
    if node.get("num_classes", ...) is None and str(node["_target_"]).startswith(_WELL_KNOWN):
        with suppress(ConfigError, OSError):  # the file of the labels may not be there
            return instantiate(node | {"num_classes": _THEIR_CLASSES}, "data")
    return instantiate(node, "data")
