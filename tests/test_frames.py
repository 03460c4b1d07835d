"""Animations and files of several pages: all of it goes in and out, as Pillow sees it."""

import errno
import io
import os
import struct
import sys
import threading
import time
import weakref
import zlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageSequence, features
from programs import load_program

import upscaling.upscaler
from images.clock import Clock
from images.files import Picture, Sequence, read_picture, write_image, write_picture
from images.frames import FRAMES, PAGES
from images.gif import GifAnimation, encoded_gif
from images.kinds import PNG_START, ImageError
from images.metadata import Metadata
from images.png import chunk
from upscaling.jobs import Job
from upscaling.saving import save_result, without_metadata
from upscaling.upscaler import Upscaler, enlarge
from weights import load_generator

BOTH = (FRAMES, PAGES)
TIMES = [40, 100, 70, 30, 250]
LOSSLESS = {"webp": dict(lossless=True, exact=True), "png": {}, "gif": dict(disposal=2)}


def drawn(alpha):
    """Frames of few colours, each with a patch that moves, and a corner that comes and goes."""
    rng = np.random.default_rng(0)
    frames = []
    for i in range(len(TIMES)):
        frame = np.full((20, 30, 4), 255, np.uint8)
        frame[..., :3] = rng.integers(0, 200, 3)
        frame[2 + i : 9 + i, 3:12, :3] = rng.integers(0, 256, 3)
        if alpha and i % 2:
            frame[12:, 20:] = 0
        frames.append(frame)
    return frames


def saved(path, frames, **options):
    images = [Image.fromarray(frame) for frame in frames]
    options |= LOSSLESS.get(path.suffix[1:], {})
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


def shown(path):
    """Each frame as RGBA, clear pixels black, and its time; and the number of loops."""
    with Image.open(path) as file:
        frames, times = [], []
        for frame in ImageSequence.Iterator(file):
            pixels = np.array(frame.convert("RGBA"))
            pixels[pixels[..., 3] == 0] = 0
            frames.append(pixels)
            times.append(frame.info.get("duration"))
        return frames, times, file.info.get("loop")


def same(frames, others):
    return len(frames) == len(others) and all(map(np.array_equal, frames, others))


# -------------------------------------------------------------------------------------- animations


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("target", LOSSLESS)
@pytest.mark.parametrize("source", LOSSLESS)
def test_an_animation_comes_out_whole(source, target, alpha, tmp_path):
    frames = drawn(alpha)
    path = saved(tmp_path / f"in.{source}", frames, duration=TIMES, loop=2)
    picture = read_picture(path, BOTH)
    assert picture.sequence.count == 5 and picture.remark == ""
    rest = picture.sequence.rest
    lossless = replace(
        picture,
        lossless=True,
        sequence=replace(
            picture.sequence, rest=lambda: (replace(frame, lossless=True) for frame in rest())
        ),
    )
    assert write_picture(lossless, tmp_path / f"out.{target}") == ""
    result, times, loop = shown(tmp_path / f"out.{target}")
    assert same(result, frames) and times == TIMES
    # GIF counts how often it is shown again, the others how often it is shown.
    assert loop == 2 + (source == "gif") - (target == "gif")


@pytest.mark.parametrize("loop", [None, 0, 1, 7])
def test_loops_are_kept(loop, tmp_path):
    options = {} if loop is None else dict(loop=loop)
    source = saved(tmp_path / "in.gif", drawn(False), duration=TIMES, **options)
    for kind in ("gif", "webp", "png"):
        write_picture(read_picture(source, BOTH), tmp_path / f"out.{kind}")
    assert shown(tmp_path / "out.gif")[2] == loop
    plays = {None: 1, 0: 0, 1: 2, 7: 8}[loop]
    assert shown(tmp_path / "out.webp")[2] == shown(tmp_path / "out.png")[2] == plays


def test_no_gif_has_a_frame_of_10_ms_that_was_longer(tmp_path):
    """Browsers show it for 100."""
    saved(tmp_path / "in.png", drawn(False), duration=1000 / 60)
    write_picture(read_picture(tmp_path / "in.png", BOTH), tmp_path / "out.gif")
    assert shown(tmp_path / "out.gif")[1] == [20] * 5
    saved(tmp_path / "in.png", drawn(False), duration=[12, 12, 60, 10, 10])
    write_picture(read_picture(tmp_path / "in.png", BOTH), tmp_path / "out.gif")
    assert shown(tmp_path / "out.gif")[1] == [20, 20, 60, 10, 10]  # a pause stays as long


