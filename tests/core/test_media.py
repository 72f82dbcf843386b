"""Every kind of picture that reaches the door: read right, or refused with one line."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from visionllm.core.errors import PictureError, ShapeError
from visionllm.core.media import load_picture
from visionllm.core.sample import Picture

# Pillow warns of damaged metadata that we mean to be there.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

RNG = np.random.default_rng(0)
SMOOTH = np.stack(np.meshgrid(np.linspace(0, 255, 40), np.linspace(0, 255, 30)), -1).astype(np.uint8)
RGB = np.concatenate([SMOOTH, SMOOTH[..., :1] // 2], -1)  # (30, 40, 3)
NOISE = RNG.integers(0, 256, (120, 160, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int = 1, colour: int = 0, rows: bytes | None = None) -> bytes:
    """A PNG by hand: black unless ``rows`` (with filter bytes) are given, a few kilobytes at any size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    compressor = zlib.compressobj(9)
    line = b"\0" * (1 + (width * depth + 7) // 8)
    parts = [compressor.compress(rows)] if rows else [compressor.compress(line * 100) for _ in range(height // 100)]
    body = b"".join(parts) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def refusal(source: object, **options: object) -> str:
    """The error's text, checked to be one clean line."""
    with pytest.raises(PictureError) as caught:
        load_picture(source, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    assert "0x" not in text
    assert "PIL" not in text.replace("PIL image", "")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return text


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_are_exact(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.jpg"  # the first bytes decide, not the name
    path.write_bytes(encoded(RGB, kind))
    picture = load_picture(path)
    assert (picture.pixels == RGB).all()
    assert picture.name == "wrong.jpg"
    assert load_picture(str(path)).size == (40, 30)
    assert (load_picture(path.read_bytes(), name="x").pixels == RGB).all()


@pytest.mark.parametrize(
    "data",
    [encoded(RGB, "JPEG", quality=95), encoded(RGB, "JPEG", quality=95, progressive=True), encoded(RGB, "WEBP"),
     encoded(RGB, "WEBP", lossless=True), encoded(RGB, "GIF"), encoded(RGB, "TIFF", compression="tiff_lzw"),
     encoded(RGB, "TIFF", compression="tiff_deflate")],
    ids=["jpeg", "progressive", "webp", "webp lossless", "gif", "tiff lzw", "tiff deflate"],
)  # fmt: skip
def test_other_formats_are_close(data: bytes) -> None:
    assert np.abs(load_picture(data).pixels.astype(int) - RGB).mean() < 8


def test_pixels_are_ours_to_write() -> None:
    assert load_picture(encoded(RGB, "PNG")).pixels.flags.writeable


def test_cmyk_jpeg_of_adobe_is_not_inverted() -> None:
    # Pillow writes CMYK as Adobe does, inverted and with its marker.
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    data = encoded(cmyk, "JPEG", quality=100)
    assert b"Adobe" in data
    red = load_picture(data).pixels.reshape(-1, 3).mean(0)
    assert red[0] > 230
    assert red[1:].max() < 40


def test_ycck_jpeg() -> None:
    # The transform byte of the Adobe marker says YCCK; read as such, all-zero chroma planes become (close to) grey.
    data = bytearray(encoded(Image.new("CMYK", (16, 16), (128, 128, 128, 0)), "JPEG", quality=100))
    data[data.index(b"Adobe") + 11] = 2
    pixels = load_picture(bytes(data)).pixels.reshape(-1, 3).astype(int)
    assert np.abs(pixels - 127).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_is_scaled_not_cut(kind: str) -> None:
    values = np.array([[0, 128, 257, 32768, 40000, 65535]], np.uint16)
    grey = load_picture(encoded(Image.fromarray(values), kind)).pixels[0, :, 0]
    assert grey.tolist() == [0, 0, 1, 128, 156, 255]


def test_16_bit_colour_is_scaled() -> None:
    rows = b"\0" + struct.pack(">6H", 65535, 32768, 0, 257, 40000, 1000)
    pixels = load_picture(png(2, 1, depth=16, colour=2, rows=rows)).pixels[0].astype(int)
    assert np.abs(pixels - [[255, 128, 0], [1, 156, 4]]).max() <= 1


def test_big_endian_16_bit_tiff() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 40000, 65535))
    assert load_picture(encoded(image, "TIFF")).pixels[0, :, 0].tolist() == [156, 255]


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putdata([0, 1])
    return image


HALF = np.array([[[100, 100, 100, 0], [0, 0, 0, 255]], [[0, 0, 0, 128], [10, 20, 30, 255]]], np.uint8)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(HALF, "PNG"), [[[255] * 3, [0] * 3], [[127] * 3, [10, 20, 30]]]),
        (encoded(Image.fromarray(HALF).convert("LA"), "PNG"), [[[255] * 3, [0] * 3], [[127] * 3, [19] * 3]]),
        (encoded(palette_image(), "PNG", transparency=0), [[[255] * 3, [10, 20, 30]]]),
        (encoded(palette_image(), "GIF", transparency=0), [[[255] * 3, [10, 20, 30]]]),
        (encoded(palette_image(), "PNG"), [[[0] * 3, [10, 20, 30]]]),
        (encoded(Image.fromarray(HALF[..., :3]), "PNG", transparency=(100, 100, 100)),
         [[[255] * 3, [0] * 3], [[0] * 3, [10, 20, 30]]]),
        (encoded(Image.new("1", (1, 1), 1), "PNG"), [[[255] * 3]]),
        (encoded(Image.new("L", (1, 1), 7), "PNG"), [[[7] * 3]]),
    ],
    ids=["rgba", "la", "palette png", "palette gif", "palette opaque", "keyed rgb", "one bit", "grey"],
)  # fmt: skip
def test_transparency_is_composited_on_white(data: bytes, expected: list[list[list[int]]]) -> None:
    assert np.abs(load_picture(data).pixels.astype(int) - expected).max() <= 1


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, kind, exif=exif, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert (load_picture(data).pixels == TURNS[orientation](RGB)).all()
    assert (load_picture(Image.open(io.BytesIO(data))).pixels == TURNS[orientation](RGB)).all()


