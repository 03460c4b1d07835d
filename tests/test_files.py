"""Image files: every kind is read as other programs read it, and written so that they read it."""

import io
import itertools
import struct
import zlib
from contextlib import contextmanager
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, ImageOps

from images import files
from images.colour import build_profile
from images.files import (
    Picture,
    bleed,
    read_image,
    read_picture,
    to_8_bits,
    write_image,
    write_picture,
)
from images.frames import PAGES
from images.kinds import ImageError, find_images
from images.pictures import Sequence
from utils import replacing

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


GRAY_PROFILE = build_profile(None, (2.2,))


def png_16(path, pixels, *chunks):
    """A PNG of 16 bits a channel, from the specification: (H, W, 1 to 4), big-endian, filter 0."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )


def noise(channels, dtype=np.uint16, height=5, width=7):
    top = np.iinfo(dtype).max
    return np.random.default_rng(channels).integers(0, top + 1, (height, width, channels), dtype)


@pytest.mark.parametrize(
    "suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".JPEG"]
)
def test_formats_are_found_in_depth_and_read(suffix, tmp_path):
    path = tmp_path / "in" / "ö ä" / f"a picture{suffix}"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (6, 4), (200, 100, 50)).save(path)
    (tmp_path / ".hidden.png").write_text("a file manager's")
    (tmp_path / "notes.txt").write_text("no image")
    assert find_images(tmp_path).images == [path]
    image = read_image(path)
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - (200, 100, 50)).max() <= 4


def test_modes_become_rgb(tmp_path):
    gray16 = Image.fromarray(np.full((2, 3), 0x8080, np.uint16))
    cases = {
        "L": (Image.new("L", (3, 2), 128), 128),
        "I;16": (gray16, 128),
        "1": (Image.new("1", (3, 2), 1), 255),
        "P": (Image.new("RGB", (3, 2), (128,) * 3).quantize(), 128),
        "RGBA": (Image.new("RGBA", (3, 2), (128, 128, 128, 255)), 128),
        "LA": (Image.new("LA", (3, 2), (128, 255)), 128),
    }
    for mode, (picture, value) in cases.items():
        picture.save(tmp_path / "x.png")
        assert np.array_equal(read_image(tmp_path / "x.png"), np.full((2, 3, 3), value)), mode
    Image.new("CMYK", (3, 2), (0, 0, 0, 127)).save(tmp_path / "x.tif")
    assert np.abs(read_image(tmp_path / "x.tif").astype(int) - 128).max() <= 1


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # shown upright after a quarter turn
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (8, 4, 3)


def test_bad_files_are_named(tmp_path, random_image):
    whole = io.BytesIO()
    Image.fromarray(random_image(64, 64)).save(whole, "JPEG")
    (tmp_path / "truncated.jpg").write_bytes(whole.getvalue()[:-700])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name in ("truncated.jpg", "text.png", "empty.png", "folder.png", "missing.png"):
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)


def test_writing_is_whole_or_not_at_all(tmp_path, random_image, monkeypatch):
    image = random_image(5, 6)
    write_image(image, tmp_path / "sub" / "x.png")
    assert np.array_equal(read_image(tmp_path / "sub" / "x.png"), image)

    @contextmanager
    def failing(path):
        with replacing(path) as file:
            file.write(b"half a file")
            yield file
            raise OSError("disk full")

    monkeypatch.setattr(files, "replacing", failing)
    with pytest.raises(OSError, match="disk full"):
        write_image(image * 0, tmp_path / "sub" / "x.png")
    assert np.array_equal(read_image(tmp_path / "sub" / "x.png"), image)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["x.png"]


# ---------------------------------------------------------------------------------- kinds of files


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_read_whole(channels, tmp_path):
    pixels = noise(channels)
    png_16(tmp_path / "x.png", pixels, (b"iCCP", b"p\0\0" + zlib.compress(PROFILE)))
    tifffile.imwrite(
        tmp_path / "x.tif",
        pixels.squeeze(2) if channels == 1 else pixels,
        photometric="rgb" if channels > 2 else "minisblack",
        extrasamples=["unassalpha"] if channels == 4 else None,
        iccprofile=PROFILE,
    )
    for name in ("x.png", "x.tif") if channels != 2 else ("x.png",):
        picture = read_picture(tmp_path / name)
        assert picture.rgb.dtype == np.uint16 and picture.profile == PROFILE
        assert np.array_equal(
            picture.rgb, np.broadcast_to(pixels[..., : channels - (channels in (2, 4))], (5, 7, 3))
        )
        assert picture.gray == (channels < 3)
        if channels in (2, 4):
            assert np.array_equal(picture.alpha, pixels[..., -1])
        else:
            assert picture.alpha is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "palette and alpha"])
def test_8_bits_are_read_as_pillow_reads_them(mode, tmp_path):
    picture = Image.fromarray(noise(4, np.uint8))
    if mode == "palette and alpha":
        picture = picture.quantize(method=Image.Quantize.FASTOCTREE)
    else:
        picture = picture.convert("RGB" if mode == "P" else mode).convert(mode)
    picture.save(tmp_path / "x.png", icc_profile=PROFILE)
    read, expected = read_picture(tmp_path / "x.png"), np.array(picture.convert("RGBA"))
    assert np.array_equal(read.rgb, expected[..., :3]) and read.profile == PROFILE
    assert (read.alpha is not None) == (mode in ("LA", "RGBA", "palette and alpha"))
    assert read.alpha is None or np.array_equal(read.alpha, expected[..., 3])
    assert read.gray == (mode in ("1", "L", "LA"))


def test_a_colour_that_stands_for_transparency(tmp_path):
    for mode, colour in (("RGB", (10, 20, 30)), ("L", 10)):
        picture = Image.new(mode, (3, 2), colour)
        picture.putpixel((1, 0), 0 if mode == "L" else (0, 0, 0))
        picture.save(tmp_path / "x.png", transparency=colour)
        assert read_picture(tmp_path / "x.png").alpha.tolist() == [[0, 255, 0], [0, 0, 0]]


def test_cmyk_goes_through_its_profile(tmp_path):
    from test_tiff import ink_profile

    inks = noise(4, np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(inks, "CMYK").save(tmp_path / "x.jpg", icc_profile=ink_profile(), quality=95)
    srgb = ImageCms.createProfile("sRGB")
    with Image.open(tmp_path / "x.jpg") as file:
        given = io.BytesIO(file.info["icc_profile"])
        expected = ImageCms.profileToProfile(file, given, srgb, outputMode="RGB")
    read = read_picture(tmp_path / "x.jpg")
    assert read.profile is None and read.remark == "CMYK turned into sRGB"
    assert np.abs(read.rgb.astype(int) - np.array(expected)).max() <= 2


def test_cmyk_without_a_profile_is_turned_by_formula(tmp_path):
    picture = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    picture.save(tmp_path / "x.jpg")
    assert np.abs(read_picture(tmp_path / "x.jpg").rgb.astype(int) - (0, 255, 255)).max() <= 2
    picture.save(tmp_path / "x.jpg", icc_profile=b"no profile")
    read = read_picture(tmp_path / "x.jpg")
    assert np.abs(read.rgb.astype(int) - (0, 255, 255)).max() <= 2 and read.profile is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_every_exif_orientation_is_pillow_s(orientation, bits, tmp_path):
    pixels = noise(4, np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if bits == 8:
        Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    else:
        png_16(tmp_path / "x.png", pixels.astype(np.uint16) * 257, (b"eXIf", exif.tobytes()[6:]))
    upright = Image.fromarray(pixels)
    upright.getexif()[0x0112] = orientation
    expected = np.array(ImageOps.exif_transpose(upright))
    read = read_picture(tmp_path / "x.png")
    assert np.array_equal(to_8_bits(np.dstack((read.rgb, read.alpha))), expected)


def test_the_first_frame_is_taken_and_said_so(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    for name in ("x.gif", "x.webp", "x.tif", "x.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        picture = read_picture(tmp_path / name)
        assert np.abs(picture.rgb.astype(int) - (255, 0, 0)).max() <= 4
        assert picture.remark == "the first of 3 frames"


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bits_are_refused(mode, tmp_path):
    Image.new(mode, (8, 6)).save(tmp_path / "x.tif")
    with pytest.raises(ImageError, match=r"x.tif: it has 32 bits a channel"):
        read_picture(tmp_path / "x.tif")


# ------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("gray, alpha", list(itertools.product((False, True), repeat=2)))
def test_what_is_written_comes_back(suffix, dtype, gray, alpha, tmp_path):
    pixels = noise(4, dtype, 40, 50)
    pixels[:] = pixels[:1, :1]  # WebP is lossy
    rgb = np.ascontiguousarray(
        np.broadcast_to(pixels[..., :1], (40, 50, 3)) if gray else pixels[..., :3]
    )
    profile = GRAY_PROFILE if gray and suffix != ".webp" else PROFILE
    given = Picture(rgb, pixels[..., 3] if alpha else None, gray, profile)
    remark = write_picture(given, tmp_path / f"x{suffix}")
    exact = suffix != ".webp"
    read = read_picture(tmp_path / f"x{suffix}")
    assert remark == ("8 of 16 bits" if not exact and dtype == np.uint16 else "")
    assert read.profile == profile and (read.alpha is not None) == alpha
    if exact:
        assert read.rgb.dtype == dtype and read.gray == gray
        assert np.array_equal(read.rgb, rgb)
        assert not alpha or np.array_equal(read.alpha, given.alpha)
    else:
        assert np.abs(read.rgb.astype(int) - to_8_bits(rgb)).max() <= 3


def test_jpeg_has_a_white_background(tmp_path):
    rgb, alpha = np.full((16, 16, 3), 40, np.uint8), np.zeros((16, 16), np.uint8)
    alpha[:, 8:] = 255
    assert "on white" in write_picture(Picture(rgb, alpha), tmp_path / "x.jpg")
    read = np.array(Image.open(tmp_path / "x.jpg")).astype(int)
    assert np.abs(read[:, :6] - 255).max() <= 4 and np.abs(read[:, 10:] - 40).max() <= 4


def test_half_clear_pixels_are_mixed_with_white(tmp_path):
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_picture(Picture(np.full((16, 16, 3), 40, np.uint8), alpha), tmp_path / "x.bmp")
    expected = 40 * (alpha / 255) + 255 * (1 - alpha / 255)
    read = np.array(Image.open(tmp_path / "x.bmp"))
    assert np.abs(read - expected[..., None]).max() <= 0.51


def test_jpeg_is_written_as_pillow_writes_95_without_subsampling(tmp_path, random_image):
    pixels = random_image(40, 50)
    write_image(pixels, tmp_path / "x.jpg")
    Image.fromarray(pixels).save(tmp_path / "pillow.jpg", quality=95, subsampling=0)
    ours, theirs = (Image.open(tmp_path / name) for name in ("x.jpg", "pillow.jpg"))
    assert ours.quantization == theirs.quantization and ours.layer == theirs.layer
    assert np.array_equal(np.array(ours), np.array(theirs))


def test_a_type_that_cannot_hold_the_size_is_named(tmp_path):
    wide = np.zeros((1, 17_000, 3), np.uint8)
    with pytest.raises(ImageError, match=r"x.webp: 17000x1 pixels cannot be written"):
        write_image(wide, tmp_path / "x.webp")
    assert not list(tmp_path.iterdir())


def test_8_bits_are_the_nearest():
    levels = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(to_8_bits(levels), np.rint(levels.astype(np.float64) * 255 / 65535))


def test_bleeding_takes_the_nearest_visible_colour():
    rng = np.random.default_rng(0)
    rgb, alpha = noise(3, np.uint8, 20, 24), (rng.random((20, 24)) < 0.05).astype(np.uint8) * 200
    bled = bleed(rgb, alpha)
    visible = np.argwhere(alpha)
    for y, x in np.ndindex(20, 24):
        distance = np.hypot(*(visible - (y, x)).T)
        # The 5x5 chamfer distance of OpenCV is a few percent off: near ties may go either way.
        near = visible[distance <= distance.min() * 1.06]
        assert any(np.array_equal(bled[y, x], rgb[a, b]) for a, b in near)
    assert np.array_equal(bleed(rgb, alpha * 0), rgb)


def test_transparency_that_shows_nothing_needs_no_white(tmp_path, random_image):
    """As a Mac's screenshots have it: four channels, all of them opaque."""
    rgb, full = random_image(16, 16), np.full((16, 16), 255, np.uint8)
    assert write_picture(Picture(rgb, full), tmp_path / "a.jpg") == ""
    write_picture(Picture(rgb), tmp_path / "b.jpg")
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    full[3, 5] = 254
    remark = write_picture(Picture(rgb, full), tmp_path / "a.jpg")
    assert remark == "on white instead of transparent"


