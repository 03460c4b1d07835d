"""Files that other programs read are read, and say what was wrong with them; bad pixels are not."""

import io
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from images import jpeg
from images.colour import DAMAGED
from images.files import ImageError, read_image, read_picture
from images.opening import silence_pillow

PHOTO = np.dstack([np.mgrid[0:160, 0:90][0], np.mgrid[0:160, 0:90][1] * 2, np.full((160, 90), 99)])
PHOTO = PHOTO.astype(np.uint8) ^ np.random.default_rng(0).integers(0, 16, PHOTO.shape, np.uint8)


def encoded(format: str, image: np.ndarray = PHOTO, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.fixture
def read(tmp_path):
    def read(content: bytes):
        (tmp_path / "x.bin").write_bytes(content)
        return read_picture(tmp_path / "x.bin")

    return read


# ------------------------------------------------------------------------------------------- JPEG

KINDS = {
    "baseline": {},
    "progressive": dict(progressive=True),
    "restarts": dict(restart_marker_blocks=3),
    "restarts in rows": dict(restart_marker_rows=1),
    "gray": {},
}


def photo(kind: str) -> bytes:
    image = PHOTO[..., 1] if kind == "gray" else PHOTO
    return encoded("JPEG", image, quality=90, **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_without_its_end_marker_has_all_of_its_pixels(kind, cut, read):
    picture = read(photo(kind)[:-cut])
    assert np.array_equal(picture.rgb, decoded(photo(kind)))
    told = "its end is missing, but no pixel"
    assert picture.remark == told or kind == "restarts in rows"  # which Pillow reads without
    assert picture.gray == (kind == "gray")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [3, 10, 40])
def test_a_few_missing_rows_are_told(kind, cut, read):
    picture = read(photo(kind)[:-cut])
    changed = np.flatnonzero((picture.rgb != decoded(photo(kind))).any((1, 2)))
    told = re.fullmatch(r"it is cut short: its last (\d+) rows may be made up", picture.remark)
    rows = int(told[1]) if told else 0  # a few bits are of pixels beyond the border
    assert picture.complete == (rows == 0)
    assert rows <= 18 and (changed >= len(PHOTO) - rows).all() and (rows or cut == 3)


@pytest.mark.parametrize("height, cut", [(10, 100), (16, 60), (30, 60)])
def test_at_least_half_of_a_picture_is_there(height, cut, read):
    with pytest.raises(ImageError, match=r"it is cut short(: \d+ of its 30 rows are there)?; get"):
        read(encoded("JPEG", PHOTO[:height], quality=90)[:-cut])


def test_what_is_made_up_is_nothing_to_learn_from(tmp_path):
    (tmp_path / "x.jpg").write_bytes(photo("baseline")[:-40])
    with pytest.raises(ImageError, match=r"x\.jpg: it is cut short: its last \d+ rows"):
        read_image(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes(photo("baseline")[:-2])
    assert np.array_equal(read_image(tmp_path / "x.jpg"), decoded(photo("baseline")))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"progressive"}))
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_a_download_that_broke_off_is_refused_with_how_much_is_there(kind, share, read):
    whole = photo(kind)
    with pytest.raises(ImageError, match=r"cut short: \d+ of its 160 rows are there") as error:
        read(whole[: int(len(whole) * share)])
    rows = int(str(error.value).split(" of its ")[0].split()[-1])
    assert abs(rows - share * 160) < 40


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_progressive_one_is_refused_however_far_it_came(share, read):
    """The first scans give a picture of full size, and a coarse one."""
    whole = photo("progressive")
    with pytest.raises(ImageError, match=r"x\.bin: it is cut short: (only a coarse|\d+ of)"):
        read(whole[: int(len(whole) * share)])
    at = whole.index(b"\xff\xda", len(whole) // 2)  # the end of a scan, exactly
    with pytest.raises(ImageError, match=r"only a coarse version"):
        read(whole[:at])


def with_exif(turn: int = 6, thumbnail: bool = False) -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "camera" * 5, turn
    content = exif.tobytes()
    if thumbnail:
        content += encoded("JPEG", PHOTO[:32, :32])
    return encoded("JPEG", exif=content)


@pytest.mark.parametrize("thumbnail", [False, True])
@pytest.mark.parametrize("error", [-30, -6, -1, 1, 6, 40, 4000])
def test_exif_of_a_wrong_length_is_read(error, thumbnail, read):
    content = with_exif(thumbnail=thumbnail)
    at = content.index(b"Exif\0\0") - 2
    length = int.from_bytes(content[at : at + 2], "big") + error
    broken = content[:at] + length.to_bytes(2, "big") + content[at + 2 :]
    picture = read(broken)
    assert np.array_equal(picture.rgb, np.rot90(decoded(content), -1)) and not picture.remark


def test_a_sound_file_goes_through_unchanged():
    for kind in KINDS:
        assert jpeg.with_right_lengths(photo(kind)) == photo(kind)
    profile = np.random.default_rng(1).integers(0, 256, 150_000, np.uint8).tobytes()
    content = encoded("JPEG", icc_profile=profile, exif=with_exif()[30:90])
    assert jpeg.with_right_lengths(content) == content


def test_damaged_exif_is_told(read):
    content = with_exif()
    at = content.index(b"Exif\0\0") + 6
    picture = read(content[:at] + b"XX" * 20 + content[at + 40 :])
    assert np.array_equal(picture.rgb, decoded(content))
    assert picture.remark == "its EXIF data is damaged, so it may lie on its side"


def test_pillows_warnings_are_kept_off_the_screen_of_programs():
    modules = ("PIL.TiffImagePlugin", "images.files")
    for silent in (False, True):
        with warnings.catch_warnings(record=True) as raw:
            warnings.simplefilter("always")
            if silent:
                silence_pillow()
            for module in modules:
                warnings.warn_explicit(f"of {module}", UserWarning, "x.py", 1, module)
        shown = [str(warning.message).removeprefix("of ") for warning in raw]
        assert shown == [*(modules[1:] if silent else modules)]


def test_a_profile_of_which_a_part_is_missing_is_told(read):
    content = encoded("JPEG", icc_profile=b"x" * 150_000)  # in three segments
    at = content.index(b"ICC_PROFILE\0\2\3") - 4
    end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    picture = read(content[:at] + content[end:])
    assert picture.profile is None and picture.remark == DAMAGED
    assert np.array_equal(picture.rgb, decoded(content))


def test_garbage_behind_the_end_is_passed_over(read):
    for content in (photo("baseline"), encoded("PNG"), encoded("GIF"), encoded("BMP")):
        picture = read(content + b"a trailer that somebody appended" * 9)
        assert np.array_equal(picture.rgb, decoded(content)) and not picture.remark


def test_a_phones_pictures_in_one_file(read):
    """MPO: the picture and a preview; one that is cut in the preview has its picture."""
    buffer = io.BytesIO()
    preview = Image.fromarray(PHOTO[:40, :40])
    Image.fromarray(PHOTO).save(buffer, "MPO", save_all=True, append_images=[preview])
    content = buffer.getvalue()
    for part in (content, content[:-100]):
        picture = read(part)
        assert np.array_equal(picture.rgb, decoded(content)) and not picture.remark


# -------------------------------------------------------------------------------------------- PNG


def chunk(kind: bytes, data: bytes, wrong: int = 0) -> bytes:
    checksum = zlib.crc32(kind + data) ^ wrong
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


ROWS = b"".join(b"\0" + (row * 257).tobytes() for row in PHOTO.astype(">u2"))
PNGS = {
    8: encoded("PNG"),
    16: b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 90, 160, 16, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(ROWS))
    + chunk(b"IEND", b""),
}
LARGE = b"x" * 1_600_000


