"""Metadata in and out of every type of file, as Pillow and Exiv2 read it."""

import io
import itertools
import os
import struct
import sys
import zlib
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, IptcImagePlugin, PngImagePlugin
from programs import load_program

from images.exif import Entry, Exif, read_exif
from images.files import Picture, Sequence, not_held, read_picture, write_picture
from images.frames import FRAMES
from images.metadata import Metadata, read_text
from images.xmp import mended_xmp
from upscaling.arguments import quality
from upscaling.inputs import UsageError
from upscaling.jobs import Job
from upscaling.saving import refuse_quality, save_result, summary, without_metadata

PACKET = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">\
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" \
xmlns:t="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" \
xmlns:dc="http://purl.org/dc/elements/1.1/" t:Orientation="6" exif:PixelXDimension='24'>\
<exif:PixelYDimension>16</exif:PixelYDimension>\
<dc:creator><rdf:Seq><rdf:li>Ada Löwe</rdf:li></rdf:Seq></dc:creator>\
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""
HEADLINE = b"\x1c\x02\x69\0\x04News"  # record 2, 105: IPTC's headline
IPTC = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(HEADLINE)) + HEADLINE + b"\0"
TURNED, WIDTH, HEIGHT = 0x0112, 0x0100, 0x0101
KINDS = ("jpg", "png", "webp", "tif")
PHOTO = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


def camera(order="<"):
    """A camera's EXIF data, lying on its side, with a thumbnail, as Pillow writes it."""
    exif = Image.Exif()
    exif.endian = order
    exif[TURNED], exif[WIDTH], exif[HEIGHT] = 6, 24, 16
    exif[0x010F], exif[0x8298], exif[0x0132] = "ACME", "(c) Ada", "2020:01:02 03:04:05"
    exif[0x011A], exif[0x011B], exif[0x0128] = 300.0, 150.0, 2
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    inner[0x9003], inner[0x8827], inner[0xA002], inner[0xA003] = "2020:01:02 03:04:05", 100, 24, 16
    inner[0x829A], inner[0x9214], inner[0x927C] = 1 / 250, (12, 8), bytes(range(64))
    inner[ExifTags.IFD.Interop] = {1: "R98", 0x1001: 24, 0x1002: 16}
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[1], gps[2] = "N", (48.0, 12.0, 30.5)
    block = exif.tobytes()[6:]
    # Pillow writes no second directory, of the thumbnail: it goes behind.
    thumbnail = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(thumbnail, "JPEG")
    first = 8 + 2 + 12 * struct.unpack_from(order + "H", block, 8)[0]
    at = len(block)
    second = struct.pack(order + "H", 2)
    for tag, number in ((0x201, at + 30), (0x202, len(thumbnail.getvalue()))):
        second += struct.pack(order + "HHII", tag, 4, 1, number)
    pointer = struct.pack(order + "I", at)
    return block[:first] + pointer + block[first + 4 :] + second + bytes(4) + thumbnail.getvalue()


def photograph(path, block, deep=False):
    """PHOTO with all that its type holds, written by Pillow and, 16 bits, by tifffile."""
    options = dict(exif=b"Exif\0\0" + block, xmp=PACKET.encode(), lossless=True)
    if path.suffix in (".jpg", ".png"):
        options |= dict(dpi=(300, 150))
    if path.suffix == ".png":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", PACKET)
        texts.add_text("parameters", "a cat, Steps: 20\nSämpler", zip=True)
        texts.add_text("Title", "Täst")
        options["pnginfo"] = texts
    if path.suffix == ".jpg":
        options["comment"] = "a cömment".encode()
    if path.suffix == ".tif":
        return _tiff(path, block, deep)
    Image.fromarray(PHOTO).save(path, **options)
    if path.suffix == ".jpg":
        content = path.read_bytes()
        resources = b"Photoshop 3.0\0" + IPTC
        segment = b"\xff\xed" + struct.pack(">H", len(resources) + 2) + resources
        path.write_bytes(content[:20] + segment + content[20:])


def _tiff(path, block, deep):
    """By Pillow the EXIF data; its XMP and IPTC tags beside that."""
    exif = Image.Exif()
    exif.load(block)
    exif.get_ifd(ExifTags.IFD.GPSInfo)  # or Pillow would write its old place,
    del exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop]  # as it does this one's
    del exif[WIDTH], exif[HEIGHT]
    exif[0x02BC], exif[0x83BB] = PACKET.encode(), HEADLINE
    Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257 if deep else PHOTO).save(path, exif=exif)


def doubled(path):
    """A result of twice the size."""
    picture = read_picture(path)
    alpha = None if picture.alpha is None else picture.alpha.repeat(2, 0).repeat(2, 1)
    return replace(picture, rgb=picture.rgb.repeat(2, 0).repeat(2, 1), alpha=alpha)


