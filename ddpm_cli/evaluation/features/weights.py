"""Files of weights: found, downloaded if allowed, checked before they are read, and never freely unpickled."""

import contextlib
import hashlib
import http.client
import os
import pickle
import stat
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli.config.errors import shown
from ddpm_cli.data import cache_files
from ddpm_cli.io.openers import nonblocking
from ddpm_cli.io.text import printable

CHUNK_BYTES = 2**20
SECONDS = 30  # without a word from the server

State = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """A published file of weights, identified by its SHA-256."""

    name: str
    size: int  # bytes
    sha256: str
    url: str


def hub_checkpoints() -> Path:
    """The directory in which torch.hub, and with it torch-fidelity, stores downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def provided(published: Published, weights: str | None, *, download: bool) -> Path:
    """The path of a published file: `weights` if given, else in torch's hub cache, downloaded if missing and allowed.

    Raises:
        ValueError: if what is there is not that file, or it cannot be fetched.
        FileNotFoundError: if it is not there; says which file it is, and how it gets there.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        check(path, published)
        return path
    path = hub_checkpoints() / published.name
    try:
        check(path, published)
    except (OSError, ValueError) as error:
        if download:
            _fetch(published, path)
            return path
        if not isinstance(error, FileNotFoundError):
            raise
        raise FileNotFoundError(
            f"{published.name} ({published.size:,} bytes) is not in {printable(str(path.parent))}: set "
            f"features.download=true, set features.weights=PATH if it is elsewhere, or put {published.url} there"
        ) from None
    return path


def check(path: Path, published: Published) -> None:
    """Raise ValueError unless a file is the published one, OSError if it cannot be read."""
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != published.size:
            raise ValueError(f"{printable(str(path))} has {size:,} bytes, but {published.name} has {published.size:,}")
        _check_digest(hashlib.file_digest(file, "sha256").hexdigest(), published, str(path))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError if it cannot be read."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> State:
    """The tensors in a file of weights, by name, on the CPU: safetensors, or tensors saved by torch.save.

    Raises:
        ValueError: if it holds anything else; nothing but tensors is ever built of it.
        OSError: if it cannot be read.
    """
    try:
        with _opened(path) as file:
            if path.suffix == ".safetensors":
                state = safetensors.torch.load_file(path)
            else:
                state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, KeyError) as error:  # torch's advice here is to unpickle it all the same
        raise ValueError(f"{printable(str(path))} is not a file of weights, or holds more than tensors") from error
    except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
        reason = shown(printable(str(error).partition("\n")[0]))
        raise ValueError(f"{printable(str(path))} is not a file of weights: {reason}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{printable(str(path))} is not a file of weights: it holds more than named tensors")
    return state


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """Open a plain file. Raises FileNotFoundError if it is missing, OSError if it is not plain or cannot be read."""
    with open(path, "rb", opener=nonblocking) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{printable(str(path))} is not a regular file")
        yield file


def _check_digest(sha256: str, published: Published, source: str) -> None:
    if sha256 != published.sha256:
        raise ValueError(
            f"{printable(source)} is not {published.name}, or damaged: its SHA-256 is {sha256}, not {published.sha256}"
        )


def _fetch(published: Published, path: Path) -> None:
    """Download a file, durably; it gets its own name only once its SHA-256 has been checked.

    Raises:
        ValueError: if what comes is something else, or nothing comes.
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    cache_files.remove_abandoned(path.parent)
    digest, size = hashlib.sha256(), 0
    with cache_files.temporary(path.parent) as file:
        try:
            with (
                urllib.request.urlopen(published.url, timeout=SECONDS) as response,
                tqdm(total=published.size, desc=published.name, unit="B", unit_scale=True, disable=None) as bar,
            ):
                while size <= published.size and (chunk := response.read(CHUNK_BYTES)):
                    digest.update(chunk)
                    size += file.write(chunk)
                    bar.update(len(chunk))
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"{published.url} cannot be downloaded: {error}; put it at {path}") from error
        _check_digest(digest.hexdigest(), published, published.url)
        cache_files.put_in_place(file, path)
