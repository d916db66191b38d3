"""Recognise the encoded images that DALI decodes as Pillow does, from their bytes alone."""

import re
import struct
import zlib
from functools import lru_cache

from PIL import Image

Size = tuple[int, int]

_ORIENTATION = 0x0112
_TURNED = range(5, 9)  # orientations that swap width and height
_FRAMES = frozenset({0xC0, 0xC1})  # baseline and extended: one scan, Huffman-coded
_SKIPPED = frozenset({*range(0xE0, 0xF0), 0xFE, 0xDD})
_FACTORS = frozenset((across, down) for across in (1, 2) for down in (1, 2))
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)  # other than restarts
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_GREY, _PNG_RGB, _PNG_PALETTE = 0, 2, 3
# Chunks that change pixels or the orientation.
_PNG_SPECIAL = frozenset({b"tRNS", b"eXIf", b"acTL", b"iTXt", b"zTXt", b"tEXt"})


def upright_size(data: bytes, channels: int) -> Size | None:
    """Return upright height and width of an undamaged image of a plain kind; None for others.

    Plain are JPEGs of one scan and 8 bits in grey or three components, and 8-bit PNGs without
    transparency: what DALI decodes as Pillow does. WebP is not, because damage to it shows only
    when it is decoded.

    Args:
        data: the whole file.
        channels: of the result; grey images are plain only for 1.
    """
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _jpeg(data, channels)
        if data[:8] == _PNG:
            return _png(data, channels)
    except (struct.error, IndexError):
        pass  # truncated header
    return None


def _jpeg(data: bytes, channels: int) -> Size | None:
    """Check everything for which DALI may refuse a JPEG of one scan.

    DALI 2.4 may crash, not only fail, on a batch in which it refuses a JPEG and decodes others.
    """
    start = data.find(b"\xff\xda", 2)
    (length,) = struct.unpack_from(">H", data, start + 2)
    # Parsed again if the marker was inside another segment, such as a thumbnail.
    found = _jpeg_head(data[: start + 2 + length], channels) or _read_jpeg_head(data, channels)
    if found is None:
        return None
    size, place = found
    # DALI fills the rest of a truncated image with grey.
    ends = _MARKER.search(data, place)
    return size if ends is not None and ends.start() == len(data) - 2 else None


def _read_jpeg_head(data: bytes, channels: int) -> tuple[Size, int] | None:
    """Return upright height and width, and the offset of the scan's data."""
    place, turned = 2, False
    size: Size | None = None
    components: dict[int, int] = {}
    quantisers: set[int] = set()
    codes: set[int] = set()
    while data[place] == 0xFF:
        marker = data[place + 1]
        (length,) = struct.unpack_from(">H", data, place + 2)
        segment = data[place + 4 : place + 2 + length]
        if length < 2 or len(segment) != length - 2:
            return None
        place += 2 + length
        if marker in _FRAMES:
            bits, height, width, count = struct.unpack_from(">BHHB", segment)
            each = segment[6:]
            plain = bits == 8 and count in ((1, 3) if channels == 1 else (3,)) and not size
            if not plain or not height or not width or len(each) != 3 * count:
                return None
            size = (height, width)
            components = {each[i]: each[i + 2] for i in range(0, 3 * count, 3)}
            factors = {(each[i + 1] >> 4, each[i + 1] & 15) for i in range(0, 3 * count, 3)}
            if len(components) != count or not factors <= _FACTORS:
                return None
        elif marker == 0xDB or marker == 0xC4:
            found = _tables(marker, segment)
            if found is None:
                return None
            (quantisers if marker == 0xDB else codes).update(found)
        elif marker == 0xDA:
            known = size and quantisers.issuperset(components.values())
            if not size or not known or not _is_scan(segment, components, codes):
                return None
            return (size[::-1] if turned else size), place
        elif marker == 0xE1 and b"tiff:Orientation" in segment:
            return None  # XMP, which DALI does not read
        elif marker == 0xE1 and segment[:6] == b"Exif\0\0":
            orientation = _orientation(segment)
            if orientation is None:
                return None
            turned = orientation in _TURNED
        elif marker not in _SKIPPED:
            return None
    return None


_jpeg_head = lru_cache(256)(_read_jpeg_head)  # most images of a set share it


@lru_cache(256)
def _tables(marker: int, segment: bytes) -> frozenset[int] | None:
    """Return the ids of a segment's quantisation or Huffman tables; None if one is damaged."""
    numbers = set()
    while segment:
        if marker == 0xDB:
            step = 129 if segment[0] >> 4 else 65
            fits = segment[0] & 15 <= 3 and not segment[0] >> 5
        else:
            step = 17 + sum(segment[1:17])
            fits = not segment[0] & 0xEE and _is_code(segment[:step])
        if not fits or len(segment) < step:
            return None
        numbers.add(segment[0])
        segment = segment[step:]
    return frozenset(number & 15 for number in numbers) if marker == 0xDB else frozenset(numbers)


def _is_code(table: bytes) -> bool:
    """Return whether a Huffman table's lengths form a code, and its values are in range."""
    free = 1
    for count in table[1:17]:
        free = 2 * free - count
        if free < 0:
            return False
    return len(table) <= 17 + 256 and (table[0] & 16 != 0 or max(table[17:], default=0) <= 15)


def _is_scan(segment: bytes, components: dict[int, int], codes: set[int]) -> bool:
    """Return whether a scan has all components, in order, with tables that exist."""
    count = len(components)
    if segment[:1] != bytes([count]) or len(segment) != 4 + 2 * count:
        return False
    tables = segment[2 : 1 + 2 * count : 2]
    used = {t >> 4 for t in tables} | {16 + (t & 15) for t in tables}
    in_order = list(segment[1 : 1 + 2 * count : 2]) == list(components)
    return in_order and used <= codes and segment[-3:] == b"\0\x3f\0"


def _orientation(segment: bytes) -> int | None:
    """Return the orientation in an Exif segment, 1 by default; None if it cannot be read."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        found = exif.get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return None
    return found if found in range(1, 9) else None


def _png(data: bytes, channels: int) -> Size | None:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    wanted = (_PNG_RGB, _PNG_PALETTE, _PNG_GREY) if channels == 1 else (_PNG_RGB, _PNG_PALETTE)
    if bits != 8 or colour not in wanted or not width or not height:
        return None
    place, seen = 8, memoryview(data)
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        if kind in _PNG_SPECIAL or zlib.crc32(seen[place + 4 : end]) != checksum:
            return None
        if kind == b"IEND":
            return height, width
        place = end + 4
    return None