def test_times_do_not_drift_where_units_are_coarse(tmp_path):
    clock = Clock(10, 0xFFFF)
    ticks = [clock.ticks(1000 / 30) for _ in range(300)]
    assert sum(ticks) == 1000 and {*ticks} == {3, 4}
    source = saved(tmp_path / "in.webp", drawn(False), duration=33)
    write_picture(read_picture(source, BOTH), tmp_path / "out.gif")
    assert shown(tmp_path / "out.gif")[1] == [30, 40, 30, 30, 30]  # up to 33, 66, 99, 132, 165
    for duration in (1000 / 30, 1500.123, 70_000.0):
        saved(tmp_path / "in.png", drawn(False), duration=duration)
        write_picture(read_picture(tmp_path / "in.png", BOTH), tmp_path / "out.png")
        assert shown(tmp_path / "out.png")[1] == pytest.approx(
            [min(duration, 65_535_000)] * 5, rel=1e-4
        )


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow decodes no AVIF")
def test_an_avif_of_more_than_8_bits_that_moves_is_read_frame_by_frame(tmp_path):
    levels = (100, 500, 1000)  # of 1023
    frames = np.stack([np.full((32, 48, 3), level, np.uint16) for level in levels])
    encoded = imagecodecs.avif_encode(frames, bitspersample=10, level=100)
    (tmp_path / "a.avif").write_bytes(encoded)
    picture = read_picture(tmp_path / "a.avif", BOTH)
    assert picture.remark == "8 of 10 bits"
    assert [int(each.rgb.mean()) for each in (picture, *picture.sequence.rest())] == [25, 125, 249]
    first = read_picture(tmp_path / "a.avif")
    assert np.array_equal(first.rgb, picture.rgb)
    assert first.remark == "the first of 3 frames; 8 of 10 bits"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_is_shown_as_often_as_it_says(tmp_path):
    """Pillow writes that it is shown for ever: a track without an end, of edits that repeat."""
    images = [Image.fromarray(frame) for frame in drawn(False)]
    images[0].save(tmp_path / "x.avif", save_all=True, append_images=images[1:], duration=40)
    content = (tmp_path / "x.avif").read_bytes()
    assert read_picture(tmp_path / "x.avif", BOTH).sequence.plays == 0
    edits, track = content.index(b"elst") + 4, content.index(b"tkhd") + 4
    assert content[edits] == content[track] == 1
    once = content[: edits + 3] + b"\0" + content[edits + 4 :]
    (tmp_path / "x.avif").write_bytes(once)
    picture = read_picture(tmp_path / "x.avif", BOTH)
    assert picture.sequence.plays == 1
    write_picture(picture, tmp_path / "out.webp")
    assert shown(tmp_path / "out.webp")[2] == 1
    lasts = int.from_bytes(content[edits + 8 : edits + 16], "big")
    thrice = content[: track + 28] + (3 * lasts).to_bytes(8, "big") + content[track + 36 :]
    (tmp_path / "x.avif").write_bytes(thrice)
    assert read_picture(tmp_path / "x.avif", BOTH).sequence.plays == 3


def test_a_lossless_webp_that_moves_stays_so_and_a_lossy_one_is_lossy(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 4), np.uint8)
    images = [Image.fromarray(frame[..., :3]) for frame in noise]
    for lossless in (True, False):
        path = tmp_path / f"{lossless}.webp"
        images[0].save(path, save_all=True, append_images=images[1:], lossless=lossless)
        write_picture(read_picture(path, BOTH), tmp_path / "out.webp")
        assert same(shown(tmp_path / "out.webp")[0], shown(path)[0]) == lossless


def test_a_lossy_webp_that_moves_keeps_its_transparency(tmp_path):
    frames = drawn(True)
    saved(tmp_path / "in.png", frames, duration=TIMES)
    write_picture(read_picture(tmp_path / "in.png", BOTH), tmp_path / "out.webp")
    assert b"ALPH" in (tmp_path / "out.webp").read_bytes()  # which lossy frames alone have
    result = shown(tmp_path / "out.webp")[0]
    for ours, frame in zip(result, frames, strict=True):
        assert np.array_equal(ours[..., 3], frame[..., 3])
        clear = frame[..., 3:] == 0
        assert np.abs(np.where(clear, 0, ours.astype(int) - frame)).mean() < 3


def test_a_quality_is_that_of_every_frame(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), np.uint8)
    images = [Image.fromarray(frame) for frame in noise]
    images[0].save(tmp_path / "in.webp", save_all=True, append_images=images[1:])
    picture = read_picture(tmp_path / "in.webp", BOTH)
    sizes = []
    for quality in (10, 50, None):  # 95
        job = Job(tmp_path / "in.webp", tmp_path / f"{quality}.webp", None, None)
        save_result(picture, job, [], quality)
        sizes.append((tmp_path / f"{quality}.webp").stat().st_size)
    assert 1.5 * sizes[0] < sizes[1] and 1.5 * sizes[1] < sizes[2]


