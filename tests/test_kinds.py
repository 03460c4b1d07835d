"""Which files are images: every raster format, whatever its suffix; all others are named."""

import io
import os
import socket
import stat
import struct
import subprocess
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import PIL
import pytest
from PIL import Image, features

from images import kinds
from images.files import read_picture
from images.kinds import HEIF, NOT_READ, RAW, READ, ImageError, find_images
from images.opening import Opened
from upscaling.jobs import plan

TRUE = np.dstack([np.mgrid[0:32, 0:32][0] * 7, np.mgrid[0:32, 0:32][1] * 7, np.full((32, 32), 90)])
TRUE = TRUE.astype(np.uint8)
LOSSY = {"JPEG", "WEBP", "AVIF", "MPO"}


def encoded(format: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(TRUE).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    "format, suffix",
    [
        *(
            ("PNG", ".apng"),
            ("JPEG", ".jfif"),
            ("JPEG", ".jpe"),
            ("MPO", ".mpo"),
            ("WEBP", ".webp"),
        ),
        *(
            ("AVIF", ".avif"),
            ("JPEG2000", ".jp2"),
            ("PPM", ".ppm"),
            ("PPM", ".pnm"),
            ("TGA", ".tga"),
        ),
        *(("DDS", ".dds"), ("PCX", ".pcx"), ("SGI", ".sgi"), ("DIB", ".dib"), ("ICO", ".ico")),
    ],
)
def test_what_pillow_decodes_is_read_whatever_its_suffix(format, suffix, tmp_path):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    content = encoded(format)
    expected = np.array(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert np.abs(expected - TRUE).max() <= (30 if format in LOSSY else 0)
    for name in (f"x{suffix}", f"x{suffix.upper()}", "x.png", "x"):
        path = tmp_path / name
        path.write_bytes(content)
        assert np.array_equal(read_picture(path).rgb, expected)
        if name != "x" or format in ("PNG", "JPEG"):
            assert path in find_images(tmp_path).images
        path.unlink()


def test_netpbm_files_hold_what_opencv_reads(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 9, 3), np.uint8)
    for name, array in (("x.ppm", pixels), ("x.pgm", pixels[..., 0]), ("x.pbm", pixels[..., 0])):
        cv2.imwrite(str(tmp_path / name), array)
        expected = cv2.cvtColor(cv2.imread(str(tmp_path / name)), cv2.COLOR_BGR2RGB)
        assert np.array_equal(read_picture(tmp_path / name).rgb, expected)


def test_the_largest_of_an_icons_sizes_is_read(tmp_path):
    large = Image.fromarray(TRUE)
    large.save(tmp_path / "x.ico", sizes=[(16, 16), (32, 32), (24, 24)])
    assert np.array_equal(read_picture(tmp_path / "x.ico").rgb, TRUE)


def icon_of(*images):
    """An ICO file of several pictures of one size, as Pillow writes each."""
    singles = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "ICO", sizes=[image.size], bitmap_format="bmp")
        singles.append(file.getvalue())
    offset, entries, bitmaps = 6 + 16 * len(images), b"", b""
    for single in singles:
        entries += single[6:18] + struct.pack("<I", offset + len(bitmaps))
        bitmaps += single[22:]
    return struct.pack("<HHH", 0, 1, len(images)) + entries + bitmaps


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_of_an_icons_pictures_of_one_size_the_one_with_most_colours_is_read(order, tmp_path):
    true = Image.fromarray(TRUE)
    images = [true.convert("1"), true.quantize(256), true.convert("RGBA")]
    (tmp_path / "x.ico").write_bytes(icon_of(*(images[i] for i in order)))
    assert np.array_equal(read_picture(tmp_path / "x.ico").rgb, TRUE)


