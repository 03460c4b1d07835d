"""What a run says about its images before the first step: in few lines, with remedies."""

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from config import PHASES, Config, Degradation
from dataset import CropStream
from images.files import write_image
from images.packs import pack_folder
from images.pairs import DataError
from training.data import load_data, prepare_folders, remarks_on

CONFIG = Config(train_dir=("train",), valid_dir="")
CONFIG = dataclasses.replace(
    CONFIG,
    psnr=dataclasses.replace(CONFIG.psnr, patch=64),
    gan=dataclasses.replace(CONFIG.gan, patch=32),
)


def load(config):
    return load_data(config, [name for name in PHASES if getattr(config, name).steps])


@pytest.fixture
def write(tmp_path, monkeypatch, random_image):
    """Writes noise of a size to a name; train.py would be run where it goes."""
    monkeypatch.chdir(tmp_path)

    def writing(name, height, width, seed=0):
        write_image(random_image(height, width, seed), tmp_path / name)

    return writing


def test_crops_are_of_the_runs_seed_and_degradation(write):
    """That is, of what CropStream is tested with."""
    write("train/a.png", 96, 128)
    drawn = []
    for seed, level in ((3, "strong"), (4, "strong"), (4, "mild"), (4, "none")):
        degradation = Degradation.of_level(level)
        config = dataclasses.replace(CONFIG, seed=seed, degradation=degradation)
        config = dataclasses.replace(config, gan=dataclasses.replace(config.gan, busiest_of=3))
        streams, _, _ = load(config)
        for name, patch in (("psnr", 64), ("gan", 32)):
            of = config.phase(name).busiest_of
            expected = CropStream([pack_folder("train", 4)], patch, seed, degradation, of)
            for ours, theirs in zip(streams[name][7], expected[7], strict=True):
                assert torch.equal(ours, theirs)
        drawn.append(streams["gan"][7].low_res)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))


@pytest.mark.parametrize("paired", [False, True])
def test_crops_are_of_all_folders_each_with_its_own_lr_images(paired, tmp_path, monkeypatch):
    """HR images of one level each; the LR images of each folder are 3 levels brighter."""
    monkeypatch.chdir(tmp_path)
    for level in (10, 200):
        write_image(np.full((64, 64, 3), level, np.uint8), Path(f"high{level}/a.png"))
        write_image(np.full((16, 16, 3), level + 3, np.uint8), Path(f"low{level}/a.png"))
    lr_dir = ("low10", "low200") if paired else ()
    config = dataclasses.replace(CONFIG, train_dir=("high10", "high200"), lr_dir=lr_dir)
    streams, _, packed = load(config)
    assert len(packed) == 2
    for stream in streams.values():
        crops = [stream[k] for k in range(30)]
        levels = {(c.low_res[0, 0, 0].item(), c.high_res[0, 0, 0].item()) for c in crops}
        assert levels == ({(13, 10), (203, 200)} if paired else {(10, 10), (200, 200)})


def test_what_is_in_the_default_folder_and_not_read_is_told(write, tmp_path):
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/a.cr2").write_bytes(b"II*\0" + bytes(4) + b"CR")
    with pytest.raises(DataError, match=r"(?s)data/train.*\n  .*a\.cr2: .*develop it"):
        prepare_folders(Config(), None)


def test_many_small_images_are_one_line_with_the_remedy(write, tmp_path, capsys):
    write("train/large.png", 64, 64)
    write("train/a.png", 48, 60)
    for i in range(200):
        (tmp_path / f"train/tile{i:03}.png").hardlink_to(tmp_path / "train/a.png")
    streams, *_ = load(CONFIG)
    assert len(streams["psnr"].images) == 1 and len(streams["gan"].images) == 202
    assert capsys.readouterr().out == (
        "Left out of the psnr phase: 201 of 202 images, smaller than its 64x64 crop: "
        "train/a.png (60x48), train/tile000.png (60x48), train/tile001.png (60x48), "
        "train/tile002.png (60x48), train/tile003.png (60x48) and 196 others. "
        "--psnr.patch 48 would use 201 of them\n"
    )