def test_the_picture_for_programs_that_show_no_animation_stays_that(tmp_path):
    frames = drawn(True)
    saved(tmp_path / "in.png", frames, duration=TIMES[1:], default_image=True)
    picture = read_picture(tmp_path / "in.png", BOTH)
    write_picture(picture, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as file:
        assert file.default_image
    assert same(shown(tmp_path / "out.png")[0], frames)
    write_picture(picture, tmp_path / "out.gif")
    result, times, _ = shown(tmp_path / "out.gif")
    assert same(result, frames[1:]) and times == TIMES[1:]


def test_an_animations_metadata_and_profile_stay(tmp_path):
    from test_files import PROFILE
    from test_metadata import PACKET, camera

    frames = drawn(True)
    words = dict(exif=b"Exif\0\0" + camera(), xmp=PACKET.encode(), icc_profile=PROFILE)
    saved(tmp_path / "in.webp", frames, duration=TIMES, **words)
    picture = read_picture(tmp_path / "in.webp", BOTH)
    assert picture.rgb.shape == (30, 20, 3)  # it lay on its side
    for kind in ("webp", "png"):
        write_picture(picture, tmp_path / f"out.{kind}")
        with Image.open(tmp_path / f"out.{kind}") as file:
            assert file.getexif()[0x010F] == "ACME" and file.getexif()[0x0112] == 1
            assert b't:Orientation="1"' in file.info["xmp"] and file.n_frames == 5
            assert file.info["icc_profile"] == PROFILE
    result = shown(tmp_path / "out.webp")[0]
    assert same(result, [np.ascontiguousarray(np.rot90(frame, -1)) for frame in frames])


def test_gif_gets_256_colours_and_no_half_clear_pixels(tmp_path):
    rgb = np.mgrid[0:64, 0:64].transpose(1, 2, 0) * 4
    rgb = np.dstack([rgb, rgb[..., :1] // 2]).astype(np.uint8)
    alpha = np.arange(64 * 64).reshape(64, 64).astype(np.uint8)
    remark = write_picture(Picture(rgb, alpha), tmp_path / "out.gif")
    assert remark == "256 colours, each opaque or clear"
    ((result,), _, _) = shown(tmp_path / "out.gif")
    assert np.array_equal(result[..., 3] == 255, alpha >= 128) and {0, 255} == {
        *np.unique(result[..., 3])
    }
    # Dithered, so right on average.
    visible = alpha >= 128
    assert np.abs(result[visible][:, :3].mean(0) - rgb[visible].mean(0)).max() < 2
    few = rgb // 64 * 64
    assert write_picture(Picture(few), tmp_path / "out.gif") == ""
    assert np.array_equal(shown(tmp_path / "out.gif")[0][0][..., :3], few)


@pytest.mark.parametrize("kind", ["png", "webp", "gif"])
def test_a_frame_beyond_the_canvas_of_its_gif_is_cut_to_it(kind, tmp_path):
    """Pillow would make the canvas larger from there on."""
    small, large = (np.full((n, n, 3), 40 * n // 10, np.uint8) for n in (20, 30))
    with open(tmp_path / "in.gif", "wb") as file:
        animation = GifAnimation(file, 0)
        for rgb in (small, large):
            animation.add(encoded_gif(rgb, None, b""), 100)
        animation.close()
    path = tmp_path / f"out.{kind}"
    write_picture(read_picture(tmp_path / "in.gif", (FRAMES,)), path)
    frames, times, _ = shown(path)
    assert [frame.shape for frame in frames] == [(20, 20, 4)] * 2 and times == [100, 100]
    assert [frame[0, 0, 0] for frame in frames] == [80, 120]
    if kind == "png":
        content = path.read_bytes()
        controls = [
            content[i + 8 : i + 16] for i in range(len(content)) if content[i : i + 4] == b"fcTL"
        ]
        assert controls == [content[16:24]] * 2


def test_later_pages_may_need_a_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr("images.pages.ROOM", 10_000)
    for size, big in ((10, False), (100, True)):
        with tifffile.TiffWriter(tmp_path / "in.tif") as file:
            for side in (10, size):
                file.write(np.zeros((side, side, 3), np.uint8), photometric="rgb")
        write_picture(read_picture(tmp_path / "in.tif", (PAGES,)), tmp_path / "out.tif")
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            assert file.is_bigtiff == big and len(file.pages) == 2


def test_pages_that_one_side_is_given_for_grow_unlike(identity_weights, tmp_path, monkeypatch):
    """A wide page, then a high one: of the same width, the second has 16 times the pixels."""
    monkeypatch.setattr("images.pages.ROOM", 10_000)
    with tifffile.TiffWriter(tmp_path / "in.tif") as file:
        for shape in ((10, 40, 3), (40, 10, 3)):
            file.write(np.zeros(shape, np.uint8), photometric="rgb")
    picture = read_picture(tmp_path / "in.tif", (PAGES,))
    assert picture.area == 800
    net = load_generator(identity_weights)
    enlarged = enlarge(picture, Upscaler(net, "cpu", "fp32", width=40))
    assert enlarged.area == 10 * 40 + 160 * 40
    write_picture(enlarged, tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_bigtiff and file.pages[1].shape == (160, 40, 3)


def test_pages_that_lie_are_counted_as_they_are_seen(tmp_path):
    with tifffile.TiffWriter(tmp_path / "in.tif") as file:
        for turned in (1, 6):
            tag = (274, 3, 1, turned, True)
            file.write(np.zeros((10, 40, 3), np.uint8), photometric="rgb", extratags=[tag])
    picture = read_picture(tmp_path / "in.tif", (PAGES,))
    assert picture.sequence.sizes == ((10, 40), (40, 10))
    assert next(picture.sequence.rest()).rgb.shape == (40, 10, 3)


def apng(path, frames, *, colour=6, bits=8, before=(), default=None):
    """Of 4 x 1, written by its specification: (rows of values, left, dispose, blend) of each."""

    def pixels(rows):
        digits = [np.unpackbits(np.array(row, ">u2").ravel().view(np.uint8)) for row in rows]
        kept = [each.reshape(-1, 16)[:, -bits:].ravel() for each in digits]
        return zlib.compress(b"".join(b"\0" + np.packbits(each).tobytes() for each in kept))

    header = struct.pack(">IIBBBBB", 4, 1, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*each) for each in before)]
    parts.append(chunk(b"acTL", struct.pack(">II", len(frames), 0)))
    parts += [chunk(b"IDAT", pixels(default))] if default else []
    number = 0
    for rows, left, dispose, blend in frames:
        place = (number, len(rows[0]), len(rows), left, 0)
        control = struct.pack(">5IHHBB", *place, 1, 10, dispose, blend)
        parts.append(chunk(b"fcTL", control))
        is_first = number == 0 and not default
        number += 1
        if is_first:
            parts.append(chunk(b"IDAT", pixels(rows)))
        else:
            parts.append(chunk(b"fdAT", struct.pack(">I", number) + pixels(rows)))
            number += 1
    path.write_bytes(PNG_START + b"".join(parts) + chunk(b"IEND", b""))
    return path


RED, GREEN, BLUE, CLEAR = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), (0, 0, 0, 0)
NONE, BACKGROUND, PREVIOUS = range(3)
SOURCE, OVER = range(2)


def frames_of(path):
    """Each as RGBA of its first row, clear ones black."""
    picture = read_picture(path, BOTH)
    rows = []
    for each in (picture, *picture.sequence.rest()):
        assert each.rgb.shape == (1, 4, 3)
        alpha = np.full((1, 4), 255) if each.alpha is None else each.alpha
        rgba = np.dstack((each.rgb, alpha))[0]
        rows.append([tuple(pixel) if pixel[3] else CLEAR for pixel in rgba.tolist()])
    return rows


def test_an_apngs_frame_that_goes_leaves_what_was_there_before(tmp_path):
    frames = [([[GREEN] * 4], 0, NONE, SOURCE)]
    frames += [([[RED]], 0, PREVIOUS, OVER), ([[BLUE]], 3, NONE, OVER)]
    assert frames_of(apng(tmp_path / "x.png", frames)) == [
        [GREEN] * 4,
        [RED, GREEN, GREEN, GREEN],
        [GREEN, GREEN, GREEN, BLUE],
    ]
    # Of the first one, that is nothing.
    frames = [([[GREEN] * 4], 0, PREVIOUS, SOURCE), ([[RED]], 1, NONE, OVER)]
    assert frames_of(apng(tmp_path / "x.png", frames))[1] == [CLEAR, RED, CLEAR, CLEAR]


def test_an_apngs_half_clear_pixels_are_mixed_with_what_is_under_them(tmp_path):
    half = (255, 0, 0, 128)
    frames = [([[CLEAR, GREEN, (0, 255, 0, 128), half]], 0, NONE, SOURCE)]
    frames.append(([[half] * 4], 0, NONE, OVER))
    over = [(255, 0, 0, 128)]  # on nothing, it is itself
    over.append((128, 127, 0, 255))  # half and half
    over.append((170, 85, 0, 192))  # 128 of red over 128 * 127 / 255 = 63.75 of green
    over.append((255, 0, 0, 192))
    assert frames_of(apng(tmp_path / "x.png", frames))[1] == over


def test_an_apng_without_alpha_is_cleared_to_nothing(tmp_path):
    red, green = RED[:3], GREEN[:3]
    frames = [([[red] * 4], 0, BACKGROUND, SOURCE), ([[green]], 1, NONE, OVER)]
    expected = [[RED] * 4, [CLEAR, GREEN, CLEAR, CLEAR]]
    assert frames_of(apng(tmp_path / "x.png", frames, colour=2)) == expected
    palette = [(b"PLTE", bytes((*red, *green)))]
    frames = [([[0] * 4], 0, BACKGROUND, SOURCE), ([[1]], 1, NONE, OVER)]
    assert frames_of(apng(tmp_path / "x.png", frames, colour=3, before=palette)) == expected
    kept = [(rows, left, NONE, blend) for rows, left, _, blend in frames]
    path = apng(tmp_path / "x.png", kept, colour=3, before=palette)
    assert frames_of(path)[1] == [RED, GREEN, RED, RED]
    assert read_picture(path, BOTH).alpha is None


def test_an_apngs_one_clear_gray_lets_through_what_is_under_it(tmp_path):
    frames = [([[200] * 4], 0, NONE, SOURCE), ([[0, 50]], 0, NONE, OVER)]
    path = apng(tmp_path / "x.png", frames, colour=0, before=[(b"tRNS", b"\0\0")])
    gray, dark = (200, 200, 200, 255), (50, 50, 50, 255)
    assert frames_of(path)[1] == [gray, dark, gray, gray]
    assert read_picture(path, BOTH).gray


def test_an_apngs_clear_gray_is_of_any_depth(tmp_path):
    """Of 2 bits, 3 is white; of 16, an OVER that is half clear is mixed in 16."""
    frames = [([[3] * 4], 0, NONE, SOURCE), ([[1, 2, 1, 0]], 0, NONE, OVER)]
    path = apng(tmp_path / "x.png", frames, colour=0, bits=2, before=[(b"tRNS", b"\0\1")])
    white, gray, black = (255,) * 4, (170, 170, 170, 255), (0, 0, 0, 255)
    assert frames_of(path)[1] == [white, gray, white, black]
    frames = [([[40000] * 4], 0, NONE, SOURCE), ([[7, 50000, 7, 7]], 0, NONE, OVER)]
    path = apng(tmp_path / "x.png", frames, colour=0, bits=16, before=[(b"tRNS", b"\0\7")])
    (second,) = read_picture(path, BOTH).sequence.rest()
    assert second.rgb[0, :, 0].tolist() == [40000, 50000, 40000, 40000] and second.gray
    assert second.rgb.dtype == np.uint16
    frames = [([[(0, 65535)] * 4], 0, NONE, SOURCE), ([[(65535, 32768)] * 4], 0, NONE, OVER)]
    (second,) = read_picture(apng(path, frames, colour=4, bits=16), BOTH).sequence.rest()
    assert second.rgb[0, 0].tolist() == [32768] * 3 and second.alpha[0, 0] == 65535
    assert second.gray


def test_an_apngs_frames_before_a_damage_are_read(tmp_path):
    frames = [([[colour] * 4], 0, NONE, SOURCE) for colour in (RED, GREEN, BLUE, RED)]
    whole = apng(tmp_path / "x.png", frames).read_bytes()
    places = [i for i in range(len(whole)) if whole[i : i + 4] == b"fcTL"]
    damages = [(whole[: places[3] + 24], 3)]  # within what says where the last one is
    damages.append((whole[: places[2] + 9] + b"\7" + whole[places[2] + 10 :], 2))  # wrong checksum
    for content, count in damages:
        (tmp_path / "x.png").write_bytes(content)
        first = read_picture(tmp_path / "x.png", BOTH)
        *rest, error = first.sequence.rest()
        given = [tuple(each.rgb[0, 0].tolist()) for each in (first, *rest)]
        assert given == [RED[:3], GREEN[:3], BLUE[:3]][:count]
        assert str(error) == f"it is cut short after frame {count}; get it again"


def test_what_is_there_of_a_damaged_animation_has_its_times_and_its_words(tmp_path):
    frames = [([[colour] * 4], 0, NONE, SOURCE) for colour in (RED, GREEN, BLUE)]
    whole = apng(tmp_path / "x.png", frames).read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: whole.rindex(b"fdAT") + 9])
    os.utime(tmp_path / "x.png", (1e9, 1e9))
    picture = read_picture(tmp_path / "x.png", BOTH)
    picture = replace(picture, metadata=Metadata(texts=((b"tEXt", b"workflow\0{}"),)))
    job, lost = Job(tmp_path / "x.png", tmp_path / "out.webp", None, None), []
    with pytest.raises(ImageError, match="after frame 2"):
        save_result(picture, job, lost, keep_time=True)
    written = tmp_path / "out.partly.webp"
    assert written.stat().st_mtime == 1e9 and lost == ["WEBP cannot hold PNG's text"]


def test_an_apngs_picture_for_other_programs_is_nothing_to_draw_on(tmp_path):
    frames = [([[RED]], 1, NONE, OVER), ([[BLUE]], 2, NONE, OVER)]
    path = apng(tmp_path / "x.png", frames, default=[[GREEN] * 4])
    assert frames_of(path) == [
        [GREEN] * 4,
        [CLEAR, RED, CLEAR, CLEAR],
        [CLEAR, RED, BLUE, CLEAR],
    ]
    picture = read_picture(path, BOTH)
    assert [picture.duration, *(each.duration for each in picture.sequence.rest())] == [
        None,
        100,
        100,
    ]


def test_an_apngs_frame_beyond_the_picture_is_told(tmp_path):
    frames = [([[GREEN] * 4], 0, NONE, SOURCE), ([[RED] * 2], 3, NONE, OVER)]
    picture = read_picture(apng(tmp_path / "x.png", frames), BOTH)
    (error,) = picture.sequence.rest()
    assert str(error).startswith("frame 2 of 2: it does not lie within the picture")


def gif_of(*frames):
    """Of 2 x 2: disposal, side, index into red, green and blue, and perhaps the place of each."""
    palette = bytes((255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0))
    content = b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0x81, 0, 0) + palette
    for disposal, side, index, *place in frames:
        codes = [4, *([index, 4] * (side * side)), 5]  # cleared before each: codes stay 3 bits
        bits = sum(code << 3 * i for i, code in enumerate(codes))
        data = bits.to_bytes(-(-3 * len(codes) // 8), "little")
        content += b"!\xf9\4" + bytes((disposal << 2, 10, 0, 0, 0))
        content += b"," + struct.pack("<HHHHB", *(place or (0, 0)), side, side, 0)
        content += bytes((2, len(data))) + data + b"\0"
    return content + b";"


def test_a_gifs_frame_that_says_nothing_of_its_end_stays(tmp_path):
    """Behind one that goes: Pillow would have them all go."""
    (tmp_path / "x.gif").write_bytes(gif_of((2, 2, 0), (0, 2, 1), (0, 1, 2)))
    _, last = read_picture(tmp_path / "x.gif", BOTH).sequence.rest()
    assert last.rgb[0, 0].tolist() == [0, 0, 255] and last.rgb[1, 1].tolist() == [0, 255, 0]


def test_one_picture_at_a_time_is_in_memory(tmp_path):
    read = []

    def rest():
        for _ in range(20):
            assert sum(reference() is not None for reference in read) <= 2
            picture = Picture(np.zeros((8, 8, 3), np.uint8), duration=10)
            read.append(weakref.ref(picture.rgb))
            yield picture

    for kind in ("png", "webp", "gif", "tif"):
        first = Picture(np.zeros((8, 8, 3), np.uint8), duration=10)
        first.sequence = Sequence(FRAMES, 21, 0, rest)
        write_picture(first, tmp_path / f"out.{kind}")
        with Image.open(tmp_path / f"out.{kind}") as file:
            assert file.n_frames == 21


def test_what_no_frame_of_a_gif_has_drawn_is_clear(tmp_path):
    """As in browsers: at first, and where a frame was cleared, whether or not it has a clear
    colour of its own."""
    (tmp_path / "x.gif").write_bytes(gif_of((1, 1, 2)))
    picture = read_picture(tmp_path / "x.gif", BOTH)
    assert picture.rgb[0, 0].tolist() == [0, 0, 255]
    assert picture.alpha.tolist() == [[255, 0], [0, 0]]
    (tmp_path / "x.gif").write_bytes(gif_of((2, 2, 0), (1, 1, 2)))
    (last,) = read_picture(tmp_path / "x.gif", BOTH).sequence.rest()
    assert last.alpha.tolist() == [[255, 0], [0, 0]]
    (tmp_path / "x.gif").write_bytes(gif_of((1, 2, 0), (3, 1, 2), (1, 1, 1)))  # 3: as it was
    picture = read_picture(tmp_path / "x.gif", BOTH)
    second, last = picture.sequence.rest()
    assert second.rgb[0, 0].tolist() == [0, 0, 255] and second.rgb[1, 1].tolist() == [255, 0, 0]
    assert last.rgb[0, 0].tolist() == [0, 255, 0] and last.rgb[1, 1].tolist() == [255, 0, 0]


def test_a_gifs_frame_may_lie_beyond_its_canvas_in_part_or_wholly(tmp_path):
    (tmp_path / "x.gif").write_bytes(gif_of((1, 2, 0), (4, 2, 2, 1, 1), (1, 2, 1, 5, 0)))
    picture = read_picture(tmp_path / "x.gif", BOTH)
    second, third = picture.sequence.rest()
    red, blue = [255, 0, 0], [0, 0, 255]
    assert picture.rgb.tolist() == [[red, red], [red, red]]
    assert second.rgb.tolist() == [[red, red], [red, blue]]
    assert third.rgb.tolist() == [[red, red], [red, red]]  # 4 is taken for 3: as it was


def test_a_gif_whose_end_is_missing_has_all_of_its_pixels(tmp_path):
    for frames in ([(1, 1, 2)], [(1, 2, 0), (1, 1, 2)]):
        whole = gif_of(*frames)
        (tmp_path / "x.gif").write_bytes(whole[:-2])  # the last block's terminator, and the end
        picture = read_picture(tmp_path / "x.gif", BOTH)
        last = picture
        if len(frames) > 1:
            last, error = picture.sequence.rest()
            assert str(error) == "it is cut short after frame 2; get it again"
        assert last.rgb[0, 0].tolist() == [0, 0, 255]
    (tmp_path / "x.gif").write_bytes(gif_of((1, 1, 2))[:-4])
    with pytest.raises(ImageError, match="it is cut short; get it again"):
        read_picture(tmp_path / "x.gif", BOTH)


@pytest.mark.parametrize("key", [None, 7])
@pytest.mark.parametrize("disposal", [1, 2])  # it stays; it goes, and the next begins with nothing
def test_a_gif_that_begins_gray_gets_its_colours(key, disposal, tmp_path):
    """Its first palette is the ramp of all grays; the next frame has one of its own, and covers
    only a part of it."""
    ramp = Image.fromarray(np.arange(600).reshape(20, 30).astype(np.uint8))
    if key is not None:
        ramp.info["transparency"] = key
    red = np.full((20, 30, 4), (200, 10, 20, 255), np.uint8)
    red[:, :10, 3] = 0
    options = dict(save_all=True, append_images=[Image.fromarray(red)], optimize=False)
    ramp.save(tmp_path / "x.gif", disposal=disposal, **options)
    with Image.open(tmp_path / "x.gif") as file:
        assert file.mode == "L" and ("transparency" in file.info) == (key is not None)
    picture = read_picture(tmp_path / "x.gif", BOTH)
    (second,) = picture.sequence.rest()
    grays, visible = np.array(ramp.convert("L")), np.arange(600).reshape(20, 30) % 256 != key
    assert np.array_equal(picture.rgb[visible][:, 0], grays[visible])
    assert np.array_equal(picture.alpha == 255, visible)
    covered = red[..., 3] == 255
    assert (second.rgb[covered] == (200, 10, 20)).all() and (second.alpha[covered] == 255).all()
    if disposal == 1:
        assert np.array_equal(second.alpha == 255, visible | covered)
        left = visible & ~covered
        assert np.array_equal(second.rgb[left][:, 0], grays[left])


# ------------------------------------------------------------------------------------------- pages


def scanned(path, *, compression="zlib"):
    """Pages of other sizes and kinds, the second one upside down."""
    rng = np.random.default_rng(0)
    pages = [
        rng.integers(0, 256, (20, 30, 3), np.uint8),
        rng.integers(0, 2**16, (25, 15), np.uint16),
        rng.integers(0, 256, (10, 12, 4), np.uint8),
    ]
    with tifffile.TiffWriter(path) as writer:
        for i, page in enumerate(pages):
            writer.write(
                page,
                photometric="minisblack" if page.ndim == 2 else "rgb",
                extrasamples=["unassalpha"] if page.shape[2:] == (4,) else None,
                compression=compression,
                resolution=(300 + i, 300 + i),
                resolutionunit="inch",
                metadata=None,
                extratags=[
                    (285, 2, None, f"page {i}", False),
                    (274, 3, 1, 3 if i == 1 else 1, False),
                ],
            )
    return pages


def test_pages_of_all_kinds_come_out_as_they_are(tmp_path):
    pages = scanned(tmp_path / "in.tif")
    picture = read_picture(tmp_path / "in.tif", BOTH)
    assert picture.sequence.kind == PAGES and picture.sequence.count == 3
    assert write_picture(picture, tmp_path / "out.tif") == ""
    pages[1] = pages[1][::-1, ::-1]
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert len(file.pages) == 3
        for i, page in enumerate(file.pages):
            assert np.array_equal(page.asarray(), pages[i]) and page.compression == 8
            assert page.tags[282].value[0] / page.tags[282].value[1] == 300 + i
            assert page.tags[285].value == f"page {i}"


def test_pages_that_pillow_decodes_are_each_their_own(tmp_path):
    """A fax, which tifffile leaves to libtiff; and the profile of each page that is written."""
    from test_files import PROFILE

    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.random((20, 30)) < 0.5) for _ in range(3)]
    options = dict(save_all=True, append_images=pages[1:], compression="group4")
    pages[0].save(tmp_path / "in.tif", **options)
    picture = read_picture(tmp_path / "in.tif", BOTH)
    read = [picture, *picture.sequence.rest()]
    assert len(read) == 3
    for ours, page in zip(read, pages, strict=True):
        assert np.array_equal(ours.rgb[..., 0], np.array(page) * np.uint8(255))
    images = [Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)) for _ in range(3)]
    options = dict(save_all=True, append_images=images[1:], icc_profile=PROFILE)
    images[0].save(tmp_path / "in.tif", **options)
    write_picture(read_picture(tmp_path / "in.tif", BOTH), tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert [page.tags[34675].value for page in file.pages] == [PROFILE] * 3


def test_what_is_said_of_later_pages_is_told_and_all_of_them_are_stripped(tmp_path):
    scanned(tmp_path / "in.tif")
    inks = np.zeros((9, 9, 5), np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", inks, append=True, photometric="rgb", metadata=None)
    picture = read_picture(tmp_path / "in.tif", BOTH)
    job = Job(tmp_path / "in.tif", tmp_path / "out.tif", None, None)
    assert save_result(without_metadata(picture), job, []) == ["all 4 pages", "3 of 5 channels"]
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert len(file.pages) == 4 and not any(285 in page.tags for page in file.pages)


def test_a_damaged_page_is_named_and_the_others_are_there(tmp_path):
    pages = scanned(tmp_path / "in.tif")
    with tifffile.TiffFile(tmp_path / "in.tif") as file:
        offset = file.pages[1].dataoffsets[0]
    content = bytearray((tmp_path / "in.tif").read_bytes())
    content[offset : offset + 40] = bytes(40)
    (tmp_path / "in.tif").write_bytes(content)
    picture = read_picture(tmp_path / "in.tif", BOTH)
    with pytest.raises(
        ImageError, match=r"page 2 of 3: its pixels .* The others are in .*out\.partly\.tif"
    ):
        write_picture(picture, tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.partly.tif") as file:
        assert np.array_equal(file.pages[0].asarray(), pages[0])
        assert np.array_equal(file.pages[1].asarray(), pages[2]) and len(file.pages) == 2
    assert not (tmp_path / "out.tif").exists()  # which --skip-existing would take for the whole


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "a worn disk"), MemoryError("none is left")])
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_what_cannot_be_read_now_is_no_damage_and_nothing_is_written(
    suffix, fault, tmp_path, monkeypatch
):
    """The result of an earlier run stays, whole."""
    if suffix == "tif":
        scanned(tmp_path / "in.tif")
    else:
        saved(tmp_path / "in.png", drawn(False), duration=TIMES)
    picture = read_picture(tmp_path / f"in.{suffix}", BOTH)
    (tmp_path / f"out.{suffix}").write_bytes(b"of an earlier run")
    monkeypatch.setattr("images.tiff._read_page", Mock(side_effect=fault))
    monkeypatch.setattr("images.frames.all_frames", Mock(side_effect=fault))
    with pytest.raises(ImageError, match=r"^(page|frame) 2 of \d"):
        write_picture(picture, tmp_path / f"out.{suffix}")
    assert (tmp_path / f"out.{suffix}").read_bytes() == b"of an earlier run"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in.{suffix}", f"out.{suffix}"]


