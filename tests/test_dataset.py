"""Packing, the sample stream, and where images come from."""

import functools
import hashlib
import http.server
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
from dataset import (
    CropStream,
    DataError,
    Pack,
    batches,
    fetch_div2k,
    pack_folder,
    write_demo_photographs,
)
from images.files import ImageError, read_image, write_image
from images.kinds import find_images
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
    build = dataset.build_pack
    monkeypatch.setattr(dataset, "build_pack", lambda *args: made.append(1) or build(*args))
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


def test_images_that_vanish_stay_in_the_pack_and_are_named(photos, capsys):
    pack = pack_folder(photos, 4)
    (photos / "b.png").unlink()
    assert len(pack_folder(photos, 4)) == 4
    assert "1 images are gone since they were packed (b.png)" in capsys.readouterr().out
    for path in photos.glob("**/*.*g"):
        path.unlink()
    (photos / "c.bmp").unlink()
    assert len(pack_folder(photos, 4)) == 4
    pack.path.unlink()
    with pytest.raises(DataError, match="holds no PNG"):
        pack_folder(photos, 4)


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
        for name, reason in zip(
            ("cut.png", "dot.png", "text.png"), pack.index["unreadable"], strict=True
        ):
            assert name in reason


def test_a_failure_that_is_not_the_files_own_is_no_reason_to_leave_it_out(photos, monkeypatch):
    def refuse(path):
        try:
            raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise ImageError(f"{path}: {error}") from error

    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"a\.png.*denied"):
        patch.setattr(dataset, "read_image", refuse)
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


def test_a_read_only_folder_is_packed_elsewhere(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != photos)
    pack = pack_folder(photos, 4)
    assert pack.path.parent == Path("data/packs") and "photos" in pack.path.name
    assert not list(photos.glob("*.bin"))


SLOW_READING = """
import dataset, time
read_image = dataset.read_image
dataset.read_image = lambda path: time.sleep(4) or read_image(path)
"""
START_PACKING = "from dataset import pack_folder; print(len(pack_folder({folder!r}, 4)))"


def test_two_processes_that_start_at_once_both_get_a_whole_pack(photos):
    command = [sys.executable, "-c", SLOW_READING + START_PACKING.format(folder=str(photos))]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    outputs = sorted(process.communicate(timeout=120)[0].strip() for process in both)
    assert outputs[0] == "4"
    assert outputs[1].startswith("Another process is packing") and outputs[1].endswith("4")
    assert sorted(path.name for path in photos.glob("*esrgan*")) == [
        ".esrgan-packed-x4.bin.lock",
        "esrgan-packed-x4.bin",
    ]


