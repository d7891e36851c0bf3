"""The folder of a run as a sender sees it: everything mapped before the run starts, and what to send put together."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from braid.core.errors import BraidError
from braid.lab.replay.files import REQUEST, RunSpec
from braid.lab.replay.sending.answer import encode_reply

Array = npt.NDArray[Any]


_NAMES = REQUEST.names or ()
_RECORD = struct.Struct("<" + "".join({"u": "I", "f": "d", "i": "q"}[REQUEST[name].kind] for name in _NAMES))
"""``REQUEST`` once more: single records are read quicker so than through numpy."""


class FolderError(BraidError, ValueError):
    """A folder cannot be played; the text names the file and the reason."""


class Request(NamedTuple):
    """One record of ``files.REQUEST``, as Python numbers."""

    group: int
    start_s: float
    delay_s: float
    out_tok: int
    cancel_after_tok: int
    history_of: int
    after_from: int
    after_to: int
    headers_at: int
    head_at: int
    new_at: int
    tail_at: int
    end_at: int


class Folder:
    """What is to be sent.

    Raises:
        FolderError: a file is missing, broken, or does not fit the others.
    """

    def __init__(self, path: Path) -> None:
        assert _RECORD.size == REQUEST.itemsize
        assert Request._fields == _NAMES
        self.path = path
        self.spec = _spec(path / "run.json")
        self.requests = _array(path / "requests.npy", REQUEST)
        self._records = np.ascontiguousarray(self.requests).view(np.uint8).data
        self.after = _array(path / "after.npy", None)
        self.data = _map(path / "bytes.bin")
        self._check()

    def request(self, number: int) -> Request:
        return Request._make(_RECORD.unpack_from(self._records, number * _RECORD.size))

    def _check(self) -> None:
        places = np.stack([self.requests[name] for name in _NAMES[-5:]])
        if self.requests.size and (
            (np.diff(places, axis=0) < 0).any() or places.min() < 0 or places.max() > len(self.data)
        ):
            bad = int(np.argmax((np.diff(places, axis=0) < 0).any(axis=0) | (places[-1] > len(self.data))))
            raise FolderError(f"{self.path}: the bytes of request {bad} are not inside bytes.bin")
        if self.spec.history == "live":
            for number in np.flatnonzero(self.requests["history_of"] >= 0).tolist():
                row = self.request(number)
                if row.history_of not in self.after[row.after_from : row.after_to]:
                    raise FolderError(
                        f"{self.path}: request {number} holds the reply to {row.history_of} and does not wait for it"
                    )


class Bodies:
    """The bytes of requests; with live history, made of the replies so far.

    Args:
        api_key: sent as a bearer token; it is nowhere but here.

    Raises:
        FolderError: the key cannot be sent.
    """

    def __init__(self, folder: Folder, api_key: str | None) -> None:
        spec = folder.spec
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise FolderError("the API key has characters that a header line cannot hold")
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._prefix = f"{spec.request_line}\r\n{spec.headers}{key}".encode()
        self._folder = folder
        self._form = spec.form
        self._around = spec.before_reply.encode(), spec.after_reply.encode()
        self._readers: dict[int, int] = {}
        self._histories: dict[int, bytes] = {}
        if spec.history == "live":
            named = folder.requests["history_of"]
            numbers, counts = np.unique(named[named >= 0], return_counts=True)
            self._readers = dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def keeps_reply(self, number: int) -> bool:
        """A later request needs the reply to this one."""
        return number in self._readers

    def bytes_of(self, row: Request) -> bytes:
        """The whole HTTP request."""
        data = memoryview(self._folder.data)
        own = data[row.headers_at : row.head_at]
        history = self._history_of(row)
        if not history:
            length = b"Content-Length: %d\r\n\r\n" % (row.end_at - row.head_at)
            return b"".join((self._prefix, own, length, data[row.head_at : row.end_at]))
        length = b"Content-Length: %d\r\n\r\n" % (row.end_at - row.head_at + len(history))
        head, rest = data[row.head_at : row.new_at], data[row.new_at : row.end_at]
        return b"".join((self._prefix, own, length, head, history, rest))

    def ended(self, number: int, row: Request, reply: list[str] | list[int]) -> None:
        """Remember what later turns need of a request that has ended, forget what none needs any more."""
        if number in self._readers:
            before, after = self._around
            if self._form == "ids" and not reply:
                before = b""  # One comma, not two.
            new = bytes(memoryview(self._folder.data)[row.new_at : row.tail_at])
            parts = (self._history_of(row), new, before, encode_reply(reply, self._form), after)
            self._histories[number] = b"".join(parts)
        if row.history_of in self._readers:
            self._readers[row.history_of] -= 1
            if not self._readers[row.history_of]:
                del self._readers[row.history_of]
                self._histories.pop(row.history_of, None)

    def _history_of(self, row: Request) -> bytes:
        return self._histories.get(row.history_of, b"") if row.history_of >= 0 else b""


def _spec(path: Path) -> RunSpec:
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunSpec)
    except OSError as error:
        raise FolderError(f"cannot read {path}: {error.strerror or error}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise FolderError(f"{path}: {error}") from None


def _array(path: Path, dtype: Any) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise FolderError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise FolderError(f"{path}: {error}") from None
    if array.ndim != 1 or (array.dtype != dtype if dtype is not None else array.dtype.kind not in "iu"):
        raise FolderError(f"{path}: holds {array.dtype} in {array.ndim} dimensions")
    return array


def _map(path: Path) -> mmap.mmap | bytes:
    """The file's bytes, in memory as far as there is room, so that no read waits for a disk."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                return b""
            if hasattr(mmap, "MAP_POPULATE"):
                flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
                return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FolderError(f"cannot read {path}: {error.strerror or error}") from None