def test_an_animation_may_become_pages_which_have_no_times(tmp_path):
    frames = drawn(True)
    saved(tmp_path / "in.gif", frames, duration=TIMES)
    remark = write_picture(read_picture(tmp_path / "in.gif", BOTH), tmp_path / "out.tif")
    assert remark == "without the times of its frames"
    assert same(shown(tmp_path / "out.tif")[0], frames)


# ------------------------------------------------------------------------------------------ damage


def places(content, suffix):
    """Where the last frame begins."""
    return content.rindex({"gif": b"!\xf9", "png": b"fcTL", "webp": b"ANMF"}[suffix])


@pytest.mark.parametrize("where", ["in the last frame", "before the last frame", "at the end"])
@pytest.mark.parametrize("suffix", LOSSLESS)
def test_of_an_animation_that_is_cut_short_all_that_is_there_comes_out(suffix, where, tmp_path):
    frames = drawn(False)
    rng = np.random.default_rng(0)
    for frame in frames:  # so that the last one's pixels are long
        frame[..., :3] = rng.integers(0, 2, (20, 30, 1)) * 255
    path = saved(tmp_path / f"in.{suffix}", frames, duration=TIMES)
    content = path.read_bytes()
    begins = places(content, suffix) - (4 if suffix == "png" else 0)
    cut = {
        "in the last frame": (begins + len(content)) // 2,
        "before the last frame": begins,
        "at the end": len(content) - 1,
    }[where]
    path.write_bytes(content[:cut])
    picture = read_picture(path, BOTH)
    assert picture.sequence
    there = 5 if where == "at the end" and suffix != "webp" else 4
    written = tmp_path / "out.png"
    if suffix == "png" and where == "at the end":  # where only its end is missing
        write_picture(picture, written)
    else:
        with pytest.raises(ImageError, match=r"cut short|frame 5 of 5") as told:
            write_picture(picture, written)
        written = tmp_path / "out.partly.png"
        assert str(written) in str(told.value)
    result, times, _ = shown(written)
    assert same(result, frames[:there]) and times == TIMES[:there]
    # Whoever wants only the first gets it.
    assert np.array_equal(read_picture(path).rgb, frames[0][..., :3])


