"""Colours keep their look: profiles and chunks of the input, in every type of result, and shown."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features
from test_tiff import ink_profile

from images.colour import (
    CURVES,
    PRIMARIES,
    SRGB_CURVE,
    SRGB_PROFILE,
    build_profile,
    colour_space,
    of_code_points,
    to_srgb,
)
from images.files import Picture, read_picture, write_picture
from images.levels import rgb_of_inks
from upscaling.alphas import draw_strip
from upscaling.upscaler import Upscaler
from weights import load_generator

CHART = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
PATCHES = np.repeat(np.repeat(CHART[:4, :6], 32, 0), 32, 1)  # which lossy types keep
XY_SRGB = [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290)]  # red, green, blue, white
XY_P3 = [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)]
XY_ADOBE = [(0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.3290)]
XY_PROPHOTO = [(0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585)]


# --------------------------------------------------------------------- the answers, in closed form


def to_xyz(xy):
    """RGB to XYZ under the white of D50, by Lindbloom's formulas."""
    red, green, blue, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in xy)
    m = np.stack([red, green, blue], 1)
    m = m * (np.linalg.inv(m) @ white)
    b = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.96422, 1, 0.82521])
    return np.linalg.inv(b) @ np.diag((b @ d50) / (b @ white)) @ b @ m


def srgb_decode(v):
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def as_srgb(image, xy, decode, top=255):
    """(H, W, 3) with those primaries and curve, as sRGB in which `top` is full, too."""
    linear = decode(image / top) @ (np.linalg.inv(to_xyz(XY_SRGB)) @ to_xyz(xy)).T
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * top)


def shown(path):
    """What a colour-managed viewer makes of a file: its pixels through its profile."""
    file = Image.open(path)
    profile = file.info.get("icc_profile")
    if not profile:
        return np.array(file.convert("RGB")).astype(int)
    flat = file.convert({b"GRAY": "L", b"RGB ": "RGB"}[profile[16:20]])
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(flat, io.BytesIO(profile), srgb, outputMode="RGB")
    return np.array(converted).astype(int)


def near(suffix):
    """Levels by which a type's pixels may be off."""
    return 8 if suffix in (".jpg", ".jfif", ".webp") else 1


def gray_profile(gamma):
    return build_profile(None, (gamma,))


P3 = build_profile(PRIMARIES[12], SRGB_CURVE)
GRAY = gray_profile(1.8)
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
LINK = P3[:12] + b"link" + P3[16:]


# ----------------------------------------------------------------------------------- our profiles


@pytest.mark.parametrize(
    "xy, curve, decode",
    [
        (XY_P3, SRGB_CURVE, srgb_decode),
        (XY_ADOBE, (2.19921875,), lambda v: v**2.19921875),
        (XY_PROPHOTO, (1.8,), lambda v: v**1.8),
        (XY_SRGB, (1.0,), lambda v: v),
    ],
)
def test_littlecms_understands_what_is_built(xy, curve, decode):
    profile = build_profile(tuple(xy), curve)
    ours = to_srgb(CHART, profile)
    difference = np.abs(ours - as_srgb(CHART, xy, decode))
    # Where a channel is cut off at 0, littleCMS may round a little above it.
    assert np.percentile(difference, 99) <= 1 and difference.max() <= 3
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    assert opened.profile.xcolor_space == "RGB " and opened.profile.device_class == "mntr"
    assert np.allclose(opened.profile.red_colorant[0], to_xyz(xy)[:, 0], atol=1e-3)


# ITU-T H.273, table 2: red, green, blue and white of each code point.
XY_H273 = {
    1: XY_SRGB,  # BT.709
    5: [(0.64, 0.33), (0.29, 0.60), (0.15, 0.06), (0.3127, 0.3290)],  # BT.470, 625 lines
    6: [(0.630, 0.340), (0.310, 0.595), (0.155, 0.070), (0.3127, 0.3290)],  # SMPTE 170M
    7: [(0.630, 0.340), (0.310, 0.595), (0.155, 0.070), (0.3127, 0.3290)],  # SMPTE 240M
    9: [(0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)],  # BT.2020
    11: [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)],  # DCI-P3
    12: XY_P3,
}
DECODE_H273 = {  # table 3, the other way round: from what is stored to light
    **dict.fromkeys(
        (1, 6, 14, 15),
        lambda v: np.where(v < 4.5 * 0.018, v / 4.5, ((v + 0.099) / 1.099) ** (1 / 0.45)),
    ),
    4: lambda v: v**2.2,
    5: lambda v: v**2.8,
    8: lambda v: v,
    13: srgb_decode,
}


