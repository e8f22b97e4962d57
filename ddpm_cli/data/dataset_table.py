"""Tables of images that the datasets package reads, from this disk or from the Hugging Face Hub.

The package only reads the tables; our own decoder decodes the images. Nothing is downloaded without permission, and no
code that comes with a data set is run.
"""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_cli.io.text import printable

EXTRA = "pip install 'ddpm-cli[hub]'"
MOST_SAID = 300  # characters of the package's messages
# The package's readers that may be used, and the reader of its own cache.
KINDS = ("parquet", "arrow", "imagefolder")
_READERS = (*KINDS, "cache")
_SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


class Opened(NamedTuple):
    """A table, and a remark on where it was found."""

    table: Any  # a `datasets.Dataset`
    remarks: tuple[str, ...] = ()


def open_table(dataset: str, subset: str | None, split: str, *, download: bool) -> Opened:
    """The table named `dataset` on the Hub, or in the folder or file at that path.

    Args:
        subset: which of the data set's subsets; None: the only one.
        split: which split.
        download: whether it may be downloaded.

    Raises:
        ValueError: if the package is missing or cannot read it, or there is no such subset or split.
        FileNotFoundError: if it is missing; the message says how to get it.
        OSError: if it cannot be downloaded or read.
    """
    if not dataset:
        raise ValueError("dataset is empty: give a name on the Hugging Face Hub, or a path")
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(f"datasets is not installed: {EXTRA}")
    path = Path(os.path.abspath(os.path.expanduser(dataset)))
    if not path.exists() and not (_HUB_NAME.fullmatch(dataset) and not dataset.startswith(".")):
        raise FileNotFoundError(f"no such file or folder: {printable(str(path))} (data.dataset)")
    with _quiet(), _fetching(download):
        if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return Opened(_saved(path, subset, split))
        return _built(dataset, path, subset, split, download=download)


def _saved(path: Path, subset: str | None, split: str) -> Any:
    """The table that the package's `save_to_disk` wrote to a folder."""
    import datasets

    if subset is not None:
        raise ValueError(f"subset: {printable(str(path))} is a data set without subsets")
    with _explained(str(path), download=False):
        found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        return found[_checked_split(split, list(map(str, found)))]
    _checked_split(split, [str(found.split or "train")])
    return found


def _built(dataset: str, path: Path, subset: str | None, split: str, *, download: bool) -> Opened:
    """The table that the package builds from the files of a data set, and keeps in its own cache."""
    import datasets

    if not path.exists() and dataset in KINDS:
        raise ValueError(f"dataset: {dataset} is a kind of file; give the path of the files")
    where: dict[str, Any] = {"path": str(path) if path.exists() else dataset}
    if path.is_file():
        if subset is not None:
            raise ValueError(f"subset: {printable(dataset)} is a file, which has no subsets")
        if path.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"{printable(str(path))} is not a {' or '.join(_SUFFIXES)} file")
        where = {"path": _SUFFIXES[path.suffix.lower()], "data_files": {"train": str(path)}}
    with _explained(dataset, download=download):
        try:
            builder = datasets.load_dataset_builder(**where, name=subset)
        except ConnectionError:
            folder = None if download else _fetched_before(dataset)
            if folder is None:
                raise
            builder = datasets.load_dataset_builder(folder, name=subset)
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in _READERS:
        raise ValueError(
            f"{printable(dataset)} holds files of another kind ({reader}): {', '.join(KINDS)} are read, or tar files "
            "with data=webdataset"
        )
    files = [str(file) for of_split in (builder.config.data_files or {}).values() for file in of_split]
    remote = [file for file in files if "://" in file]
    if remote and not download:
        raise FileNotFoundError(f"{printable(remote[0])} must be downloaded: set data.download=true")
    with _explained(dataset, download=download):
        builder.download_and_prepare()
    assert builder.info.splits is not None
    _checked_split(re.split(r"[\[+]", split)[0], list(map(str, builder.info.splits)))
    kept = f"dataset  {printable(dataset)}: read from {printable(str(builder.cache_dir))}"
    with _explained(dataset, download=download):
        return Opened(builder.as_dataset(split=split), (kept,) if reader == "cache" else ())


def _fetched_before(dataset: str) -> str | None:
    """The folder to which `hf download --repo-type dataset` downloaded a data set; None if it did not."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return huggingface_hub.snapshot_download(dataset, repo_type="dataset", local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _checked_split(split: str, there: Sequence[str]) -> str:
    if split not in there:
        raise ValueError(f"split: no split {split!r}; choose from {', '.join(map(printable, there))}")
    return split


# How the package is used ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _fetching(download: bool) -> Iterator[None]:
    """Inside, nothing is downloaded unless `download`: like HF_HUB_OFFLINE=1, which is read only at import."""
    if download:
        yield
        return
    import datasets.config
    import huggingface_hub.constants

    switches = [(datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in switches]
    try:
        for module, name in switches:
            setattr(module, name, True)
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the package prints nothing; progress bars are shown only on a terminal."""
    import datasets

    verbosity, bars = datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()
    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _explained(dataset: str, *, download: bool) -> Iterator[None]:
    """Inside, the package's exceptions become those of `open_table`."""
    from datasets import config
    from datasets.exceptions import DatasetNotFoundError

    called = printable(dataset)
    try:
        yield
    except (ConnectionError, DatasetNotFoundError) as error:
        if download:
            raise OSError(f"{called} cannot be downloaded: {_line(error)}") from error
        cache = printable(str(config.HF_DATASETS_CACHE))
        raise FileNotFoundError(
            f"{called} is neither a file or folder here, nor in {cache}: set data.download=true, or copy the files "
            "(parquet, arrow or images) here and set data.dataset=DIR"
        ) from error
    except MemoryError:
        raise
    except OSError as error:
        raise OSError(f"{called} cannot be read: {_line(error)}") from error
    except Exception as error:  # whatever readers of damaged files raise
        raise ValueError(f"{called} cannot be read: {_line(error)}") from error


def _line(error: Exception) -> str:
    """The message of another package's error, on one line."""
    said = " ".join((str(error) or type(error).__name__).split())
    return printable(said[:MOST_SAID])