def test_a_run_that_goes_on_says_whatever_way_its_images_became_others(write, tmp_path, capsys):
    told = "train: the run goes on with other images than it had until now"
    config = dataclasses.replace(CONFIG, valid_dir="valid")
    write("train/a.png", 64, 64)
    write("valid/v.png", 64, 64, seed=9)
    *_, packed = load(config)
    write("train/b.png", 64, 64, seed=1)
    pack_folder("train", 4)  # as another run, or a preview, does before this one goes on
    names = ["psnr", "gan"]
    *_, now = load_data(config, names, packed)
    assert told in (said := capsys.readouterr().out) and "valid: the run" not in said
    assert load_data(config, names, now)[2] == now and "other" not in capsys.readouterr().out
    (tmp_path / "train/b.png").touch()  # a new date, the same picture
    *_, later = load_data(config, names, now)
    assert later != now and set(later.values()) == set(now.values())
    assert "other images" not in capsys.readouterr().out
    for pack in tmp_path.glob("train/esrgan-packed*"):
        pack.unlink()
    write("train/b.png", 64, 64, seed=2)
    load_data(config, names, later)
    assert told in capsys.readouterr().out
    write("low/a.bmp", 16, 16, seed=4)
    write("high/a.bmp", 64, 64, seed=4)
    paired = dataclasses.replace(CONFIG, train_dir=("high",), lr_dir=("low",))
    *_, packed = load(paired)
    write("low/a.bmp", 16, 16, seed=5)  # LR of the same size
    load_data(paired, names, packed)
    assert told.replace("train", "high") in capsys.readouterr().out
    write("valid2/v.png", 64, 64, seed=3)  # one more folder: the settings tell of it
    added = dataclasses.replace(CONFIG, valid_dir="valid2")
    alone = load(CONFIG)[2]
    capsys.readouterr()
    load_data(added, names, alone)
    assert "other images" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("phase", "patch", "largest", "words"),
    [
        (
            "psnr",
            128,
            (96, 120),
            "psnr phase: of 2, the largest is train/b.png (120x96). Give",
        ),
        ("psnr", 128, (96, 120), "Give --psnr.patch 96, or larger images"),
        ("psnr", 64, (51, 63), "Give --psnr.patch 48, or larger images"),
        (
            "gan",
            128,
            (124, 92),
            "gan phase: of 2, the largest is train/b.png (92x124). Give",
        ),
        (
            "gan",
            128,
            (124, 92),
            "Give --gan.patch 64 (before that phase's first step), or larger images",
        ),
        ("gan", 64, (28, 600), "the largest is train/b.png (600x28). Give larger images"),
    ],
)
def test_without_any_image_for_a_crop_the_error_says_what_would_do(
    phase, patch, largest, words, write
):
    write("train/a.png", 20, 700)
    write("train/b.png", *largest)
    other = {"psnr": "gan", "gan": "psnr"}[phase]
    config = dataclasses.replace(
        CONFIG,
        **{
            phase: dataclasses.replace(getattr(CONFIG, phase), patch=patch),
            other: dataclasses.replace(getattr(CONFIG, other), steps=0),
        },
    )
    with pytest.raises(DataError) as error:
        load(config)
    assert f"at least {patch}x{patch} pixels" in str(error.value) and words in str(error.value)


def test_unreadable_images_are_grouped_by_reason(write, tmp_path, capsys):
    write("train/large.png", 64, 64)
    for i in range(40):
        write(f"train/dot{i:02}.png", 2, 2)
        (tmp_path / f"train/text{i:02}.png").write_text("no picture")
    load(CONFIG)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for kind, reason, line in zip(
        ("dot", "text"), ("smaller", "it is no image"), lines, strict=True
    ):
        names = ", ".join(f"{kind}{i:02}.png" for i in range(5))
        assert line.startswith(f"Left out of train: 40 that cannot be read ({reason}")
        assert line.endswith(f"): {names} and 35 others")


def test_reasons_that_differ_in_numbers_are_one():
    unreadable = [[f"{i}.png", f"truncated ({10 * i} bytes not processed)"] for i in range(3)]
    index = dict(unreadable=unreadable, doubtful=[])
    assert remarks_on(SimpleNamespace(folder=Path("train"), index=index)) == [
        "Left out of train: 3 that cannot be read (truncated (0 bytes not processed)): "
        "0.png, 1.png, 2.png"
    ]


def test_doubtful_pairs_are_said_before_training(write, tmp_path, capsys):
    for i in range(12):
        write(f"train/{i:02}.png", 64, 64, seed=i)
        smooth = Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8))
        write_image(np.array(smooth.resize((16, 16))), tmp_path / f"low/{i:02}.png")
    load(dataclasses.replace(CONFIG, lr_dir=("low",)))
    (line,) = capsys.readouterr().out.splitlines()
    assert "11 of 12 HR images hardly look like their LR images" in line
    assert (
        "above 0.8, and no better turned): 00.png -0." in line
        and "and 6 others. A wrong pair" in line
    )