def test_an_icon_whose_fourth_bytes_are_all_0_is_as_opaque_as_its_mask_says(tmp_path):
    """As Windows shows it: programs that knew no alpha wrote 0."""
    pixels, mask = 22 + 40, np.zeros((32, 32), np.uint8)
    content = bytearray(icon_of(Image.fromarray(TRUE).convert("RGBA")))
    content[pixels + 3 :: 4] = bytes(32 * 32)
    (tmp_path / "x.ico").write_bytes(content)  # Pillow writes no mask
    assert read_picture(tmp_path / "x.ico").alpha is None
    mask[2, 5] = 1
    content[14:18] = struct.pack("<I", 40 + 4 * 32 * 32 + 4 * 32)
    (tmp_path / "x.ico").write_bytes(content + np.packbits(mask[::-1], axis=1).tobytes())
    picture = read_picture(tmp_path / "x.ico")
    assert np.array_equal(picture.rgb, TRUE)
    assert np.array_equal(picture.alpha, np.where(mask, 0, 255))


def test_the_transparency_of_a_cursor_of_which_nothing_is_read_is_told(tmp_path):
    content = bytearray(icon_of(Image.fromarray(TRUE), Image.fromarray(TRUE)))
    content[2] = 2  # a cursor
    (tmp_path / "x.cur").write_bytes(content)
    picture = read_picture(tmp_path / "x.cur")
    assert np.array_equal(picture.rgb, TRUE) and picture.alpha is None
    assert picture.remark == "without its transparency"


def test_every_format_is_one_that_pillow_knows_and_none_that_starts_a_program():
    Image.init()
    assert set(READ) - {"AVIF"} <= set(Image.OPEN)
    programs_and_guesses = {"EPS", "WMF", "PDF", "FITS", "GRIB", "HDF5", "BUFR", "IM", "SPIDER"}
    assert not set(READ) & programs_and_guesses
    suffixes = [suffix for several in READ.values() for suffix in several]
    assert len(suffixes) == len(set(suffixes)) and not set(suffixes) & set(NOT_READ)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["x.eps", "x.png", "x.jpg", "x"])
