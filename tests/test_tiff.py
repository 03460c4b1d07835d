"""TIFF: what the tags say becomes the right pixels, or a refusal that names the kind."""

import contextlib
import io
import struct
import zlib
from collections import namedtuple
from itertools import product

import cv2
import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image, ImageCms

from images.files import ImageError, read_picture
from images.tiff import is_tiff

HEIGHT, WIDTH = 20, 24
LAYOUTS = {
    "strips": dict(rowsperstrip=3),
    "tiles": dict(tile=(16, 16)),
    "deflate": dict(compression="zlib", predictor=2, rowsperstrip=7),
    "lzw": dict(compression="lzw", predictor=2),
    "packbits": dict(compression="packbits"),
    "zstd": dict(compression="zstd", tile=(16, 16)),
    "lzma": dict(compression="lzma"),
    "jpeg2000": dict(compression="jpeg2000"),
    "jpegxl": dict(compression="jpegxl"),
    "big-endian": dict(byteorder=">"),
    "big-endian lzw": dict(byteorder=">", compression="lzw", predictor=2),
    "BigTIFF": dict(bigtiff=True),
    "BigTIFF, big-endian": dict(bigtiff=True, byteorder=">", tile=(16, 16), compression="zlib"),
}
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # of FillOrder 2


pytestmark = pytest.mark.usefixtures("narrow_bands")


def noise(channels=3, bits=16):
    dtype = np.uint8 if bits <= 8 else np.uint16
    return np.random.default_rng(bits).integers(0, 2**bits, (HEIGHT, WIDTH, channels), dtype)


def read(tmp_path, pixels, **options):
    """A file by tifffile, with `pages` of (pixels, options) in front, as we read it."""
    ends = {name: options.pop(name) for name in ("bigtiff", "byteorder") if name in options}
    with tifffile.TiffWriter(tmp_path / "x.tif", **ends) as file:
        for page, page_options in options.pop("pages", []):
            file.write(page, metadata=None, **page_options)
        file.write(pixels, metadata=None, **options)
    assert is_tiff(tmp_path / "x.tif")
    return read_picture(tmp_path / "x.tif")


def read_crafted(tmp_path, data, bits, photometric=1, samples=1, order="<", **tags):
    """A file of one strip, put together by the specification; more tags as t274=6."""
    entries = {
        **{256: WIDTH, 257: HEIGHT, 258: (bits,) * samples, 259: 1, 262: photometric},
        **{273: 0, 277: samples, 278: HEIGHT, 279: len(data)},
        **{int(name[1:]): value for name, value in tags.items()},
    }
    shorts, fractions = (320,), (529, 532)  # a palette; YCbCr's weights and range; others: u4
    values = {
        tag: np.atleast_1d(entries[tag]).astype(f"{order}u{2 if tag in shorts else 4}")
        for tag in sorted(entries)
    }
    start = 8 + 2 + 12 * len(values) + 4
    values[273][0] = start + sum(v.nbytes for v in values.values() if v.nbytes > 4)
    directory, rest = struct.pack(f"{order}H", len(values)), b""
    for tag, value in values.items():
        kind, count = (3 if tag in shorts else 4), len(value)
        if tag in fractions:
            kind, count = 5, count // 2
        content = value.tobytes()
        if len(content) > 4:
            content, rest = struct.pack(f"{order}I", start + len(rest)), rest + content
        directory += struct.pack(f"{order}HHI", tag, kind, count) + content
    head = b"II*\0" if order == "<" else b"MM\0*"
    whole = head + struct.pack(f"{order}I", 8) + directory + bytes(4) + rest + data
    (tmp_path / "x.tif").write_bytes(whole)
    return read_picture(tmp_path / "x.tif")


def packed(levels, bits):
    """Bits in a row, of rows that end with a byte."""
    return np.packbits((levels[..., None] >> np.arange(bits)[::-1]) & 1).tobytes()


def by_value(levels, bits):
    """To 8 or 16 bits, in float64."""
    top = 255 if bits <= 8 else 65535
    return np.floor(levels * (top / (2**bits - 1)) + 0.5).astype(np.uint8 if bits <= 8 else "u2")


