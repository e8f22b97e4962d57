"""What a process does that reads a hostile checkpoint, seen from inside (Python's audit events) and from outside."""

import contextlib
import ctypes
import gc
import json
import os
import pickle
import resource
import socket
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

MIB = 2**20
CANARY = "pwned"  # the name of the file that every hostile payload tries to make
MOST_TAKEN = 2 * 2**30  # bytes: what a trial that fails may take from the machine
CHECKOUT = Path(__file__).resolve().parents[2]

# Anything of these is code or a program that the checkpoint wanted run.
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "pty.spawn")
_RUNS += ("subprocess.Popen", "pickle.find_class", "webbrowser.open", "code.__new__", "ctypes.call_function")
_CONNECTS = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo")
_CONNECTS += ("socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo", "urllib.Request")
_CONNECTS += ("http.client.connect", "ftplib.connect", "smtplib.connect", "poplib.connect", "imaplib.open")
_LISTS = ("os.listdir", "os.scandir", "os.chdir")
_CHANGES = ("os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod")
_CHANGES += ("os.chown", "os.utime", "os.setxattr", "shutil.rmtree", "shutil.move", "shutil.copyfile")


class BlockedError(BaseException):
    """The watched process was about to run a program, or to connect: it may not."""


class Watch:
    """Records what this process does that it must not, and how much memory it takes at most.

    Args:
        here: the only directory it may write to. Beside it, Python's and the project's own files may be read.
    """

    def __init__(self, here: Path):
        self.here = os.path.realpath(here)
        self.listable = tuple(os.path.realpath(entry or ".") for entry in sys.path)  # importing lists them
        own = (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), str(CHECKOUT))
        self.readable = (self.here, *map(os.path.realpath, own), "/proc", "/sys")
        self.seen: list[str] = []
        self.paused = True
        self.anonymous = 0

    def start(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is in use now
        memory = _memory()
        self.anonymous = memory["RssAnon"]
        limit = memory["VmData"] + MOST_TAKEN
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        sys.addaudithook(self._hear)
        self.paused = False

    def finish(self, report: Path) -> None:
        """Write down what was seen."""
        self.paused = True
        memory = _memory()
        # Libraries' pages come in as they are used: files stay in memory, so they are no part of what was taken.
        taken = memory["VmHWM"] - memory["RssFile"] - self.anonymous
        report.write_text(json.dumps({"seen": self.seen, "taken": taken}), encoding="utf-8")

    def _hear(self, event: str, arguments: tuple) -> None:
        if self.paused:
            return
        self.paused = True
        try:
            what = self._judge(event, arguments)
            if what is not None:
                self.seen.append(f"{what}: {event} {str(arguments)[:200]}")
                if what in ("executed", "connected"):
                    raise BlockedError(self.seen[-1])
        finally:
            self.paused = False

    def _judge(self, event: str, arguments: tuple) -> str | None:
        if event in _RUNS:
            return "executed"
        if event in _CONNECTS:
            return "connected"
        if event in ("compile", "exec", "import", "ctypes.dlopen"):
            return None if self._is_own_code(event, arguments) else "executed"
        if event == "open":
            return self._judge_open(*arguments)
        if event in _LISTS:
            path = "." if arguments[0] is None else arguments[0]
            listed = self._allowed(path, self.readable) or os.path.realpath(path) in self.listable
            return None if listed else "read outside"
        if event in _CHANGES:
            paths = arguments[:2] if event in ("os.rename", "shutil.move", "shutil.copyfile") else arguments[:1]
            return None if all(self._allowed(p, (self.here,), follow=False) for p in paths) else "written outside"
        return None

    def _judge_open(self, path: object, mode: str | None, flags: int) -> str | None:
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)) or bool(
            set(mode or "") & set("wax+")
        )
        if path in (os.devnull, "/dev/urandom") or self._allowed(path, (self.here,) if writes else self.readable):
            inside = self._allowed(path, (self.here,))
            return "executed" if inside and str(path).endswith((".py", ".pyc", ".so")) else None
        return "written outside" if writes else "read outside"

    def _is_own_code(self, event: str, arguments: tuple) -> bool:
        if event == "import":
            return arguments[1] is None or self._allowed(arguments[1], self.readable[1:])
        if event == "ctypes.dlopen":
            return arguments[0] is None or not self._allowed(arguments[0], (self.here, tempfile.gettempdir()))
        if event == "compile":
            text, file = str(arguments[0]), str(arguments[1])
        else:
            text, file = str(arguments[0].co_consts), arguments[0].co_filename
        return CANARY not in text and not (os.sep in file and self._allowed(file, (self.here,)))

    def _allowed(self, path: object, roots: tuple[str, ...], *, follow: bool = True) -> bool:
        if isinstance(path, int):
            return True  # a descriptor: what it stands for was judged when it was opened
        path = os.fsdecode(path)  # pyright: ignore[reportArgumentType]
        real = os.path.realpath(path) if follow else os.path.join(os.path.realpath(os.path.dirname(path) or "."), "x")
        return any(real == root or real.startswith(f"{root}{os.sep}") for root in roots)