def test_a_frame_of_which_whole_chunks_are_missing_is_not_there(tmp_path):
    frames = drawn(False)
    frames[-1][..., :3] = np.random.default_rng(0).integers(0, 256, (20, 30, 3))
    content = saved(tmp_path / "in.png", frames, duration=TIMES).read_bytes()
    at = content.rindex(b"fdAT")
    half = content[at + 4 : at + 8 + 1200]  # its number, and the first of its pixels
    chunk = struct.pack(">I", len(half)) + b"fdAT" + half
    chunk += struct.pack(">I", zlib.crc32(chunk[4:])) + content[-12:]
    (tmp_path / "in.png").write_bytes(content[: at - 4] + chunk)
    picture = read_picture(tmp_path / "in.png", BOTH)
    with pytest.raises(ImageError, match="cut short after frame 4"):
        write_picture(picture, tmp_path / "out.png")
    assert same(shown(tmp_path / "out.partly.png")[0], frames[:4])


def test_a_still_webp_that_is_cut_short_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(drawn(False)[0]).save(buffer, "WEBP")
    (tmp_path / "x.webp").write_bytes(buffer.getvalue()[:-20])
    with pytest.raises(ImageError, match=r"x\.webp: it is .*damaged"):
        read_picture(tmp_path / "x.webp", BOTH)