def same(read, colour, alpha=None):
    """Whether the pixels are exactly these, of this dtype: (H, W), (H, W, 1) or (H, W, 3)."""
    colour = colour[..., None] if colour.ndim == 2 else colour
    assert read.rgb.dtype == colour.dtype and read.gray == (colour.shape[2] == 1)
    assert np.array_equal(read.rgb, np.broadcast_to(colour, (*colour.shape[:2], 3)))
    assert (read.alpha is None) == (alpha is None)
    return alpha is None or (read.alpha.dtype == alpha.dtype and np.array_equal(read.alpha, alpha))


# ------------------------------------------------------------------------------- levels and layout


@pytest.mark.parametrize("white", [0, 1])  # photometric interpretation: is 0 white?
@pytest.mark.parametrize("bits", range(1, 17))
def test_any_number_of_bits_is_scaled_by_value(bits, white, tmp_path):
    levels = noise(1, bits)[..., 0]
    # Whole bytes come in the file's order, others with the high bit first.
    data = packed(levels, bits) if bits < 16 else levels.tobytes()
    expected = by_value(levels if white else 2**bits - 1 - levels, bits)
    assert same(read_crafted(tmp_path, data, bits, white), expected)
    deflated = read_crafted(tmp_path, zlib.compress(data), bits, white, t259=8)
    assert same(deflated, expected)
    assert same(read_crafted(tmp_path, data.translate(REVERSED), bits, white, t266=2), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
def test_packed_colours(bits, tmp_path):
    levels = noise(3, bits)
    crafted = read_crafted(tmp_path, packed(levels, bits), bits, photometric=2, samples=3)
    assert same(crafted, by_value(levels, bits))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", [8, 16])
def test_every_layout_holds_the_same_pixels(bits, layout, tmp_path):
    pixels = noise(3, bits)
    assert same(read(tmp_path, pixels, photometric="rgb", **LAYOUTS[layout]), pixels)


@pytest.mark.parametrize("order", "<>")
def test_bits_in_reverse_order(order, tmp_path):
    pixels = noise(3, 16)
    data = pixels.astype(f"{order}u2").tobytes().translate(REVERSED)
    assert same(read_crafted(tmp_path, data, 16, 2, samples=3, order=order, t266=2), pixels)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_channels_that_lie_one_after_the_other(bits, channels, tmp_path):
    pixels = noise(channels, bits)
    planes = np.moveaxis(pixels, -1, 0).copy()
    kind = dict(photometric="rgb", planarconfig="separate", compression="zlib", rowsperstrip=8)
    picture = read(tmp_path, planes, **kind)
    assert same(picture, pixels[..., :3], pixels[..., 3] if channels == 4 else None)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["RGB of 8 bits", "RGB of 16 bits", "gray", "bilevel"])
def test_the_orientation_is_applied_once(kind, orientation, tmp_path):
    pixels = noise(3, 16 if "16" in kind else 8) if "RGB" in kind else noise(1, 8)[..., 0]
    pixels = pixels > 99 if kind == "bilevel" else pixels
    photometric = "rgb" if "RGB" in kind else "minisblack"
    tags = [(274, "H", 1, orientation, True)]
    picture = read(tmp_path, pixels, photometric=photometric, extratags=tags)
    seen = pixels * np.uint8(255) if kind == "bilevel" else pixels
    assert same(picture, turned(seen, orientation))


def turned(pixels, orientation):
    """TIFF 6.0, page 36: the sides on which row 0 and column 0 are seen."""
    return {
        2: pixels[:, ::-1],  # top and right
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),  # left and top
        6: pixels.swapaxes(0, 1)[:, ::-1],
        7: pixels.swapaxes(0, 1)[::-1, ::-1],
        8: pixels.swapaxes(0, 1)[::-1],
    }.get(orientation, pixels)


# ---------------------------------------------------------------------------------------- alpha


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_that_was_multiplied_in_is_taken_out(bits, channels, tmp_path):
    pixels, top = noise(channels + 1, bits), 2**bits - 1
    alpha = pixels[..., -1:]
    alpha[0], alpha[1] = 0, top
    pixels[..., :-1] = np.rint(pixels[..., :-1] / top * alpha)
    photometric = "rgb" if channels == 3 else "minisblack"
    kind = dict(photometric=photometric, extrasamples=["assocalpha"], planarconfig="contig")
    colour = np.divide(
        pixels[..., :-1] * float(top),
        alpha,
        where=alpha > 0,
        out=alpha * 0.0 + 0 * pixels[..., :-1],
    )
    assert same(
        read(tmp_path, pixels, **kind), np.floor(colour + 0.5).astype(pixels.dtype), alpha[..., 0]
    )


