"""Whether images are those that a run was trained on."""

from collections.abc import Mapping
from itertools import zip_longest

from ddpm_cli.data.image_set import ImageSet


def difference(
    images: ImageSet,
    *,
    count: int,
    classes: tuple[str, ...],
    digests: Mapping[str, str],
    pillow: str | None,
) -> str | None:
    """In what these images differ from those that a run was trained on; None: in nothing that is known.

    Args:
        count, classes: how many there were, and the names of their classes.
        digests: as of `data.fingerprint.fingerprint`; none: not known.
        pillow: the version that decoded them; None: not known.
    """
    if len(images) != count:
        return f"the run was trained on {count} images, but there are {len(images)} now"
    now_classes = tuple(images.class_names)
    if now_classes != classes:
        then, now = next((a, b) for a, b in zip_longest(classes, now_classes) if a != b)
        return f"the run was trained on other classes: {then!r} then, {now!r} now"
    now = images.fingerprint
    if not digests or now is None:
        return None
    if digests.get("images") != now["images"]:
        if digests.get("unordered") == now["unordered"]:
            return f"{images.name}: these are the images that the run was trained on, but in another order"
        by = "another Pillow" if pillow is None else f"Pillow {pillow}"
        return (
            f"{images.name}: these {len(images)} images are not those that the run was trained on: at least one has "
            f"changed (or was decoded differently then, by {by})"
        )
    if digests.get("labels") != now["labels"]:
        return f"{images.name}: the labels have changed since the run was trained on these images"
    return None