@pytest.mark.parametrize("bits", PNGS)
@pytest.mark.parametrize(
    "extra, remark",
    [
        (chunk(b"tEXt", b"workflow\0" + LARGE), ""),
        (chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LARGE)), ""),
        (chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LARGE)), ""),
        (chunk(b"tEXt", b"a\0b", wrong=1), "its tEXt chunk is damaged and was left out"),
        (chunk(b"pHYs", b"\0"), "its pHYs chunk is damaged and was left out"),
        (chunk(b"vpAg", b"private", wrong=1), ""),
        (chunk(b"gAMA", b"\0\1\x86\xa0", wrong=1), "its gAMA chunk is damaged and was left out"),
        (chunk(b"gAMA", b"\0"), "its gAMA chunk is damaged and was left out"),
        (chunk(b"tRNS", b"\0" * 6, wrong=1), "its tRNS chunk is damaged and was left out"),
        (chunk(b"iCCP", b"p\0\0no zlib"), "its colour profile is damaged and was left out"),
    ],
    ids=lambda value: value[4:8].decode() if isinstance(value, bytes) else "",
)
def test_an_unimportant_chunk_keeps_nothing_from_being_read(bits, extra, remark, read):
    png = PNGS[bits]
    picture = read(png[:33] + extra + png[33:])
    factor = 257 if bits == 16 else 1
    assert np.array_equal(picture.rgb, PHOTO.astype(picture.rgb.dtype) * factor)
    assert picture.remark == remark and picture.alpha is None and picture.profile is None