@pytest.mark.parametrize(
    "extra, place",
    [
        (["unassalpha"], 3),
        (["unspecified"], None),  # as Pillow has it; OpenCV and libvips take it for alpha
        (["unspecified", "unassalpha"], 4),
        (["unassalpha", "unspecified", "unspecified"], 3),
        (["unspecified", "unspecified"], None),
        (["unassalpha", "assocalpha"], 3),  # of which only the other was multiplied in
    ],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_is_what_the_file_calls_so(bits, extra, place, tmp_path):
    pixels = noise(3 + len(extra), bits)
    picture = read(tmp_path, pixels, photometric="rgb", extrasamples=extra)
    assert same(picture, pixels[..., :3], None if place is None else pixels[..., place])
    used = 3 if place is None else 4
    left_out = f"{used} of {pixels.shape[2]} channels"
    assert picture.remark == ("" if used == pixels.shape[2] else left_out)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_channel_without_a_word_about_it_is_alpha(bits, tmp_path):
    """OpenCV writes alpha so."""
    pixels = noise(4, bits)
    assert cv2.imwrite(str(tmp_path / "x.tif"), pixels[..., [2, 1, 0, 3]])
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert not file.pages.first.extrasamples
    assert same(read_picture(tmp_path / "x.tif"), pixels[..., :3], pixels[..., 3])


# --------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize("factor", [1, 256, 257])
def test_palettes_of_8_bits(factor, tmp_path):
    """Each of these factors is in use."""
    indices, colours = noise(1, 8)[..., 0], np.random.default_rng(0).integers(0, 256, (3, 256))
    palette = dict(photometric="palette", colormap=(colours * factor).astype(np.uint16))
    assert same(read(tmp_path, indices, **palette), colours.T[indices].astype(np.uint8))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_16_bits(bits, tmp_path):
    indices = noise(1, bits)[..., 0]
    colours = np.random.default_rng(0).integers(0, 65535, (3, 2**bits)).astype(np.uint16)
    read = read_crafted(tmp_path, packed(indices, bits), bits, 3, t320=colours.ravel())
    assert same(read, colours.T[indices])


@pytest.mark.parametrize("factor", [257, 251])  # 8 bits at heart, or 16
def test_palettes_with_alpha(factor, tmp_path):
    pixels, colours = noise(2, 8), np.random.default_rng(0).integers(0, 256, (3, 256)) * factor
    palette = dict(photometric=3, samples=2, t338=2, t320=colours.ravel())
    picture = read_crafted(tmp_path, pixels.tobytes(), 8, **palette)
    expected = colours.T[pixels[..., 0]].astype(np.uint16)
    if factor == 257:
        assert same(picture, (expected // 257).astype(np.uint8), pixels[..., 1])
    else:
        assert same(picture, expected, pixels[..., 1] * np.uint16(257))


def test_a_palette_that_is_too_short(tmp_path):
    with pytest.raises(ImageError, match="its palette is missing or too short"):
        read_crafted(tmp_path, noise(1, 8).tobytes(), 8, 3, t320=[9] * 30)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_inks_without_a_profile(bits, planar, tmp_path):
    inks, top = noise(5, bits), 2**bits - 1
    light = 1 - inks[..., :4] / top
    rgb = np.floor(light[..., :3] * light[..., 3:] * top + 0.5).astype(inks.dtype)
    stored = inks if planar == "contig" else np.moveaxis(inks, -1, 0).copy()
    kind = dict(photometric="separated", planarconfig=planar, extrasamples=["unassalpha"])
    assert same(read(tmp_path, stored, **kind), rgb, inks[..., 4])


@pytest.mark.parametrize("bits", [8, 16])
def test_inks_go_through_their_profile(bits, tmp_path):
    profile = ink_profile()
    inks = noise(4, 8)
    image, srgb = (
        Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()),
        ImageCms.createProfile("sRGB"),
    )
    expected = ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, outputMode="RGB")
    stored = inks if bits == 8 else inks * np.uint16(257)
    read_ = read(tmp_path, stored, photometric="separated", iccprofile=profile)
    assert (
        np.ptp(np.array(expected)) > 100
        and read_.profile is None
        and read_.rgb.dtype == stored.dtype
        and read_.remark == "CMYK turned into sRGB"
    )
    assert np.abs(read_.rgb / (257 if bits == 16 else 1) - np.array(expected)).max() <= 1.1


def ink_profile():
    """CMYK to L*a*b* by a table of 2 x 2 x 2 x 2 colours (ICC.1:2022, 10.10: lut8Type)."""
    corners = np.indices((2, 2, 2, 2)).reshape(4, -1).T
    lab = [
        (230 * (1 - k) * (3 - c - m - y) / 3 + 10, 128 + 60 * (m - c), 128 + 60 * (y - m))
        for c, m, y, k in corners
    ]
    straight_line = bytes(range(256))
    table = struct.pack(">4s4xBBBx9i", b"mft1", 4, 3, 2, *(65536 * np.eye(3, dtype=int)).ravel())
    table += straight_line * 4 + np.clip(lab, 0, 255).astype(np.uint8).tobytes() + straight_line * 3
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x3i48x",
        128 + 16 + len(table),
        0x02400000,
        b"prtr",
        b"CMYK",
        b"Lab ",
        b"acsp",
        63190,
        65536,
        54061,
    )
    return head + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["cielab", "icclab"])
