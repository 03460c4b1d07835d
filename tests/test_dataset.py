"""The sample stream, and where images come from."""

import errno
import functools
import hashlib
import http.server
import os
import pickle
import shutil
import socket
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from albumentations import D4

from config import Degradation
from dataset import (
    TURNS,
    CropStream,
    batches,
    entry_of,
    fetch_div2k,
    main,
    preview,
    turned,
    write_demo_photographs,
)
from images.files import read_image, write_image
from images.packs import Pack, pack_folder
from images.pairs import DataError
from images.sheets import draw_sheet

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


@pytest.mark.parametrize("busiest_of", [1, 3])
def test_lr_and_hr_are_the_same_crop_turned_the_same_way(busiest_of, coordinates):
    stream = CropStream([coordinates], patch=32, seed=0, busiest_of=busiest_of)
    images, turns, corners = set(), set(), set()
    for k in range(400):
        low_res, high_res, _ = stream[k]
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


def test_crops_come_from_every_folder(tmp_path):
    packs = []
    for level in (10, 200):
        write_image(np.full((40, 40, 3), level, np.uint8), tmp_path / str(level) / "a.png")
        packs.append(pack_folder(tmp_path / str(level), 4))
    stream = CropStream(packs, patch=32, seed=0)
    drawn = [crops.high_res[0, 0, 0].item() for crops in (stream[k] for k in range(40))]
    assert set(drawn) == {10, 200} and 10 < drawn.count(10) < 30  # each image alike likely


@pytest.mark.parametrize("level", ["none", "mild"])
def test_the_busiest_of_some_places_is_cut_out(level, tmp_path):
    """Noise that fades from the top to the bottom, so that no two places are alike."""
    noise = np.random.default_rng(0).normal(size=(256, 256, 3))
    fading = 128 + noise * np.linspace(40, 0, 256)[:, None, None]
    write_image(fading.round().clip(0, 255).astype(np.uint8), tmp_path / "fading.png")
    pack = pack_folder(tmp_path, 4)

    def mean_top(busiest_of):
        """As the deviation tells it, and less a constant."""
        stream = CropStream([pack], 64, 0, Degradation(level), busiest_of)
        deviations = [stream[k].high_res.float().std().item() for k in range(400)]
        return 255 * (1 - np.mean(deviations) / 40)

    # Of n places drawn from [0, 192], the first has the mean 192 / (n + 1).
    assert mean_top(1) - mean_top(4) == pytest.approx(192 / 2 - 192 / 5, rel=0.1)


def test_the_kth_sample_depends_on_seed_and_k_alone(photos):
    pack = pack_folder(photos, 4)
    stream = CropStream([pack], patch=32, seed=7)
    samples = [stream[k][1] for k in range(20)]
    again = pickle.loads(pickle.dumps(CropStream([Pack(pack.path, photos)], patch=32, seed=7)))
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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_target_that_is_hr_itself_travels_once(workers, photos, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.clone)
    packs = [pack_folder(photos, 4)]
    for sharpen in (False, True):
        degradation = Degradation(level="mild", sharpen=sharpen)
        (batch,) = batches(CropStream(packs, 32, 0, degradation), 0, 1, 3, workers, False)
        for crops in (batch, batch.pin_memory()):
            assert (crops.target is crops.high_res) != sharpen
            assert crops.low_res.shape == (3, 3, 8, 8) and crops.target.shape == (3, 3, 32, 32)
        samples = [CropStream(packs, 32, 0, degradation)[k] for k in range(3)]
        for expected, given in zip(zip(*samples, strict=True), batch, strict=True):
            assert torch.equal(torch.stack(expected), given)


def test_images_below_the_crop_are_left_out_or_refused(photos, random_image):
    write_image(random_image(40, 200), photos / "flat.png")
    pack = pack_folder(photos, 4)
    assert len(CropStream([pack], patch=48, seed=0).images) == 4
    with pytest.raises(DataError, match="at least 128x128"):
        CropStream([pack_folder(photos, 4)], patch=128, seed=0)


# ------------------------------------------------------------------------------------- preview


@pytest.fixture
def written(monkeypatch):
    """Title and entries of each sheet that is drawn."""
    sheets = []

    def spy(*sheet):
        sheets.append(sheet)
        return draw_sheet(*sheet)

    monkeypatch.setattr("dataset.draw_sheet", spy)
    return sheets