# ------------------------------------------------------------------------------------- the command


@pytest.fixture
def run(tmp_path, identity_weights, monkeypatch, capsys):
    """The command, and what it prints."""
    command = load_program("test")
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()

    def run(*flags):
        words = ["test.py", "in", *flags, "--weights", identity_weights, "--precision", "fp32"]
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        return command.main(command.Ranks()), *capsys.readouterr()

    return run


def test_the_command_upscales_all_of_it(run):
    frames = drawn(True)
    saved(Path("in/a.gif"), frames, duration=TIMES, loop=0)
    saved(Path("in/b.webp"), frames, duration=TIMES, loop=0)
    pages = scanned(Path("in/c.tif"))
    status, printed, _ = run()
    assert status == 0
    assert sorted(path.name for path in Path("results").iterdir()) == ["a.png", "b.png", "c.tif"]
    for name in ("a", "b"):
        result, times, loop = shown(f"results/{name}.png")
        assert same(result, frames) and times == TIMES and loop == 0
    assert np.array_equal(tifffile.imread("results/c.tif", key=2), pages[2])
    for line in ("in/a.gif: all 5 frames", "in/b.webp: all 5 frames", "in/c.tif: all 3 pages"):
        assert line.replace("/", str(Path("/"))) in printed
    assert "3 of 3 images upscaled" in printed
    status, printed, _ = run("--skip-existing")
    assert "3 images had a result already" in printed
    assert run("--format", "same", "-o", "same")[0] == 0
    assert sorted(path.name for path in Path("same").iterdir()) == ["a.gif", "b.webp", "c.tif"]
    assert same(shown("same/a.gif")[0], frames) and same(shown("same/b.webp")[0], frames)


