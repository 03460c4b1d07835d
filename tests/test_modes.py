"""Every mode of Pillow, and more than 8 bits in any format: by value, or refused by name."""

import colorsys
import struct
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps, features
from test_tiff import HEIGHT, WIDTH, noise

from images.files import ImageError, Picture, read_picture, write_picture
from images.modes import pixels_of

PASSES = [  # of Adam7: first row and column, steps (PNG, section 8.2)
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)),
    (1, 0, 2, 1),
]


pytestmark = pytest.mark.usefixtures("narrow_bands")


def by_value(levels, white):
    """To 8 or 16 bits, in float64."""
    top = 255 if white <= 255 else 65535
    return np.floor(levels * (top / white) + 0.5).astype(np.uint8 if white <= 255 else np.uint16)


def assert_same(picture, pixels):
    """Exactly these, of this dtype: (H, W, 1 to 4)."""
    channels = pixels.shape[2]
    colour = pixels[..., : channels - (channels in (2, 4))]
    assert picture.rgb.dtype == pixels.dtype and picture.gray == (channels < 3)
    assert np.array_equal(picture.rgb, np.broadcast_to(colour, (*colour.shape[:2], 3)))
    assert (picture.alpha is None) == (channels in (1, 3))
    assert picture.alpha is None or np.array_equal(picture.alpha, pixels[..., -1])


def read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return read_picture(tmp_path / name)


# ----------------------------------------------------------------------------------------- modes


def straight(pixels):
    alpha = pixels[..., -1:].astype(float)
    colour = np.where(alpha > 0, pixels[..., :-1] * 255.0 / np.maximum(alpha, 1), 0)
    return np.concatenate((np.minimum(np.floor(colour + 0.5), 255), alpha), -1)


def of_hsv(pixels):
    flat = (colorsys.hsv_to_rgb(*pixel) for pixel in pixels.reshape(-1, 3) / 255)
    return np.reshape([*flat], pixels.shape) * 255


def of_ycbcr(pixels):
    """ITU-T T.871, section 7."""
    y, cb, cr = np.moveaxis(pixels - (0.0, 128, 128), -1, 0)
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)


def of_inks(pixels):
    light = 1 - pixels / 255
    return light[..., :3] * light[..., 3:] * 255


def of_lab(pixels):
    """Those of a* = b* = 0, which are gray."""
    y = (pixels[..., :1] / 2.55 + 16) / 116
    y = np.where(y > 6 / 29, y**3, 3 * (6 / 29) ** 2 * (y - 4 / 29))
    return np.where(y <= 0.0031308, 12.92 * y, 1.055 * y ** (1 / 2.4) - 0.055) * 255 + [0, 0, 0]


def unchanged(pixels):
    return pixels


PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3))
WORTH = {  # mode -> channels as stored, and as gray, gray and alpha, RGB or RGBA
    "1": (1, lambda pixels: pixels * 255),
    **{"L": (1, unchanged), "LA": (2, unchanged), "La": (2, straight)},
    **{"RGB": (3, unchanged), "RGBA": (4, unchanged), "RGBa": (4, straight)},
    "RGBX": (4, lambda pixels: pixels[..., :3]),
    "P": (1, lambda pixels: PALETTE[pixels[..., 0]]),
    "PA": (2, lambda pixels: np.dstack([PALETTE[pixels[..., 0]], pixels[..., 1]])),
    **{"CMYK": (4, of_inks), "YCbCr": (3, of_ycbcr), "HSV": (3, of_hsv), "LAB": (3, of_lab)},
    **dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), (1, unchanged)),
}
REFUSED = ("I", "F")


def test_every_mode_is_decided_upon():
    core = {mode for mode in Image.MODES if not mode.startswith("BGR;")}  # which no file gives
    assert core <= {*WORTH, *REFUSED}


