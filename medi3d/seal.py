"""Files that carry their own SHA-256: a zip archive, which is what torch writes, sealed in the comment at its end.

The last bytes of a sealed file are ``medi3d sha256 `` and 64 hexadecimal digits; the digest is that of every byte
before them. The file stays an archive that ``torch.load`` and any unzip read, and hash and content cannot disagree,
because they are one file. A changed byte anywhere is found, in the seal itself too, because it is announced twice: by
its first words and by the archive's length of the comment (.ZIP File Format Specification, section 4.3.16). A file that
was cut, or that ends in zeros as after a power cut, has lost that end, or the whole end of the archive.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from medi3d.errors import WeightsError

_MARK = b"medi3d sha256 "
_DIGITS = 64
_END = b"PK\x05\x06"
"""What an archive's last record begins with."""
_END_SIZE = 22
"""Size of that record without its comment; the comment's length is its last two bytes."""


class SealingWriter:
    """A stream that passes on an archive and seals its end.

    Attributes:
        failure: what the stream below raised; torch reports the error of a stream as one of its own.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._tail = b""
        self.failure: BaseException | None = None

    def write(self, data: bytes) -> int:
        """Pass bytes on, but for the last ones so far, which may be those to change."""
        view = memoryview(data)
        try:
            if len(view) < _END_SIZE:
                view = memoryview(self._tail + data)
            else:
                self._pass_on(self._tail)
            self._pass_on(view[:-_END_SIZE])
            self._tail = bytes(view[-_END_SIZE:])
        except BaseException as error:
            self.failure = error
            raise
        return len(data)

    def flush(self) -> None:
        """Do nothing: the end is written by :meth:`seal`."""

    def seal(self) -> None:
        """Write the end of the archive and the digest of all that was written."""
        assert self._tail.startswith(_END), "not the end of an archive"
        assert self._tail.endswith(b"\0\0"), "an archive that has a comment already"
        self._pass_on(self._tail[:-2] + (len(_MARK) + _DIGITS).to_bytes(2, "little") + _MARK)
        self._stream.write(self._digest.hexdigest().encode())

    def _pass_on(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._stream.write(data)


def check_seal(stream: BinaryIO, path: Path) -> bool:
    """Read a file through and compare its digest with the one it carries; the stream is left at its beginning.

    Args:
        stream: opened for reading.
        path: of the file, for the message.

    Returns:
        Whether it carries one: files of other programs do not, nor does what is left of one that was cut.

    Raises:
        WeightsError: the file is not what was written.
    """
    size = stream.seek(0, 2)
    stream.seek(max(size - _DIGITS - len(_MARK) - _END_SIZE, 0))
    tail = stream.read()
    stream.seek(0)
    start = tail.rfind(_END)
    length = int.from_bytes(tail[start + _END_SIZE - 2 : start + _END_SIZE], "little")
    whole = start >= 0 and start + _END_SIZE + length == len(tail)
    marked = tail[:-_DIGITS].endswith(_MARK)
    if not marked and (start < 0 or (whole and length == 0)):
        return False
    if not (whole and marked and _hash_stream(stream, size - _DIGITS).encode() == tail[-_DIGITS:]):
        raise WeightsError(f"{path}: damaged: its bytes are not those that were written (its SHA-256 differs)")
    stream.seek(0)
    return True


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return _hash_stream(stream, path.stat().st_size)


def _hash_stream(stream: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    while size > 0:
        count = stream.readinto(buffer[: min(size, len(buffer))])  # type: ignore[attr-defined]
        if not count:
            break
        digest.update(buffer[:count])
        size -= count
    return digest.hexdigest()