def test_ctrl_c_ends_an_animation_that_is_being_upscaled(run, monkeypatch, capsys):
    """Its frames are, while it is written, by another thread than the one that hears Ctrl-C."""
    frames = [np.full((8, 8, 3), i, np.uint8) for i in range(40)]
    saved(Path("in/a.png"), frames, duration=10)
    write_image(frames[0][:5], Path("in/b.png"))
    done, writing, interrupting = [], threading.Event(), threading.Event()
    upscale, fits = upscaling.upscaler.upscale, Upscaler.fits

    def slowly(net, image, *args, progress, **options):
        progress(0, 1)
        done.append(image)
        if threading.current_thread() is not threading.main_thread():
            writing.set()
            assert interrupting.wait(10)
            time.sleep(0.1)  # in which the other thread hears of it
        return upscale(net, image, *args, progress=progress, **options)

    def interrupted(upscaler, image):
        if len(image) == 5:  # b.png's turn
            assert writing.wait(10)
            interrupting.set()
            raise KeyboardInterrupt
        return fits(upscaler, image)

    monkeypatch.setattr(upscaling.upscaler, "upscale", slowly)
    monkeypatch.setattr(Upscaler, "fits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert 2 <= len(done) < 20
    assert [*Path("results").iterdir()] == [] and "Failed" not in capsys.readouterr().err


def test_the_command_takes_the_first_frame_where_it_is_told_to_or_has_to(run):
    saved(Path("in/a.gif"), drawn(False), duration=TIMES)
    scanned(Path("in/c.tif"))
    for flags in (["--first-frame"], ["--format", "jpg"]):
        status, printed, _ = run(*flags, "-o", "out")
        assert status == 0 and "a.gif: the first of 5 frames" in printed
        assert "c.tif: the first of 3 frames" in printed
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "a.jpg",
        "a.png",
        "c.jpg",
        "c.png",
    ]
    with Image.open("out/a.png") as file:
        assert not file.is_animated


def test_the_command_says_what_is_missing_and_writes_the_rest(run):
    frames = drawn(False)
    saved(Path("in/a.png"), frames, duration=TIMES)
    content = Path("in/a.png").read_bytes()
    Path("in/a.png").write_bytes(content[: content.rindex(b"fcTL") - 4])
    status, _, errors = run()
    assert status == 1
    assert "a.png: it is cut short after frame 4; get it again. The others are in results" in errors
    assert same(shown("results/a.partly.png")[0], frames[:4])
    assert not Path("results/a.png").exists()