def test_the_preview_shows_the_samples_of_training_and_what_was_drawn(
    photos, tmp_path, capsys, written
):
    flags = ["--patch", "32", "--seed", "3", "--samples", "3", "--degradation.sharpen", "true"]
    flags += ["--busiest-of", "2"]
    main(["preview", str(photos), "-o", str(tmp_path / "out" / "sheet.png"), *flags])
    assert capsys.readouterr().out == f"Saved: {tmp_path / 'out' / 'sheet.png'}\n"
    ((title, entries),) = written
    assert title == "x4, seed 3, degradation.level strong" and len(entries) == 3
    settings = Degradation.of_level("strong", sharpen=True)
    stream = CropStream([pack_folder(photos, 4)], 32, 3, settings, busiest_of=2)
    sheet = read_image(tmp_path / "out" / "sheet.png")
    for k, entry in enumerate(entries):
        assert list(entry.pictures) == ["LR", "HR", "sharpened HR"]
        for picture, crop in zip(entry.pictures.values(), stream[k], strict=True):
            assert np.array_equal(picture.transpose(2, 0, 1), crop.numpy())
        assert entry.words[0].startswith(f"sample {k}: ") and "JPEG" in " ".join(entry.words)
    # Each pixel of the first LR, 8x8, is a square of 32x32 below a line of text.
    low_res, high_res, _ = entries[0].pictures.values()
    top, left = 20 + 2 * 8 + 20, 8
    assert np.array_equal(sheet[top : top + 256 : 32, left : left + 256 : 32], low_res)
    assert np.array_equal(sheet[top : top + 256 : 8, left + 264 : left + 264 + 256 : 8], high_res)


def test_without_degradation_the_preview_is_bicubic(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["preview", str(photos), "--patch", "48", "--degradation.level", "none"])
    assert min(read_image(tmp_path / "preview.png").shape[:2]) > 256
    sample = CropStream([pack_folder(photos, 4)], 48, 0).sample(0)
    assert entry_of(0, sample, False).words == [f"sample 0: {sample.name}", "MATLAB's bicubic"]
    written = []
    monkeypatch.setattr("dataset.draw_sheet", lambda title, entries: written.append(entries))
    settings = Degradation.of_level("none", sharpen=True)  # which has no effect there
    preview(CropStream([pack_folder(photos, 4)], 48, 0, settings), 1)
    assert list(written[0][0].pictures) == ["LR", "HR"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["/nowhere"], "/nowhere: no such folder"),
        ([], "FOLDER"),
        (["PHOTOS", "-o", "sheet.jpg"], "-o is 'sheet.jpg': give a name that ends in .png"),
        (["PHOTOS", "--patch", "50"], "patch is 50: the scale needs a multiple of 4, like 48"),
        (["PHOTOS", "--patch", "2"], "patch is 2: the scale needs a multiple of 4, like 4"),
        (["PHOTOS", "--patch", "96"], "no training image is at least 96x96 pixels"),
        (["PHOTOS", "--scale", "5"], "scale is 5: choose 1, 2, 3, 4 or 8"),
        (["PHOTOS", "--seed", "-1"], "seed is -1"),
        (["PHOTOS", "--samples", "0"], "samples is 0"),
        (["PHOTOS", "--degradation.level", "weak"], "degradation.level is 'weak'"),
        (["PHOTOS", "--degradation.kernel-side", "7", "20"], "degradation.kernel_side"),
        (["PHOTOS", "--degradation.sigmas", "1"], "--degradation.sigmas"),
        (["PHOTOS", "--deg", "1"], "--deg"),
    ],
)
def test_a_preview_that_cannot_be_is_refused_in_words(flags, words, photos, tmp_path, capsys):
    flags = [str(photos) if flag == "PHOTOS" else flag for flag in flags]
    with pytest.raises(SystemExit) as stop:
        main(["preview", "-o", str(tmp_path / "x.png"), *flags])
    assert stop.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x.png").exists()