@pytest.mark.parametrize("bits", PNGS)
def test_damaged_pixels_are_refused(bits, read):
    png = PNGS[bits]
    at = png.index(b"IDAT")
    end = at + 4 + int.from_bytes(png[at - 4 : at], "big")
    for place in (at + 100, end):  # among the pixels, and the checksum
        broken = png[:place] + bytes([png[place] ^ 1]) + png[place + 1 :]
        with pytest.raises(ImageError, match=r"x\.bin: its IDAT chunk is damaged"):
            read(broken)
    with pytest.raises(ImageError, match=r"x\.bin: "):
        read(png[: len(png) // 2])


@pytest.mark.parametrize("bits", PNGS)
def test_a_wrong_checksum_matters_only_where_pixels_depend_on_it(bits, read):
    png, suggested = PNGS[bits], chunk(b"PLTE", bytes(9), wrong=1)
    for content in (png[:-1] + b"\0", png[:-4], png[:33] + suggested + png[33:]):
        picture = read(content)
        assert np.array_equal(picture.rgb // (257 if bits == 16 else 1), PHOTO)
        assert picture.remark == ""
    header = png[:29] + bytes([png[29] ^ 1]) + png[30:]
    with pytest.raises(ImageError, match="its IHDR chunk is damaged"):
        read(header)


def test_a_palette_is_needed_by_what_has_one(read):
    png = encoded("PNG", PHOTO[..., 0])
    header = chunk(b"IHDR", png[16:25] + b"\3" + png[26:29])
    palette = np.random.default_rng(2).integers(0, 256, (256, 3), np.uint8)
    picture = read(png[:8] + header + chunk(b"PLTE", palette.tobytes()) + png[33:])
    assert np.array_equal(picture.rgb, palette[PHOTO[..., 0]])
    with pytest.raises(ImageError, match="its PLTE chunk is damaged"):
        read(png[:8] + header + chunk(b"PLTE", palette.tobytes(), wrong=1) + png[33:])
    with pytest.raises(ImageError, match=r"its palette is missing; is it damaged\?"):
        read(png[:8] + header + png[33:])


@pytest.mark.parametrize("bits", PNGS)
def test_a_png_without_its_end_has_all_of_its_pixels(bits, read):
    picture = read(PNGS[bits][:-12])
    assert np.array_equal(picture.rgb // (257 if bits == 16 else 1), PHOTO)
    assert picture.remark == "its end is missing, but no pixel"


def test_orientation_and_transparency_survive(read):
    exif = Image.Exif()
    exif[0x0112] = 3
    rgba = np.dstack([PHOTO, PHOTO[..., 0]])
    png = encoded("PNG", rgba, exif=exif)
    picture = read(png[:33] + chunk(b"tEXt", b"a\0b", wrong=1) + png[33:])
    assert np.array_equal(np.dstack([picture.rgb, picture.alpha]), rgba[::-1, ::-1])
    text = b"Raw profile type exif\0\0" + zlib.compress(
        f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n".encode()
    )  # as ImageMagick writes it
    assert np.array_equal(
        read(PNGS[8][:33] + chunk(b"zTXt", text) + PNGS[8][33:]).rgb, PHOTO[::-1, ::-1]
    )