def test_packing_killed_half_way_leaves_no_pack_and_starts_over(photos):
    command = [sys.executable, "-c", SLOW_READING + START_PACKING.format(folder=str(photos))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    half_made = ".esrgan-packed-x4.bin.*.tmp"
    while not list(photos.glob(half_made)):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (photos / "esrgan-packed-x4.bin").exists()
    assert len(pack_folder(photos, 4)) == 4
    assert not list(photos.glob(half_made))


def test_packing_that_fails_leaves_nothing_half_made(photos, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "read_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(photos, 4)
    assert [path.name for path in photos.glob("*esrgan*")] == [".esrgan-packed-x4.bin.lock"]


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
    with pytest.raises(DataError, match=r"(?s)2 images have no LR partner.*a\.png.*d\.png"):
        pack_folder(photos, 4, low_res_folder)


def test_every_partner_of_a_wrong_size_is_named(photos, low_res_folder, random_image):
    write_image(random_image(16, 13), low_res_folder / "a.png")
    write_image(random_image(5, 5), low_res_folder / "c.png")
    message = r"(?s)a\.png is 13x16; a 1/4 of .*a\.png \(48x64\) is 12x16.*c\.png is 5x5"
    with pytest.raises(DataError, match=message):
        pack_folder(photos, 4, low_res_folder)
    assert not list(photos.glob("*.bin"))


# ------------------------------------------------------------------------------- sample stream


@pytest.fixture
def coordinates(tmp_path):
    """Two images whose LR pixels say where they are, and whose HR pixels say the same x4."""
    for i, (height, width) in enumerate(((12, 20), (16, 10))):
        y, x = np.mgrid[:height, :width]
        low_res = np.stack((y, x, np.full_like(y, i)), axis=-1).astype(np.uint8)
        write_image(low_res, tmp_path / "low" / f"{i}.png")
        write_image(low_res.repeat(4, 0).repeat(4, 1), tmp_path / "high" / f"{i}.png")
    return pack_folder(tmp_path / "high", 4, tmp_path / "low")


def test_lr_and_hr_are_the_same_crop_turned_the_same_way(coordinates):
    stream = CropStream([coordinates], patch=32, seed=0)
    images, turns, corners = set(), set(), set()
    for k in range(400):
        low_res, high_res = stream[k]
        assert low_res.shape == (3, 8, 8) and high_res.shape == (3, 32, 32)
        assert low_res.dtype == high_res.dtype == torch.uint8
        assert torch.equal(low_res.repeat_interleave(4, 1).repeat_interleave(4, 2), high_res)
        y, x, image = low_res.int()
        images.add(image[0, 0].item())
        turns.add((y[1, 0] - y[0, 0], y[0, 1] - y[0, 0], x[1, 0] - x[0, 0], x[0, 1] - x[0, 0]))
        corners.add((image[0, 0].item(), y.min().item(), x.min().item()))
    assert images == {0, 1}
    assert len({tuple(int(step) for step in turn) for turn in turns}) == 8
    # Every corner of the first image can be drawn, up to its last row and column.
    assert {y for i, y, _ in corners if i == 0} == set(range(12 - 8 + 1))
    assert {x for i, _, x in corners if i == 0} == set(range(20 - 8 + 1))


def test_the_kth_sample_depends_on_seed_and_k_alone(photos):
    pack = pack_folder(photos, 4)
    stream = CropStream([pack], patch=32, seed=7)
    samples = [stream[k][1] for k in range(20)]
    again = pickle.loads(pickle.dumps(CropStream([Pack(pack.path)], patch=32, seed=7)))
    assert all(torch.equal(again[k][1], samples[k]) for k in reversed(range(20)))
    other = CropStream([pack], patch=32, seed=8)
    assert sum(torch.equal(other[k][1], samples[k]) for k in range(20)) < 5


def test_batches_start_anywhere_and_workers_change_nothing(photos):
    stream = CropStream([pack_folder(photos, 4)], patch=32, seed=0)
    alone = list(batches(stream, 0, 6, 3, workers=0, pin_memory=False))
    assert len(alone) == 6 and alone[0][1].shape == (3, 3, 32, 32)
    shared = list(batches(stream, 2, 6, 3, workers=2, pin_memory=False))
    for a, b in zip(alone[2:], shared, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_images_below_the_crop_are_named_or_refused(photos, random_image):
    write_image(random_image(40, 200), photos / "flat.png")
    pack = pack_folder(photos, 4)
    assert len(CropStream([pack], patch=48, seed=0).images) == 4
    assert pack.below(48) == [f"{photos.as_posix()}/flat.png: 200x40 pixels"]
    with pytest.raises(DataError, match="at least 128x128"):
        CropStream([pack_folder(photos, 4)], patch=128, seed=0)


# ------------------------------------------------------------------------------- getting images


def test_demo_photographs_are_there_and_apart(tmp_path):
    for _ in range(2):
        write_demo_photographs(tmp_path)
    train, valid = (
        {path.name for path in (tmp_path / split).iterdir()} for split in ("train", "valid")
    )
    assert valid == {"astronaut.png", "chelsea.png"} and len(train) == 7 and not train & valid
    for path in (*(tmp_path / "train").iterdir(), *(tmp_path / "valid").iterdir()):
        assert min(read_image(path).shape[:2]) >= 300


@pytest.fixture
def div2k_server(tmp_path, random_image):
    """A folder served on 127.0.0.1 with two small archives; gives (folder, address, archives)."""
    served = tmp_path / "served"
    archives = {}
    for split in ("train", "valid"):
        name = f"DIV2K_{split}_HR"
        write_image(random_image(8, 8), tmp_path / name / "0001.png")
        served.mkdir(exist_ok=True)
        with zipfile.ZipFile(served / f"{name}.zip", "w") as archive:
            archive.write(tmp_path / name / "0001.png", f"{name}/0001.png")
        digest = hashlib.md5((served / f"{name}.zip").read_bytes()).hexdigest()
        archives[split] = (f"{name}.zip", digest)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield served, f"http://127.0.0.1:{server.server_port}", archives
        server.shutdown()


def files(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


WHOLE = ["train/DIV2K_train_HR/0001.png", "valid/DIV2K_valid_HR/0001.png"]


def test_div2k_is_fetched_verified_and_unpacked_once(div2k_server, tmp_path):
    served, address, archives = div2k_server
    fetch_div2k(tmp_path / "data", address, archives)
    assert files(tmp_path / "data") == WHOLE
    shutil.rmtree(served)
    fetch_div2k(tmp_path / "data", address, archives)  # nothing is asked for again


def test_a_broken_download_is_an_error_and_the_next_call_goes_on(div2k_server, tmp_path, capsys):
    served, address, archives = div2k_server
    whole = (served / "DIV2K_valid_HR.zip").read_bytes()
    (served / "DIV2K_valid_HR.zip").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"DIV2K_valid_HR\.zip could not be fetched whole"):
        fetch_div2k(tmp_path / "data", address, archives)
    assert not (tmp_path / "data" / "valid" / "DIV2K_valid_HR").exists()
    (served / "DIV2K_valid_HR.zip").write_bytes(whole)
    (tmp_path / "data" / ".DIV2K_valid_HR.unpacking").mkdir()  # as a kill would leave it
    fetch_div2k(tmp_path / "data", address, archives)
    assert files(tmp_path / "data") == WHOLE
    assert "DIV2K_train_HR is there already" in capsys.readouterr().out


def test_no_network_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="Run the same command again"):
        fetch_div2k(tmp_path, "http://127.0.0.1:9", {"train": ("DIV2K_train_HR.zip", "0" * 32)})
