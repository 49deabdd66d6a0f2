"""Messages with a large field of bytes, encoded and decoded without copying that field.

protobuf's runtime copies a bytes field several times on its way in and out.
Here the field stays where it is: a message is written as its other fields, then
the head of the large one, then its bytes (the order of fields on the wire is
free); and read by cutting the large field out and parsing the rest.
Wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

_BYTES = 2  # wire type: length-delimited
_SIZES = {1: 8, 5: 4}  # of the fixed wire types


class WireError(Exception):
    """The bytes are no protobuf message."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def head(number: int, size: int) -> bytes:
    """What precedes the ``size`` bytes of field ``number``."""
    return varint(number << 3 | _BYTES) + varint(size)


def cut_out(message: memoryview, number: int) -> tuple[bytes, memoryview]:
    """The message without its field ``number``, and the bytes of that field; empty if it has none.

    :raise WireError: it is no message, or the field is no bytes.
    """
    rest = b""
    found = message[:0]
    at, end = 0, len(message)
    while at < end:
        start = at
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind == 0:
            _value, at = _varint(message, at)
            size = 0
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise WireError(f"wire type {kind}")
        if size > end - at:
            raise WireError(f"a field of {size} bytes where {end - at} are left")
        at += size
        if tag >> 3 == number:
            if kind != _BYTES:
                raise WireError(f"field {number} is no bytes")
            found = message[at - size : at]
        else:
            rest += message[start:at]
    return rest, found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError("a number does not end")
