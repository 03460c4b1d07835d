"""LR images find their HR images by name, and are compared with them by what they show."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from images.files import write_image
from images.packs import pack_folder
from images.pairs import LOWEST_FIT, DataError, find_partners, fit
from images.resize import imresize


def pairs(tmp_path, high, low):
    """LR name by HR name, both as find_partners sees them; no file is opened."""
    paths = [tmp_path / "high" / name for name in high]
    lr_paths = [tmp_path / "low" / name for name in low]
    found = find_partners(tmp_path / "high", paths, tmp_path / "low", lr_paths, 4)
    return {
        path.relative_to(tmp_path / "high").as_posix(): partner.relative_to(
            tmp_path / "low"
        ).as_posix()
        for path, partner in found.items()
    }


@pytest.mark.parametrize(
    "expected",
    [
        {"cat.png": "cat.png", "cat.bmp": "cat.bmp"},
        {"cat.png": "catx4.png", "cat.bmp": "catx4.bmp"},
        {"cat.png": "cat.png", "cat.bmp": "cat.jpg"},  # what is left after the full name
        {"cat.png": "cat.jpg", "sub/cat.png": "sub/cat.jpg"},
        {"cat.png": "catx4.webp", "sub/dog.png": "sub/dog.png"},
        {"Cat.PNG": "cat.png", "DOG.png": "dogX4.jpg"},
        {"cat.png": "cat.png", "Cat.png": "Cat.png"},
        {"a.b.png": "a.b.jpg", "a.c.png": "a.cx4.jpg"},
        {"cat.png": "cat.png", "catx4.png": "catx4.png"},
        {"caf\u00e9.png": "cafe\u0301x4.png"},  # one character, and two of a Mac
    ],
    ids=str,
)
def test_names_that_fit_in_one_way_are_paired(expected, tmp_path):
    assert pairs(tmp_path, expected, reversed(expected.values())) == expected


def test_the_full_name_comes_before_a_mark_and_surplus_files_are_no_matter(tmp_path):
    assert pairs(tmp_path, ["a.png"], ["ax4.png", "a.jpg", "a.png"]) == {"a.png": "a.png"}


@pytest.mark.parametrize(
    ("high", "low", "words"),
    [
        (["cat.png", "cat.bmp"], ["cat.png"], ["1 of 2", "cat.bmp", "cat.png is for"]),
        (["cat.png", "cat.bmp"], ["cat.jpg"], ["2 of 2", "cat.png", "cat.bmp", "whole name"]),
        (["cat.png", "cat.bmp"], ["CATx4.jpg"], ["2 of 2", "cat.png", "cat.bmp"]),
        (["cat.png"], ["cat.jpg", "cat.webp"], ["1 of 1", "cat.jpg or", "cat.webp"]),
        (["cat.png"], ["cat.jpg", "catx4.jpg"], ["cat.jpg or", "catx4.jpg"]),
        (["CAT.png"], ["cat.png", "Cat.png"], ["cat.png or", "Cat.png"]),
        (["a.png", "ax4.png"], ["ax4.png", "ax4x4.png"], ["1 of 2", "a.png"]),
        (["sub/cat.png"], ["cat.png"], ["1 of 1", "sub/cat.png"]),
        (["cat.png"], ["catx2.png"], ["1 of 1", "x4 after it"]),
    ],
)
def test_names_that_fit_in_several_ways_or_none_are_an_error(high, low, words, tmp_path):
    with pytest.raises(DataError) as error:
        pairs(tmp_path, high, low)
    assert all(word in str(error.value) for word in words), error.value


def test_thousands_of_missing_partners_are_one_line(tmp_path):
    with pytest.raises(DataError, match=r"3,000 of 3,000.*0004\.png and 2,995 others$") as error:
        pairs(tmp_path, [f"{i:04}.png" for i in range(3000)], ["other.png"])
    assert len(str(error.value)) < 1000


# -------------------------------------------------------------------------------------- by content


@pytest.fixture(scope="module")
def photographs():
    """Three of scikit-image's, 256x256."""
    sources = data.astronaut(), data.coffee(), data.chelsea()
    return [np.ascontiguousarray(image[:256, 100:356]) for image in sources]


