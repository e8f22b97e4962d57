"""A run that somebody hostile may write to, before it is sampled from or resumed here."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture.hostile_watch import CANARY

STEP = 10  # of the run's only checkpoint
EMA, TRAINING = "ema.safetensors", "training.safetensors"
DESCRIPTION, MANIFEST = "checkpoint.json", "manifest.json"
ALL = "sample resume load"


@dataclass(frozen=True)
class Foreign:
    """The run, and what its author would like to reach."""

    run: Path
    elsewhere: Path  # a directory with a file and a folder that are none of the run's business

    @property
    def checkpoint(self) -> Path:
        return self.run / "checkpoints" / f"step_{STEP:08d}"

    @property
    def payload(self) -> str:
        """A command for a shell that leaves a trace."""
        return f"touch {self.elsewhere / CANARY}"

    def put(self, name: str, content: bytes) -> None:
        """Give a file of the checkpoint other content, and make the manifest say so."""
        (self.checkpoint / name).write_bytes(content)
        self.seal()

    def seal(self) -> None:
        """Make the manifest match the files as they are: what it would find is not what is tried here."""
        listed = {}
        for name in (EMA, TRAINING, DESCRIPTION):
            content = (self.checkpoint / name).read_bytes()
            listed[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (self.checkpoint / MANIFEST).write_text(json.dumps(listed))

    def retell(self, change: Callable[[dict], object]) -> None:
        """Change the description, in both places that hold it."""
        description = json.loads((self.checkpoint / DESCRIPTION).read_bytes())
        change(description)
        self.put_description(json.dumps(description))

    def put_description(self, text: str) -> None:
        (self.checkpoint / DESCRIPTION).write_text(text)
        self.change_header(EMA, lambda header: header["__metadata__"].update(ddpm_cli=text))

    def header(self, name: str) -> tuple[dict, bytes]:
        """The header and the data of a safetensors file."""
        content = (self.checkpoint / name).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        return json.loads(content[8:end]), content[end:]

    def change_header(self, name: str, change: Callable[[dict], object]) -> None:
        header, data = self.header(name)
        change(header)
        self.put(name, joined(header, data))

    def configure(self, values: dict[str, Any]) -> None:
        """Set options of the configuration by dotted key; in texts, PAYLOAD and ELSEWHERE stand for this run's."""

        def change(description: dict) -> None:
            for key, value in values.items():
                node = description["config"]
                *groups, option = key.split(".")
                for group in groups:
                    node = node[group]
                node[option] = self.filled_in(value)

        self.retell(change)

    def filled_in(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("PAYLOAD", self.payload).replace("ELSEWHERE", str(self.elsewhere))
        if isinstance(value, list):
            return [self.filled_in(item) for item in value]
        if isinstance(value, dict):
            return {key: self.filled_in(item) for key, item in value.items()}
        return value


@dataclass(frozen=True)
class Kind:
    """One way in which a checkpoint is hostile.

    Args:
        spoil: does it to a good run.
        says: what a refusal's message must match, so that it is refused for this and not for something else.
        harmless: the ways of use in which it may as well have no effect; in all others it must be refused.
        statuses: that a refusal may end with.
    """

    name: str
    spoil: Callable[[Foreign], object]
    says: str
    harmless: str = ""
    statuses: tuple[int, ...] = (2,)


def joined(header: dict | bytes | str, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file; `length` is what its first 8 bytes say instead of the header's length."""
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode() if isinstance(text, str) else text
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data