def facts(exif):
    """By name, as Pillow reads them, whatever their order."""
    found = {}
    for place in (None, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop):
        tags = {}
        with suppress(KeyError):  # of Pillow before 13, where there is none
            tags = dict(exif) if place is None else exif.get_ifd(place)
        for tag, value in tags.items():
            if tag not in (0x8769, 0x8825, 0xA005) and tag not in (0x02BC, 0x83BB, 0x8649):
                found[place, tag] = value
    return found


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("source, target", list(itertools.product(KINDS, KINDS)))
def test_all_of_it_goes_from_every_type_into_every_type(source, target, order, tmp_path):
    block = camera(order)
    photograph(tmp_path / f"in.{source}", block)
    picture = doubled(tmp_path / f"in.{source}")
    assert picture.rgb.shape == (48, 32, 3) and picture.remark == ""
    write_picture(picture, tmp_path / f"out.{target}")
    given, sides = Image.Exif(), ExifTags.IFD
    given.load(block)
    expected = facts(given)
    # Upright, of its new size, across and along exchanged; the subject's place is of the old one.
    expected |= {(None, TURNED): 1, (None, WIDTH): 32, (None, HEIGHT): 48}
    expected |= {(sides.Exif, 0xA002): 32, (sides.Exif, 0xA003): 48}
    expected |= {(sides.Interop, 0x1001): 32, (sides.Interop, 0x1002): 48}
    expected |= {(None, 0x011A): 150, (None, 0x011B): 300}
    del expected[sides.Exif, 0x9214]
    if source == "tif":
        expected = {key: value for key, value in expected.items() if key[0] != sides.Interop}
    with Image.open(tmp_path / f"out.{target}") as result:
        found = facts(result.getexif())
        assert b"\xff\xd8\xff" not in result.info.get("exif", b"")  # no thumbnail
        xmp = result.info.get("xmp") or result.getexif().get(0x02BC)
        dpi, comment = result.info.get("dpi"), result.info.get("comment")
        iptc = IptcImagePlugin.getiptcinfo(result)
        texts = getattr(result, "text", {})
    if target == "tif":  # it has tags of its own
        structure = [key for key in found if key not in expected and key[0] is None]
        for key in (*structure, (None, TURNED), (None, WIDTH), (None, HEIGHT)):
            found.pop(key, None)
    if "tif" in (source, target):
        for key in ((None, TURNED), (None, WIDTH), (None, HEIGHT)):
            expected.pop(key)
    if (comment_tag := found.pop((sides.Exif, 0x9286), None)) is not None:
        assert comment_tag.startswith(b"UNICODE\0")
        words = {"jpg": "a cömment", "png": "a cat, Steps: 20\nSämpler"}[source]
        assert comment_tag[8:].decode("utf-16-be") == words
    assert found == expected
    assert (b't:Orientation="1"' in xmp) and (b"exif:PixelXDimension='32'" in xmp)
    assert b"<exif:PixelYDimension>48</" in xmp and "Ada Löwe".encode() in xmp
    assert dpi is None if target == "webp" else dpi == pytest.approx((150, 300), abs=0.02)
    if source == "jpg":
        assert target != "jpg" or comment.decode() == "a cömment"
        assert target != "png" or texts["Comment"] == "a cömment"
    if source == "png" and target == "png":
        assert texts["parameters"] == "a cat, Steps: 20\nSämpler" and texts["Title"] == "Täst"
    if source in ("jpg", "tif") and target in ("jpg", "tif"):
        assert iptc[2, 105] == b"News"
    if source in ("jpg", "tif") and target == "png":
        name, length, *digits = texts["Raw profile type iptc"].split()
        assert (name, int(length)) == ("iptc", len(IPTC)) and bytes.fromhex("".join(digits)) == IPTC
    lost = [line.partition(" cannot hold ")[2] for line in not_held(picture, f"x.{target}")]
    assert lost == [
        *(["IPTC data"] if source in ("jpg", "tif") and target == "webp" else []),
        *(["PNG's text"] if source == "png" and target != "png" else []),
    ]


@pytest.mark.parametrize("target", KINDS)
def test_exiv2_reads_the_same(target, tmp_path):
    exiv2 = pytest.importorskip("pyexiv2")
    exiv2.set_log_level(4)
    photograph(tmp_path / "in.jpg", camera(">"))
    write_picture(doubled(tmp_path / "in.jpg"), tmp_path / f"out.{target}")
    with exiv2.Image(str(tmp_path / f"out.{target}")) as file:
        exif, xmp, iptc = file.read_exif(), file.read_xmp(), file.read_iptc()
    assert exif["Exif.Photo.DateTimeOriginal"] == "2020:01:02 03:04:05"
    assert exif["Exif.GPSInfo.GPSLatitude"] == "48/1 12/1 61/2"
    assert exif["Exif.Photo.PixelXDimension"] == "32" and exif["Exif.Image.Copyright"] == "(c) Ada"
    assert exif["Exif.Photo.MakerNote"] == " ".join(map(str, range(64)))
    assert xmp["Xmp.tiff.Orientation"] == "1" and xmp["Xmp.exif.PixelYDimension"] == "48"
    assert xmp["Xmp.dc.creator"] == ["Ada Löwe"]
    assert target == "webp" or iptc["Iptc.Application2.Headline"] == "News"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_have_it_too(suffix, channels, tmp_path):
    photograph(tmp_path / "in.jpg", camera())
    metadata = read_picture(tmp_path / "in.jpg").metadata
    deep = np.random.default_rng(1).integers(0, 2**16, (10, 12, 4), np.uint16)
    rgb = np.repeat(deep[..., :1], 3, -1) if channels < 3 else deep[..., :3]
    alpha = deep[..., 3] if channels in (2, 4) else None
    path = tmp_path / f"out{suffix}"
    write_picture(Picture(rgb, alpha, channels < 3, metadata=metadata), path)
    if suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            tags = file.pages.first.tags
            assert tags[0x8769].value["PixelXDimension"] == 12 and tags[0x8298].value == "(c) Ada"
    else:
        with Image.open(path) as file:
            assert file.getexif().get_ifd(ExifTags.IFD.Exif)[0xA002] == 12
            assert file.getexif()[0x8298] == "(c) Ada"
    read = read_picture(path)
    assert np.array_equal(read.rgb, rgb) and read.metadata.dpi == (150, 300)
    assert alpha is None or np.array_equal(read.alpha, alpha)