def shrunk(image, filter=Image.Resampling.BICUBIC):
    return np.array(Image.fromarray(image).resize((64, 64), filter))


def noisy(image, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


DEGRADATIONS = {
    "bicubic": shrunk,
    "nearest": lambda image: image[::4, ::4],
    "the other nearest": lambda image: image[3::4, 3::4],
    "area": lambda image: shrunk(image, Image.Resampling.BOX),
    "blur": lambda image: shrunk(cv2.GaussianBlur(image, (0, 0), 8)),
    "noise": lambda image: noisy(shrunk(image), 50),
    "JPEG": lambda image: jpeg(shrunk(image), 10),
    "shift": lambda image: np.roll(shrunk(image), (1, 1), (0, 1)),
    "gamma": lambda image: np.uint8(255 * (shrunk(image) / 255) ** 2.2),
    "dark": lambda image: shrunk(image) // 5,
    "gray": lambda image: np.array(Image.fromarray(shrunk(image)).convert("L").convert("RGB")),
    "blind": lambda image: jpeg(noisy(shrunk(cv2.GaussianBlur(image, (0, 0), 3)), 25), 30),
}


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_right_pairs_fit_whatever_made_the_lr(name, photographs):
    for image in photographs:
        found = fit(DEGRADATIONS[name](image), image, 4)
        assert found.correlation > LOWEST_FIT and not found.doubtful, found


def test_correlation_is_pearsons_of_smoothed_luma(photographs):
    image = photographs[0]
    low_res = noisy(shrunk(image), 25)
    gray = [np.array(Image.fromarray(x).convert("L"), float) for x in (low_res, shrunk(image))]
    expected = np.corrcoef(*(cv2.GaussianBlur(x, (0, 0), 2).ravel() for x in gray))[0, 1]
    assert fit(low_res, image, 4).correlation == pytest.approx(expected, abs=1e-3)


def test_other_photographs_do_not_fit(photographs):
    for i, image in enumerate(photographs):
        found = fit(shrunk(photographs[i - 1]), image, 4)
        assert found.doubtful and not found.surely_turned, found


def test_a_shift_by_four_lr_pixels_is_named(photographs):
    for image in photographs:  # correlations of 0.73, 0.66 and 0.55
        found = fit(np.roll(shrunk(image), (4, 4), (0, 1)), image, 4)
        assert found.doubtful and not found.surely_turned, found


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (Image.Transpose.FLIP_LEFT_RIGHT, "mirrored left to right"),
        (Image.Transpose.FLIP_TOP_BOTTOM, "mirrored top to bottom"),
        (Image.Transpose.ROTATE_180, "turned by 180 degrees"),
        (Image.Transpose.ROTATE_90, "turned by 90 degrees to the right"),  # undoes it
        (Image.Transpose.ROTATE_270, "turned by 90 degrees to the left"),
        (Image.Transpose.TRANSPOSE, "mirrored along"),
        (Image.Transpose.TRANSVERSE, "mirrored along"),
    ],
)
@pytest.mark.parametrize("name", ["bicubic", "blind"])
def test_every_flip_and_turn_is_found_and_what_undoes_it(turn, words, name, photographs):
    for image in photographs:
        low_res = np.array(Image.fromarray(DEGRADATIONS[name](image)).transpose(turn))
        found = fit(low_res, image, 4)
        assert found.surely_turned and found.turn.startswith(words), found
        assert words in str(found)


def test_flat_images_are_not_judged_unless_the_other_is_not_flat(photographs, random_image):
    flat = np.full((256, 256, 3), 127, np.uint8)
    assert fit(shrunk(flat), flat, 4) is None
    assert fit(noisy(shrunk(flat), 25), flat, 4) is None
    for low_res, high_res in ((shrunk(flat), photographs[0]), (shrunk(photographs[0]), flat)):
        found = fit(low_res, high_res, 4)
        assert found.correlation == 0 and found.doubtful and not found.surely_turned
    assert fit(flat[:1, :1], flat[:4, :4], 4) is None