@pytest.mark.parametrize("code", XY_H273)
def test_primaries_have_the_numbers_of_h273(code):
    """As they are before the white of profiles is taken for theirs."""
    profile, remark = of_code_points(code, 8, gray=False)
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
    colorants = (opened.red_colorant, opened.green_colorant, opened.blue_colorant)
    adapted = np.array([xyz for xyz, _ in colorants]).T
    red, green, blue = np.linalg.solve(np.array(opened.chromatic_adaptation[0]), adapted).T
    found = [xyz[:2] / xyz.sum() for xyz in (red, green, blue, red + green + blue)]
    np.testing.assert_allclose(found, XY_H273[code], atol=1e-4)
    assert remark == "" and PRIMARIES.keys() == XY_H273.keys()


@pytest.mark.parametrize("code", DECODE_H273)
def test_curves_have_the_numbers_of_h273(code):
    """By littleCMS in fp32, which in 16 bits is coarser in the dark."""
    ramp = np.linspace(0, 1, 1001)[None, :, None].repeat(3, 2)
    profile, remark = of_code_points(12, code, gray=False)
    spaces = dict(colorspace="rgb", outcolorspace="rgb")
    result = imagecodecs.cms_transform(ramp.astype(np.float32), profile, SRGB_PROFILE, **spaces)
    millionths = as_srgb(ramp * 1e6, XY_P3, DECODE_H273[code], top=1e6)
    np.testing.assert_allclose(result, millionths / 1e6, atol=5e-5)
    assert remark == "" and CURVES.keys() == DECODE_H273.keys()


def test_a_gray_profile_is_a_curve():
    gray = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    expected = as_srgb(gray, XY_SRGB, lambda v: v**1.8)
    assert np.abs(to_srgb(gray, gray_profile(1.8)) - expected).max() <= 1


