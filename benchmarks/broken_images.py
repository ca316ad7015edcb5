"""Generate image files of scenes in six formats, and mutate them; all results depend only on seeds."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from dcsm_attr.datasets.scenes import generate_scene

Mutation = Callable[[bytes, "Seeds", Random], bytes]
Seeds = dict[str, list[bytes]]

SIDE = 64
#: Sides that are written into headers, far larger than the images in the files.
HUGE_SIDES = (4_000, 16_383, 30_000, 65_535)
_ORIENTATION = 0x0112


def generate_files(seed: int) -> Seeds:
    """Return valid files by format: gray, 16 bits, palettes, CMYK, alpha, animations, EXIF orientation."""
    scenes = [Image.fromarray(generate_scene(i, seed, SIDE).image.permute(1, 2, 0).numpy()) for i in range(4)]
    first, second, third, fourth = scenes
    with_alpha = second.copy()
    with_alpha.putalpha(third.convert("L"))
    sixteen_bits = Image.fromarray(np.asarray(fourth.convert("L"), dtype=np.uint16) * 257)
    rotated = Image.Exif()
    rotated[_ORIENTATION] = 6
    animated: dict[str, Any] = {"save_all": True, "append_images": [second, third]}
    palette = third.quantize(32)
    return {
        "JPEG": [
            _file(first, "JPEG", exif=rotated),
            _file(second, "JPEG", progressive=True),
            _file(third.convert("CMYK"), "JPEG"),
            _file(fourth.convert("L"), "JPEG"),
        ],
        "PNG": [
            _file(first, "PNG"),
            _file(with_alpha, "PNG"),
            _file(palette, "PNG", transparency=3),
            _file(sixteen_bits, "PNG"),
            _file(first, "PNG", **animated),
        ],
        "GIF": [_file(first, "GIF"), _file(first, "GIF", **animated), _file(palette, "GIF", transparency=3)],
        "BMP": [_file(first, "BMP"), _file(palette, "BMP"), _file(fourth.convert("1"), "BMP")],
        "WebP": [_file(first, "WebP"), _file(with_alpha, "WebP", lossless=True), _file(first, "WebP", **animated)],
        "TIFF": [
            _file(first, "TIFF"),
            _file(second, "TIFF", compression="tiff_lzw"),
            _file(third.convert("CMYK"), "TIFF"),
            _file(sixteen_bits, "TIFF", compression="tiff_adobe_deflate"),
        ],
    }


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def untouched(whole: bytes, seeds: Seeds, random: Random) -> bytes:
    """Return the file as it is: all of these must be read."""
    return whole


def bits_flipped(whole: bytes, seeds: Seeds, random: Random) -> bytes:
    """Flip up to 64 bits: anywhere, or (half of the time) in the first 64 bytes."""
    changed = bytearray(whole)
    end = len(changed) if random.random() < 0.5 else min(64, len(changed))
    for _ in range(2 ** random.randrange(7)):
        changed[random.randrange(end)] ^= 1 << random.randrange(8)
    return bytes(changed)


def truncated(whole: bytes, seeds: Seeds, random: Random) -> bytes:
    """Cut the file at a random position."""
    return whole[: random.randrange(len(whole))]


def spliced(whole: bytes, seeds: Seeds, random: Random) -> bytes:
    """Join the beginning of one file and the end of another, of any format."""
    other = random.choice(random.choice(list(seeds.values())))
    return whole[: random.randrange(1, len(whole))] + other[random.randrange(len(other)) :]


def inserted(whole: bytes, seeds: Seeds, random: Random) -> bytes:
    """Insert up to 512 random bytes."""
    at = random.randrange(len(whole))
    return whole[:at] + random.randbytes(2 ** random.randrange(10)) + whole[at:]


def removed(whole: bytes, seeds: Seeds, random: Random) -> bytes:
    """Remove up to 512 bytes."""
    at = random.randrange(len(whole))
    return whole[:at] + whole[at + 2 ** random.randrange(10) :]


def header_enlarged(whole: bytes, seeds: Seeds, random: Random) -> bytes:
    """Write a size of up to 65,535 x 65,535 pixels into the header."""
    width, height = random.choice(HUGE_SIDES), random.choice(HUGE_SIDES)
    changed = bytearray(whole)
    if whole.startswith(b"\x89PNG"):
        changed[16:24] = struct.pack(">II", width, height)
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    elif whole.startswith(b"GIF"):
        changed[6:10] = struct.pack("<HH", width, height)
    elif whole.startswith(b"BM"):
        changed[18:26] = struct.pack("<ii", width, height)
    elif whole.startswith(b"RIFF"):
        _enlarge_webp(changed, width, height)
    elif whole.startswith(b"\xff\xd8"):
        at = next(start for start, marker in _jpeg_segments(whole) if marker in (0xC0, 0xC2))
        changed[at + 5 : at + 9] = struct.pack(">HH", height, width)
    else:
        _enlarge_tiff(changed, width, height)
    return bytes(changed)


def _enlarge_webp(changed: bytearray, width: int, height: int) -> None:
    width, height = min(width, 16_383), min(height, 16_383)
    if changed[12:16] == b"VP8X":
        changed[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif changed[12:16] == b"VP8L":
        bits = int.from_bytes(changed[21:25], "little") >> 28 << 28
        changed[21:25] = (bits | (height - 1) << 14 | (width - 1)).to_bytes(4, "little")
    else:
        changed[26:30] = struct.pack("<HH", width, height)


def _enlarge_tiff(changed: bytearray, width: int, height: int) -> None:
    start = int.from_bytes(changed[4:8], "little")
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(changed[start : start + 2], "little"), 12):
        tag = int.from_bytes(changed[entry : entry + 2], "little")
        if tag in (256, 257):
            # As a 32-bit number.
            changed[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, width if tag == 256 else height)


def blocks_swapped(whole: bytes, seeds: Seeds, random: Random) -> bytes:
    """Swap two chunks of a PNG, WebP or JPEG file, or two blocks of 32 bytes of another file."""
    bounds = _bounds(whole)
    first, second = sorted(random.sample(range(len(bounds) - 1), 2)) if len(bounds) > 2 else (0, 0)
    parts = [whole[a:b] for a, b in pairwise(bounds)]
    parts[first], parts[second] = parts[second], parts[first]
    return whole[: bounds[0]] + b"".join(parts) + whole[bounds[-1] :]


def _bounds(whole: bytes) -> Sequence[int]:
    """Return the start of each part of a file, and the end of the last one."""
    if whole.startswith(b"\x89PNG"):
        return _chunk_bounds(whole, 8, ">", 12, 1)
    if whole.startswith(b"RIFF") and whole[12:16] == b"VP8X":
        return _chunk_bounds(whole, 12, "<", 8, 2)
    if whole.startswith(b"\xff\xd8"):
        return [start for start, _ in _jpeg_segments(whole)]
    return range(0, len(whole) + 1, 32)


def _chunk_bounds(whole: bytes, start: int, order: str, overhead: int, multiple: int) -> list[int]:
    bounds = [start]
    while bounds[-1] < len(whole):
        at = bounds[-1] + (4 if order == "<" else 0)
        length = struct.unpack(f"{order}I", whole[at : at + 4])[0] + overhead
        bounds.append(bounds[-1] + length + length % multiple)
    return bounds


def _jpeg_segments(whole: bytes) -> list[tuple[int, int]]:
    """Return the start and the marker of each segment before the first scan."""
    segments, at = [], 2
    while whole[at + 1] != 0xDA:
        segments.append((at, whole[at + 1]))
        at += 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
    return [*segments, (at, 0xDA)]


#: Mutations by their name in the report.
MUTATIONS: dict[str, Mutation] = {
    "untouched": untouched,
    "bits flipped": bits_flipped,
    "truncated": truncated,
    "spliced": spliced,
    "bytes inserted": inserted,
    "bytes removed": removed,
    "header made huge": header_enlarged,
    "blocks swapped": blocks_swapped,
}