@pytest.mark.parametrize("mode", [mode for mode in WORTH if mode in Image.MODES])
def test_modes_are_converted_by_value(mode):
    channels, worth = WORTH[mode]
    values = noise(channels, {"1": 1}.get(mode, 16 if ";" in mode else 8))
    if mode == "LAB":
        values[..., 1:] = 0
    stored = values.astype(">u2") if mode == "I;16B" else values
    raw = np.packbits(stored, axis=1) if mode == "1" else stored
    image = Image.frombytes(mode, (WIDTH, HEIGHT), raw.tobytes())
    if mode.startswith("P"):
        image.putpalette(PALETTE.astype(np.uint8).tobytes())
        assert image.mode == mode
    expected = np.clip(np.asarray(worth(values)), 0, np.iinfo(values.dtype).max)
    given = Picture(*pixels_of(image))
    whole = given.rgb if given.alpha is None else np.dstack([given.rgb, given.alpha])
    whole = whole[..., 2:] if given.gray else whole
    assert whole.dtype == values.dtype and whole.shape == expected.shape
    exact = mode not in ("CMYK", "YCbCr", "HSV", "LAB")
    assert np.abs(whole - expected.astype(float)).max() <= (0 if exact else 1.5)


@pytest.mark.parametrize("mode", REFUSED)
def test_modes_without_a_white_are_refused(mode, tmp_path):
    Image.new(mode, (WIDTH, HEIGHT)).save(tmp_path / "x.tif")
    with pytest.raises(
        ImageError, match=r"x.tif: it has 32 bits a channel.*; save it with 8 or 16"
    ):
        read_picture(tmp_path / "x.tif")


def test_numbers_of_no_picture_are_refused(tmp_path):
    cards = ["SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 4", "NAXIS2  = 3", "END"]
    header = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    with pytest.raises(ImageError, match=r"x.fits: scientific or medical data"):
        read(tmp_path, "x.fits", header + bytes(2880))


# ------------------------------------------------------------------------------------------- PNG


def png(levels, bits, *chunks, interlaced=False, missing=0):
    """From the specification: (H, W, 1 to 4), filter 0; without so many of the last bytes."""

    def rows(pixels):
        spread = (pixels[..., None] >> np.arange(bits)[::-1]) & 1
        return b"".join(b"\0" + np.packbits(row).tobytes() for row in spread)

    kind = {1: 0, 2: 4, 3: 2, 4: 6}[levels.shape[2]]
    header = struct.pack(">IIBBBBB", *levels.shape[1::-1], bits, kind, 0, 0, interlaced)
    passes = [levels[top::down, left::right] for top, left, down, right in PASSES]
    data = b"".join(map(rows, passes)) if interlaced else rows(levels)
    data = zlib.compress(data[: len(data) - missing])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits(channels, interlaced, tmp_path):
    levels = noise(channels)
    picture = read(tmp_path, "x.png", png(levels, 16, interlaced=interlaced))
    assert_same(picture, levels)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    "channels, bits", [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (3, 8), (3, 16)]
)
def test_a_level_or_colour_that_stands_for_transparency(channels, bits, interlaced, tmp_path):
    levels = noise(channels, bits)
    levels[3:5] = key = levels[0, 0].copy()
    levels[9, 9] = key ^ 1  # which differs in the lowest bit
    chunk = (b"tRNS", key.astype(">u2").tobytes())
    picture = read(tmp_path, "x.png", png(levels, bits, chunk, interlaced=interlaced))
    white = 2**bits - 1
    alpha = (levels != key).any(-1, keepdims=True) * white
    assert_same(picture, by_value(np.concatenate((levels, alpha), -1), white))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels, bits", [(1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (3, 8), (4, 8)])
