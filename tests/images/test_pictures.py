"""Pictures are read within limits, and every use sees the same pixels."""

import base64
import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mlflow_finetune_plugin.images import (
    AlikePictures,
    Picture,
    PictureFault,
    PictureLimits,
    fingerprint,
    read_picture,
)

RED, BLUE = (220, 20, 30), (10, 40, 200)


def drawn(size=(40, 30), left=RED, right=BLUE, mode="RGB"):
    picture = Image.new("RGB", size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture.convert(mode)


def written(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def corners(picture):
    """The colours at the upper left, the upper right and the lower left."""
    pixels = picture.pixels()
    width, height = pixels.size
    return [pixels.getpixel(at) for at in ((0, 0), (width - 1, 0), (0, height - 1))]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_each_format_is_read(kind):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    picture = Picture.of(written(drawn(), kind, **options))
    assert (picture.width, picture.height) == (40, 30)
    assert np.allclose(corners(picture), [RED, BLUE, RED], atol=6)
    assert picture.pixels().mode == "RGB"


def test_a_camera_that_was_turned_is_turned_back():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    picture = Picture.of(written(drawn(), "JPEG", exif=exif, quality=95))
    assert (picture.width, picture.height) == (30, 40)
    assert np.allclose(corners(picture), [RED, RED, BLUE], atol=6)
    plain = Picture.of(picture.png())
    assert plain.pixels().tobytes() == picture.pixels().tobytes()
    assert not Image.open(io.BytesIO(picture.png())).getexif()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_what_is_transparent_is_white(kind):
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    picture.paste((*RED, 255), (4, 0, 8, 8))
    if kind == "GIF":
        picture = picture.convert("P")
        picture.info["transparency"] = picture.getpixel((0, 0))
    colours = corners(Picture.of(written(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))))
    assert colours[0] == (255, 255, 255)
    assert np.allclose(colours[1], RED, atol=30)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "I;16"])
def test_every_colour_space_becomes_rgb(mode):
    if mode == "I;16":
        ramp = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
        picture, kind = Image.fromarray(ramp), "PNG"
    else:
        picture, kind = drawn(mode=mode), "JPEG" if mode == "CMYK" else "PNG"
    pixels = np.asarray(Picture.of(written(picture, kind)).pixels())
    assert pixels.shape[2] == 3
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1
    if mode == "I;16":
        assert pixels[-1, -1, 0] == 63_000 // 256


def test_a_picture_is_refused_from_its_header(monkeypatch):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)  # 10.8 GB when decoded
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10**6))
        + chunk(b"IEND", b"")
    )
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(PictureFault, match=r"picture too large: .*40,000,000 pixels"):
        Picture.of(bomb)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_cut_file_is_unreadable(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    content = written(noise, kind)
    for part in (0.05, 0.5, 0.9):
        with pytest.raises(PictureFault, match="unreadable picture"):
            Picture.of(content[: int(part * len(content))])


@pytest.mark.parametrize("offset", range(0, 600, 7))
def test_a_changed_byte_is_read_or_is_one_fault(offset):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "WEBP"):
        content = bytearray(written(noise, kind))
        content[offset % len(content)] ^= 0xFF
        with contextlib.suppress(PictureFault):
            assert Picture.of(bytes(content)).pixels().mode == "RGB"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"%PDF-1.4", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (written(drawn(), "TIFF"), "not a picture in one of the formats JPEG, PNG, WEBP, GIF, BMP"),
    ],
)
def test_other_files_are_no_pictures(content, words):
    with pytest.raises(PictureFault, match=words):
        Picture.of(content)


