"""Whether a checkpoint is what was saved: found out once, before anything of it is used."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from ddpm_cli.checkpoint.files import fingerprint, metadata_in, read_bytes, read_text, size_of
from ddpm_cli.checkpoint.metadata import (
    DESCRIPTION_FILE,
    EMA_FILE,
    FILES,
    MANIFEST_FILE,
    OWN_KEY,
    CheckpointError,
    Metadata,
    manifest_text,
    parse,
)
from ddpm_cli.config.errors import shown


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A checkpoint of which some files have been compared with its manifest: readers take these as they are.

    It pickles: of several processes one verifies, and tells the others.

    Args:
        path: the checkpoint directory, or a lone EMA file, with which there is nothing to compare.
        metadata: what it says of itself, in checkpoint.json if that has been compared, else in the EMA file.
        files: the names of those that have been compared.
    """

    path: Path
    metadata: Metadata
    files: frozenset[str]

    def also(self, name: str) -> "Verified":
        """With a further file, compared now unless it has been. Raises as `verify`."""
        if name in self.files:
            return self
        compare(self.path, name)
        return replace(self, files=self.files | {name})

    @property
    def sha256(self) -> str:
        """Of its manifest.json, or of the lone EMA file: the one that `verify` can be told to insist on."""
        if not self.path.is_dir():
            return fingerprint(self.path)
        return hashlib.sha256(read_bytes(self.path / MANIFEST_FILE)).hexdigest()

    def file(self, name: str) -> Path:
        """Where one of `files` lies."""
        assert name in self.files, f"{name} has not been verified"
        return self.path / name if self.path.is_dir() else self.path


def verify(checkpoint: Path, *names: str, sha256: str | None = None) -> Verified:
    """Compare files of a checkpoint with its manifest, and read what it says of itself.

    Args:
        checkpoint: as `find` returns it.
        names: of the files, checkpoint.json or the EMA file among them.
        sha256: that the manifest must have (a lone EMA file: that file).

    Raises:
        CheckpointError: naming the first file that is missing or differs, is not ours, or is not the one of `sha256`.
    """
    compare(checkpoint, *names, sha256=sha256)
    return described(checkpoint, *names)


def described(checkpoint: Path, *names: str) -> Verified:
    """A checkpoint whose files `names` have been compared, with what it says of itself.

    Raises:
        CheckpointError: if its description is invalid, or it is not ours.
    """
    if not checkpoint.is_dir():
        metadata = metadata_in(checkpoint)
    elif DESCRIPTION_FILE in names:
        metadata = parse(read_text(checkpoint / DESCRIPTION_FILE), checkpoint)
    else:
        assert EMA_FILE in names
        metadata = metadata_in(checkpoint / EMA_FILE)
    return Verified(path=checkpoint, metadata=metadata, files=frozenset(names))


def compare(checkpoint: Path, *names: str, sha256: str | None = None) -> None:
    """Compare files of a checkpoint with its manifest, each read once. Arguments and errors as of `verify`."""
    if checkpoint.is_symlink() and not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} is a link; a checkpoint must be in its run's own directory")
    if not checkpoint.is_dir():
        if set(names) != {EMA_FILE}:
            raise CheckpointError(f"{checkpoint} holds only EMA weights; this needs a whole checkpoint directory")
        if sha256 is not None:
            _check_pinned(checkpoint, fingerprint(checkpoint), sha256)
        return
    manifest = checkpoint / MANIFEST_FILE
    content = read_bytes(manifest)
    if sha256 is not None:
        _check_pinned(manifest, hashlib.sha256(content).hexdigest(), sha256)
    for name, (count, expected) in _listed(manifest, content, names).items():
        file = checkpoint / name
        found = size_of(file)
        if found != count:
            raise CheckpointError(f"{file} is damaged: {found} bytes, {MANIFEST_FILE} says {count}")
        if fingerprint(file) != expected:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the one in {MANIFEST_FILE}")


def _check_pinned(file: Path, actual: str, sha256: str) -> None:
    if actual != sha256.lower():
        raise CheckpointError(f"{file} is not the one asked for: its SHA-256 is {actual}")


def _listed(manifest: Path, content: bytes, names: tuple[str, ...]) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of files by name, as a manifest says them."""
    try:
        listed = _entries(content.decode())
        return {name: (int(listed[name]["bytes"]), str(listed[name]["sha256"])) for name in names}
    except (AttributeError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{manifest} is damaged: {shown(f'{type(error).__name__}: {error}')}") from error


def _entries(text: str) -> dict[str, dict]:
    """What a manifest says of each file, if it is as it was written. The first ones did not hold their own SHA-256."""
    found = json.loads(text)
    listed = {name: entry for name, entry in found.items() if name != OWN_KEY}
    if OWN_KEY in found and text != manifest_text(listed):
        raise ValueError("its own SHA-256 is another")
    if not listed.keys() <= set(FILES):
        raise ValueError(f"lists {sorted(listed)}")
    return listed