def _memory() -> dict[str, int]:
    """This process's memory in bytes, by the names of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.endswith("kB"))
    return {name.rstrip(":"): int(value) * 1024 for name, value, _ in fields}


def check_finite() -> None:
    """Make this process one to fork watched ones from: they then take less time, and hide less of what they take.

    The collector leaves alone what is there now (it would copy all of it), and memory that is free is given back.
    """
    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)


def watched(job: Callable[[], object], here: Path, report: Path) -> Callable[[], None]:
    """`job` under a watch that writes its report however the job ends."""

    def run() -> None:
        watch = Watch(here)
        watch.start()
        try:
            job()
        finally:
            watch.finish(report)

    return run


class Elsewhere:
    """A directory that is none of a checkpoint's business: whoever opens, reads or changes anything in it is noticed.

    The kernel tells (inotify), so that code that is not Python is noticed too.
    """

    _EVERYTHING = 0xFFF
    _DIRECTORY = 0x40000000
    _LOOKING_AT_A_DIRECTORY = _DIRECTORY | 0x1 | 0x10 | 0x20  # read, closed, opened

    def __init__(self, directory: Path):
        self.directory = directory
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.before: dict[str, tuple] = {}
        self.notifier = -1

    def watch(self) -> None:
        self.before = self._state()
        self.notifier = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.notifier >= 0, os.strerror(ctypes.get_errno())
        for directory, _, _ in os.walk(self.directory):
            added = self.libc.inotify_add_watch(self.notifier, os.fsencode(directory), self._EVERYTHING)
            assert added >= 0, os.strerror(ctypes.get_errno())
        while self.touched():  # by ourselves, setting it up
            pass

    def touched(self) -> list[str]:
        """What in it has been touched since this was asked last: names, and bits of inotify(7).

        A look at a directory does not count: whoever walks through the machine's files does that, and it tells nothing.
        """
        try:
            events = os.read(self.notifier, MIB)
        except BlockingIOError:
            return []
        found, position = [], 0
        while position < len(events):
            _, mask, _, length = struct.unpack_from("iIII", events, position)
            name = events[position + 16 : position + 16 + length].rstrip(b"\0")
            if mask & ~self._LOOKING_AT_A_DIRECTORY or not mask & self._DIRECTORY:
                found.append(f"{os.fsdecode(name) or '.'} ({mask:#x})")
            position += 16 + length
        return found

    def changed(self) -> list[str]:
        """What no longer exists, not as it was, or new. Ends the watch."""
        os.close(self.notifier)
        after = self._state()
        return sorted(name for name in self.before.keys() | after.keys() if self.before.get(name) != after.get(name))

    def _state(self) -> dict[str, tuple]:
        found = {}
        for path in sorted(self.directory.rglob("*")):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path.relative_to(self.directory))] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
        return found


def misbehave(elsewhere: Path) -> None:
    """Do everything that a watch is for, so that it is known to see it."""
    for act in (
        lambda: os.system("true"),
        lambda: pickle.loads(pickle.dumps(os.getpid)),
        lambda: exec(f"{CANARY} = 1"),
        lambda: socket.create_connection(("127.0.0.1", 9), 0.1),
        lambda: next(elsewhere.iterdir()).read_bytes(),
        lambda: (elsewhere / "new").touch(),
        lambda: bytearray(64 * MIB),
    ):
        with contextlib.suppress(BlockedError, OSError):
            act()


def misbehave_in_c(elsewhere: Path) -> None:
    """Open a file where Python does not see it."""
    library = ctypes.CDLL(None)
    library.close(library.open(os.fsencode(next(elsewhere.iterdir())), os.O_RDONLY))