def test_no_program_is_started(name, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"{args} was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(AssertionError, match="was started"):  # by Pillow left to itself
        Image.open(tmp_path / name).load()
    with pytest.raises(ImageError, match=r"a drawing or a document.* export it as PNG"):
        read_picture(tmp_path / name)


def box(brand: bytes) -> bytes:
    return struct.pack(">I4s4s4x4s", 20, b"ftyp", brand, brand)


@pytest.mark.parametrize(
    "content, words",
    [
        (box(b"crx "), "raw file; develop it"),
        (b"8BPS\0\1" + b"\0" * 40, "layers; export it"),
        (b"gimp xcf v011\0", "layers"),
        (b"<?xml version='1.0'?><svg/>", "drawing"),
        (b"v/1\x01\2\0\0\0", "tone-map"),
        (b"#?RADIANCE\n", "tone-map"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"no picture", "no image, or a damaged one"),
        (b"", "it is empty"),
    ],
)
def test_a_file_of_another_kind_is_named_whatever_its_suffix(content, words, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=rf"photo\.jpg: .*{words}"):
        read_picture(tmp_path / "photo.jpg")


@pytest.mark.parametrize(
    "plugin, package, content, suffix",
    [
        ("pillow_heif", "pillow-heif", box(b"heic"), ".heic"),
        ("pillow_jxl", "pillow-jxl-plugin", b"\xff\x0a\0\0", ".jxl"),
    ],
)
def test_without_its_package_a_kind_is_named_with_it(
    plugin, package, content, suffix, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, plugin, None)  # as if it were not installed
    monkeypatch.setattr(kinds, "find_spec", lambda name: None)
    for cached in (kinds._suffixes, kinds._installed):
        cached.cache_clear()
    for name in (f"a{suffix}", "b.jpg"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"pip install {package}"):
            read_picture(tmp_path / name)
    found = find_images(tmp_path)
    assert found.images == [tmp_path / "b.jpg"]
    (other,) = found.others
    assert other.startswith(f"{tmp_path / 'a'}{suffix}: ") and package in other
    for cached in (kinds._suffixes, kinds._installed):
        cached.cache_clear()


def test_heic_is_read_where_its_package_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    heif = pillow_heif.from_pillow(Image.fromarray(TRUE))
    heif.save(tmp_path / "x.heic", quality=-1, chroma=444)  # lossless but for YCbCr
    (tmp_path / "iphone.jpg").write_bytes((tmp_path / "x.heic").read_bytes())
    assert len(find_images(tmp_path).images) == 2
    for name in ("x.heic", "iphone.jpg"):
        assert np.abs(read_picture(tmp_path / name).rgb.astype(int) - TRUE).max() <= 3


def test_the_first_of_several_pictures_of_a_heic_is_told(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    heif = pillow_heif.from_pillow(Image.fromarray(TRUE))
    heif.add_from_pillow(Image.fromarray(TRUE[::-1]))
    heif.save(tmp_path / "x.heic", quality=-1, chroma=444)
    picture = read_picture(tmp_path / "x.heic")
    assert np.abs(picture.rgb.astype(int) - TRUE).max() <= 3
    assert picture.remark == "the first of 2 frames"


def test_a_damaged_heic_is_not_sent_to_a_package_that_is_there(tmp_path):
    pytest.importorskip("pillow_heif")
    (tmp_path / "x.heic").write_bytes(box(b"heic") + b"\0" * 400)
    with pytest.raises(ImageError, match=r"x\.heic: it is (no image, or a damaged one|damaged)"):
        read_picture(tmp_path / "x.heic")


def test_a_raw_file_gives_no_preview(tmp_path):
    preview = Image.fromarray(TRUE)
    cases = {
        "x.nef": ({}, RAW),
        "x.tif": ({0xC612: bytes((1, 4, 0, 0))}, RAW),
        "y.tif": ({254: 1}, None),
        "z.tif": ({254: 0}, None),
    }
    for name, (tags, reason) in cases.items():
        preview.save(tmp_path / name, "TIFF", tiffinfo=tags)
        if reason:
            with pytest.raises(ImageError, match="raw file; develop it"):
                read_picture(tmp_path / name)
        else:
            assert np.array_equal(read_picture(tmp_path / name).rgb, TRUE)
    assert find_images(tmp_path).others == [f"{tmp_path / 'x.nef'}: {RAW}"]


def test_a_picture_with_a_wrong_suffix_is_an_image_of_its_folder(tmp_path):
    for name in ("a.heic", "b.CR2", "c.psd", "d"):
        (tmp_path / name).write_bytes(encoded("PNG"))
    found = find_images(tmp_path)
    assert [path.name for path in found.images] == ["a.heic", "b.CR2", "c.psd", "d"]
    assert all(np.array_equal(read_picture(path).rgb, TRUE) for path in found.images)


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg_large",
        "a.pjpeg",
        "a.img",
        "a.jpeg~",
        "a.png.bak",
        "a.orig",
        "v1.2",
        "a.JPG_",
        "a.dat",
    ],
)
@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "JPEG2000", "QOI", "AVIF"]
)
def test_a_suffix_that_no_image_has_hides_none(format, name, tmp_path):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    (tmp_path / name).write_bytes(encoded(format))
    assert find_images(tmp_path) == kinds.Found([tmp_path / name], [])


