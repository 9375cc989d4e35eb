"""Files that are there whole or not at all, whoever writes them and however the process ends.

Everything is written beside its place under a name of its own (`.NAME.tmp-MACHINE-PID-RANDOM`), flushed to disk, and
renamed: two processes that write one file do not meet, and a killed one leaves a file that `sweep` knows. Text is UTF-8
with line breaks of one character on every system. A file system without hard links, or on which folders cannot be
flushed, does as well as it can: nothing here needs more than a rename.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from maskdm.errors import InputError, StorageError

PRIVATE = 0o600
"""Mode of a file that says who was in a training set."""
_DAY = 24 * 60 * 60
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of a file system that cannot do what is asked, rather than of one that fails at it."""
_NO_LINKS = {*_UNSUPPORTED, errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EACCES}
"""The same of hard links: vfat and exFAT say EPERM, network drives EACCES."""
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"  # on a shared disk: a PID says nothing on another machine
_NOT_TEXT = re.compile("[\\ud800-\\udfff]")
_TEMPORARY = re.compile(r"\..+\.tmp-(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}(\.[A-Za-z0-9]+)?")


def expanded(path: str) -> str:
    """A path with the home directory for `~` or `~user` at its beginning; other text as it is."""
    return os.path.expanduser(path)  # noqa: PTH111 -- unlike `Path.expanduser`, leaves unknown users alone


def readable(text: str) -> str:
    """Text in NFC that every file can hold: bytes that are no UTF-8 (surrogate escapes) become \\xe9."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _NOT_TEXT.sub(_escaped, text))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def is_utf8(text: str) -> bool:
    """Whether a file of text can hold it, unlike bytes of a path that are no UTF-8."""
    return text.isascii() or _NOT_TEXT.search(text) is None


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody else uses, with the same suffix, which some writers go by."""
    return path.with_name(f".{path.name}.tmp-{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


def orphaned(path: Path) -> bool:
    """Whether `path` has a name of `temporary_name` that was given by a process of this machine which is no more."""
    found = _TEMPORARY.fullmatch(path.name)
    return found is not None and found["machine"] == _MACHINE and not alive(int(found["pid"]))


@contextmanager
def replacing(path: Path, *, private: bool = False, durable: bool = True) -> Iterator[Path]:
    """Gives the name under which to write; what is there when the block ends takes the place of `path`.

    Args:
        path: the file.
        private: only its owner may read it.
        durable: flush it to disk, so that it is whole after a power cut too. False saves that time where a command
            writes thousands of files that running it again would give.

    Raises:
        StorageError: it cannot be written; `path` is as it was.
    """
    with _beside(path, private) as temporary:
        yield temporary
        if durable:
            flush(temporary)
        if not private:
            _usual_mode(temporary)
        temporary.replace(path)


@contextmanager
def _beside(path: Path, private: bool) -> Iterator[Path]:
    """A temporary name for `path`, of which nothing is left when the block ends."""
    temporary = temporary_name(path)
    try:
        if private:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
        yield temporary
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _usual_mode(path: Path) -> None:
    """Gives a file the mode of any new file, where its writer made it for the owner alone (as safetensors does)."""
    found = path.lstat().st_mode
    if not stat.S_ISREG(found) or stat.S_IMODE(found) != PRIVATE:
        return
    probe = temporary_name(path)
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # asking for the umask would change it
    try:
        with suppress(OSError):  # of a file system without modes
            path.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink()


def write_once(path: Path, content: bytes, *, private: bool = False) -> None:
    """Bytes, whole or not at all, unless the file is there: then it stays, and of two writers at once the first wins.

    On a disk without hard links a kill within the microseconds between two system calls leaves an empty file.

    Raises:
        StorageError: it cannot be written.
    """
    with _beside(path, private) as temporary:
        temporary.write_bytes(content)
        flush(temporary)
        try:
            path.hardlink_to(temporary)  # unlike a rename, never replaces a file that is there
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _create_once(path, content, PRIVATE if private else 0o666)


def _create_once(path: Path, content: bytes, mode: int) -> None:
    """The same for few bytes and without a hard link; a file that is there stays."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    except FileExistsError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        flush(path)
    except BaseException:
        path.unlink()
        raise


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Bytes, whole or not at all; see `replacing`."""
    with replacing(path, private=private) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Text, whole or not at all; see `replacing`."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"), private=private)


def write_json(path: Path, value: object, *, private: bool = False) -> None:
    """JSON for programs and people, whole or not at all; see `replacing`."""
    write_text(path, json.dumps(value, indent=2) + "\n", private=private)


def append_line(path: Path, line: str) -> None:
    """A line at the end of a file, which is made where there is none.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.write(line + "\n")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None


def publish(source: Path, target: Path) -> None:
    """`source` under another name too, put there in one step: a hard link where the disk has them, else a copy."""
    with replacing(target) as temporary:
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)


def flush(path: Path) -> None:
    """To disk, so that a rename never outlives its content; a file, or a folder where the system can do that.

    Raises:
        OSError: the disk is full or broken. That a file system knows no flushing is none.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """The sha256 of a file, read in parts: 64 hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path) -> None:
    """Removes what killed processes left of unfinished files in `folder`.

    Those of this machine go at once, those of another that shares the disk a day after they were last touched.
    """
    for path in folder.glob(".*.tmp-*"):
        with suppress(OSError):
            # The time of its inode: a hard link to an old file is new.
            if orphaned(path) or (_TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_ctime > _DAY):
                path.unlink()


def alive(pid: int) -> bool:
    """Whether a process of this machine runs under this number; True where the system does not say."""
    if os.name != "posix":  # elsewhere a signal 0 would end the process instead of asking after it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def check_folder(folder: Path, name: str) -> None:
    """Refuses, without making anything, a folder in which nothing could be made.

    Args:
        folder: where something is to be written.
        name: of the argument that gave it.

    Raises:
        InputError: a file is in the way, the folder cannot be written to, or its path is not UTF-8, with which
            safetensors could write weights and not read them.
    """
    if not is_utf8(str(folder.absolute())):
        got = readable(str(folder.absolute()))
        raise InputError(name, got=got, wanted="a path in UTF-8", remedy="choose another folder, or rename this one")
    parent = folder
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(name, f"cannot make {folder}, since {parent} is a file", remedy="choose a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            name, f"cannot make {folder}, since {parent} cannot be written to", remedy="choose another folder"
        )


def make_folder(folder: Path, name: str = "output") -> None:
    """The folder and those above it, if they are not there.

    Raises:
        InputError: they cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(name, f"cannot make the folder {folder} ({error.strerror})", remedy="choose another") from None