def test_the_curve_of_srgb_is_srgbs():
    """Under the same curve and white, a gray is the same gray whatever the primaries."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    assert np.abs(to_srgb(ramp, P3).astype(int) - ramp).max() <= 1


def test_without_a_profile_nothing_changes():
    assert to_srgb(CHART, None) is CHART


# ------------------------------------------------------------------------------------- PNG chunks


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, *chunks, image=CHART):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    plain = buffer.getvalue()
    path.write_bytes(plain[:33] + b"".join(chunks) + plain[33:])
    return path


def gama(gamma):
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def chrm(xy):
    red, green, blue, white = xy
    numbers = [round(n * 100_000) for point in (white, red, green, blue) for n in point]
    return chunk(b"cHRM", struct.pack(">8I", *numbers))


def iccp(profile):
    return chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))


def cicp(*numbers):
    return chunk(b"cICP", bytes(numbers))


SRGB_CHUNK = chunk(b"sRGB", b"\0")
CHUNKS = {
    "gamma 1": ([gama(1.0)], XY_SRGB, lambda v: v),
    "gamma 1/1.8": ([gama(1 / 1.8)], XY_SRGB, lambda v: v**1.8),
    "Adobe RGB": ([gama(1 / 2.2), chrm(XY_ADOBE)], XY_ADOBE, lambda v: v**2.2),
    "primaries alone": ([chrm(XY_P3)], XY_P3, srgb_decode),
    "cICP of Display P3": ([cicp(12, 13, 0, 1)], XY_P3, srgb_decode),
    "cICP before all others": (
        [SRGB_CHUNK, gama(1.0), iccp(GRAY), cicp(12, 13, 0, 1)], XY_P3, srgb_decode,
    ),
    "iCCP before the rest": ([gama(1.0), chrm(XY_ADOBE), iccp(P3)], XY_P3, srgb_decode),
    "a broken iCCP": ([iccp(b"x" * 300), gama(1.0)], XY_SRGB, lambda v: v),
    "HDR with a profile": ([cicp(9, 16, 0, 1), iccp(P3)], XY_P3, srgb_decode),
}  # fmt: skip


@pytest.mark.parametrize("case", CHUNKS)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".tga"])
def test_colours_look_the_same_in_every_type_of_result(case, suffix, tmp_path):
    chunks, xy, decode = CHUNKS[case]
    picture = read_picture(png(tmp_path / "x.png", *chunks, image=PATCHES))
    write_picture(picture, tmp_path / f"y{suffix}")
    expected = as_srgb(PATCHES, xy, decode)
    assert np.percentile(np.abs(shown(tmp_path / f"y{suffix}") - expected), 90) <= near(suffix)
    # Without its profile, it would look otherwise.
    assert np.percentile(np.abs(PATCHES - expected), 80) > 3


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [SRGB_CHUNK],
        [gama(0.45455)],
        [gama(0.45)],
        [gama(0.45455), chrm(XY_SRGB)],
        [SRGB_CHUNK, gama(1.0)],
        [cicp(1, 13, 0, 1)],
        [cicp(2, 2, 0, 1)],
    ],
)
def test_what_means_srgb_needs_no_profile(chunks, tmp_path):
    picture = read_picture(png(tmp_path / "x.png", *chunks))
    assert picture.profile is None and not picture.remark


@pytest.mark.parametrize(
    "chunks, words",
    [
        ([cicp(9, 16, 0, 1)], "PQ (HDR)"),
        ([cicp(9, 18, 0, 1)], "HLG (HDR)"),
        ([cicp(200, 13, 0, 1)], "code points 200 and 13"),
        ([cicp(12, 13, 1, 1)], "cICP chunk"),
        ([cicp(12, 13, 0, 0)], "cICP chunk"),
        ([gama(0)], "impossible"),
        ([chrm([(0, 0)] * 4)], "impossible"),
        ([chrm([(0.3, 0.3)] * 4), gama(0.45455)], "impossible"),
        ([iccp(b"broken" * 50)], "damaged"),
        ([iccp(LAB)], "one of Lab"),
        ([iccp(GRAY)], "one of GRAY"),
        ([iccp(P3[:16] + b"CMYK" + P3[20:])], "one of CMYK"),
        ([iccp(LINK)], "damaged"),
    ],
)
def test_what_cannot_be_carried_over_is_told(chunks, words, tmp_path):
    picture = read_picture(png(tmp_path / "x.png", *chunks))
    assert picture.profile is None and words in picture.remark
    assert np.array_equal(picture.rgb, CHART)


def test_a_gray_png_gets_a_gray_profile(tmp_path):
    gray = CHART[..., 0]
    picture = read_picture(png(tmp_path / "x.png", gama(1.0), chrm(XY_P3), image=gray))
    assert picture.gray and colour_space(picture.profile) == b"GRAY"
    write_picture(picture, tmp_path / "y.png")
    expected = as_srgb(np.stack([gray] * 3, -1), XY_SRGB, lambda v: v)
    assert np.percentile(np.abs(shown(tmp_path / "y.png") - expected), 95) <= 1


@pytest.mark.parametrize("space, index", [(0xFFFF, "R03"), (2, None), (1, "R03"), (0xFFFF, None)])
def test_a_cameras_word_for_adobe_rgb_becomes_a_profile(space, index, tmp_path):
    exif = Image.Exif()
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    inner[0xA001] = space
    if index:
        inner[ExifTags.IFD.Interop] = {1: index}
    Image.fromarray(PATCHES).save(tmp_path / "x.jpg", exif=exif, quality=100, subsampling=0)
    picture = read_picture(tmp_path / "x.jpg")
    if (space, index) not in ((0xFFFF, "R03"), (2, None)):
        assert picture.profile is None
        return
    expected = as_srgb(picture.rgb, XY_ADOBE, lambda levels: levels ** (563 / 256))
    assert np.percentile(np.abs(to_srgb(picture.rgb, picture.profile) - expected), 98) <= 1
    Image.fromarray(PATCHES).save(tmp_path / "x.jpg", exif=exif, icc_profile=P3)
    assert read_picture(tmp_path / "x.jpg").profile == P3  # one of its own comes first


@pytest.mark.parametrize("kind, profile", [(b"MBED", P3), (b"sRGB", None), (b"LINK", None)])
def test_a_bmps_own_profile_is_kept(kind, profile, tmp_path):
    """In Microsoft's fifth header; a linked one is a file's name."""
    height, width = PATCHES.shape[:2]
    pixels = PATCHES[::-1, :, ::-1].tobytes()
    sizes = struct.pack("<IiiHHII16x", 124, width, height, 1, 24, 0, len(pixels))
    colours = bytes(16) + kind[::-1] + bytes(48)
    ends = struct.pack("<IIII", 0, 124 + len(pixels), len(P3), 0)
    start = struct.pack("<2sI4xI", b"BM", 138 + len(pixels) + len(P3), 138)
    (tmp_path / "x.bmp").write_bytes(start + sizes + colours + ends + pixels + P3)
    picture = read_picture(tmp_path / "x.bmp")
    assert np.array_equal(picture.rgb, PATCHES) and picture.profile == profile


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_jpeg_2000_of_inks_may_say_so_by_its_profile_alone(dtype, tmp_path):
    top = np.iinfo(dtype).max
    inks = np.random.default_rng(0).integers(0, top, (40, 50, 4), dtype, endpoint=True)
    content = imagecodecs.jpeg2k_encode(inks, level=0, codecformat="jp2")
    at = content.index(b"jp2h") - 4
    size = int.from_bytes(content[at : at + 4], "big")
    rest = content[at + 8 : content.index(b"colr") - 4]
    profile = ink_profile()
    box = struct.pack(">I4sBBB", 11 + len(profile), b"colr", 2, 0, 0) + profile
    whole = struct.pack(">I4s", 8 + len(rest + box), b"jp2h") + rest + box
    picture = read_of(tmp_path, content[:at] + whole + content[at + size :])
    assert picture.alpha is None and picture.profile is None
    assert picture.remark == "CMYK turned into sRGB"
    assert np.array_equal(picture.rgb, rgb_of_inks(inks, profile))


@pytest.mark.parametrize("method", [2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_jpeg_2000_files_profile_is_kept(method, dtype, tmp_path):
    """Of both kinds of boxes that hold one: its header box is written anew."""
    levels = CHART.astype(dtype) * (257 if dtype == np.uint16 else 1)
    content = imagecodecs.jpeg2k_encode(levels, level=0, codecformat="jp2")
    at = content.index(b"jp2h") - 4
    size = int.from_bytes(content[at : at + 4], "big")
    header = content[at + 8 : at + size]
    old = header.index(b"colr") - 4
    rest = header[:old] + header[old + int.from_bytes(header[old : old + 4], "big") :]
    assert read_of(tmp_path, content).profile is None
    box = struct.pack(">I4sBBB", 11 + len(P3), b"colr", method, 0, 0) + P3
    plain = struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 16)  # another word for it comes first
    header = rest + plain + box
    whole = struct.pack(">I4s", 8 + len(header), b"jp2h") + header
    picture = read_of(tmp_path, content[:at] + whole + content[at + size :])
    assert picture.profile == P3 and np.array_equal(picture.rgb, levels)


def read_of(tmp_path, content):
    (tmp_path / "x.jp2").write_bytes(content)
    return read_picture(tmp_path / "x.jp2")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_files_profile_is_kept(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(CHART).save(tmp_path / "x.avif", icc_profile=profile)
    assert read_picture(tmp_path / "x.avif").profile == profile


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_file_says_its_primaries_in_a_box(tmp_path):
    Image.fromarray(CHART).save(tmp_path / "x.avif", quality=100)
    assert read_picture(tmp_path / "x.avif").profile is None  # Pillow writes sRGB's numbers
    content = (tmp_path / "x.avif").read_bytes()
    p3 = content.replace(b"colrnclx\0\1\0\r", b"colrnclx\0\x0c\0\r")
    assert p3 != content
    (tmp_path / "x.avif").write_bytes(p3)
    picture = read_picture(tmp_path / "x.avif")
    difference = np.abs(to_srgb(CHART, picture.profile) - as_srgb(CHART, XY_P3, srgb_decode))
    assert np.percentile(difference, 98) <= 1


# ----------------------------------------------------------------------- profiles that do not fit


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jfif", ".webp", ".tif", ".bmp", ".tga"])
@pytest.mark.parametrize("profile", [P3, GRAY], ids=["RGB", "gray"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_gray_picture_and_its_profile(suffix, profile, dtype, alpha, tmp_path):
    """The profile in a file is one of the pixels in it, and the look stays."""
    gray = np.repeat(PATCHES[..., :1], 3, -1)
    full = np.full(gray.shape[:2], np.iinfo(dtype).max, dtype)
    factor = 257 if dtype == np.uint16 else 1
    given = Picture(gray.astype(dtype) * factor, full if alpha else None, True, profile)
    write_picture(given, tmp_path / f"x{suffix}")
    if dtype == np.uint16 and profile == GRAY and suffix in (".png", ".tif"):
        content = (tmp_path / f"x{suffix}").read_bytes()  # Pillow has no such mode
        start = content.find(b"iCCPICC profile") + 17
        held = zlib.decompressobj().decompress(content[start:]) if suffix == ".png" else content
        assert GRAY in held
        return
    with Image.open(tmp_path / f"x{suffix}") as file:
        held = file.info.get("icc_profile")
        assert (
            not held or file.mode in {b"GRAY": ("L", "LA"), b"RGB ": ("RGB", "RGBA")}[held[16:20]]
        )
    decode = srgb_decode if profile == P3 else lambda v: v**1.8
    expected = as_srgb(gray, XY_SRGB, decode)
    assert np.percentile(np.abs(shown(tmp_path / f"x{suffix}") - expected), 90) <= near(suffix)


@pytest.mark.parametrize("size", [2**20 + 1, 10_000_000])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_large_profile_is_in_files_that_pillow_opens(size, suffix, dtype, tmp_path):
    large = struct.pack(">I", size) + P3[4:] + b"\0" * (size - len(P3))
    assert colour_space(large) == b"RGB "
    given = Picture(PATCHES.astype(dtype) * (257 if dtype == np.uint16 else 1), profile=large)
    remark = write_picture(given, tmp_path / f"x{suffix}")
    turned = suffix in (".png", ".bmp")
    assert ("colours turned into sRGB" in remark) == turned
    with Image.open(tmp_path / f"x{suffix}") as file:
        file.load()
        assert file.info.get("icc_profile") == (None if turned else large)
    if turned:
        expected = as_srgb(PATCHES, XY_P3, srgb_decode)
        assert np.percentile(np.abs(shown(tmp_path / f"x{suffix}") - expected), 98) <= 1


@pytest.mark.parametrize("alpha", [False, True])
def test_a_large_profile_costs_no_bits_where_16_are_held(alpha, tmp_path):
    large = struct.pack(">I", 2**21) + P3[4:] + b"\0" * (2**21 - len(P3))
    ramp = np.arange(0, 65536, 97).astype(np.uint16).reshape(4, 169)
    rgb = np.dstack([ramp, ramp[::-1], ramp[:, ::-1]])
    given = Picture(rgb, ramp if alpha else None, profile=large)
    remark = write_picture(given, tmp_path / "x.png")
    assert remark == "colours turned into sRGB, as PNG cannot hold their profile"
    picture = read_picture(tmp_path / "x.png")
    assert picture.rgb.dtype == np.uint16 and picture.profile is None
    assert not alpha or np.array_equal(picture.alpha, ramp)
    expected = as_srgb(rgb, XY_P3, srgb_decode, top=65535)
    assert np.percentile(np.abs(picture.rgb - expected), 85) <= 32  # an eighth of 8 bits' step


# ------------------------------------------------------------------------------------ what is shown


def strip_cells(path, count):
    """The pictures of a strip, without their labels."""
    strip = np.array(Image.open(path).convert("RGB"))[22:]
    return [strip[:, (strip.shape[1] + 4) // count * i :][:, : (strip.shape[1] + 4) // count - 4]
            for i in range(count)]  # fmt: skip


def test_results_keep_their_profile_and_what_is_shown_is_srgb(
    tmp_path, monkeypatch, identity_weights
):
    from tests.test_upscale import run

    image = np.repeat(np.repeat(CHART, 8, 0), 8, 1)
    for folder in ("photos", "hr"):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "x.png", icc_profile=P3)
    monkeypatch.chdir(tmp_path)
    flags = ("--weights", identity_weights, "--compare", "--report", "--hr", "hr")
    assert run(monkeypatch, "photos", *flags) == 0
    with Image.open("results/x.png") as file:
        assert file.info["icc_profile"] == P3 and np.array_equal(np.array(file), image)
    assert "inf" in (tmp_path / "results/metrics.csv").read_text()  # scored as stored
    expected = as_srgb(image, XY_P3, srgb_decode)
    for cell in strip_cells("results/compare/x.png", 4):
        left = (cell.shape[1] - image.shape[1]) // 2
        difference = np.abs(cell[:, left : left + image.shape[1]] - expected)
        assert np.percentile(difference, 98) <= 1
    page = [path for path in (tmp_path / "results/index_files").iterdir() if "ours" in path.name]
    assert np.median(np.abs(np.array(Image.open(page[0])) - expected)) <= 3


def test_strips_of_alphas_are_srgb(tmp_path, identity_weights):
    upscalers = {0.5: Upscaler(load_generator(identity_weights), "cpu", "fp32")}
    image = np.repeat(np.repeat(CHART, 16, 0), 16, 1)
    strip, _ = draw_strip(Picture(image, profile=P3), None, upscalers)
    expected = as_srgb(image, XY_P3, srgb_decode)
    left = (strip.shape[1] - image.shape[1]) // 2
    difference = np.abs(strip[22:, left : left + image.shape[1]] - expected)
    assert np.percentile(difference, 98) <= 1
