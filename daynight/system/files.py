"""What is written to disk: each file whole or not at all, each folder by one process at a time."""

import errno
import fcntl
import json
import os
import shutil
import weakref
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from daynight.system.console import warn
from daynight.system.errors import InputError

LOCK, MARK = ".daynight.lock", (".daynight-", ".part")  # of what is being written: how its name begins and ends

# a loader's worker outlives a killed parent by seconds: it must not keep its locks
_locked = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [file.close() for file in _locked])


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a folder, where the file system has no such thing
            raise
    finally:
        os.close(descriptor)


def marked(name: str) -> str:
    """A hidden name by which daynight knows a folder of its own, with half-written files."""
    return name.join(MARK)


def is_marked(name: str) -> bool:
    return name.startswith(MARK[0]) and name.endswith(MARK[1])


def replace(path: Path, write) -> None:
    """Let `write(temporary path)` write a file, flush it to disk and give it its name: whole or not at all.

    The temporary file has a marked folder to itself: libraries may leave files of their own beside it.
    """
    folder = path.with_name(marked(token_hex(4)))
    temporary = folder / "part"
    try:
        folder.mkdir(0o700)
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        os.chmod(temporary, mode)  # safetensors lets nobody but the owner read
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk tells none
        raise
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:  # a signal may have ended the line above in its midst
            shutil.rmtree(folder, ignore_errors=True)


def copy(source: Path, target: Path) -> None:
    """Copy a file. Where the file system can, the copy shares the blocks on disk until one of the two changes."""
    FICLONE = 0x40049409  # of Linux: ioctl_ficlone(2)
    with open(source, "rb") as old, open(target, "wb") as new:
        try:
            fcntl.ioctl(new, FICLONE, old.fileno())
        except OSError:
            shutil.copyfileobj(old, new)


def write_json(path: Path, content) -> None:
    """A device or a pipe is written to; anything else is replaced, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
    else:
        write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Half characters, as in names of files that are not UTF-8, are spelt: "\\udcff", as JSON does."""
    replace(path, lambda temporary: temporary.write_text(text, "utf-8", "backslashreplace"))


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises `InputError` naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict):
            return content
        problem = "no object"
    except (OSError, ValueError, RecursionError) as error:
        problem = getattr(error, "strerror", None) or error
    raise InputError(f"{path}: cannot be read as a JSON object ({problem})")


def is_free(folder: Path) -> bool:
    """Whether a folder is not there, or holds nothing but what a process killed at its start leaves."""
    return not folder.exists() or all(path.name == LOCK or is_marked(path.name) for path in folder.iterdir())


class Lock:
    """Keep other processes out of a folder, which is made if there is none, until the end of a `with` or of this
    process, however it ends. What killed processes left half-written in it is deleted, by daynight's mark.

    Raises `InputError`, naming `option`, if another process has the folder or nothing can be written there.
    """

    def __init__(self, folder: Path, option: str = "--out"):
        self.path = folder / LOCK
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w")
            _locked.add(self.file)
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                    raise
                warn(f"{folder}: on a file system without locks; never run two commands on it at a time")
            # a process that has just ended may have deleted this file: the next process would make and lock another
            if not os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path)):
                raise BlockingIOError
            for place, folders, files in os.walk(folder):
                if LOCK in files and place != str(folder):
                    folders.clear()  # another command may be at work there
                for name in filter(is_marked, folders):
                    shutil.rmtree(os.path.join(place, name), ignore_errors=True)
        except BlockingIOError:
            raise InputError(f"{option} {folder}: another process is working on it") from None
        except OSError as error:
            raise InputError(f"{option} {folder}: {error.strerror}") from error

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.path.unlink(missing_ok=True)
        self.file.close()


def check_apart(root: Path, out: Path) -> None:
    """Raises `InputError` if one folder is or contains the other: what is written would later be read as input."""
    root, here = (Path(os.path.realpath(path)) for path in (root, out))  # resolve() raises if links form a circle
    if root in (here, *here.parents) or here in root.parents:
        raise InputError(f"--out {out}: is --in, lies inside it or holds it; give a folder beside it")


def claim(folder: Path, name: str, record: dict, option: str = "--out", renewed: dict | None = None) -> Lock:
    """Lock a folder, and record in `folder/name` what its content is made with, and `renewed` as it is each time.

    Raises `InputError` if the folder holds something else or was made with another record, so that results of two
    models never mix, or if another process works there.
    """
    try:
        before = claimable(folder, name, record, option, renewed or ())
        lock = Lock(folder, option)
        if before != (record := record | (renewed or {})):
            write_json(folder / name, record)
    except OSError as error:
        raise InputError(f"{option} {folder}: {error.strerror}; give another folder") from error
    return lock


def claimable(folder: Path, name: str, record: dict, option: str = "--out", renewed: Collection = ()) -> dict | None:
    """The record in a folder that `claim` would take, None where there is none; raises `InputError` as `claim` does."""
    before = None
    try:
        with suppress(InputError):
            before = read_json(folder / name)
        if before is None and not is_free(folder):
            raise InputError(f"{option} {folder}: not empty, and not made by this command; give another folder")
    except OSError as error:
        raise InputError(f"{option} {folder}: {error.strerror}; give another folder") from error
    for key in record | before if before is not None else ():
        if before.get(key) != record.get(key) and key not in renewed:
            was = f"{key} {before.get(key)}, not {record.get(key)}"
            raise InputError(f"{option} {folder}: was made with {was}; give another folder")
    return before