def pictures_of(kind, count, random_image):
    pictures = [Picture(random_image(8, 8, i), duration=50.0) for i in range(1, count + 1)]
    pictures[0].sequence = Sequence(kind, count, 0, lambda: iter(pictures[1:]))
    return pictures[0]


def test_ctrl_c_ends_a_file_of_several_pictures(tmp_path, random_image):
    def interrupted(picture, number):
        raise InterruptedError

    picture = pictures_of(PAGES, 4, random_image)
    picture.sequence = picture.sequence.mapped(interrupted)
    with pytest.raises(InterruptedError):
        write_picture(picture, tmp_path / "x.tif")
    assert not (tmp_path / "x.tif").exists()


def test_a_tiff_on_a_drive_that_maps_no_file_is_read_with_its_metadata(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((8, 8, 3), np.uint8), resolution=(300, 300))
    expected = read_picture(tmp_path / "x.tif").metadata
    monkeypatch.setattr("images.tiff.mmap", Mock(side_effect=OSError(19, "No such device")))
    assert read_picture(tmp_path / "x.tif").metadata == expected and expected.dpi == (300, 300)


def test_what_was_measured_in_pixels_of_the_original_is_left_out(tmp_path, random_image):
    """With the sensor's pixels an inch, a program would find a sensor four times as wide."""
    exif = Image.Exif()
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    inner[0xA20E], inner[0xA20F], inner[0xA210] = 4000.0, 4000.0, 2
    inner[0xA214], inner[0x8827] = (3, 4), 100
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        b'xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:FocalPlaneXResolution="4000/1" '
        b'exif:SubjectLocation="3 4" exif:ISOSpeed="100"><exif:SubjectArea><rdf:Seq><rdf:li>3'
        b"</rdf:li></rdf:Seq></exif:SubjectArea></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    Image.fromarray(random_image(8, 8)).save(tmp_path / "in.jpg", exif=exif, xmp=xmp)
    write_picture(read_picture(tmp_path / "in.jpg"), tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as file:
        told = file.getexif().get_ifd(ExifTags.IFD.Exif)
        assert told[0x8827] == 100 and not told.keys() & {0xA20E, 0xA20F, 0xA210, 0xA214}
        xmp = file.info["xmp"]
    assert b"ISOSpeed" in xmp and b"FocalPlane" not in xmp and b"Subject" not in xmp


@pytest.mark.parametrize("orientation", [1, 3])
def test_acdsees_regions_are_of_pictures_that_lie_as_they_lay(orientation, tmp_path, random_image):
    regions = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        b'xmlns:acdsee-rs="http://ns.acdsee.com/regions/"><acdsee-rs:Regions><rdf:li>Ada</rdf:li>'
        b"</acdsee-rs:Regions></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(random_image(8, 8)).save(tmp_path / "in.jpg", exif=exif, xmp=regions)
    assert (b"Ada" in read_picture(tmp_path / "in.jpg").metadata.xmp) == (orientation == 1)


def test_a_suffix_that_is_not_written_is_refused_by_name(tmp_path):
    with pytest.raises(ImageError, match=r"a\.jp2: images are written to \.png, .*\.tif"):
        write_picture(Picture(np.zeros((2, 2, 3), np.uint8)), tmp_path / "a.jp2")
    assert not list(tmp_path.iterdir())
