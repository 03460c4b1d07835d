"""Packing: which files, which partners, and what happens when they change or the disk is full."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images import decoding, packs
from images.files import ImageError, read_image, write_image
from images.packs import pack_folder
from images.pairs import DataError
from images.resize import imresize

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------------------------------- packing


def test_a_pack_holds_every_image_cropped_to_the_scale_and_its_matlab_lr(photos, random_image):
    write_image(random_image(35, 50), photos / "odd size.png")
    pack = pack_folder(photos, 4)
    assert [pack.name(i) for i in range(len(pack))] == [
        "a.png",
        "b.png",
        "c.bmp",
        "odd size.png",
        "sub/d.png",
    ]
    for i in range(len(pack)):
        image = read_image(photos / pack.name(i))
        high_res = image[: image.shape[0] // 4 * 4, : image.shape[1] // 4 * 4]
        assert np.array_equal(pack.high_res(i), high_res)
        assert np.array_equal(pack.low_res(i), imresize(high_res, 1 / 4))


def test_a_pack_is_made_once_and_again_when_files_come_or_change(photos, random_image, monkeypatch):
    made = []
    build = packs.build_pack
    monkeypatch.setattr(packs, "build_pack", lambda *args: made.append(1) or build(*args))
    pack_folder(photos, 4)
    pack_folder(photos, 4)
    assert len(made) == 1
    write_image(random_image(20, 20), photos / "new.png")
    assert len(pack_folder(photos, 4)) == 5 and len(made) == 2
    write_image(random_image(24, 24), photos / "new.png")
    pack = pack_folder(photos, 4)
    assert pack.size([pack.name(i) for i in range(5)].index("new.png")) == (24, 24)
    assert len(made) == 3
    pack_folder(photos, 2)  # another scale is another pack
    pack_folder(photos, 4)
    assert len(made) == 4


def test_a_run_that_goes_on_keeps_images_that_vanish_and_they_are_named(photos, capsys):
    pack = pack_folder(photos, 4)
    (photos / "b.png").unlink()
    assert len(pack_folder(photos, 4, packed=())) == 4
    assert "1 images are gone since they were packed (b.png)" in capsys.readouterr().out
    for path in (*photos.glob("**/*.*g"), photos / "c.bmp"):
        path.unlink()
    assert len(pack_folder(photos, 4, packed=[pack.id])) == 4
    pack.path.unlink()
    with pytest.raises(DataError, match="holds no PNG"):
        pack_folder(photos, 4, packed=[pack.id])


def test_a_damaged_pack_is_made_again(photos):
    target = pack_folder(photos, 4).path
    for content in (b"", b"too short", target.read_bytes()[:-100]):
        target.unlink()
        target.write_bytes(content)
        assert len(pack_folder(photos, 4)) == 4


def test_files_that_cannot_be_read_are_left_out_and_named(photos):
    (photos / "text.png").write_text("no picture")
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:200])
    Image.new("RGB", (1, 1)).save(photos / "dot.png")
    for _ in range(2):  # known from the pack, the second time
        pack = pack_folder(photos, 4)
        assert len(pack) == 4
        assert len(pack.index["unreadable"]) == 3
        names, reasons = zip(*pack.index["unreadable"], strict=True)
        assert names == ("cut.png", "dot.png", "text.png")
        assert "smaller than one LR pixel" in reasons[1] and "cannot identify" in reasons[2]


def test_a_failure_that_is_not_the_files_own_is_no_reason_to_leave_it_out(photos, monkeypatch):
    def refuse(path):
        try:
            raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise ImageError(f"{path}: {error}") from error

    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"a\.png.*denied"):
        patch.setattr(decoding, "read_image", refuse)
        pack_folder(photos, 4)
    assert len(pack_folder(photos, 4)) == 4


def test_links_are_followed_loops_end_and_dead_ends_are_named(photos, tmp_path):
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "photos").symlink_to(photos)
    (folder / "up").symlink_to(folder)
    assert len(pack_folder(folder, 4)) == 4
    (folder / "dead.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"dead\.png"):
        pack_folder(folder, 4)


def test_empty_and_missing_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="empty holds no PNG"):
        pack_folder(tmp_path / "empty", 4)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        pack_folder(tmp_path / "nowhere", 4)


def test_a_read_only_folder_is_packed_elsewhere(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packs, "is_writable", lambda folder: folder != photos)
    pack = pack_folder(photos, 4)
    assert pack.path.parent == Path("data/packs") and "photos" in pack.path.name
    assert not list(photos.glob("*.bin"))


SLOW_READING = """
import time
from images import decoding
read_image = decoding.read_image
decoding.read_image = lambda path: time.sleep(4) or read_image(path)
"""
START_PACKING = "from images.packs import pack_folder; print(len(pack_folder({folder!r}, 4)))"


def test_two_processes_that_start_at_once_both_get_a_whole_pack(photos):
    command = [sys.executable, "-c", SLOW_READING + START_PACKING.format(folder=str(photos))]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    outputs = sorted(process.communicate(timeout=120)[0].strip() for process in both)
    assert outputs[0] == "4"
    assert outputs[1].startswith("Another process is packing") and outputs[1].endswith("4")
    assert sorted(path.name for path in photos.glob("*esrgan*")) == [
        ".esrgan-packed.lock",
        pack_folder(photos, 4).path.name,
    ]


def test_packing_killed_half_way_leaves_no_pack_and_starts_over(photos):
    command = [sys.executable, "-c", SLOW_READING + START_PACKING.format(folder=str(photos))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    half_made = ".esrgan-packed-x4-*.bin.*.tmp"
    while not list(photos.glob(half_made)):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list(photos.glob("esrgan-packed*"))
    assert len(pack_folder(photos, 4)) == 4
    assert not list(photos.glob(half_made))


def test_packing_that_fails_leaves_nothing_half_made(photos, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "read_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(photos, 4)
    assert [path.name for path in photos.glob("*esrgan*")] == [".esrgan-packed.lock"]


# ------------------------------------------------------------------------------------ paired LR


@pytest.fixture
def low_res_folder(photos, tmp_path):
    """LR partners of `photos`, brighter than a resize would make them, half of them as name x4."""
    folder = tmp_path / "low"
    for name, partner in (
        ("a.png", "a.png"),
        ("b.png", "bx4.png"),
        ("c.bmp", "c.png"),
        ("sub/d.png", "sub/dx4.png"),
    ):
        small = imresize(read_image(photos / name), 1 / 4)
        write_image(255 - small, folder / partner)
    return folder


def test_given_lr_images_are_used(photos, low_res_folder):
    pack = pack_folder(photos, 4, low_res_folder)
    for i in range(4):
        assert np.array_equal(pack.low_res(i), 255 - imresize(pack.high_res(i), 1 / 4))
    assert pack_folder(photos, 4).path != pack.path
    write_image(imresize(read_image(photos / "a.png"), 1 / 4), low_res_folder / "a.png")
    assert np.array_equal(
        pack_folder(photos, 4, low_res_folder).low_res(0), imresize(pack.high_res(0), 1 / 4)
    )


def test_every_missing_partner_is_named(photos, low_res_folder):
    (low_res_folder / "a.png").unlink()
    (low_res_folder / "sub" / "dx4.png").unlink()
    with pytest.raises(DataError, match=r"2 of 4 HR images have no LR image.*a\.png.*d\.png"):
        pack_folder(photos, 4, low_res_folder)


def test_every_partner_of_a_wrong_size_is_named(photos, low_res_folder, random_image):
    write_image(random_image(16, 13), low_res_folder / "a.png")
    write_image(random_image(5, 5), low_res_folder / "c.png")
    message = r"2 LR .* size.*a\.png is 13x16 instead of 12x16, 1/4 of .*\(48x64\).*c\.png is 5x5"
    with pytest.raises(DataError, match=message):
        pack_folder(photos, 4, low_res_folder)
    assert not list(photos.glob("*.bin"))