@pytest.mark.parametrize("key", [False, True])
def test_a_png_whose_pixels_end_early_is_refused(channels, bits, interlaced, key, tmp_path):
    levels = noise(channels, bits)
    levels[-2:] = 0  # a black border, which rows that are not there look like
    chunks = [(b"tRNS", bytes(2 * channels))] if key and channels in (1, 3) else []
    for side in (1, 2, 5, HEIGHT):  # some without a pixel in some passes
        picture = png(levels[-side:, :side], bits, *chunks, interlaced=interlaced)
        expected = by_value(levels[-side:, :side], 2**bits - 1)
        read_back = read(tmp_path, "x.png", picture)
        assert np.array_equal(read_back.rgb[..., :1], expected[..., :1])
        assert not read_back.remark
    row = 1 + -(-WIDTH * channels * bits // 8)
    for missing, rows in ((1, HEIGHT - 1), (row, HEIGHT - 1), (3 * row, HEIGHT - 3)):
        told = (
            "only a coarse version of it is" if interlaced else f"{rows} of its {HEIGHT} rows are"
        )
        with pytest.raises(ImageError, match=rf"x.png: it is cut short: {told} there"):
            read(
                tmp_path,
                "x.png",
                png(levels, bits, *chunks, interlaced=interlaced, missing=missing),
            )


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_deep_png_is_told_like_others_and_libpng_says_nothing(
    interlaced, tmp_path, capfd, caplog
):
    levels = noise(3)
    whole = png(levels, 16, interlaced=interlaced)
    assert_same(read(tmp_path, "x.png", whole), levels)
    for content, words in (
        (png(levels, 16, missing=6 * WIDTH * 4), rf"cut short: \d+ of its {HEIGHT} rows are there"),
        (whole[:-20], "cut short; get it again"),
        (whole[: len(whole) // 2], "cut short(: | of|; get it again)"),
        (png(levels, 16, missing=10**6), "cut short; get it again"),
    ):
        with pytest.raises(ImageError, match=rf"x.png: it is {words}"):
            read(tmp_path, "x.png", content)
    assert capfd.readouterr().err == "" and not caplog.records


@pytest.mark.parametrize("colours", [2, 4, 16, 256])
def test_palettes_with_transparency(colours, tmp_path):
    image = Image.fromarray(noise(3, 8)).quantize(colours)
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    indices = np.array(image)
    alpha = np.where(indices == 0, 0, np.where(indices == 1, 128, 255)).astype(np.uint8)
    assert_same(read_picture(tmp_path / "x.png"), np.dstack([image.convert("RGB"), alpha]))


# -------------------------------------------------------------------- more than 8 bits elsewhere


@pytest.mark.parametrize("container", ["jp2", "j2k"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [1, 4, 8, 10, 12, 16])
def test_jpeg_2000(bits, channels, container, tmp_path):
    levels = noise(channels, bits)
    options = dict(level=0, reversible=True, bitspersample=bits, codecformat=container)
    encoded = imagecodecs.jpeg2k_encode(levels.squeeze(), **options)
    assert_same(read(tmp_path, f"x.{container}", encoded), by_value(levels, 2**bits - 1))


def test_jpeg_2000_by_pillow(tmp_path):
    levels = noise(1)
    Image.fromarray(levels[..., 0]).save(tmp_path / "x.jp2", irreversible=False)
    assert_same(read_picture(tmp_path / "x.jp2"), levels)


def test_jpeg_2000_with_signed_numbers_is_refused(tmp_path):
    encoded = imagecodecs.jpeg2k_encode(noise(1)[..., 0].astype(np.int16), level=0)
    with pytest.raises(ImageError, match=r"x.jp2: its channels are signed"):
        read(tmp_path, "x.jp2", encoded)


@pytest.mark.parametrize("white", [1, 100, 255, 256, 1023, 65535])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("plain", [False, True])
def test_netpbm(plain, channels, white, tmp_path):
    levels = np.random.default_rng(0).integers(0, white + 1, (HEIGHT, WIDTH, channels))
    number = {1: 5, 3: 6}[channels] - (3 if plain else 0)
    data = levels.astype(np.uint8 if white <= 255 else ">u2").tobytes()
    if plain:
        data = b"\n".join(b"%d" % level for level in levels.ravel())
    head = b"P%d\n# a comment\n%d %d\n%d\n" % (number, WIDTH, HEIGHT, white)
    picture = read(tmp_path, "x.ppm", head + data)
    lost = plain and channels == 3 and white > 255
    expected = by_value(levels, white)
    expected = np.rint(expected / 257).astype(np.uint8) if lost else expected
    assert picture.remark == ("8 of 16 bits" if lost else "")
    assert picture.rgb.dtype == expected.dtype and picture.gray == (channels == 1)
    assert np.abs(picture.rgb - expected.astype(int)).max() <= 1  # where it falls between two


def test_netpbm_that_is_cut_short(tmp_path):
    with pytest.raises(ImageError, match=r"x.ppm: it is cut short; get it again"):
        read(tmp_path, "x.ppm", b"P6 24 20 65535\n" + bytes(100))


def test_netpbm_with_a_level_above_white(tmp_path):
    with pytest.raises(ImageError, match=r"x.pgm: a pixel has level 2000 of at most 1000"):
        read(tmp_path, "x.pgm", b"P5 2 1 1000\n" + np.array([1000, 2000], ">u2").tobytes())


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot open AVIF")
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12])
def test_avif(bits, channels, tmp_path):
    levels, layout = noise(channels, bits), "400" if channels == 1 else "444"
    options = dict(level=100, bitspersample=bits, pixelformat=layout)
    encoded = imagecodecs.avif_encode(levels.squeeze(), **options)
    assert_same(read(tmp_path, "x.avif", encoded), by_value(levels, 2**bits - 1))
    # Without the box that repeats the number of bits, which encoders may leave out.
    without = encoded.replace(b"pixi", b"free")
    assert_same(read(tmp_path, "x.avif", without), by_value(levels, 2**bits - 1))


def test_what_pillow_reduces_is_said(tmp_path):
    for width in (7, 160, 2160):  # which is no number of bits
        Image.new("RGB", (width, 3)).save(tmp_path / "x.sgi")
        assert read_picture(tmp_path / "x.sgi").remark == ""
    Image.fromarray(noise(3, 8)).save(tmp_path / "x.sgi", bpc=2)
    picture = read_picture(tmp_path / "x.sgi")
    assert np.array_equal(picture.rgb, noise(3, 8)) and picture.remark == "8 of 16 bits"


@pytest.mark.parametrize("suffix", ["bmp", "dib"])
@pytest.mark.parametrize("fourth, remark", [(0, ""), (255, ""), (None, "3 of 4 channels")])
def test_fourth_bytes_of_bmp_are_told_where_they_say_something(suffix, fourth, remark, tmp_path):
    pixels = noise(4, 8)
    pixels[..., 3] = pixels[..., 3] if fourth is None else fourth
    header = struct.pack("<IiiHHI20x", 40, WIDTH, -HEIGHT, 1, 32, 0)
    head = struct.pack("<2sI4xI", b"BM", 54 + pixels.size, 54) if suffix == "bmp" else b""
    content = head + header + pixels[..., [2, 1, 0, 3]].tobytes()
    picture = read(tmp_path, f"x.{suffix}", content)
    assert np.array_equal(picture.rgb, pixels[..., :3]) and picture.remark == remark
    with pytest.raises(ImageError, match="it is cut short; get it again"):
        read(tmp_path, f"x.{suffix}", content[:-99])


@pytest.mark.parametrize(
    "mode, suffix", [("P", "ico"), ("RGB", "ico"), ("RGBA", "ico"), ("P", "icns")]
)
def test_an_icons_png_keeps_its_palette_and_its_clear_colour(mode, suffix, tmp_path):
    image = Image.new("P", (16, 16))
    image.putpalette([10, 20, 30, 255, 0, 0])
    image.putpixel((3, 3), 1)
    image.info["transparency"] = 0
    if mode != "P":
        image = image.convert(mode)
    if mode == "RGB":
        image.info["transparency"] = (10, 20, 30)
    image.save(tmp_path / f"x.{suffix}", sizes=[(16, 16)])
    picture = read_picture(tmp_path / f"x.{suffix}")
    expected = np.array(image.convert("RGBA"))
    assert expected[3, 3, 3] == 255 and expected[0, 0, 3] == 0
    larger = len(picture.rgb) // 16  # ICNS's largest is 64 times as large
    expected = expected.repeat(larger, 0).repeat(larger, 1)
    assert np.array_equal(picture.rgb, expected[..., :3])
    assert np.array_equal(picture.alpha, expected[..., 3])


@pytest.mark.parametrize("suffix", ["bmp", "dib"])
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("order", [(0, 255), (255, 0)])
def test_a_bmp_of_two_colours_has_any_number_of_bits(bits, order, suffix, tmp_path):
    """With a palette of black and white alone, Pillow takes each bit for a pixel."""
    indices = noise(1, 8)[..., 0] % 2
    rows = np.zeros((HEIGHT, -(-WIDTH * bits // 32) * 4), np.uint8)
    digits = np.unpackbits(indices[..., None], axis=-1)[..., -bits:].reshape(HEIGHT, -1)
    packed = np.packbits(digits, axis=-1)
    rows[:, : packed.shape[1]] = packed
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, 0, 0, 0, 0, 2, 0)
    palette = bytes(level for each in order for level in (each, each, each, 0))
    head = struct.pack("<2sI4xI", b"BM", 62 + rows.size, 62) if suffix == "bmp" else b""
    content = head + header + palette + rows[::-1].tobytes()
    picture = read(tmp_path, f"x.{suffix}", content)
    assert np.array_equal(picture.rgb[..., 1], np.array(order)[indices])
    assert picture.rgb.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png", ".avif"])
def test_the_orientation_is_applied_once(suffix, orientation, tmp_path):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    image, exif = Image.fromarray(noise(3, 8)[:3, :4]).resize((40, 30)), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"x{suffix}", quality=95, exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(tmp_path / f"x{suffix}"))
    assert np.array_equal(read_picture(tmp_path / f"x{suffix}").rgb, np.array(upright))
    image.getexif()[0x0112] = orientation
    turned = np.array(ImageOps.exif_transpose(image)).astype(int)
    assert np.abs(np.array(upright) - turned).mean() < 20  # of 85 between two such pictures


# ------------------------------------------------------------------------------------ what we write


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_that_we_write_are_read_equal_by_others(channels, suffix, tmp_path):
    pixels, path = noise(channels), tmp_path / f"x{suffix}"
    has_alpha = channels in (2, 4)
    rgb = np.broadcast_to(pixels[..., : channels - has_alpha], (HEIGHT, WIDTH, 3)).copy()
    write_picture(Picture(rgb, pixels[..., -1] if has_alpha else None, channels < 3), path)
    assert_same(read_picture(path), pixels)
    other = imagecodecs.png_decode if suffix == ".png" else tifffile.imread
    given = path.read_bytes() if suffix == ".png" else path
    assert np.array_equal(other(given), pixels.squeeze())
    if (suffix, channels) != (".tif", 2):  # which OpenCV cannot read
        opencv = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        expected = np.dstack([rgb[..., ::-1], pixels[..., -1:]][: 1 + has_alpha])
        assert np.array_equal(opencv, pixels[..., 0] if channels == 1 else expected)
    if channels != 2 or suffix == ".png":  # nor Pillow, which has 8 bits of colour
        pillow = np.array(Image.open(path)).astype(float)
        expected = pixels[..., 0] if channels == 1 else expected[..., [2, 1, 0, 3][: 3 + has_alpha]]
        assert np.abs(pillow - expected / (1 if channels == 1 else 257)).max() <= 1