def test_a_preview_says_what_cannot_be_read_and_what_would_fit(photos, tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.png").write_text("no picture")
    sheet = ["-o", str(tmp_path / "x.png")]
    with pytest.raises(SystemExit):
        main(["preview", str(tmp_path / "raw"), *sheet])
    said = capsys.readouterr()
    assert "no training image can be read" in said.err and "Left out: a.png: " in said.out
    with pytest.raises(SystemExit):
        main(["preview", str(photos), "--patch", "96", *sheet])
    assert "--patch 64 would fit the largest" in capsys.readouterr().err


def test_a_preview_names_what_is_smaller_than_the_crop_and_a_file_that_is_no_folder(
    photos, tmp_path, capsys
):
    main(["preview", str(photos), "--patch", "64", "-o", str(tmp_path / "x.png")])
    told = capsys.readouterr().out
    assert told.startswith("Left out, as they are smaller than the crop: a.png\nSaved: ")
    with pytest.raises(SystemExit):
        main(["preview", str(photos / "a.png"), "-o", str(tmp_path / "x.png")])
    assert "a.png: a file, not a folder" in capsys.readouterr().err


def test_a_preview_says_which_samples_are_mild(photos, tmp_path, written):
    flags = ["--patch", "32", "--samples", "40", "--degradation.mild", "0.7"]
    main(["preview", str(photos), "-o", str(tmp_path / "x.png"), *flags])
    ((title, entries),) = written
    assert title == "x4, seed 0, degradation.level strong, 70% of it mild"
    levels = [entry.words[1] for entry in entries]
    assert set(levels) == {"level mild", "level strong"}
    assert 20 <= levels.count("level mild") <= 36
    qualities = {"level mild": [], "level strong": []}
    for entry in entries:
        qualities[entry.words[1]] += [
            int(word.rpartition(" ")[2]) for word in entry.words if word.startswith("JPEG")
        ]
    assert min(qualities["level mild"]) >= 50 > min(qualities["level strong"])


def test_turns_are_albumentations_own(random_image):
    image, turn = random_image(5, 7), D4(p=1)
    for name in TURNS:
        assert np.array_equal(turned(image, name), turn.apply(image, group_element=name)), name
        assert np.shares_memory(turned(image, name), image)


def test_a_preview_does_not_land_among_the_images(photos, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    for output in ("preview.png", "sub/x.png"):
        with pytest.raises(SystemExit):
            main(["preview", ".", "-o", output])
        assert "would be one of .'s images" in capsys.readouterr().err
    assert not list(photos.glob("*.bin"))


def test_div2k_stays_a_command(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("dataset.fetch_div2k", asked.append)
    main(["div2k", "--root", str(tmp_path)])
    assert asked == [tmp_path]


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
    (tmp_path / "data" / "valid" / ".DIV2K_valid_HR.unpacking").mkdir()  # as a kill would leave it
    fetch_div2k(tmp_path / "data", address, archives)
    assert files(tmp_path / "data") == WHOLE
    assert "DIV2K_train_HR is there already" in capsys.readouterr().out


def test_div2k_is_unpacked_on_the_disk_that_it_is_for(div2k_server, tmp_path, monkeypatch):
    """data/train may be a link to another one."""
    _, address, archives = div2k_server
    replace = os.replace

    def on_one_disk(source, target):
        if Path(source).parent.parent.resolve() != Path(target).parent.resolve():
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr("dataset.os.replace", on_one_disk)
    fetch_div2k(tmp_path / "data", address, archives)
    assert files(tmp_path / "data") == WHOLE


@pytest.mark.parametrize("fault", ["silent", "cut"])
def test_a_server_that_falls_silent_or_hangs_up_is_an_error(fault, tmp_path, monkeypatch):
    """Without a length, as behind some proxies, in the midst of a piece."""
    monkeypatch.setattr("dataset.SILENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            for _ in range(2):  # torchvision asks where it leads first
                connection, _ = server.accept()
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nab")
                if fault == "cut":
                    connection.close()
                else:
                    held.append(connection)

        held = []
        threading.Thread(target=serve, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(DataError, match="could not be fetched whole"):
            fetch_div2k(tmp_path, address, {"train": ("a.zip", "0" * 32)})
    assert socket.getdefaulttimeout() is None


def test_no_network_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="Run the same command again"):
        fetch_div2k(tmp_path, "http://127.0.0.1:9", {"train": ("DIV2K_train_HR.zip", "0" * 32)})
