"""Objects in a directory or a bucket: written whole, read in pieces, removed. Imports fsspec.

All methods block. They are called in threads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import posixpath
from collections.abc import Callable, Iterable
from typing import Any

import fsspec
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

PIECE = 8 * 1024 * 1024
"""Bytes that are read or written at once. S3 takes no smaller part of an upload than 5 MB."""

Part = bytes | bytearray | memoryview

_WHOLE_OR_NOT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci"}
"""Protocols of systems that show an object when all of it has been uploaded.

Their renaming copies. On any other system, an object gets its name when it has been written.
"""

_AWAY = {
    *(errno.EIO, errno.ESTALE, errno.EBUSY, errno.EAGAIN, errno.ENODEV, errno.ENXIO),
    *(errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    errno.ETIMEDOUT,
}

_FULL = {errno.ENOSPC, errno.EDQUOT}

_UNREACHED = {
    "botocore.exceptions": {"HTTPClientError", "ConnectionError", "IncompleteReadError"},
    "aiohttp.client_exceptions": {"ClientConnectionError", "ClientPayloadError"},
}
"""Errors of clients that say that no answer came, and are no ``OSError``."""

_TOO_MANY, _SERVERS_FAULT = 429, 500


class AwayError(ConnectionError):
    """The directory of a store is not there, as when its file system is not mounted."""


def is_outage(error: BaseException) -> bool:
    """Whether an error says that a store cannot serve now, and may later."""
    status = _status(error)
    if status is not None:
        return status >= _SERVERS_FAULT or status == _TOO_MANY
    if isinstance(error, (ConnectionError, TimeoutError, FSTimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _AWAY
    return any(kind.__name__ in _UNREACHED.get(kind.__module__, ()) for kind in type(error).__mro__)


def is_full(error: BaseException) -> bool:
    """Whether an error says that a store has no room, which it may have later."""
    return isinstance(error, OSError) and error.errno in _FULL


def _status(error: BaseException) -> int | None:
    """The HTTP status of a client's error, or of the error that it was made of."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        for status in (metadata.get("HTTPStatusCode"), getattr(one, "status", None)):
            if isinstance(status, int):
                return status
    return None


def check_address(address: str) -> None:
    """Raise ``ImportError`` or ``ValueError`` if fsspec cannot serve an address."""
    fsspec.get_filesystem_class(fsspec.core.split_protocol(address)[0] or "file")


class ObjectStore:
    """The objects below an address that fsspec knows."""

    def __init__(self, address: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(address, use_listings_cache=False)
        self._is_local = isinstance(self._fs, LocalFileSystem)
        protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else self._fs.protocol
        self._is_whole = not _WHOLE_OR_NOT.isdisjoint(protocols)

    def check(self) -> None:
        """Raise ``AwayError`` if the directory is not there. Buckets are not asked for."""
        if self._is_local and not self._fs.isdir(self._root):
            raise AwayError(errno.ENOTCONN, f"there is no directory {self._root}")

    def write(self, name: str, parts: Iterable[Part]) -> str:
        """Write an object, so that nobody sees a part of it. Returns the digest of its content.

        The digest is SHA-256. Raises what fsspec raises, and removes what it has written.
        """
        self.check()
        path = self._path(name)
        folder, own_name = posixpath.split(path)
        written = path if self._is_whole else posixpath.join(folder, f".{own_name}")
        if not self._is_whole:
            self._fs.makedirs(folder, exist_ok=True)
        digest = hashlib.sha256()
        options = {"autocommit": False} if self._is_whole else {}
        file = self._fs.open(written, "wb", block_size=PIECE, **options)
        try:
            for piece in _pieces(parts):
                digest.update(piece)
                file.write(piece)
            file.close()
            if self._is_whole:
                file.commit()
            else:
                self._fs.mv(written, path)
        except BaseException:
            with contextlib.suppress(Exception):  # the store may be away; it goes by its age
                self._discard(file, written)
            raise
        return digest.hexdigest()

    def _discard(self, file: Any, path: str) -> None:
        if self._is_whole:
            file.closed = True  # else it is uploaded when it is collected
            file.discard()
        else:
            file.close()
            self._fs.rm_file(path)

    def read(self, name: str, size: int) -> tuple[bytearray, str]:
        """The content of an object of ``size`` bytes, and its digest. Reads it in pieces.

        Raises ``FileNotFoundError`` if there is none, ``ValueError`` if it has another size, and
        what fsspec raises.
        """
        self.check()
        path = self._path(name)
        found = self._fs.info(path)["size"]
        if found != size:
            raise ValueError(f"it should have {size} bytes and has {found}")
        content, digest = bytearray(size), hashlib.sha256()
        for start in range(0, size, PIECE):
            end = min(start + PIECE, size)
            piece = self._fs.cat_file(path, start=start, end=end)
            if len(piece) != end - start:
                raise ValueError(f"it ended at {start + len(piece)} of {size} bytes")
            content[start:end] = piece
            digest.update(piece)
        return content, digest.hexdigest()

    def remove(self, folder: str) -> None:
        """Remove all objects of a folder, if there are any."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(folder), recursive=True)

    def remove_where(self, folder: str, is_old: Callable[[str], bool]) -> int:
        """Remove the objects below a folder whose names are old. Returns how many.

        The file of a writer that was killed has the name of its object after a point.
        """
        self.check()
        with contextlib.suppress(FileNotFoundError):
            found = self._fs.find(self._path(folder))
            old = [path for path in found if is_old(posixpath.basename(path).removeprefix("."))]
            for path in old:
                with contextlib.suppress(FileNotFoundError):  # another process removes it as well
                    self._fs.rm_file(path)
            if self._is_local:
                for emptied in {posixpath.dirname(path) for path in old}:
                    with contextlib.suppress(OSError):  # it has other objects
                        self._fs.rmdir(emptied)
            return len(old)
        return 0

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def _pieces(parts: Iterable[Part]) -> Iterable[memoryview]:
    for part in parts:
        view = memoryview(part).cast("B")
        for start in range(0, view.nbytes, PIECE):
            yield view[start : start + PIECE]
