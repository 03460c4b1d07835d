"""Packing: which files, which partners, and what happens when they change or the disk is full."""

import errno
import io
import json
import mmap
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

import utils
from images import decoding, kinds, packs, places
from images.colour import SRGB_PROFILE, build_profile
from images.files import ImageError, read_image, read_picture, write_image
from images.kinds import find_images
from images.packs import Pack, pack_folder
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
    assert len(pack_folder(photos, 4, packed={pack.id: ""})) == 4
    assert "1 images are gone since they were packed (b.png)" in capsys.readouterr().out
    for path in (*photos.glob("**/*.*g"), photos / "c.bmp"):
        path.unlink()
    assert len(pack_folder(photos, 4, packed={pack.id: ""})) == 4
    pack.path.unlink()
    with pytest.raises(DataError, match="holds no PNG"):
        pack_folder(photos, 4, packed={pack.id: ""})


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
        assert "smaller than one LR pixel" in reasons[1] and "it is no image" in reasons[2]


def test_a_failure_that_is_not_the_files_own_is_no_reason_to_leave_it_out(photos, monkeypatch):
    def refuse(path):
        try:
            raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise ImageError(f"{path}: {error}") from error

    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"a\.png.*denied"):
        patch.setattr(decoding, "read_picture", refuse)
        pack_folder(photos, 4)
    assert len(pack_folder(photos, 4)) == 4


def test_links_are_followed_loops_end_and_dead_ends_are_named(photos, tmp_path):
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "photos").symlink_to(photos)
    (folder / "up").symlink_to(folder)
    assert len(pack_folder(folder, 4)) == 4
    (folder / "dead.png").symlink_to(tmp_path / "gone.png")
    assert len(pack_folder(folder, 4)) == 4
    (line,) = find_images(folder).others  # which training names as left out
    assert line == f"{folder / 'dead.png'}: a link that leads nowhere"


def test_empty_and_missing_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="empty holds no PNG"):
        pack_folder(tmp_path / "empty", 4)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        pack_folder(tmp_path / "nowhere", 4)


def test_a_read_only_folder_is_packed_elsewhere(photos, tmp_path, monkeypatch, capsys):
    read_only = {photos}
    temporary = tempfile.TemporaryFile

    def refusing(dir):
        if dir in read_only:
            raise OSError(errno.EROFS, "Read-only file system", str(dir))
        return temporary(dir=dir)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "TemporaryFile", refusing)
    for _ in range(2):
        pack = pack_folder(photos, 4)
        assert pack.path.match("data/packs/photos-*/esrgan-packed-x4-*.bin")
    assert not list(photos.glob("*esrgan*"))
    told = f"{photos} cannot be written to, so its pack goes to {pack.path.parent}\n"
    assert capsys.readouterr().out == told
    read_only.add(pack.path.parent)
    assert pack_folder(photos, 4).path == pack.path  # nothing has to be written
    with pytest.raises(DataError, match="neither it nor data/packs can be written to"):
        pack_folder(photos, 2)


def test_storage_that_maps_no_files_is_found_before_packing(photos, tmp_path, monkeypatch, capsys):
    def refusing(*arguments, **settings):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.chdir(tmp_path)
    mapping = mmap.mmap
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", refusing)
        with pytest.raises(DataError, match=r"maps no files into memory.*link to another disk"):
            pack_folder(photos, 4)
    calls = []

    def refusing_once(*arguments, **settings):
        calls.append(arguments)
        return (mapping if calls[1:] else refusing)(*arguments, **settings)

    monkeypatch.setattr(mmap, "mmap", refusing_once)
    pack = pack_folder(photos, 4)
    assert pack.path.match("data/packs/photos-*/esrgan-packed-x4-*.bin") and len(pack) == 4
    told = f"the drive of {photos} maps no files into memory, so its pack goes to "
    assert capsys.readouterr().out == f"{told}{pack.path.parent}\n"
    assert not list(photos.glob("*.bin"))


SLOW_READING = """
import time
from images import decoding
read_picture = decoding.read_picture
decoding.read_picture = lambda path: time.sleep(4) or read_picture(path)
"""
START_PACKING = "from images.packs import pack_folder; print(len(pack_folder({folder!r}, 4)))"


