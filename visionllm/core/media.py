"""Safe picture decoding: one door for users' pictures and for data sets.

The rules: regular files only, formats by their first bytes from an allow-list, the pixel budget checked before
anything is decoded, a truncated file is an error. What comes out is upright (EXIF orientation applied; boxes are in the
upright picture), 8-bit RGB: 16-bit values are scaled by their range, transparency is composited on white, an animation
gives its first frame, stored values are taken as sRGB and colour profiles are ignored.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from visionllm.core.errors import PictureError
from visionllm.core.sample import Picture

PictureSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Picture

# First bytes -> the one opener they may reach. Image.open is not used: it tries every format Pillow knows, and its own
# bomb check depends on a process-wide setting.
_OPENERS: tuple[tuple[bytes, Callable[..., Image.Image]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.jpeg_factory),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"GIF87a", GifImagePlugin.GifImageFile),
    (b"GIF89a", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"II+\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0+", TiffImagePlugin.TiffImageFile),
)
_FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"

# What Pillow's openers raise on damaged bytes. Their texts hold addresses of objects, so none is passed on.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AttributeError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_picture(source: PictureSource, *, max_pixels: int = 50_000_000, name: str | None = None) -> Picture:
    """Make an upright RGB picture out of a path, file bytes, a PIL image, an array or a picture.

    Args:
        source: an array is (H, W, 3) RGB or (H, W) grey, uint8; a PIL image is turned upright, as a file is.
        max_pixels: larger pictures are refused before they are decoded.
        name: name for messages and exports; by default the file name.

    Raises:
        PictureError: one line that names the picture and the cure.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, (str, os.PathLike)):
        label = _printable(name or os.fsdecode(source))
        with _open_regular(source, label) as file:
            return _read(file, label, max_pixels, name or Path(source).name)
    label = _printable(name or f"picture ({type(source).__name__})")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read(BytesIO(source), label, max_pixels, name or "")
    if isinstance(source, Image.Image):
        return _decode(source, label, max_pixels, name or "")
    if isinstance(source, np.ndarray):
        return _from_array(source, label, max_pixels, name or "")
    raise PictureError(f"{label}: not a picture; give a path, bytes, a PIL image or a uint8 array")


@contextmanager
def _open_regular(path: str | os.PathLike[str], label: str) -> Iterator[BinaryIO]:
    """Open a regular file; a pipe or a device is refused without waiting for it."""
    try:
        # Non-blocking, or opening a pipe that nobody writes to would never return.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise PictureError(f"{label}: no such file; give the path of a local picture") from None
    except PermissionError:
        raise PictureError(f"{label}: not allowed to read it; check the file's permissions") from None
    except (OSError, ValueError):
        raise PictureError(f"{label}: cannot be opened; check the path") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device, not a regular file"
        raise PictureError(f"{label}: is {kind}; give the path of one picture file")
    with os.fdopen(handle, "rb") as file:
        yield file


def _read(file: BinaryIO, label: str, max_pixels: int, name: str) -> Picture:
    try:
        head = file.read(16)
        file.seek(0)
    except OSError:
        raise PictureError(f"{label}: cannot be read; check the disk or copy the file again") from None
    if not head:
        raise PictureError(f"{label}: is empty (0 bytes); get the file again")
    opener = next((opener for magic, opener in _OPENERS if head.startswith(magic)), None)
    if opener is None or (head.startswith(b"RIFF") and head[8:12] != b"WEBP"):
        raise PictureError(f"{label}: its content is not {_FORMATS}; convert it to one of these")
    try:
        image = opener(file)
    except _DAMAGED:
        raise PictureError(f"{label}: the file header is damaged or cut off; get the file again") from None
    return _decode(image, label, max_pixels, name)


def _decode(image: Image.Image, label: str, max_pixels: int, name: str) -> Picture:
    """Check the size that the header states, then decode, convert and turn upright."""
    _check_size(image.size, label, max_pixels)
    try:
        with _truncation_is_an_error():
            image.load()
    except _DAMAGED:
        raise PictureError(f"{label}: the picture data are damaged or cut off; get the file again") from None
    # TIFF sizes may change while loading (orientation), GIF sizes with the first frame.
    _check_size(image.size, label, max_pixels)
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _rgb(image, label)
    return Picture(pixels=np.array(rgb.transpose(turn) if turn is not None else rgb), name=name)


def _check_size(size: tuple[int, int], label: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise PictureError(f"{label}: has no pixels ({width} x {height}); get the file again")
    if width * height > max_pixels:
        raise PictureError(
            f"{label}: {width} x {height} is more than {max_pixels:,} pixels; shrink the picture or raise max_pixels"
        )


@contextmanager
def _truncation_is_an_error() -> Iterator[None]:
    """Undo, for one decoding, the process-wide switch by which some libraries make Pillow pad cut files with grey."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8. A damaged EXIF block says nothing about the pixels, so it counts as upright."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGED:
        return 1


def _rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode.startswith("I"):
        return _rgb_of_16_bit(image, label)
    if image.mode == "F":
        raise PictureError(f"{label}: holds floating point values, whose white is unknown; convert it to 8 or 16 bit")
    try:
        if not image.has_transparency_data:
            return image.convert("RGB")
        layer = image.convert("RGBA")
    except _DAMAGED:
        raise PictureError(f"{label}: colour mode {image.mode} is not supported; convert it to RGB") from None
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return white


def _rgb_of_16_bit(image: Image.Image, label: str) -> Image.Image:
    # Pillow's own conversion cuts everything above 255 to white.
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise PictureError(f"{label}: holds 32-bit values, whose white is unknown; convert it to 8 or 16 bit")
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _from_array(array: np.ndarray, label: str, max_pixels: int, name: str) -> Picture:
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise PictureError(
            f"{label}: expected (H, W, 3) RGB or (H, W) grey in uint8, got {array.shape} {array.dtype}; convert it"
        )
    _check_size((array.shape[1], array.shape[0]), label, max_pixels)
    # A copy: an answer keeps its picture, and the caller's array may be the buffer of the next one.
    return Picture(pixels=np.repeat(array[..., None], 3, axis=2) if grey else np.array(array, order="C"), name=name)


def _printable(text: str) -> str:
    """The text on one line: control characters and lone surrogates escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