def test_several_frames_are_refused():
    frames = [drawn(), drawn(left=BLUE, right=RED)]
    content = written(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(PictureFault, match="animated picture: 2 frames"):
        Picture.of(content)


# where a picture comes from ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a cat.png").write_bytes(written(drawn()))
    return tmp_path


def test_every_way_to_name_a_picture_gives_the_same(folder):
    path = folder / "pictures" / "a cat.png"
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    sources = ["pictures/a cat.png", str(path), f"file://{path}", url, path.read_bytes()]
    sources += [{"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": "pictures/a cat.png"}]
    sources.append(url.replace("image/png", "image/jpeg"))  # clients guess the type; the bytes decide
    assert len({read_picture(source, folder=folder).sha256 for source in sources}) == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("pictures/a dog.png", "missing picture: pictures/a dog.png: no such file"),
        ("pictures", "missing picture: pictures: no such file"),
        ("pictures/\0.png", "no such file|null"),
        ("a" * 5000, "picture"),
        (None, "missing picture: NoneType"),
        (7, "missing picture: int"),
        ({"url": "x"}, "missing picture"),
        ("https://example.com/cat.png", "picture behind a link: https://example.com/cat.png: nothing is fetched"),
        ("s3://bucket/cat.png", "picture behind a link"),
        ("data:image/png;base64,%%%", "base64 text is not valid"),
        ("data:image/png,plain", "a data URL of a picture begins with"),
        ("data:text/html;base64,PGI+", "a data URL of a picture begins with"),
    ],
)
def test_what_cannot_be_read_is_one_fault(folder, source, words):
    with pytest.raises(PictureFault, match=words):
        read_picture(source, folder=folder)


@pytest.mark.parametrize("source", ["/etc/passwd", "file:///etc/passwd", "../secret.png", {"path": "/etc/passwd"}])
def test_a_client_names_no_files(source):
    with pytest.raises(PictureFault, match="not a data URL"):
        read_picture(source, folder=None)


def test_the_limits_hold_for_each_source(folder):
    path = folder / "pictures" / "a cat.png"
    url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    few_bytes, few_pixels = PictureLimits(max_bytes=path.stat().st_size - 4), PictureLimits(max_pixels=40 * 30 - 1)
    for source in (str(path), url, path.read_bytes()):
        for limits in (few_bytes, few_pixels):
            with pytest.raises(PictureFault, match="picture too large"):
                read_picture(source, folder=folder, limits=limits)
        exact = PictureLimits(max_bytes=path.stat().st_size, max_pixels=40 * 30)
        assert read_picture(source, folder=folder, limits=exact).width == 40


# pictures that look alike --------------------------------------------------------------------------------------------


def scene(seed, size=(120, 90)):
    """A picture of soft shapes, as photographs have them."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (6, 8, 3), np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def test_the_same_scene_in_another_size_or_compression_is_found():
    alike = AlikePictures()
    for seed in range(200):
        alike.add(fingerprint(Picture.of(written(scene(seed)))), seed)
    for seed in range(0, 200, 10):
        copies = [
            written(scene(seed), "JPEG", quality=60),
            written(scene(seed).resize((60, 45)), "JPEG", quality=80),
            written(scene(seed).resize((240, 180)), "WEBP", quality=70),
        ]
        assert [alike.find(fingerprint(Picture.of(copy))) for copy in copies] == [seed] * 3
    others = [alike.find(fingerprint(Picture.of(written(scene(seed))))) for seed in range(1000, 1200)]
    assert others == [None] * 200


def test_shapes_of_other_places_and_sizes_are_not_alike():
    alike = AlikePictures()
    for offset in range(4, 28, 4):
        picture = Image.new("RGB", (32, 32), "white")
        picture.paste(RED, (offset - 4, offset - 4, offset, offset))
        bits = fingerprint(Picture.of(written(picture)))
        assert alike.find(bits) is None
        alike.add(bits, offset)


def test_equal_shapes_of_other_colours_are_not_alike_and_each_finds_its_copy():
    alike = AlikePictures()
    colours = ((215, 45, 45), (45, 75, 215), (25, 25, 25), (40, 160, 60))
    shapes = [Image.new("RGB", (32, 32), (140, 140, 140)) for _ in colours]
    for shape, colour in zip(shapes, colours, strict=True):
        shape.paste(colour, (4, 8, 18, 22))
        assert alike.find(fingerprint(Picture.of(written(shape)))) is None
        alike.add(fingerprint(Picture.of(written(shape))), colour)
    copies = [written(shape.resize((64, 64)), "JPEG", quality=90) for shape in shapes]
    assert [alike.find(fingerprint(Picture.of(copy))) for copy in copies] == list(colours)