def test_a_bigtiff_has_it_too(tmp_path, monkeypatch):
    monkeypatch.setattr("images.pages.ROOM", 0)
    photograph(tmp_path / "in.jpg", camera(">"))
    write_picture(read_picture(tmp_path / "in.jpg"), tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_bigtiff
        tags = file.pages.first.tags
        assert tags[0x8769].value["ISOSpeedRatings"] == 100 and tags[0x010F].value == "ACME"
        assert tags[0x8825].value["GPSLatitude"] == (48, 1, 12, 1, 61, 2)
    write_picture(read_picture(tmp_path / "out.tif"), tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as file:
        assert file.getexif().get_ifd(ExifTags.IFD.GPSInfo)[2] == (48, 12, 30.5)


def test_what_else_a_tiff_says_is_neither_read_nor_told(tmp_path):
    extra = [(65000, 2, None, "of a program", False), (42112, 2, None, "<GDAL/>", False)]
    tifffile.imwrite(tmp_path / "in.tif", PHOTO, photometric="rgb", metadata=None, extratags=extra)
    picture = read_picture(tmp_path / "in.tif")
    assert picture.remark == "" and not picture.metadata.exif.tags.keys() & {65000, 42112}


def test_the_file_of_a_scanner_is_read_whatever_its_bits(tmp_path):
    photograph(tmp_path / "in.tif", camera(), deep=True)
    picture = read_picture(tmp_path / "in.tif")
    assert picture.rgb.dtype == np.uint16
    write_picture(picture, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as file:
        assert file.getexif()[0x010F] == "ACME"
        assert file.getexif().get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"


# ---------------------------------------------------------------------------------- between types


def png_with(path, *texts):
    Image.fromarray(PHOTO).save(path)
    content = path.read_bytes()
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in texts
    )
    path.write_bytes(content[:33] + chunks + content[33:])
    return read_picture(path)


@pytest.mark.parametrize("target", ["jpg", "webp", "tif"])
@pytest.mark.parametrize(
    "kind, content",
    [
        (b"tEXt", b"parameters\0a c\xe4t"),
        (b"zTXt", b"parameters\0\0" + zlib.compress(b"a c\xe4t")),
        (b"iTXt", b"parameters\0\0\0en\0P\xc3\xa4\0" + "a cät".encode()),
        (b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress("a cät".encode())),
    ],
)
def test_an_image_generators_parameters_go_where_its_programs_look(kind, content, target, tmp_path):
    picture = png_with(
        tmp_path / "in.png", (kind, content), (b"tEXt", b"Author\0Ada"), (b"tEXt", b"workflow\0{}")
    )
    assert not_held(picture, f"x.{target}")[0].endswith("cannot hold PNG's text")  # the workflow
    write_picture(picture, tmp_path / f"out.{target}")
    with Image.open(tmp_path / f"out.{target}") as file:
        comment = file.getexif().get_ifd(ExifTags.IFD.Exif)[0x9286]
        assert comment == b"UNICODE\0" + "a cät".encode("utf-16-be")
        assert file.getexif()[0x013B] == "Ada"


def test_texts_of_png_come_out_byte_for_byte(tmp_path):
    texts = [
        (b"tEXt", b"parameters\0a cat"),
        (b"tEXt", b"parameters\0a dog"),
        (b"zTXt", b"workflow\0\0" + zlib.compress(b"{}", 1)),
        (b"iTXt", b"Title\0\0\0de\0Titel\0" + "Täst".encode()),
    ]
    write_picture(png_with(tmp_path / "in.png", *texts), tmp_path / "out.png")
    content = (tmp_path / "out.png").read_bytes()
    places = [content.index(data) for _, data in texts]
    assert places == sorted(places) and places[-1] < content.index(b"IDAT")


def test_what_imagemagick_calls_a_raw_profile_is_read(tmp_path):
    def profile(name, data):
        text = f"\n{name}\n{len(data):8}\n" + data.hex()
        return b"zTXt", f"Raw profile type {name}".encode() + b"\0\0" + zlib.compress(text.encode())

    exif = b"Exif\0\0" + camera()
    for name, iptc in (("exif", IPTC), ("APP1", HEADLINE)):
        texts = (profile(name, exif), profile("iptc", iptc), profile("xmp", PACKET.encode()))
        picture = png_with(tmp_path / "in.png", *texts)
        assert picture.rgb.shape == (24, 16, 3)
        write_picture(picture, tmp_path / "out.jpg")
        with Image.open(tmp_path / "out.jpg") as file:
            assert file.getexif()[0x010F] == "ACME" and "Ada Löwe".encode() in file.info["xmp"]
            assert IptcImagePlugin.getiptcinfo(file)[2, 105] == b"News"


def test_a_long_text_takes_no_exif_data_with_it(tmp_path):
    """An image generator's parameters, beside what the camera said."""
    texts = ((b"tEXt", b"parameters\0" + b"x" * 33_000), (b"tEXt", b"Author\0Ada"))
    picture = png_with(tmp_path / "in.png", (b"eXIf", camera()), *texts)
    assert not_held(picture, "x.jpg") == ["JPEG cannot hold PNG's text"]
    write_picture(picture, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as file:
        assert file.getexif()[0x010F] == "ACME" and file.getexif()[0x013B] == "Ada"


def test_fractions_of_exif_have_their_count_in_a_tiff(tmp_path):
    """White point and primaries, which cameras name for Adobe RGB; a negative one."""
    white, shift = (313, 1000, 329, 1000), (-1, 3)
    tags = {
        0x013E: Entry(5, struct.pack("<4I", *white)),
        0xC65A: Entry(10, struct.pack("<2i", *shift)),
    }
    picture = Picture(PHOTO, metadata=Metadata(Exif("<", tags)))
    write_picture(picture, tmp_path / "x.tif")
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        found = file.pages.first.tags
        assert (found[0x013E].count, found[0x013E].value) == (2, white)
        assert (found[0xC65A].count, found[0xC65A].value) == (1, shift)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_no_file_names_a_resolution_that_nobody_named(suffix, tmp_path):
    write_picture(Picture(PHOTO), tmp_path / f"x{suffix}")
    assert read_picture(tmp_path / f"x{suffix}").metadata.dpi is None


def test_a_gif_has_comments_and_xmp(tmp_path):
    Image.fromarray(PHOTO).quantize().save(tmp_path / "in.gif", comment=b"c" * 300)
    content = (tmp_path / "in.gif").read_bytes()
    trailer = b"\1" + bytes(range(255, -1, -1)) + b"\0"
    behind = b"!\xff\x0bXMP DataXMP" + PACKET.encode() + trailer + b"!\xfe\4last\0"
    (tmp_path / "in.gif").write_bytes(content[:-1] + behind + b";")
    picture = read_picture(tmp_path / "in.gif")
    assert picture.metadata.comments == (b"c" * 300, b"last")
    write_picture(picture, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as file:
        comments = [content for name, content in file.applist if name == "COM"]
        assert comments == [b"c" * 300, b"last"] and "Ada Löwe".encode() in file.info["xmp"]


@pytest.mark.parametrize("frames", [1, 2])
def test_a_gif_is_given_comments_and_xmp(frames, tmp_path):
    """Written out, as Pillow reads of a GIF only what comes before its first picture."""
    metadata = Metadata(xmp=PACKET.encode(), comments=(b"c" * 300,))
    picture = Picture(PHOTO, metadata=metadata, duration=100)
    if frames > 1:
        rest = [Picture(PHOTO[::-1], duration=100)]
        picture.sequence = Sequence(FRAMES, frames, 0, lambda: iter(rest))
    assert not_held(picture, "x.gif") == []
    write_picture(picture, tmp_path / "out.gif")
    comment = b"!\xfe" + b"\xff" + b"c" * 255 + b"\x2d" + b"c" * 45 + b"\0"
    packet = PACKET.replace('Orientation="6"', 'Orientation="1"').encode()
    trailer = b"\1" + bytes(range(255, -1, -1)) + b"\0"
    xmp = b"!\xff\x0bXMP DataXMP" + packet + trailer
    assert (tmp_path / "out.gif").read_bytes().count(comment + xmp) == 1
    with Image.open(tmp_path / "out.gif") as file:
        assert file.n_frames == frames
        assert frames == 1 or file.info["comment"] == b"c" * 300


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
def test_a_resolution_is_in_every_type_that_has_a_place_for_it(suffix, tmp_path):
    picture = Picture(PHOTO, metadata=Metadata(dpi=(300, 150)))
    write_picture(picture, tmp_path / f"out{suffix}")
    with Image.open(tmp_path / f"out{suffix}") as file:
        assert file.info["dpi"] == pytest.approx((300, 150), abs=0.02)


def test_a_jpeg_that_names_no_resolution_gets_none(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "in.jpg", exif=Image.Exif())
    assert read_picture(tmp_path / "in.jpg").metadata.dpi is None
    exif = Image.Exif()
    exif[0x010F] = "ACME"  # without JFIF, Pillow says 72
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "JPEG", exif=exif)
    content = buffer.getvalue()
    (tmp_path / "in.jpg").write_bytes(content[:2] + content[20:])
    assert read_picture(tmp_path / "in.jpg").metadata.dpi is None


@pytest.mark.parametrize("target", ["png", "jpg", "tif", "webp"])
def test_a_description_of_how_a_program_lays_out_pixels_is_not_the_pictures(target, tmp_path):
    for imagej in (True, False):
        tifffile.imwrite(tmp_path / "in.tif", PHOTO[..., 0], imagej=imagej)  # else as "shape"
        write_picture(read_picture(tmp_path / "in.tif"), tmp_path / f"out.{target}")
        with Image.open(tmp_path / f"out.{target}") as file:
            assert 0x010E not in file.getexif()


def test_a_makers_note_stays_where_it_was():
    """Its offsets may count from the start of all EXIF data."""
    block = camera()
    at = block.index(bytes(range(64)))
    exif, damaged = read_exif(block)
    assert damaged == 0
    for changed in (exif, exif.of_size(1, 1), exif.with_text(0x010E, "x" * 500)):
        assert changed.block()[at : at + 64] == bytes(range(64))
        again, damaged = read_exif(changed.block())
        assert damaged == 0 and again.tags.keys() == changed.tags.keys()


# --------------------------------------------------------------------------------------- damage


def test_damaged_exif_never_stops_a_picture(tmp_path):
    """Every byte of it wrong in turn, every length cut: the picture, and a remark or the data."""
    path, block = tmp_path / "in.png", camera()
    rng = np.random.default_rng(0)
    broken = [block[:i] for i in range(0, len(block), 29)]
    for _ in range(60):
        damaged = bytearray(block)
        for at in rng.integers(0, min(400, len(block)), 3):
            damaged[at] = rng.integers(256)
        broken.append(bytes(damaged))
    silent = 0
    for data in broken:
        Image.fromarray(PHOTO).save(path, exif=b"Exif\0\0" + data)
        picture = read_picture(path)
        upright = sorted(picture.rgb.shape) == [3, 16, 24]
        assert upright and (picture.metadata.exif or picture.remark or not data), data
        silent += not picture.remark
        for target in KINDS:
            write_picture(picture, tmp_path / f"out.{target}")
            read = read_picture(tmp_path / f"out.{target}")  # what is written is sound
            assert read.rgb.shape == picture.rgb.shape and read.remark == "", data
    assert silent < len(broken)


@pytest.mark.parametrize("bits", [8, 16])
def test_damaged_exif_behind_the_pixels_never_stops_a_picture(bits, tmp_path):
    pixels = PHOTO[..., 0].astype(np.uint16) * 257 if bits == 16 else PHOTO
    Image.fromarray(pixels).save(tmp_path / "in.png")
    content = (tmp_path / "in.png").read_bytes()
    for block, remark in ((b"XX" * 20, "its EXIF data is damaged"), (camera(), "")):
        chunk = struct.pack(">I", len(block)) + b"eXIf" + block
        chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
        (tmp_path / "in.png").write_bytes(content[:-12] + chunk + content[-12:])
        picture = read_picture(tmp_path / "in.png")
        assert picture.rgb.shape == ((16, 24, 3) if remark else (24, 16, 3))
        assert picture.remark.startswith(remark) and bool(picture.metadata.exif) != bool(remark)


@pytest.mark.parametrize("order", "<>")
def test_a_damaged_tag_is_left_out_and_the_others_stay(order, tmp_path):
    block = bytearray(camera(order))
    at = next(
        i for i in range(10, 300, 12) if struct.unpack_from(order + "H", block, i)[0] == 0x010F
    )
    struct.pack_into(order + "I", block, at + 8, 2**31)  # of the make, which points nowhere
    Image.fromarray(PHOTO).save(tmp_path / "in.jpg", exif=b"Exif\0\0" + block)
    picture = read_picture(tmp_path / "in.jpg")
    assert picture.remark == "without a damaged tag of its metadata"
    write_picture(picture, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as file:
        assert 0x010F not in file.getexif() and file.getexif()[0x8298] == "(c) Ada"


def test_directories_that_point_at_each_other_end():
    words = (0x010E, 2, 2, 0x6161), (0x010F, 2, 2, 0x6161), (0x8769, 4, 1, 8), (0x8825, 4, 1, 8)
    tags = b"".join(struct.pack("<HHII", *numbers) for numbers in words)
    exif, damaged = read_exif(b"II*\0\x08\0\0\0\x04\0" + tags + bytes(4))
    assert damaged == 4 and sorted(exif.tags) == [0x010E, 0x010F, 0x8769, 0x8825]
    assert sorted(exif.tags[0x8769]) == [0x010E, 0x010F] and read_exif(exif.block())[1] == 0


def test_a_directory_that_is_none_is_one_damaged_tag():
    """Of random bytes some pass for entries."""
    block, noise = camera(), np.random.default_rng(0).integers(0, 256, 3000, np.uint8).tobytes()
    at = block.index(struct.pack("<HHI", 0x8769, 4, 1)) + 8
    broken = block[:at] + struct.pack("<I", len(block)) + block[at + 4 :] + b"\xc8\0" + noise
    exif, damaged = read_exif(broken)
    assert damaged == 1 and 0x8769 not in exif.tags and 0x8825 in exif.tags


def test_a_damaged_text_is_told_and_left_out(tmp_path):
    png_with(tmp_path / "in.png", (b"tEXt", b"Title\0one"), (b"tEXt", b"Author\0Ada"))
    content = (tmp_path / "in.png").read_bytes()
    (tmp_path / "in.png").write_bytes(content.replace(b"Title\0one", b"Title\0two"))
    picture = read_picture(tmp_path / "in.png")
    assert "its tEXt chunk is damaged and was left out" in picture.remark
    assert picture.metadata.texts == ((b"tEXt", b"Author\0Ada"),)
    assert read_text(b"zTXt", b"Title\0\0no zlib") == (b"Title", None)


def test_what_is_too_large_for_a_jpeg_is_left_out_and_told(tmp_path):
    exif = Exif("<", {0x010E: Entry(2, b"x" * 70_000)})
    large = Metadata(exif, b"x" * 70_000, IPTC, (72, 72), (b"c" * 70_000, b"d"))
    picture = Picture(PHOTO, metadata=large)
    assert not_held(picture, "x.jpg") == [
        f"JPEG cannot hold {words}" for words in ("EXIF data", "XMP data", "a comment")
    ]
    write_picture(picture, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as file:
        assert not file.getexif() and IptcImagePlugin.getiptcinfo(file)[2, 105] == b"News"
    write_picture(picture, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as file:
        assert file.getexif()[0x010E] == "x" * 70_000


# ------------------------------------------------------------------------------------------- XMP


@pytest.mark.parametrize(
    "given, expected",
    [
        (b'<a t:Orientation = "8">', b'<a t:Orientation = "1">'),
        (b"<t:Orientation>8</t:Orientation>", b"<t:Orientation>1</t:Orientation>"),
        (b"<t:ImageWidth a='b'>8</t:ImageWidth>", b"<t:ImageWidth a='b'>30</t:ImageWidth>"),
        (b'<a x:Orientation="8">', b'<a x:Orientation="8">'),  # of another namespace
        (b"<a/><m:Thumbnails><r:Alt>/9j</r:Alt></m:Thumbnails>", b"<a/>"),
        (b'<a g:MotionPhoto="1" g:MotionPhotoVersion="1" g:Other="2">', b'<a g:Other="2">'),
        (b"<a><g:MotionPhoto>1</g:MotionPhoto></a>", b"<a></a>"),
        (b'<a n:HasExtendedXMP="0123">', b"<a>"),
        (b"<c:Directory><r:Seq><r:li/></r:Seq></c:Directory><a/>", b"<a/>"),
        (b'<a h:Version="1.0" h:GainMapMax = "2">', b"<a>"),
    ],
)
def test_xmp_is_mended_wherever_it_speaks_of_pixels(given, expected):
    spaces = (
        b'xmlns:t="http://ns.adobe.com/tiff/1.0/" xmlns:m="http://ns.adobe.com/xap/1.0/" '
        b'xmlns:g="http://ns.google.com/photos/1.0/camera/" '
        b"xmlns:n='http://ns.adobe.com/xmp/note/' xmlns:x='http://other/' "
        b'xmlns:c="http://ns.google.com/photos/1.0/container/" '
        b'xmlns:h="http://ns.adobe.com/hdr-gain-map/1.0/">'
    )
    assert mended_xmp(spaces + given, 30, 20) == spaces + expected


def test_xmp_in_utf_16_becomes_utf_8(tmp_path):
    extra = [(700, 1, None, PACKET.encode("utf-16"), False)]
    tifffile.imwrite(tmp_path / "in.tif", PHOTO, photometric="rgb", metadata=None, extratags=extra)
    write_picture(read_picture(tmp_path / "in.tif"), tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as file:
        assert "Ada Löwe".encode() in file.info["xmp"] and b't:Orientation="1"' in file.info["xmp"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_faces_are_marked_on_pictures_that_lie_as_they_lay(orientation, tmp_path):
    """The places of regions are those of the pixels as they are stored."""
    regions = (
        b'<a xmlns:r="http://www.metadataworkinggroup.com/schemas/regions/" '
        b'xmlns:m="http://ns.microsoft.com/photo/1.2/"><r:Regions rdf:parseType="Resource">'
        b"<r:Name>Ada</r:Name></r:Regions><m:RegionInfo><x/></m:RegionInfo><k>kept</k></a>"
    )
    xmp = PACKET.encode().replace(b"</rdf:Description>", regions + b"</rdf:Description>")
    exif = Image.Exif()
    exif[TURNED] = orientation
    Image.fromarray(PHOTO).save(tmp_path / "in.jpg", exif=exif, xmp=xmp)
    found = read_picture(tmp_path / "in.jpg").metadata.xmp
    assert b"<k>kept</k>" in found and "Ada Löwe".encode() in found
    for words in (b"r:Regions", b"m:RegionInfo", b"<r:Name>"):
        assert (words in found) == (orientation == 1)


def test_xmp_behind_the_pixels_of_a_deep_png_is_kept(tmp_path):
    """With EXIF data before them, as ExifTool wrote it until 2019."""
    deep = (PHOTO.astype(np.uint16) * 257)[..., 0]
    Image.fromarray(deep).save(tmp_path / "in.png", exif=b"Exif\0\0" + camera())
    content = (tmp_path / "in.png").read_bytes()
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + PACKET.encode()
    chunk = struct.pack(">I", len(text)) + b"iTXt" + text
    chunk += struct.pack(">I", zlib.crc32(b"iTXt" + text))
    (tmp_path / "in.png").write_bytes(content[:-12] + chunk + content[-12:])
    assert content.index(b"eXIf") < content.index(b"IDAT")
    picture = read_picture(tmp_path / "in.png")
    assert picture.rgb.dtype == np.uint16 and "Ada Löwe".encode() in picture.metadata.xmp


def test_a_swollen_text_costs_a_png_nothing(tmp_path):
    """More than Pillow unpacks, as Photoshop's lists of ancestors become."""
    ancestors = b"<x>" + b"ancestor" * 2**18 + b"</x>"
    xmp = PACKET.encode().replace(b"</rdf:Description>", ancestors + b"</rdf:Description>")
    text = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)
    chunk = struct.pack(">I", len(text)) + b"iTXt" + text
    chunk += struct.pack(">I", zlib.crc32(b"iTXt" + text))
    Image.fromarray(PHOTO).save(tmp_path / "in.png")
    content = (tmp_path / "in.png").read_bytes()
    (tmp_path / "in.png").write_bytes(content[:33] + chunk + content[33:])
    picture = read_picture(tmp_path / "in.png")
    assert np.array_equal(picture.rgb, PHOTO) and picture.remark == ""
    assert "Ada Löwe".encode() in picture.metadata.xmp and ancestors in picture.metadata.xmp


def test_exif_data_that_say_nothing_are_not_damaged(tmp_path):
    """As Pillow writes them of a picture without any."""
    Image.fromarray(PHOTO).save(tmp_path / "in.jpg", exif=Image.Exif())
    with Image.open(tmp_path / "in.jpg") as file:
        assert file.info["exif"]
    picture = read_picture(tmp_path / "in.jpg")
    assert picture.remark == "" and not_held(picture, "x.tga") == []


def test_the_loss_of_an_extension_of_xmp_is_told(tmp_path):
    photograph(tmp_path / "in.jpg", camera())
    content = (tmp_path / "in.jpg").read_bytes()
    more = b"http://ns.adobe.com/xmp/extension/\0" + bytes(60)
    segment = b"\xff\xe1" + struct.pack(">H", len(more) + 2) + more
    assert "extension" not in read_picture(tmp_path / "in.jpg").remark
    (tmp_path / "in.jpg").write_bytes(content[:20] + segment + content[20:])
    remark = read_picture(tmp_path / "in.jpg").remark
    assert "without the extension of its XMP data" in remark


# ----------------------------------------------------------------------------- Photoshop, and size


def test_of_photoshops_resources_those_that_show_the_original_are_left_out(tmp_path):
    """Its thumbnail (0x040C) and paths (0x07D0)."""
    thumbnail = b"8BIM\x04\x0c\0\0" + struct.pack(">I", 8) + b"original"
    path = b"8BIM\x07\xd0\0\0" + struct.pack(">I", 2) + b"ab"
    photograph(tmp_path / "in.jpg", camera())
    content = (tmp_path / "in.jpg").read_bytes()
    resources = b"Photoshop 3.0\0" + thumbnail + path
    segment = b"\xff\xed" + struct.pack(">H", len(resources) + 2) + resources
    (tmp_path / "in.jpg").write_bytes(content[:20] + segment + content[20:])
    assert read_picture(tmp_path / "in.jpg").metadata.iptc == IPTC


def test_iptc_data_in_numbers_of_four_bytes_is_read(tmp_path):
    """As some programs store it in TIFF: type LONG, so in the file's order of bytes."""
    padded = HEADLINE + bytes(-len(HEADLINE) % 4)
    numbers = np.frombuffer(padded, ">u4")
    extra = [(33723, 4, len(numbers), tuple(map(int, numbers)), False)]
    tifffile.imwrite(tmp_path / "in.tif", PHOTO, photometric="rgb", metadata=None, extratags=extra)
    write_picture(read_picture(tmp_path / "in.tif"), tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as file:
        assert IptcImagePlugin.getiptcinfo(file)[2, 105] == b"News"


@pytest.mark.parametrize("unit, dpi", [("inch", (300, 150)), ("centimeter", (762, 381))])
def test_pixels_a_centimetre_are_turned_into_those_an_inch(unit, dpi, tmp_path):
    given = dict(resolution=(300, 150), resolutionunit=unit)
    tifffile.imwrite(tmp_path / "in.tif", PHOTO, photometric="rgb", metadata=None, **given)
    write_picture(read_picture(tmp_path / "in.tif"), tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as file:
        assert file.info["dpi"] == pytest.approx(dpi, abs=0.02)


# ---------------------------------------------------------------------------------------- saving


def job(source, target):
    return Job(source, target, None, None)


@pytest.mark.parametrize("target", KINDS)
def test_stripped_is_stripped_but_for_the_profile(target, tmp_path):
    photograph(tmp_path / "in.jpg", camera())
    picture = read_picture(tmp_path / "in.jpg")
    picture.profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    target, lost = tmp_path / f"out.{target}", []
    save_result(without_metadata(picture), job(tmp_path / "in.jpg", target), lost)
    with Image.open(target) as file:
        assert file.info["icc_profile"] == picture.profile and lost == []
        assert not {"exif", "xmp", "comment", "dpi", "photoshop"} & {*file.info}
        assert 0x010F not in file.getexif() and not file.getexif().get_ifd(ExifTags.IFD.Exif)


def test_times_are_kept_when_asked_for(tmp_path):
    photograph(tmp_path / "in.jpg", camera())
    os.utime(tmp_path / "in.jpg", (1_000_000_000, 1_100_000_000))
    for keep in (False, True):
        target = tmp_path / f"{keep}.png"
        of = job(tmp_path / "in.jpg", target)
        save_result(read_picture(tmp_path / "in.jpg"), of, [], keep_time=keep)
        assert (target.stat().st_mtime == 1_100_000_000) == keep


def test_the_command_keeps_it_strips_it_and_says_what_it_cannot_hold(
    identity_weights, tmp_path, monkeypatch, capsys
):
    command = load_program("test")
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.jpg", "c.png"):
        photograph(tmp_path / "in" / name, camera())

    def run(*flags):
        words = ["test.py", tmp_path / "in", "-o", tmp_path / "out", *flags]
        words += ["--weights", identity_weights, "--precision", "fp32", "--outscale", "2"]
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        return command.main(command.Ranks()), capsys.readouterr().out

    os.utime(tmp_path / "in" / "a.jpg", (1_000_000_000, 1_100_000_000))
    status, printed = run("--format", "webp", "--quality", "50", "--keep-time")
    assert status == 0 and (tmp_path / "out/a.webp").stat().st_mtime == 1_100_000_000
    assert "WEBP cannot hold IPTC data: left out of 2 images" in printed
    assert "WEBP cannot hold PNG's text: left out of 1 image\n" in printed
    with Image.open(tmp_path / "out/a.webp") as file:
        exif = file.getexif()
        assert file.size == (32, 48) and exif[TURNED] == 1 and exif[0x010F] == "ACME"
        assert exif.get_ifd(ExifTags.IFD.Exif)[0xA002] == 32
    status, printed = run("--format", "webp", "--strip-metadata")
    assert status == 0 and "cannot hold" not in printed
    with Image.open(tmp_path / "out/a.webp") as file:
        assert not {"exif", "xmp"} & {*file.info}
    with pytest.raises(command.UsageError, match="--quality"):
        run("--quality", "50")


def test_what_is_lost_is_one_line_each():
    lost = ["TGA cannot hold EXIF data", "BMP cannot hold a comment", "TGA cannot hold EXIF data"]
    assert summary([], False, lost, []) == [
        "BMP cannot hold a comment: left out of 1 image",
        "TGA cannot hold EXIF data: left out of 2 images",
    ]


def test_a_lossless_webp_stays_so_and_a_lossy_one_takes_a_quality(tmp_path, random_image):
    pixels = random_image(40, 50)
    pixels = np.dstack([pixels, np.full((40, 50), 200, np.uint8)])
    for lossless in (True, False):
        Image.fromarray(pixels).save(tmp_path / "in.webp", lossless=lossless, exact=True)
        picture, sizes = read_picture(tmp_path / "in.webp"), []
        for number in (20, None, 100):
            write_picture(picture, tmp_path / "out.webp", number)
            sizes.append((tmp_path / "out.webp").stat().st_size)
            read = read_picture(tmp_path / "out.webp")
            assert np.array_equal(read.rgb, picture.rgb) == lossless
        assert (len({*sizes}) == 1) if lossless else (sizes == sorted({*sizes}))
    write_picture(picture, tmp_path / "20.jpg", 20)
    write_picture(picture, tmp_path / "95.jpg")
    assert (tmp_path / "20.jpg").stat().st_size < (tmp_path / "95.jpg").stat().st_size


def test_a_quality_that_would_change_nothing_is_refused(tmp_path):
    for name, lossless in (("exact.webp", True), ("lossy.webp", False)):
        Image.fromarray(PHOTO).save(tmp_path / name, lossless=lossless)
    exact, lossy = (job(tmp_path / n, tmp_path / "x.webp") for n in ("exact.webp", "lossy.webp"))
    png, jpg = (job(tmp_path / "exact.webp", tmp_path / f"x.{kind}") for kind in ("png", "jpg"))
    for jobs in ([png], [exact], [png, exact]):
        refuse_quality(jobs, None)
        with pytest.raises(UsageError, match=r"--quality is for JPEG and lossy WebP.*\.(png|webp)"):
            refuse_quality(jobs, 90)
    for jobs in ([jpg], [lossy], [png, jpg], [exact, lossy]):
        refuse_quality(jobs, 90)
    for text in ("0", "101", "-1", "9.5", "x", ""):
        with pytest.raises(Exception, match="whole number from 1 to 100"):
            quality(text)
    assert (quality("1"), quality("100")) == (1, 100)