def test_validation_images_that_are_trained_on_are_named(write, tmp_path, capsys):
    write("train/sub/a.png", 64, 64, seed=1)
    write("train/b.png", 64, 64, seed=2)
    write("valid/other.png", 64, 64, seed=3)
    write("valid/copy.bmp", 64, 64, seed=1)  # the same pixels in another format
    write("valid/surplus.png", 67, 66, seed=4)
    Image.open(tmp_path / "valid/surplus.png").crop((0, 0, 64, 64)).save(tmp_path / "train/c.png")
    config = dataclasses.replace(CONFIG, valid_dir="valid")
    load(config)
    expected = (
        "Scores will look too good: 2 of 3 validation images are trained on, too: "
        "valid/copy.bmp is train/sub/a.png, valid/surplus.png is train/c.png\n"
    )
    assert capsys.readouterr().out == expected
    load(config)  # known from the packs
    assert capsys.readouterr().out == expected
    (tmp_path / "valid/copy.bmp").unlink()
    (tmp_path / "valid/surplus.png").unlink()
    load(config)
    assert "too good" not in capsys.readouterr().out


def test_validation_images_that_cannot_be_scored_are_named_and_none_is_an_error(
    write, tmp_path, capsys
):
    write("train/a.png", 64, 64)
    write("valid/small.png", 16, 80)
    (tmp_path / "valid/text.png").write_text("no picture")
    with pytest.raises(DataError, match="no image is large enough to be scored"):
        load(dataclasses.replace(CONFIG, valid_dir="valid"))
    output = capsys.readouterr().out
    assert "Left out of validation: 1 too small to be scored: valid/small.png (80x16)\n" in output
    assert "Left out of valid: 1 that cannot be read" in output
    (tmp_path / "valid/small.png").unlink()
    with pytest.raises(DataError, match="valid: no image is large enough to be scored"):
        load(dataclasses.replace(CONFIG, valid_dir="valid"))
    assert "Left out of valid: 1 that cannot be read" in capsys.readouterr().out


def test_a_folder_given_twice_is_remarked_on_once(write, tmp_path, capsys):
    write("train/a.png", 64, 64)
    (tmp_path / "train/text.png").write_text("no picture")
    load(dataclasses.replace(CONFIG, train_dir=("train", "train"), valid_dir="train"))
    assert capsys.readouterr().out.count("cannot be read") == 1


@pytest.mark.parametrize("level, told", [("none", True), ("mild", False)])
def test_a_run_that_can_only_learn_a_copy_is_told_so(level, told, write, capsys):
    write("train/a.png", 64, 64)
    degradation = Degradation.of_level(level)
    load(dataclasses.replace(CONFIG, scale=1, degradation=degradation))
    assert ("There is nothing to learn: at scale 1" in capsys.readouterr().out) == told


def test_lr_images_of_the_same_size_are_something_to_learn(write, capsys):
    write("train/a.png", 64, 64)
    write("low/a.png", 64, 64)
    config = dataclasses.replace(CONFIG, scale=1, lr_dir=("low",))
    load(config)
    assert "nothing to learn" not in capsys.readouterr().out
    write("valid/b.png", 64, 64, seed=1)
    config = dataclasses.replace(config, valid_dir="valid")
    for valid_lr_dir, told in (("", True), ("valid_low", False)):
        write("valid_low/b.png", 64, 64, seed=1)
        load(dataclasses.replace(config, valid_lr_dir=valid_lr_dir))
        said = capsys.readouterr().out
        assert ("Validation says nothing: at scale 1" in said) == told


def test_a_folder_that_is_not_there_is_named_before_anything_is_packed(write):
    write("train/a.png", 64, 64)
    for field in ("train_dir", "lr_dir"):
        with pytest.raises(DataError, match="typo: no such folder"):
            prepare_folders(dataclasses.replace(CONFIG, **{field: ("typo",)}), None)
    for field in ("valid_dir", "valid_lr_dir"):
        with pytest.raises(DataError, match="typo: no such folder"):
            prepare_folders(dataclasses.replace(CONFIG, **{field: "typo"}), None)
    prepare_folders(dataclasses.replace(CONFIG, valid_dir=Config.valid_dir), None)  # may be missing


def test_a_run_goes_on_with_packed_copies_of_the_default_folders_images(write, capsys):
    config = dataclasses.replace(CONFIG, train_dir=Config.train_dir, valid_dir=Config.valid_dir)
    for folder in ("train", "valid"):
        write(f"data/{folder}/a.png", 64, 64)
    prepare_folders(config, None)
    *_, packed = load(config)
    for folder in ("train", "valid"):
        Path(f"data/{folder}/a.png").unlink()
    prepare_folders(config, packed)
    streams, valid, _ = load_data(config, ["psnr"], packed)
    assert len(valid) == len(streams["psnr"].images) == 1
    assert "No validation" not in capsys.readouterr().out
    Path("data/valid").rename("data/moved")
    assert load_data(config, ["psnr"], packed)[1] is None
    assert "No validation: no images in data/valid" in capsys.readouterr().out
    with pytest.raises(DataError, match="no images in data/train"):
        prepare_folders(config, None)
