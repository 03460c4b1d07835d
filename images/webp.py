"""WebP's chunks (RFC 9649)."""

import struct
from collections.abc import Iterator


def webp_chunks(data: bytes, at: int = 12) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each chunk that is there whole, from `at` on; 12: of a file."""
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if at + 8 + size > len(data):
            return
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def is_lossless_webp(webp: bytes) -> bool:
    """Whether each of its pictures is."""
    kinds = set()
    for kind, data in webp_chunks(webp):
        kinds |= {inner for inner, _ in webp_chunks(data, 16)} if kind == b"ANMF" else {kind}
    return b"VP8L" in kinds and b"VP8 " not in kinds