@pytest.mark.parametrize("suffix", ["", ".img", ".jpg_large", ".png"])
@pytest.mark.parametrize(
    "content, words",
    [
        (b"II\xbc\x01" + bytes(60), "JPEG XR is not read; save it as"),
        (b"P7\nWIDTH 1\n", "PAM is not read"),
        (b"SDPX" + bytes(60), "DPX or Cineon is not read"),
        (b"BPG\xfb" + bytes(60), "BPG is not read"),
        (b"8BPS\0\1" + bytes(40), "layers; export it"),
        (b"PF\n1 1\n-1.0\n" + bytes(12), "tone-map"),
        (box(b"crx "), "raw file; develop it"),
    ],
)
def test_what_is_not_read_is_named_whatever_its_suffix(content, words, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    found = find_images(tmp_path)
    assert len(found.others) == (suffix != ".png") and all(words in line for line in found.others)
    with pytest.raises(ImageError, match=words):
        read_picture(path)


@pytest.mark.parametrize("name", ["x", "x.img"])
def test_heic_and_jpeg_xl_are_named_without_their_suffix(name, tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "find_spec", lambda name: None)
    monkeypatch.setattr(kinds, "_installed", lambda module: False)
    for content, words in ((box(b"heic"), "pillow-heif"), (b"\xff\x0a\0\0", "pillow-jxl-plugin")):
        (tmp_path / name).write_bytes(content)
        (line,) = find_images(tmp_path).others
        assert f"pip install {words}" in line


@pytest.mark.parametrize("suffix, kind", [(".jpg", 0xC1), (".jls", 0xF7)])
def test_kinds_of_jpeg_that_are_not_read_are_named(suffix, kind, tmp_path):
    frame = struct.pack(">BBHBHHBBBB", 0xFF, kind, 11, 12, 8, 8, 1, 1, 0x11, 0)
    (tmp_path / f"x{suffix}").write_bytes(b"\xff\xd8" + frame + b"\xff\xd9")
    with pytest.raises(
        ImageError, match=r"its kind of JPEG .* is not read, or it is damaged; save"
    ):
        read_picture(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("jpeg, turned", [(False, 1), (True, 6)])
def test_jpeg_xl_is_turned_once(jpeg, turned):
    """By its decoder (libjxl's format overview), but for a JPEG that it holds unchanged."""
    file = SimpleNamespace(format="JXL", jpeg=jpeg, getexif=lambda: {0x112: 6})
    assert Opened(file).orientation() == turned


def test_a_kind_that_pillow_does_not_know_is_not_called_damaged(tmp_path):
    """A texture as texconv writes it: BC3_UNORM_SRGB, 78 in DirectX's list."""
    Image.new("RGBA", (8, 8)).save(tmp_path / "x.dds", pixel_format="BC3")
    content = bytearray((tmp_path / "x.dds").read_bytes())
    assert content[84:88] == b"DX10"
    content[128:132] = struct.pack("<I", 78)
    (tmp_path / "x.dds").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.dds: nothing here reads its kind \(.*78.*PNG"):
        read_picture(tmp_path / "x.dds")


def test_light_in_half_floats_is_refused(tmp_path):
    """BC6H_UF16 is 95 in DirectX's list; a block has 16 bytes, as BC3's."""
    Image.new("RGBA", (8, 8)).save(tmp_path / "x.dds", pixel_format="BC3")
    content = bytearray((tmp_path / "x.dds").read_bytes())
    content[128:132] = struct.pack("<I", 95)
    (tmp_path / "x.dds").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.dds: it holds light as floating-point"):
        read_picture(tmp_path / "x.dds")


@pytest.mark.parametrize(
    "layout, numbers, count",
    [
        ("DXT1", {}, 1),
        ("DXT1", {112: 0xFE00}, 6),  # a cube map with all its faces
        ("DXT1", {112: 0x200000, 24: 5}, 5),  # a volume of five slices
        ("BC3", {}, 1),
        ("BC3", {136: 4}, 6),
        ("BC3", {136: 4, 140: 2}, 12),
        ("BC3", {140: 7}, 7),
        ("BC3", {132: 4, 24: 3}, 3),
    ],
)
def test_of_a_texture_with_several_pictures_the_first_is_read_and_told(
    layout, numbers, count, tmp_path
):
    """The header's places: Microsoft's DDS_HEADER and DDS_HEADER_DXT10, behind the magic number."""
    Image.new("RGBA", (8, 8), (9, 8, 7, 255)).save(tmp_path / "x.dds", pixel_format=layout)
    content = bytearray((tmp_path / "x.dds").read_bytes())
    assert (content[84:88] == b"DX10") == (layout == "BC3")
    for place, number in numbers.items():
        content[place : place + 4] = struct.pack("<I", number)
    (tmp_path / "x.dds").write_bytes(content)
    picture = read_picture(tmp_path / "x.dds")
    assert picture.remark == (f"the first of {count} frames" if count > 1 else "")


@pytest.mark.parametrize("run_lengths", [False, True])
@pytest.mark.parametrize("bits, alpha, kept", [(0, 0, False), (8, 0, True), (0, 9, True)])
def test_a_fourth_byte_of_tga_that_nobody_wrote_hides_nothing(
    bits, alpha, kept, run_lengths, tmp_path
):
    rgba = np.dstack([TRUE, np.full(TRUE.shape[:2], alpha, np.uint8)])
    rle = "tga_rle" if run_lengths else None
    Image.fromarray(rgba).save(tmp_path / "x.tga", compression=rle)
    content = bytearray((tmp_path / "x.tga").read_bytes())
    content[17] = content[17] & 0xF0 | bits
    (tmp_path / "x.tga").write_bytes(content)
    picture = read_picture(tmp_path / "x.tga")
    assert np.array_equal(picture.rgb, TRUE)
    assert (picture.alpha is not None) == kept


def test_a_palette_of_tga_whose_fourth_bytes_nobody_wrote_hides_nothing(tmp_path):
    """A palette of 32 bits a colour, of which Pillow writes none: Truevision's header by hand."""
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 2, 32, 0, 0, 2, 1, 8, 0x20)
    colours = bytes([3, 2, 1, 0, 6, 5, 4, 0])  # BGRA
    (tmp_path / "x.tga").write_bytes(header + colours + bytes([1, 0]))
    if int(PIL.__version__.split(".")[0]) < 13:  # which Pillow cannot read
        with pytest.raises(ImageError, match="nothing here reads its kind"):
            read_picture(tmp_path / "x.tga")
        return
    picture = read_picture(tmp_path / "x.tga")
    assert picture.alpha is None and picture.rgb.tolist() == [[[4, 5, 6], [1, 2, 3]]]


def test_other_files_and_unfinished_ones_are_passed_over(tmp_path):
    for name, content in {
        **{"a.txt": b"BM is how a text may begin", "a.py": b"GIF = 89", "a.json": b"{}"},
        **{"a.html": b"<!doctype html>", "a.xml": b"<?xml version='1.0'?>", "a.bin": bytes(64)},
        **{"a.md": b"version https://git-lfs.github.com/spec/v1\n", "a.pt": b"PK\3\4", "e.x": b""},
        **{"a.part": encoded("PNG"), "b.jpg.crdownload": encoded("JPEG"), "c.tmp": encoded("PNG")},
    }.items():
        (tmp_path / name).write_bytes(content)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.img")
        (tmp_path / "gone.img").symlink_to("nowhere")
    assert find_images(tmp_path) == kinds.Found([], [])


def test_results_of_files_with_other_suffixes_keep_their_whole_names(tmp_path):
    names = ("a.jpg", "a.jpg_large", "a.img", "a.png.bak", "a.jpeg~")
    for name in names:
        (tmp_path / name).write_bytes(encoded("JPEG"))
    jobs, others, _ = plan([tmp_path], tmp_path / "out")
    targets = {job.source.name: job.target.name for job in jobs}
    assert others == [] and targets.pop("a.jpg") == "a.png"
    assert targets == {name: f"{name}.png" for name in names[1:]}


# -------------------------------------------------------------------------------- what is no file


@contextmanager
def nobody():
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's kinds of files")
def test_pipes_sockets_links_and_locked_folders_are_named(tmp_path, monkeypatch):
    folder = tmp_path / "p"
    (folder / "locked").mkdir(parents=True)
    (folder / "good.png").write_bytes(encoded("PNG"))
    (folder / "notes.txt").write_text("no image")
    (folder / "LICENSE").write_text("no image")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe")  # looks like no image
    (folder / "link.jpg").symlink_to("gone.jpg")
    (folder / "disk").symlink_to("/not/mounted")
    monkeypatch.chdir(folder)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    (folder / "locked").chmod(0)
    for above in (folder, *list(folder.parents)[:-2]):
        above.chmod(stat.S_IMODE(above.stat().st_mode) | 0o555)
    try:
        with nobody():
            found = find_images(folder)
    finally:
        (folder / "locked").chmod(0o755)
    assert found.images == [folder / "good.png"]
    assert {line.replace(f"{folder}{os.sep}", "") for line in found.others} == {
        "pipe.png: a pipe, not a file",
        "socket.png: a socket, not a file",
        "disk, link.jpg: a link that leads nowhere",
        "locked: the folder may not be read (Permission denied)",
    }
    for name in ("pipe.png", "pipe", "socket.png"):
        with pytest.raises(ImageError, match=rf"{name}: it is a (pipe|socket), not a file"):
            read_picture(folder / name)
    with pytest.raises(ImageError, match=r"device, not a file"):
        read_picture("/dev/zero")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "secret.png").write_bytes(encoded("PNG"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    assert find_images(tmp_path).images == []
    assert "secret.png: it may not be read" in find_images(tmp_path).others[0]


def test_many_files_of_a_kind_are_one_line(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.CR2").write_bytes(b"II*\0\x10\0\0\0CR\2\0")
        (tmp_path / f"{i:02}.jpg").write_bytes(encoded("JPEG"))
    found = find_images(tmp_path)
    assert len(found.images) == 30
    (line,) = found.others
    assert "00.CR2" in line and "02.CR2 and 27 others: " in line and line.endswith(RAW)


def test_a_pack_is_no_image_whatever_its_first_pixels_are(tmp_path):
    for name in ("esrgan-packed-x4-0123.bin", "other.bin"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff" + bytes(60))
    found = find_images(tmp_path)
    assert [path.name for path in found.images] == ["other.bin"] and not found.others


def test_the_remedy_names_the_package():
    assert "pip install pillow-heif" in HEIF and NOT_READ[".hif"] == HEIF


# ------------------------------------------------------------------------------------- large files


def test_more_pixels_than_pillows_limit_are_read_without_a_warning(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    for name in ("x.png", "x.jpg", "x.tif", "x.bmp"):  # 1024 pixels: beyond twice the limit
        Image.fromarray(TRUE).save(tmp_path / name)
        assert read_picture(tmp_path / name).rgb.shape == TRUE.shape
    warned = [warning.category for warning in recwarn.list]
    assert Image.MAX_IMAGE_PIXELS == 300 and Image.DecompressionBombWarning not in warned


def test_more_pixels_than_memory_holds_are_refused_before_they_are_decoded(tmp_path):
    header = struct.pack(">IIBBBBB", 2**20, 2**20, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    Path(tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(ImageError, match=r"bomb.png: 1048576x1048576 pixels take .* GiB"):
        read_picture(tmp_path / "bomb.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_an_avif_that_this_pillow_has_no_codec_for_is_named(tmp_path, monkeypatch):
    """Its plugin is there all the same, as in the wheels of Pillow 11.2."""
    (tmp_path / "x.avif").write_bytes(b"\0\0\0\x1cftypavif" + bytes(40))
    monkeypatch.setattr(features, "check", lambda name: False)
    kinds._formats.cache_clear()
    try:
        with pytest.raises(ImageError, match=r"AVIF is read by Pillow 11\.3 and newer"):
            read_picture(tmp_path / "x.avif")
    finally:
        kinds._formats.cache_clear()