def test_lab_is_converted(kind, bits, tmp_path):
    """Against the formulas of CIE 15 and IEC 61966-2-1; the matrix is Lindbloom's, for D50."""
    random, step = np.random.default_rng(0), 1 if bits == 8 else 256
    full = 0xFF00 if bits == 16 and kind == "icclab" else 2**bits - 1
    light = random.integers(0, full + 1, (HEIGHT, WIDTH))
    a, b = random.integers(-25 * step, 25 * step, (2, HEIGHT, WIDTH))
    middle = 128 * step if kind == "icclab" else 0
    levels = np.dstack([light, a + middle, b + middle]).astype(np.uint8 if bits == 8 else "u2")
    y = (light * 100 / full + 16) / 116
    xyz = np.stack([y + a / step / 500, y, y - b / step / 200], -1)
    xyz = np.where(xyz > 6 / 29, xyz**3, 3 * (6 / 29) ** 2 * (xyz - 4 / 29)) * (0.9642, 1, 0.8249)
    matrix = [
        (3.1338561, -1.6168667, -0.4906146),
        (-0.9787684, 1.9161415, 0.0334540),
        (0.0719453, -0.2289914, 1.4052427),
    ]
    linear = np.clip(xyz @ np.transpose(matrix), 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    picture = read(tmp_path, levels, photometric=kind, iccprofile=ink_profile())
    assert picture.rgb.dtype == levels.dtype and picture.profile is None
    assert picture.remark == "L*a*b* turned into sRGB"
    assert np.abs(picture.rgb / (2**bits - 1) - srgb).max() <= 0.7 / 255


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_jpeg_in_tiff_is_libtiff_s(tile, subsampling, tmp_path):
    smooth = np.array(Image.fromarray(noise(3, 8)[:4, :5]).resize((WIDTH, HEIGHT)))
    arguments = dict(outcolorspace="ycbcr", level=95)
    kind = dict(photometric="rgb", compression="jpeg", subsampling=subsampling, tile=tile)
    picture = read(tmp_path, smooth, **kind, compressionargs=arguments)
    expected = np.array(Image.open(tmp_path / "x.tif").convert("RGB")).astype(int)
    assert np.abs(picture.rgb - expected).max() <= 1


def test_uncompressed_ycbcr(tmp_path):
    smooth = Image.fromarray(noise(3, 8)[:4, :5]).resize((WIDTH, HEIGHT)).convert("YCbCr")
    data, expected = smooth.tobytes(), np.array(smooth.convert("RGB"))
    kind = dict(bits=8, photometric=6, samples=3)
    full = dict(t530=(1, 1), t274=6)
    assert same(read_crafted(tmp_path, data, **kind, **full), turned(expected, 6))
    deflated = read_crafted(tmp_path, zlib.compress(data), **kind, **full, t259=8)
    assert same(deflated, turned(expected, 6))
    video = dict(t530=(1, 1), t532=(16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1))
    levels = (np.array(smooth) - (16.0, 128, 128)) * (255 / 219, 127 / 112, 127 / 112)
    y, cb, cr = np.moveaxis(levels, -1, 0)
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    by_libtiff = read_crafted(tmp_path, zlib.compress(data), **kind, **video, t259=8)
    assert np.abs(by_libtiff.rgb - np.clip(rgb, 0, 255)).max() <= 4
    refused = "its YCbCr is subsampled or scaled otherwise"
    for tags in (
        dict(t530=(2, 2)),
        dict(),  # which means 2, 2
        dict(t530=(1, 1), t529=(2126, 10000, 7152, 10000, 722, 10000)),
        dict(t530=(1, 1), t532=(15, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1)),
    ):
        with pytest.raises(ImageError, match=refused):
            read_crafted(tmp_path, data, **kind, **tags)


def test_old_jpeg_in_tiff(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(noise(3, 8)).save(stream, "JPEG", subsampling=0)
    expected, data = np.array(Image.open(stream)).astype(int), stream.getvalue()
    kind = dict(bits=8, photometric=6, samples=3, t259=6, t274=6, t512=1, t514=len(data))
    with contextlib.suppress(ImageError):  # the place of the stream is known once it is there
        read_crafted(tmp_path, data, **kind, t513=0, t530=(1, 1))
    place = (tmp_path / "x.tif").read_bytes().index(data)
    picture = read_crafted(tmp_path, data, **kind, t513=place, t530=(1, 1))
    assert np.abs(picture.rgb - turned(expected, 6)).max() <= 2


@pytest.mark.parametrize(
    "mode, compression",
    [
        *product(["1", "L", "LA", "P", "RGB", "RGBA"], ["raw", "tiff_lzw", "packbits"]),
        *product(["1"], ["group3", "group4", "tiff_ccitt"]),
    ],
)
def test_what_pillow_writes(compression, mode, tmp_path):
    image = Image.fromarray(noise(4, 8)).convert(mode.replace("P", "RGB")).convert(mode)
    image.save(tmp_path / "x.tif", compression=compression)
    rgba = np.array(image.convert("RGBA"))
    colour = rgba[..., :1] if mode in ("1", "L", "LA") else rgba[..., :3]
    assert same(read_picture(tmp_path / "x.tif"), colour, rgba[..., 3] if "A" in mode else None)


@pytest.mark.parametrize("orientation", [2, 4, 6, 7])
def test_what_libtiff_decodes_is_turned_like_the_rest(orientation, tmp_path):
    """A fax has as many rows an inch as half of its columns."""
    about = b'xmlns:r="http://www.metadataworkinggroup.com/schemas/regions/"'
    xmp = b"<a " + about + b"><r:Regions>x</r:Regions></a>"
    pictures = []
    for compression in ("group4", "tiff_lzw"):
        bitmap = Image.fromarray(noise(1, 8)[..., 0] > 99)
        tags = {274: orientation, 700: xmp}
        options = dict(compression=compression, dpi=(204, 98), tiffinfo=tags)
        bitmap.save(tmp_path / "x.tif", **options)
        pictures.append(read_picture(tmp_path / "x.tif"))
    fax, plain = pictures
    assert np.array_equal(fax.rgb, plain.rgb)
    assert fax.metadata.dpi == plain.metadata.dpi == ((98, 204) if orientation > 4 else (204, 98))
    assert fax.metadata.xmp == plain.metadata.xmp and b"<r:Regions>" not in fax.metadata.xmp


# ------------------------------------------------------------------------------ pages and refusals


@pytest.mark.parametrize("kind", ["reduced", "mask"])
def test_thumbnails_and_masks_are_no_frames(kind, tmp_path):
    pixels, small = noise(3, 16), noise(1, 8)[:8, ..., 0]
    options = dict(photometric="minisblack", subfiletype=1)
    if kind == "mask":
        small, options["subfiletype"] = small > 99, 4
    picture = read(tmp_path, pixels, photometric="rgb", pages=[(small, options)])
    assert same(picture, pixels) and picture.remark == ""
    page = (pixels, dict(photometric="rgb", subifds=1))
    picture = read(tmp_path, small, **options, pages=[page])
    assert same(picture, pixels) and picture.remark == ""
    if kind == "reduced":  # and is all that there is
        assert same(read(tmp_path, small, **options), small)


def test_the_first_of_several_frames_is_taken(tmp_path):
    frames = noise(3, 16)[None] // np.array([1, 2, 4], np.uint16)[:, None, None, None]
    pages = [(frame, dict(photometric="rgb")) for frame in frames[:2]]
    picture = read(tmp_path, frames[2], photometric="rgb", pages=pages)
    assert same(picture, frames[0]) and picture.remark == "the first of 3 frames"
    tifffile.imwrite(tmp_path / "x.tif", frames[..., 0], imagej=True, byteorder="<")
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        head = file.pages.first.offset
    single = bytearray((tmp_path / "x.tif").read_bytes())  # ImageJ itself writes one directory
    count = int.from_bytes(single[head : head + 2], "little")
    next_one = head + 2 + 12 * count
    single[next_one : next_one + 4] = bytes(4)
    (tmp_path / "x.tif").write_bytes(single)
    picture = read_picture(tmp_path / "x.tif")
    assert same(picture, frames[0, ..., 0]) and picture.remark == "the first of 3 frames"


@pytest.mark.parametrize("pages", [1, 3])
@pytest.mark.parametrize("damage", ["loop", "garbage", "zeros", "outside", "end"])
def test_a_damaged_chain_of_pages_has_those_before_the_damage(damage, pages, tmp_path):
    pixels = noise(3, 8)
    more = [(pixels, dict(photometric="rgb"))] * (pages - 1)
    read(tmp_path, pixels, photometric="rgb", pages=more)
    with_next_page(tmp_path / "x.tif", damage)
    picture = read_picture(tmp_path / "x.tif")
    assert same(picture, pixels)
    assert picture.remark == (f"the first of {pages} frames" if pages > 1 else "")
    tifffile.imwrite(tmp_path / "x.tif", pixels, metadata=None, subfiletype=1)
    with_next_page(tmp_path / "x.tif", damage)
    with pytest.raises(ImageError, match=r"all but a thumbnail .* is damaged; get it again"):
        read_picture(tmp_path / "x.tif")


def with_next_page(path, damage):
    """Change where the last page of a file says that the next one is."""
    content = bytearray(path.read_bytes())
    field = 4
    while (page := struct.unpack_from("<I", content, field)[0]) != 0:
        last, field = page, page + 2 + 12 * struct.unpack_from("<H", content, page)[0]
    garbage = {"garbage": b"\1\0" + b"\xaa" * 16, "zeros": bytes(18)}.get(damage, b"")
    target = {"loop": last, "outside": 0xFFFFFFF0, "end": len(content) - 1}
    struct.pack_into("<I", content, field, target.get(damage, len(content)))
    path.write_bytes(content + garbage)


@pytest.mark.parametrize("layout", ["strips", "tiles", "planar"])
@pytest.mark.parametrize("count", [0, 1, 10**9])
def test_what_bytes_without_compression_say_of_their_number_is_not_needed(count, layout, tmp_path):
    options = LAYOUTS.get(layout, dict(planarconfig="separate", rowsperstrip=3))
    pixels = noise(3, 8)
    stored = np.moveaxis(pixels, -1, 0) if layout == "planar" else pixels
    read(tmp_path, stored, photometric="rgb", **options)
    change_tags(tmp_path / "x.tif", {279: count, 325: count})
    assert same(read_picture(tmp_path / "x.tif"), pixels)
    place = (tmp_path / "x.tif").stat().st_size - 9
    change_tags(tmp_path / "x.tif", {273: place, 324: place}, slice(-1, None))
    with pytest.raises(ImageError, match=r"x.tif: it is cut short; get it again"):
        read_picture(tmp_path / "x.tif")


def change_tags(path, values, only=slice(None)):
    """Set (some) numbers of a tag to others."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        for code in values.keys() & {*file.pages.first.tags.keys()}:
            tag = file.pages.first.tags[code]
            numbers = np.atleast_1d(tag.value).astype(np.uint32)
            numbers[only] = values[code]
            tag.overwrite(numbers.tolist(), dtype="I")


@pytest.mark.parametrize("layout", ["strips", "tiles", "deflate"])
def test_a_strip_without_a_place_is_zeros_as_gdal_has_it(layout, tmp_path):
    pixels = noise(3, 8)
    read(tmp_path, pixels, **LAYOUTS[layout])
    change_tags(tmp_path / "x.tif", {273: 0, 279: 0, 324: 0, 325: 0}, slice(1, 2))
    picture = read_picture(tmp_path / "x.tif")
    rows = dict(strips=slice(3, 6), deflate=slice(7, 14), tiles=slice(0, 16))[layout]
    pixels[rows, 16 if layout == "tiles" else 0 :] = 0
    assert same(picture, pixels)
    change_tags(tmp_path / "x.tif", {273: 0, 279: 0, 324: 0, 325: 0})
    with pytest.raises(ImageError, match="cut short"):  # nothing is there
        read_picture(tmp_path / "x.tif")


def test_a_raw_photograph_is_refused_not_its_preview(tmp_path):
    preview = (noise(3, 8), dict(photometric="rgb", subfiletype=1, subifds=1))
    with pytest.raises(ImageError, match="it is a raw photograph with a preview"):
        read(tmp_path, noise(1, 16)[..., 0], photometric="minisblack", pages=[preview])


@pytest.mark.parametrize(
    "dtype, reason",
    [
        ("f2", r"16 bits a channel \(floating point\)"),
        ("f4", r"32 bits a channel \(floating point\)"),
        ("u4", "32 bits a channel"),
        ("i1", r"8 bits a channel \(signed\)"),
        ("i2", r"16 bits a channel \(signed\)"),
        ("c8", r"64 bits a channel \(complex\)"),
    ],
)
def test_numbers_that_no_range_belongs_to_are_refused(dtype, reason, tmp_path):
    with pytest.raises(ImageError, match=rf"x.tif: it has {reason}; save it with 8 or 16"):
        read(tmp_path, noise(1, 8)[..., 0].astype(dtype), photometric="minisblack")


@pytest.mark.parametrize(
    "tags, reason",
    [
        (dict(photometric=32803), "its colours are CFA"),
        (dict(photometric=10, samples=3), "its colours are ITULAB"),
        (dict(photometric=8, samples=1), "its colours are CIELAB of 1 channels"),
        (dict(photometric=12345), "its colours are 12345"),
        (dict(photometric=5, samples=4, t332=2), "its inks are not cyan, magenta"),
        (dict(photometric=2, samples=3, t258=(5, 6, 5)), r"its channels have \(5, 6, 5\) bits"),
        (dict(t32997=2), "it is a volume"),
        (dict(t259=34661), r"its pixels \(JBIG\) cannot be decoded"),
        (dict(t259=8), r"its pixels \(ADOBE_DEFLATE\) cannot be decoded"),
    ],
)
def test_other_kinds_are_refused_by_name(tags, reason, tmp_path):
    with pytest.raises(ImageError, match=f"x.tif: {reason}"):
        read_crafted(tmp_path, bytes(2 * 4 * HEIGHT * WIDTH), 8, **tags)


@pytest.mark.parametrize("layout", ["strips", "tiles", "deflate", "lzw", "jpeg2000", "JPEG"])
@pytest.mark.parametrize("missing", [10, 200])
def test_a_file_that_is_cut_short_is_refused(missing, layout, tmp_path):
    kind = LAYOUTS.get(layout, dict(compression="jpeg"))
    read(tmp_path, noise(3, 8), photometric="rgb", **kind)
    whole = (tmp_path / "x.tif").read_bytes()
    (tmp_path / "x.tif").write_bytes(whole[:-missing])
    with pytest.raises(ImageError, match=r"x.tif: it is cut short; get it again"):
        read_picture(tmp_path / "x.tif")


def test_bands_that_nobody_wants_count_too(tmp_path, monkeypatch):
    """224 of them, as an imaging spectrometer has, are decoded together."""
    bands = np.zeros((64, 64, 224), np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", bands, photometric="minisblack", planarconfig="contig")
    assert "1 of 224 channels" in read_picture(tmp_path / "x.tif").remark
    monkeypatch.setattr("images.kinds.free_memory", lambda wanted: 10**6)
    with pytest.raises(ImageError, match=r"64x64 pixels take .* of memory"):
        read_picture(tmp_path / "x.tif")
    monkeypatch.setattr("images.kinds.free_memory", lambda wanted: 12 * 64**2)
    tifffile.imwrite(tmp_path / "x.tif", bands[..., :4], photometric="rgb", planarconfig="contig")
    assert read_picture(tmp_path / "x.tif").rgb.shape == (64, 64, 3)  # all of it is wanted


def test_a_picture_too_large_for_the_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((HEIGHT, WIDTH), np.uint16))
    free = namedtuple("Memory", "available")(HEIGHT * WIDTH)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(ImageError, match=r"x.tif: 24x20 pixels take .* of memory to read and 0.0"):
        read_picture(tmp_path / "x.tif")