def test_a_symmetric_picture_with_a_shifted_lr_is_no_turned_one():
    x = np.linspace(-1, 1, 256)
    spot = np.exp(-60 * (x[:, None] ** 2 + (x - 0.02) ** 2))  # not quite in the middle
    image = np.uint8(255 * spot)[..., None].repeat(3, 2)
    found = fit(np.roll(shrunk(image), -1, 1), image, 4)
    assert found.turned > found.correlation and not found.surely_turned


def test_turned_lr_images_are_an_error_that_names_the_turn(photographs, tmp_path):
    for i, image in enumerate(photographs):
        write_image(image, tmp_path / "high" / f"{i}.png")
        write_image(shrunk(image), tmp_path / "low" / f"{i}.png")
    write_image(np.rot90(shrunk(photographs[1]), 2), tmp_path / "low" / "1.png")
    match = r"(?s)1 LR images are turned.*1\.png: -?0\.\d\d \(1\.00 turned by 180 degrees\)"
    with pytest.raises(DataError, match=match):
        pack_folder(tmp_path / "high", 4, tmp_path / "low")
    assert not list((tmp_path / "high").glob("*.bin"))


def test_an_exif_turn_that_only_one_of_a_pair_has_is_found(photographs, tmp_path):
    (tmp_path / "high").mkdir()
    (tmp_path / "low").mkdir()
    tag = Image.Exif()
    tag[0x0112] = 3
    Image.fromarray(photographs[0]).save(tmp_path / "high" / "a.jpg", exif=tag, quality=95)
    Image.fromarray(shrunk(photographs[0])).save(tmp_path / "low" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: .*turned by 180 degrees.*EXIF"):
        pack_folder(tmp_path / "high", 4, tmp_path / "low")
    tag[0x0112] = 6
    wide = photographs[0][:128]
    Image.fromarray(wide).save(tmp_path / "high" / "a.jpg", exif=tag, quality=95)
    Image.fromarray(shrunk(photographs[0])[:32]).save(tmp_path / "low" / "a.png")
    match = r"64x32 instead of 32x64.*\(128x256\); it fits turned by 90 degrees"
    with pytest.raises(DataError, match=match):
        pack_folder(tmp_path / "high", 4, tmp_path / "low")


def test_lr_of_a_part_of_a_pixel_more_is_cut_as_its_hr_is(tmp_path):
    """MATLAB's imresize of 50x35 makes 13x9 at 1/4, whose first 12x8 lie on the grid."""
    low_res = np.random.default_rng(0).integers(0, 256, (13, 9, 3), np.uint8)
    high_res = low_res.repeat(4, 0).repeat(4, 1)[:50, :35]
    write_image(high_res, tmp_path / "high" / "a.png")
    write_image(low_res, tmp_path / "low" / "a.png")
    pack = pack_folder(tmp_path / "high", 4, tmp_path / "low")
    assert np.array_equal(pack.low_res(0), low_res[:12, :8])
    assert np.array_equal(pack.high_res(0), high_res[:48, :32])
    assert imresize(high_res, 1 / 4).shape == low_res.shape
    write_image(low_res[:, :8], tmp_path / "low" / "a.png")  # of both ways
    with pytest.raises(DataError, match=r"8x13 instead of 8x12"):
        pack_folder(tmp_path / "high", 4, tmp_path / "low")


def test_doubtful_pairs_are_packed_and_named_with_their_correlation(photographs, tmp_path):
    for i, image in enumerate(photographs):
        write_image(image, tmp_path / "high" / f"{i}.png")
        write_image(shrunk(photographs[max(i, 1)]), tmp_path / "low" / f"{i}.png")
    for _ in range(2):  # known from the pack, the second time
        pack = pack_folder(tmp_path / "high", 4, tmp_path / "low")
        ((name, words),) = pack.index["doubtful"]
        assert name == "0.png" and abs(float(words)) < LOWEST_FIT