@pytest.mark.slow
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


@pytest.mark.slow
def test_packing_killed_half_way_leaves_no_pack_and_starts_over(photos):
    command = [sys.executable, "-c", SLOW_READING + START_PACKING.format(folder=str(photos))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    half_made = ".esrgan-*.tmp"
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

    monkeypatch.setattr(decoding, "read_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(photos, 4)
    assert [path.name for path in photos.glob("*esrgan*")] == [".esrgan-packed.lock"]


# ---------------------------------------------------------------------------- which pack is taken


def names(pack):
    return [pack.name(i) for i in range(len(pack))]


def replace_keeping_dates(path, image):
    """Another BMP of the same size and date: only the inode's own time tells."""
    before = path.stat()
    write_image(image, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_a_new_run_takes_what_is_there_and_one_that_goes_on_what_it_had(photos, capsys):
    first = pack_folder(photos, 4)
    (photos / "b.png").unlink()
    second = pack_folder(photos, 4)
    assert names(second) == ["a.png", "c.bmp", "sub/d.png"]
    assert (
        f"Older packs stay, as runs read them or as only they have some images: {first.path}"
        in (capsys.readouterr().out)
    )
    assert names(pack_folder(photos, 4, packed={first.id: ""})) == names(first)
    assert names(pack_folder(photos, 4, packed={second.id: ""})) == names(second)
    assert names(pack_folder(photos, 4, packed={"of another folder": ""})) == names(second)
    assert pack_folder(photos, 4).id == second.id


def test_the_only_copies_of_images_stay_whatever_else_changes(photos, random_image, capsys):
    first = pack_folder(photos, 4)
    path = first.path
    del first
    (photos / "b.png").unlink()
    write_image(random_image(64, 64), photos / "e.png")
    assert names(pack_folder(photos, 4)) == ["a.png", "c.bmp", "e.png", "sub/d.png"]
    assert path.exists() and "Older packs stay" in capsys.readouterr().out
    write_image(random_image(48, 64), photos / "a.png")
    pack_folder(photos, 4)
    assert path.exists() and len(list(photos.glob("*.bin"))) == 2  # a third for the second
    (photos / "e.png").unlink()
    pack_folder(photos, 4)
    assert path.exists()


def test_a_run_that_goes_on_says_when_its_images_are_others_and_only_then(
    photos, random_image, capsys
):
    first = pack_folder(photos, 4)
    (photos / "a.png").touch()  # a new date, the same picture
    second = pack_folder(photos, 4, packed={first.id: ""})
    assert second.id != first.id and "other images" not in capsys.readouterr().out
    write_image(random_image(32, 32), photos / "new.png")
    assert len(pack_folder(photos, 4, packed={second.id: ""})) == 5
    assert "the run goes on with other images than it had until now" in capsys.readouterr().out


def pack_of_version_1(photos) -> Path:
    """As it was written: the same pixels, an index without ids and digests."""
    pack = pack_folder(photos, 4)
    content = pack.path.read_bytes()
    length = int.from_bytes(content[-8:], "little")
    images = [{k: v for k, v in i.items() if k != "digest"} for i in pack.index["images"]]
    made_from = [entry[:3] for entry in pack.index["high_res"]]
    index = dict(format=1, scale=4, high_res=made_from, folder="photos", images=images)
    encoded = json.dumps(index | {"unreadable": []}).encode()
    old = photos / "esrgan-packed-x4.bin"
    old.write_bytes(content[: -8 - length] + encoded + len(encoded).to_bytes(8, "little"))
    pack.path.unlink()
    return old


def test_a_run_of_version_1_goes_on_with_the_same_images_or_not_at_all(photos, capsys):
    old, moved = pack_of_version_1(photos), (photos / "b.png").read_bytes()
    (photos / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 images are gone since version 1.0 packed .*\(b.png\)"):
        pack_folder(photos, 4, packed={})
    assert old.exists()
    (photos / "b.png").write_bytes(moved)
    assert len(pack_folder(photos, 4, packed={})) == 4
    assert not old.exists() and "other images" not in capsys.readouterr().out


def test_files_replaced_with_the_same_size_and_date_are_noticed(photos, random_image):
    pack = pack_folder(photos, 4)
    new = random_image(*pack.size(2), seed=9)
    replace_keeping_dates(photos / "c.bmp", new)
    assert np.array_equal(pack_folder(photos, 4).high_res(2), new)


@pytest.fixture
def bmp_pairs(tmp_path, random_image):
    """HR and two LR folders whose files have the same names, sizes and dates."""
    for folder, side in (("high", 32), ("low", 8), ("other", 8)):
        for i in range(2):
            path = tmp_path / folder / f"{i}.bmp"
            write_image(random_image(side, side, seed=len(folder) + i), path)
            os.utime(path, ns=(0, 0))
    folders = tmp_path / "high", tmp_path / "low", tmp_path / "other"
    for i in range(2):
        low, other = (folder / f"{i}.bmp" for folder in folders[1:])
        # Their inodes' own times have to differ, which on older kernels tick every 4 ms.
        while other.stat().st_ctime_ns == low.stat().st_ctime_ns:
            os.utime(other, ns=(0, 0))
    return folders


def test_another_lr_folder_is_another_pack_and_all_stay(bmp_pairs):
    high, low, other = bmp_pairs
    paths = {folder: pack_folder(high, 4, folder).path for folder in (low, other, None)}
    assert len(set(paths.values())) == 3
    times = [path.stat().st_mtime_ns for path in paths.values()]
    for folder, path in paths.items():
        pack = pack_folder(high, 4, folder)
        assert pack.path == path
        if folder:
            assert np.array_equal(pack.low_res(1), read_image(folder / "1.bmp"))
    assert [path.stat().st_mtime_ns for path in paths.values()] == times  # none is made again


def test_an_lr_folder_in_the_place_of_another_is_noticed(bmp_pairs):
    high, low, other = bmp_pairs
    pack_folder(high, 4, low)
    low.rename(low.with_name("old"))
    other.rename(low)
    pack = pack_folder(high, 4, low)
    for i in range(2):
        assert np.array_equal(pack.low_res(i), read_image(low / f"{i}.bmp"))


def test_an_image_for_which_memory_is_too_short_now_is_not_left_out(photos, monkeypatch):
    monkeypatch.setattr("images.kinds.free_memory", lambda wanted: 10**4)
    with pytest.raises(DataError, match=r"cannot be read now: .*GiB of memory to read"):
        pack_folder(photos, 4)
    monkeypatch.undo()
    assert len(pack_folder(photos, 4)) == 4


def test_memory_that_runs_out_in_the_work_on_an_image_is_passing_too(photos, monkeypatch):
    def failing(*args):
        raise MemoryError("array")

    monkeypatch.setattr(decoding, "imresize", failing)
    with pytest.raises(DataError, match=r"4 cannot be read now: .*a\.png: too little memory"):
        pack_folder(photos, 4)


@pytest.mark.parametrize(
    "free, largest, threads", [(2**40, 10**6, 16), (10**9, 10**7, 4), (10**6, 10**8, 1), (1, 0, 1)]
)
def test_no_more_images_are_decoded_at_once_than_memory_allows(free, largest, threads, monkeypatch):
    """24 bytes a pixel: 12 while it is decoded, and two finished pairs that wait."""
    monkeypatch.setattr(decoding, "usable_cores", lambda: 16)
    monkeypatch.setattr(decoding, "available_memory", lambda: free)
    assert decoding.threads_for(largest) == threads


def test_the_largest_image_decides_how_many_threads_pack(photos, random_image, monkeypatch):
    write_image(random_image(70, 100), photos / "largest.png")
    (photos / "broken.png").write_bytes(b"\x89PNG")
    asked = []
    monkeypatch.setattr(packs, "threads_for", lambda largest: asked.append(largest) or 1)
    assert len(pack_folder(photos, 4)) == 5 and asked == [7000]


def test_colours_that_nobody_sees_are_not_learned(tmp_path, random_image):
    """Under alpha 0 stands the nearest visible colour, as test.py has it; of LR images, too."""
    pixels = np.zeros((32, 48, 4), np.uint8)
    pixels[:, :20], pixels[:, 20:] = (200, 50, 10, 255), (0, 0, 0, 0)
    pixels[:, 18:20, 3] = 128  # half clear: its own colour
    for folder, step in (("high", 1), ("low", 4)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels[::step, ::step]).save(tmp_path / folder / "a.png")
    pack = pack_folder(tmp_path / "high", 4, tmp_path / "low")
    assert (pack.high_res(0) == (200, 50, 10)).all() and (pack.low_res(0) == (200, 50, 10)).all()


def test_a_pair_of_different_profiles_becomes_srgb(tmp_path, random_image):
    """As littleCMS, called by Pillow, turns it."""
    pixels = imresize(random_image(8, 10), 4)
    wide = build_profile(((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.329)), (2.2,))
    srgb = ImageCms.createProfile("sRGB")
    given, image = ImageCms.ImageCmsProfile(io.BytesIO(wide)), Image.fromarray(pixels)
    turned = np.array(ImageCms.profileToProfile(image, given, srgb))
    assert np.abs(turned.astype(int) - pixels).max() > 20
    for folder, step, profile in (
        *(("high", 1, wide), ("low", 4, None), ("same", 4, wide), ("dropped", 4, None)),
        ("other", 4, SRGB_PROFILE),
    ):
        (tmp_path / folder).mkdir()
        image = Image.fromarray((turned if folder in ("low", "other") else pixels)[::step, ::step])
        image.save(tmp_path / folder / "a.png", icc_profile=profile)
    pack = pack_folder(tmp_path / "high", 4, tmp_path / "low")
    assert np.abs(pack.high_res(0).astype(int) - turned).max() <= 1
    assert np.array_equal(pack.low_res(0), turned[::4, ::4])
    for folder in ("same", "dropped"):  # the files' own numbers
        pack = pack_folder(tmp_path / "high", 4, tmp_path / folder)
        assert np.array_equal(pack.high_res(0), pixels)
        assert np.array_equal(pack.low_res(0), pixels[::4, ::4])
    pack = pack_folder(tmp_path / "high", 4, tmp_path / "other")  # two profiles
    assert np.abs(pack.high_res(0).astype(int) - turned).max() <= 1
    assert np.abs(pack.low_res(0).astype(int) - turned[::4, ::4]).max() <= 1


def test_another_users_lock_is_passed_over(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock = photos / ".esrgan-packed.lock"
    assert places.lock_of(photos) == lock
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != lock and access(path, mode))
    assert places.lock_of(photos) == lock  # which is not there
    lock.touch()
    assert places.lock_of(photos).parent.parent == Path("data/packs")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_a_lock_is_open_to_all_users(photos):
    before = os.umask(0o022)
    try:
        pack_folder(photos, 4)
    finally:
        os.umask(before)
    assert (photos / ".esrgan-packed.lock").stat().st_mode & 0o777 == 0o666


def test_a_folder_that_moves_keeps_its_pack_and_is_named_anew(photos, tmp_path):
    before = pack_folder(photos, 4)
    photos.rename(tmp_path / "moved")
    after = pack_folder(tmp_path / "moved", 4)
    assert after.id == before.id and after.folder == tmp_path / "moved"
    assert [path.name for path in (tmp_path / "moved").glob("*.bin")] == [after.path.name]


def test_packs_that_nobody_wants_are_deleted(photos, random_image):
    outdated = photos / "esrgan-packed-x4.bin", photos / "esrgan-packed-x4-with-lr.bin"
    index = json.dumps(dict(format=1, scale=4, images=[], high_res=[])).encode()
    for path in outdated:
        path.write_bytes(index + len(index).to_bytes(8, "little"))
    (photos / ".esrgan-packed-x4-0123.bin.99.tmp").write_bytes(b"half")
    first, other_scale = pack_folder(photos, 4).path, pack_folder(photos, 2).path
    assert not any(path.exists() for path in outdated)
    write_image(random_image(32, 32), photos / "new.png")
    second = pack_folder(photos, 4).path
    kept = {path.name for path in photos.glob("*esrgan*")}
    assert kept == {".esrgan-packed.lock", second.name, other_scale.name} and first != second


def test_a_pack_that_is_read_stays_until_nobody_does(photos, random_image):
    reader = pack_folder(photos, 4)
    path, before = reader.path, np.array(reader.high_res(0))
    write_image(random_image(48, 64), photos / "a.png")
    assert pack_folder(photos, 4).path != path and path.exists()
    assert np.array_equal(Pack(path, photos).high_res(0), before)
    del reader
    write_image(random_image(64, 48), photos / "a.png")
    pack_folder(photos, 4)
    assert not path.exists()


def test_storage_without_locks_is_packed_all_the_same(photos, random_image, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(file, operation):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    first = pack_folder(photos, 4).path
    write_image(random_image(48, 64), photos / "a.png")
    second = pack_folder(photos, 4).path
    assert f"Older packs stay, as runs read them or as only they have some images: {first}. " in (
        capsys.readouterr().out  # who reads it cannot be known
    )
    assert sorted(photos.glob("*esrgan*")) == sorted((first, second))


class Everything(torch.utils.data.Dataset):
    """All pixels of a pack, seen by a DataLoader's worker."""

    def __init__(self, pack):
        self.pack = pack

    def __len__(self):
        return len(self.pack)

    def __getitem__(self, i):
        return torch.from_numpy(np.array(self.pack.high_res(i)))


@pytest.mark.slow
def test_spawned_workers_see_the_pack_that_their_parent_has(photos, random_image):
    pack = pack_folder(photos, 4)
    expected = [np.array(pack.high_res(i)) for i in range(len(pack))]
    write_image(random_image(48, 64), photos / "a.png")
    newer = pack_folder(photos, 4)
    loader = torch.utils.data.DataLoader(
        Everything(pack), batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    seen = [tensor.numpy() for tensor in loader]
    assert all(np.array_equal(a, b) for a, b in zip(seen, expected, strict=True))
    # What no run of ours does: another file at that path.
    shipped = pickle.dumps(pack)
    shutil.copyfile(newer.path, pack.path.with_suffix(".new"))
    os.replace(pack.path.with_suffix(".new"), pack.path)
    with pytest.raises(DataError, match="was replaced while a run reads it"):
        pickle.loads(shipped)
    pack.path.unlink()
    with pytest.raises(DataError, match="was deleted while a run reads it"):
        list(loader)


def test_packs_without_a_readable_image_are_made_once(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.png").write_text("no picture")
    made = pack_folder(folder, 4).path.stat().st_mtime_ns
    pack = pack_folder(folder, 4)
    assert len(pack) == 0 and pack.path.stat().st_mtime_ns == made


# ------------------------------------------------------------------------------------- full disks


def test_no_room_in_the_folder_means_data_packs_and_none_there_is_said_before(
    photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pixels = sum(64 * width * 3 for width in (48, 64, 80, 96))
    elsewhere = places.starts(photos)[1].parent
    free = {photos: pixels + 4 * 300, elsewhere: 10**9}
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: usage(10**9, 0, free[path]))
    pack = pack_folder(photos, 4)  # LR images would have no room in the folder
    assert pack.path.parent == elsewhere and elsewhere.parent == Path("data/packs")
    assert pack_folder(photos, 4).path == pack.path
    free[elsewhere] = 1000
    (photos / "a.png").touch()
    message = r"packing .*photos takes 0\.1 MB, but the disk of .*photos has 0\.1 MB free and the "
    with pytest.raises(DataError, match=message + "disk of data.packs.* has 0.0 MB free. Make"):
        pack_folder(photos, 4)
    free[photos] = int(pixels * 17 / 16) + 4 * 300
    assert pack_folder(photos, 4).path.parent == photos


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_gets_full_is_named_and_nothing_is_left(number, photos, monkeypatch):
    class Full(io.BufferedRandom):
        def write(self, data):
            raise OSError(number, os.strerror(number))

    def opening(path, mode="r", *args, **kwargs):
        file = open(path, mode, *args, **kwargs)  # noqa: SIM115
        return Full(file.detach()) if mode == "x+b" else file

    with monkeypatch.context() as patch, pytest.raises(DataError) as error:
        patch.setattr(utils, "open", opening, raising=False)
        pack_folder(photos, 4)
    words = (os.strerror(number), "esrgan-packed-x4-", f"{photos} cannot be packed: {photos}")
    assert all(word in str(error.value) for word in words), error.value
    assert [path.name for path in photos.glob("*esrgan*")] == [".esrgan-packed.lock"]
    assert len(pack_folder(photos, 4)) == 4


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


def test_a_damaged_file_of_a_kind_whose_package_is_there_is_packed_once(photos, monkeypatch):
    monkeypatch.setattr(kinds, "_installed", lambda module: module == "pillow_heif")
    monkeypatch.setattr(kinds, "_suffixes", lambda: frozenset({".png", ".bmp", ".heic"}))
    for name in ("empty.heic", "zeros.heic"):
        (photos / name).write_bytes(bytes(64 * (name == "zeros.heic")))
    first = pack_folder(photos, 4)
    reasons = dict(first.index["unreadable"])
    assert reasons["empty.heic"] == "it is empty" and "damaged" in reasons["zeros.heic"]
    assert pack_folder(photos, 4).path.stat().st_ino == first.path.stat().st_ino


def test_what_a_package_reads_by_now_is_packed_again(photos, monkeypatch, capsys):
    """Its name, size and times are the same as when it could not be read."""
    content = b"\0\0\0\x18ftypheic" + bytes(32)
    (photos / "phone.jpg").write_bytes(content)
    monkeypatch.setattr(kinds, "_installed", lambda module: False)
    first = pack_folder(photos, 4)
    assert [name for name, _ in first.index["unreadable"]] == ["phone.jpg"]
    made = first.path.stat()
    assert pack_folder(photos, 4).path.stat().st_ino == made.st_ino
    runs = {first.id: first.contents}
    monkeypatch.setattr(kinds, "_installed", lambda module: module == "pillow_heif")
    monkeypatch.setattr(decoding, "read_picture", lambda path: read_picture(photos / "a.png"))
    assert len(pack_folder(photos, 4)) == 4  # a pack that is open stays as it is
    del first
    assert len(pack_folder(photos, 4, packed=runs)) == 4  # a run that goes on keeps what it has
    second = pack_folder(photos, 4)
    assert len(second) == 5 and not second.index["unreadable"]
    assert len(list(photos.glob("*.bin"))) == 1
    assert "Older packs" not in capsys.readouterr().out


def test_a_pack_with_images_that_are_gone_stays_for_its_runs(photos, monkeypatch, capsys):
    """Even where a package reads by now what could not be read when it was made."""
    (photos / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(32))
    monkeypatch.setattr(kinds, "_installed", lambda module: False)
    first = pack_folder(photos, 4)
    runs, path = {first.id: first.contents}, first.path
    del first
    (photos / "b.png").unlink()
    monkeypatch.setattr(kinds, "_installed", lambda module: module == "pillow_heif")
    monkeypatch.setattr(decoding, "read_picture", lambda path: read_picture(photos / "a.png"))
    assert len(pack_folder(photos, 4)) == 4  # with the other run's phone.jpg, without b.png
    assert path.exists() and "Older packs stay" in capsys.readouterr().out
    kept = pack_folder(photos, 4, packed=runs)
    assert "b.png" in [kept.name(i) for i in range(len(kept))]


def test_tiffs_that_pillow_does_not_open_count_with_their_size(tmp_path):
    """Gray of 16 bits with alpha, which tifffile reads."""
    pixels = np.zeros((64, 96, 2), np.uint16)
    options = dict(photometric="minisblack", extrasamples=["unassalpha"])
    tifffile.imwrite(tmp_path / "x.tif", pixels, **options)
    assert decoding.areas_by_header([tmp_path / "x.tif"]) == [64 * 96]
    assert len(pack_folder(tmp_path, 4)) == 1


def test_a_damaged_file_whose_numbers_lead_nowhere_is_left_out(photos):
    """Pillow seeks a place before the start of a PCX that is cut short."""
    Image.new("L", (64, 64)).save(photos / "cut.pcx")
    (photos / "cut.pcx").write_bytes((photos / "cut.pcx").read_bytes()[:300])
    pack = pack_folder(photos, 4)
    ((name, reason),) = pack.index["unreadable"]
    assert len(pack) == 4 and name == "cut.pcx" and reason.startswith("it is damaged (")