@pytest.mark.parametrize(
    "block", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_damaged_exif_leaves_the_picture_upright(block: bytes) -> None:
    assert load_picture(encoded(RGB, "JPEG", exif=block)).size == (40, 30)


def frames(kind: str) -> bytes:
    first, second = Image.new("RGB", (8, 6), (200, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 200))
    return encoded(first, kind, save_all=True, append_images=[second])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_animations_give_their_first_frame(kind: str) -> None:
    pixels = load_picture(frames(kind)).pixels
    assert pixels[..., 0].min() > 180
    assert pixels[..., 2].max() < 30


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        assert load_picture(encoded(Image.new("RGB", size), kind)).size == size


def test_a_colour_profile_changes_nothing() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert (load_picture(encoded(RGB, "PNG", icc_profile=profile)).pixels == RGB).all()
    assert (load_picture(encoded(RGB, "PNG", icc_profile=b"nonsense")).pixels == RGB).all()


def test_what_is_no_file() -> None:
    picture = Picture(pixels=RGB, name="mine")
    assert load_picture(picture) is picture
    assert (load_picture(RGB).pixels == RGB).all()
    assert (load_picture(RGB[..., ::-1]).pixels == RGB[..., ::-1]).all()
    grey = load_picture(RGB[..., 0]).pixels
    assert (grey == RGB[..., :1]).all()
    assert grey.shape == (30, 40, 3)
    assert (load_picture(Image.fromarray(RGB)).pixels == RGB).all()
    assert load_picture(RGB, name="given").name == "given"
    assert load_picture(bytearray(encoded(RGB, "PNG"))).size == (40, 30)


def test_a_pil_image_is_left_as_it_was() -> None:
    image = Image.fromarray(HALF)
    load_picture(image)
    assert image.mode == "RGBA"
    assert (np.asarray(image) == HALF).all()


# --- what is refused ------------------------------------------------------------------------------------------------

BAD = {
    "zero bytes": (b"", "empty"),
    "text": (b"hello, this is no picture", "not JPEG"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "not JPEG"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not JPEG"),
    "psd": (b"8BPS\0\x01" + b"\0" * 40, "not JPEG"),
    "wav": (b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40, "not JPEG"),
    "ppm": (b"P6 2 2 255\n" + b"\0" * 12, "not JPEG"),
    "ico": (encoded(Image.new("RGB", (16, 16)), "ICO"), "not JPEG"),
    "jpeg header only": (encoded(RGB, "JPEG")[:20], "damaged or cut off"),
    "png header only": (encoded(RGB, "PNG")[:33], "damaged or cut off"),
    "png signature only": (encoded(RGB, "PNG")[:8], "damaged or cut off"),
    "webp header only": (encoded(RGB, "WEBP")[:20], "damaged or cut off"),
    "no width": (png(0, 5), ""),
    "float": (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "convert it to 8 or 16 bit"),
    "32 bit": (encoded(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"), "convert it to 8 or 16 bit"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_one_line(name: str, tmp_path: Path) -> None:
    data, words = BAD[name]
    path = tmp_path / "street.jpg"
    path.write_bytes(data)
    text = refusal(path)
    assert text.startswith(f"{path}: ")
    assert words in text
    assert refusal(data, name="upload").startswith("upload: ")


@pytest.mark.parametrize("switch", [False, True], ids=["", "another library allows truncation"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}),
     ("GIF", {}), ("BMP", {}),
     ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_deflate"})],
)  # fmt: skip
def test_a_cut_file_is_never_half_a_picture(
    kind: str, options: dict[str, object], switch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", switch)
    data = encoded(NOISE, kind, **options)
    whole = load_picture(data).pixels
    refused = 0
    for length in [*range(1, len(data), max(1, len(data) // 40)), *range(len(data) - 40, len(data))]:
        try:
            # Some formats end with bytes that carry no pixels; without them the picture is still whole.
            assert (load_picture(data[:length]).pixels == whole).all(), length
        except PictureError:
            refused += 1
    assert refused >= 40
    assert ImageFile.LOAD_TRUNCATED_IMAGES is switch


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_bytes_raise_nothing_else(kind: str) -> None:
    data = encoded(RGB, kind)
    rng = np.random.default_rng(1)
    for _ in range(300):
        broken = np.frombuffer(data, np.uint8).copy()
        # The signature stays, or the door would not open at all.
        places = rng.integers(4, min(len(broken), 400), rng.integers(1, 8))
        broken[places] = rng.integers(0, 256, len(places))
        with suppress(PictureError):
            load_picture(broken.tobytes(), max_pixels=100_000)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory as Linux tells it")
@pytest.mark.parametrize("size", [20_000, 12_000])
def test_a_bomb_is_refused_before_decoding(size: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(size, size))
    assert path.stat().st_size < 60_000
    # In a process of its own, where the peak is this picture's alone; a warning would be an error there. Not ru_maxrss:
    # it starts at the peak of the process that started it.
    code = (
        "import sys\n"
        "from visionllm.core.media import PictureError, load_picture\n"
        "from pathlib import Path\n"
        "def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "try: load_picture(sys.argv[1])\n"
        "except PictureError as error: print(error); print((peak() - before) // 1024)"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    text, grown = run.stdout.splitlines()
    assert f"{size} x {size} is more than 50,000,000 pixels" in text
    assert int(grown) < 50
    assert run.stderr == ""


def test_the_budget_is_the_callers() -> None:
    assert load_picture(RGB, max_pixels=1200).size == (40, 30)
    for source in (RGB, Image.fromarray(RGB), encoded(RGB, "PNG"), encoded(RGB, "GIF")):
        assert "max_pixels" in refusal(source, max_pixels=1199)


def test_paths_that_are_no_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        assert "cannot be opened" in refusal(tmp_path / "socket")
    assert "no such file" in refusal(tmp_path / "missing.jpg")
    assert "no such file" in refusal("http://example.org/street.jpg")
    assert "is a folder" in refusal(tmp_path)
    assert "pipe" in refusal(tmp_path / "pipe")  # and does not hang
    assert "device" in refusal("/dev/zero")
    assert "check the path" in refusal(tmp_path / "loop")
    assert "check the path" in refusal("a\0b.jpg")
    assert "check the path" in refusal("x" * 5000)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(RGB, "PNG"))
    path.chmod(0)
    assert "permission" in refusal(path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((3, 2, 2, 3), np.uint8),
        np.zeros((2, 2, 3), np.float32),
        np.zeros((0, 2, 3), np.uint8),
        np.zeros(5, np.uint8),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray) -> None:
    refusal(array)


@pytest.mark.parametrize("source", [None, 3, [RGB], {"path": "x"}])
def test_objects_that_are_no_pictures(source: object) -> None:
    assert "give a path" in refusal(source)


def test_names_cannot_break_the_line(tmp_path: Path) -> None:
    assert "a\\nb\\x1b[31m" in refusal(tmp_path / "a\nb\x1b[31m.jpg")
    text = refusal("\udcff.jpg")
    text.encode("utf-8")


def test_a_picture_is_checked_when_made() -> None:
    with pytest.raises(ShapeError):
        Picture(pixels=RGB.astype(np.float32))
