"""What a run is validated on: the same degraded images each time, and NIQE where it can be had."""

import dataclasses
import math
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from config import LEVELS, Config, Degradation
from images.degradation import degrade, degrade_whole, draw_steps
from images.files import read_image, write_image
from images.packs import pack_folder
from images.resize import imresize
from images.scores import psnr, ssim
from training.ranks import Ranks
from training.runs import RunFolder
from training.settings import At
from training.validation import Validation, describe, score

STRONG, MILD = (Degradation(level=level, **LEVELS[level]) for level in ("strong", "mild"))


class Nearest(nn.Module):
    """A generator whose output is known: nearest neighbour, or one level everywhere."""

    def __init__(self, scale=4, level=None):
        super().__init__()
        self.scale, self.level = scale, level
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, low_res):
        enlarged = F.interpolate(low_res, scale_factor=self.scale)
        return enlarged if self.level is None else torch.full_like(enlarged, self.level)


def mean_of(image):
    """Of RGB, (H, W, 3)."""
    return float((image.mean((0, 1), dtype=np.float64) * (0.6, 0.3, 0.1)).sum())


class FakeNiqe:
    """As pyiqa.create_metric makes it: the mean, in which red counts most; of flat pictures it is
    no number."""

    metric_mode = "NR"

    def __init__(self, name, device):
        assert name == "niqe"

    def __call__(self, target, reference=None):
        assert reference is None and target.shape[0] == 1
        if target.min() == target.max():
            raise np.linalg.LinAlgError("SVD did not converge\nmore lines of it")
        return torch.tensor([[mean_of(target[0].permute(1, 2, 0).numpy())]])


@pytest.fixture
def pyiqa(monkeypatch):
    fake = types.ModuleType("pyiqa")
    fake.list_models, fake.create_metric = (lambda: ["niqe"]), FakeNiqe
    monkeypatch.setitem(sys.modules, "pyiqa", fake)
    return fake


@pytest.fixture
def no_pyiqa(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)


@pytest.fixture
def valid(tmp_path, monkeypatch, random_image):
    """Makes a folder of smooth pictures, of the names and sizes given, and packs it."""
    monkeypatch.chdir(tmp_path)

    def making(folder, sizes, scale=4, lr_dir=None):
        for seed, (name, (height, width)) in enumerate(sizes.items()):
            small = random_image(height // 8, width // 8, seed)
            write_image(imresize(small, 8), Path(folder, name))
        return pack_folder(Path(folder), scale, lr_dir)

    return making


@pytest.fixture
def validate(monkeypatch):
    """Makes a Validation of a pack, in a run whose strips are caught."""
    strips = {}

    def sample(run, stem, picture, at):
        strips[stem] = picture

    monkeypatch.setattr(RunFolder, "sample", sample)

    def making(pack, degradation=STRONG, ranks=None, **settings):
        config = Config(degradation=degradation, **settings)
        run = RunFolder(config, ranks or Ranks())
        return Validation(pack, torch.device("cpu"), torch.float32, run)

    making.strips = strips
    return making


SIZES = {"a.png": (48, 64), "b.png": (64, 48), "sub/c.png": (64, 64)}


# ------------------------------------------------------------------------------ degraded images


def test_the_name_alone_decides_what_happens_to_a_whole_image(random_image):
    image = random_image(48, 64)

    def low_res(name="a", seed=0, picture=image):
        return degrade_whole(picture, STRONG, 4, name, seed)

    assert low_res().shape == (12, 16, 3) and low_res().dtype == np.uint8
    np.random.seed(5)
    assert np.array_equal(low_res(), low_res())
    others = [low_res("b"), low_res("A"), low_res("a", 1), low_res("a", -1), low_res("1 a")]
    for i, one in enumerate([low_res(), *others]):
        assert not any(np.array_equal(one, other) for other in others[i:])
    # One name, whether its accent is a character of its own or not; and bytes that are no UTF-8.
    assert np.array_equal(low_res("\u00e9"), low_res("e\u0301"))
    assert not np.array_equal(low_res("\udcff"), low_res("\udcfe"))


def test_what_a_name_decides_is_the_same_on_every_machine(random_image):
    """The key is SHA-256 of seed and name; written out, as nobody's hash() may come into it."""
    key = 0x879111D72DF885F8744F5F6518EEE50F
    random = np.random.Generator(np.random.Philox(key=key))
    image = random_image(48, 64)
    expected = degrade(image, draw_steps(STRONG, (48, 64), 4, random), random)
    assert np.array_equal(degrade_whole(image, STRONG, 4, "baboon"), expected)


@pytest.mark.parametrize(
    "name, level, drawn",
    [
        (
            *("baboon", "strong"),
            "generalized blur, 21x21, sigma 2.3 x 0.5 at 137 degrees, beta 1.6; bilinear resize to "
            "627x602; gray Poisson noise, scale 1.4; JPEG, quality 55; Gaussian blur, 11x11, sigma "
            "0.8; bicubic resize to 147x141; gray Gaussian noise, sigma 6; bicubic resize to "
            "125x120; sinc filter, 11x11, cutoff 0.49 pi; JPEG, quality 83",
        ),
        (
            *("comic", "mild"),
            "area resize to 344x330; JPEG, quality 62; bicubic resize to 133x127; JPEG, quality "
            "94; bicubic resize to 125x120",
        ),
    ],
)
def test_the_degradations_behind_published_scores_stay(name, level, drawn, monkeypatch):
    """Every score on degraded images, in documents and runs, is of such draws: others would make
    all of them those of other images. So they are written out."""
    monkeypatch.setattr("images.degradation.degrade", lambda image, steps, random: steps)
    steps = degrade_whole(np.zeros((480, 500, 3), np.uint8), Degradation.of_level(level), 4, name)
    assert "; ".join(map(str, steps)) == drawn


@pytest.mark.parametrize("scale, side", [(8, 24), (8, 8), (4, 16), (3, 15), (2, 2), (1, 13)])
def test_the_smallest_images_are_degraded_too(scale, side, random_image):
    image = random_image(side, side)
    for i in range(50):
        low_res = degrade_whole(image, STRONG, scale, str(i))
        assert low_res.shape == (side // scale, side // scale, 3)


def test_validation_images_are_degraded_by_name_whatever_the_run(valid, validate, no_pyiqa):
    pack = valid("valid", SIZES)
    first = validate(pack, seed=0)
    for i in range(3):
        stem = ("a", "b", "sub_c")[i]
        assert np.array_equal(first.low_res(i), degrade_whole(pack.high_res(i), STRONG, 4, stem))
    other = validate(pickle.loads(pickle.dumps(pack)), seed=7, train_dir=("elsewhere",))
    assert other.bicubic == first.bicubic
    for i in range(3):
        assert np.array_equal(other.low_res(i), first.low_res(i))
        assert first.low_res(i) is first.low_res(i)  # kept, not made again
    # The same files beside others, so in another order and number.
    more = valid("more", {"A.png": (64, 64), "aa.png": (48, 48)})
    for name in SIZES:
        write_image(read_image(Path("valid", name)), Path("more", name))
    more = pack_folder(Path("more"), 4)
    places = {more.name(i): i for i in range(len(more))}
    assert [places[name] for name in SIZES] != [0, 1, 2]
    again = validate(more)
    for i, name in enumerate(SIZES):
        assert np.array_equal(again.low_res(places[name]), first.low_res(i))


def test_ranks_validate_on_the_same_degraded_images(valid, validate, no_pyiqa, monkeypatch):
    pack = valid("valid", SIZES)
    alone = validate(pack)
    shares = []
    # The other rank's images score 0.
    monkeypatch.setattr(Ranks, "gather", lambda ranks, own: shares.append(own) or [*own, *zeros])
    zeros = [{"psnr": 0.0, "ssim": 0.0}] * 2
    second = validate(pack, ranks=Ranks(rank=1, count=2))
    assert second.own == [2] and alone.own == [0, 1, 2]
    assert np.array_equal(second.low_res(2), alone.low_res(2))
    (own,) = (share for share in shares if share and "psnr" in share[0])
    assert 0 < own[0]["psnr"] == pytest.approx(3 * second.bicubic["bicubic_psnr"])
    assert second(Nearest(), At("psnr", 2))["psnr"] < own[0]["psnr"] / 2  # of all three images


def test_a_blank_page_does_not_decide_the_means(valid, validate, no_pyiqa, tmp_path):
    pack = valid("valid", SIZES)
    write_image(np.zeros((48, 48, 3), np.uint8), tmp_path / "blank" / "b.png")
    assert score(pack.high_res(0), pack.high_res(0), 4)["psnr"] == 100
    validation = validate(pack_folder(tmp_path / "blank", 4), Degradation())
    assert validation.bicubic["bicubic_psnr"] == validation(Nearest(), At("psnr", 1))["psnr"] == 100


def test_scores_and_strips_are_of_the_degraded_images(valid, validate, no_pyiqa, capsys):
    pack = valid("valid", SIZES)
    validation = validate(pack)
    assert "Validating on 3 degraded images (strong)" in capsys.readouterr().out
    validate(pack, Degradation("strong", mild=0.7))
    assert "Validating on 3 degraded images (strong, 70% mild)" in capsys.readouterr().out
    scores = validation(Nearest(), At("psnr", 2))
    assert list(scores) == ["psnr", "ssim", "bicubic_psnr", "bicubic_ssim"]
    low_res = [validation.low_res(i) for i in range(3)]
    nearest = [np.kron(image, np.ones((4, 4, 1), np.uint8)) for image in low_res]
    high_res = [pack.high_res(i) for i in range(3)]
    expected = [psnr(a, b, 4) for a, b in zip(nearest, high_res, strict=True)]
    assert scores["psnr"] == pytest.approx(np.mean(expected), abs=1e-9)
    expected = [ssim(a, b, 4) for a, b in zip(nearest, high_res, strict=True)]
    assert scores["ssim"] == pytest.approx(np.mean(expected), abs=1e-9)
    bicubic = [psnr(imresize(a, 4), b, 4) for a, b in zip(low_res, high_res, strict=True)]
    assert scores["bicubic_psnr"] == pytest.approx(np.mean(bicubic), abs=1e-9)
    assert scores == validation(Nearest(), At("gan", 9))
    # Of a strip's four pictures, the first is LR; the third, ours, looks like it here.
    strip = validate.strips["b"]
    assert any(
        np.array_equal(strip[22:, left : left + 48], nearest[1])
        for left in range(strip.shape[1] // 4 - 48)
    )


def test_strips_are_of_the_same_images_however_many_ranks_share_them(valid, validate, monkeypatch):
    pack = valid("valid", {f"{name}.png": (48, 48) for name in "abcdef"})
    of_second: list = []

    def gather(ranks, own):
        if ranks.rank == 1:
            of_second.append(own)
            return own
        return [*own, *of_second.pop(0)]

    monkeypatch.setattr(Ranks, "gather", gather)
    for rank in (1, 0):
        validate.strips.clear()
        validate(pack, ranks=Ranks(rank=rank, count=2))(Nearest(), At("psnr", 1))
    assert sorted(validate.strips) == ["a", "b", "c", "d"] and not of_second


def test_strips_are_drawn_of_the_first_four_images(valid, validate):
    pack = valid("valid", {f"{name}.png": (48, 48) for name in "abcdef"})
    scores = validate(pack, Degradation())(Nearest(), At("psnr", 2))
    assert sorted(validate.strips) == ["a", "b", "c", "d"]
    block = np.ones((4, 4, 1), np.uint8)
    means = [psnr(np.kron(pack.low_res(i), block), pack.high_res(i), 4) for i in range(6)]
    assert scores["psnr"] == pytest.approx(np.mean(means), abs=1e-9)  # of all six


def test_lr_images_of_ones_own_are_taken_as_they_are(valid, validate, no_pyiqa, capsys):
    sizes = {"a.png": (64, 64)}
    high_res = read_image(Path("valid/a.png")) if valid("valid", sizes) else None
    write_image(high_res[2::4, 2::4], Path("low/a.png"))
    pack = pack_folder(Path("valid"), 4, "low")
    validation = validate(pack, valid_lr_dir="low")
    assert np.array_equal(validation.low_res(0), high_res[2::4, 2::4])
    assert "degraded" not in capsys.readouterr().out and validation.kind == "LR"


def test_without_degradation_nothing_is_degraded_or_asked_of_pyiqa(valid, validate, pyiqa, capsys):
    pack = valid("valid", {"a.png": (200, 208)})
    validation = validate(pack, Degradation())
    assert np.array_equal(validation.low_res(0), imresize(read_image("valid/a.png"), 1 / 4))
    scores = validation(Nearest(), At("psnr", 2))
    assert not any("niqe" in name for name in scores) and capsys.readouterr().out == ""


def test_another_degradation_is_told_by_bicubics_scores(valid, validate, no_pyiqa):
    """By which psnr_best.safetensors starts anew; tests/test_runs.py."""
    pack = valid("valid", SIZES)
    degradations = (Degradation(), STRONG, MILD, dataclasses.replace(MILD, jpeg_quality=(50, 94)))
    scores = [validate(pack, degradation).bicubic["bicubic_psnr"] for degradation in degradations]
    assert len({round(score, 4) for score in scores}) == 4


# ------------------------------------------------------------------------------------------ NIQE


def test_niqe_is_in_the_row_of_a_degraded_run(valid, validate, pyiqa, capsys):
    pack = valid("valid", {"a.png": (104, 208), "b.png": (208, 104)})
    scores = validate(pack)(Nearest(), At("psnr", 2))
    assert "NIQE" not in capsys.readouterr().out
    low_res = [degrade_whole(pack.high_res(i), STRONG, 4, "ab"[i]) for i in range(2)]
    nearest = [np.kron(x, np.ones((4, 4, 1), np.uint8)) for x in low_res]
    means = [mean_of(image[4:-4, 4:-4]) / 255 for image in nearest]
    assert scores["niqe"] == pytest.approx(np.mean(means), abs=1e-6)
    means = [mean_of(imresize(image, 4)[4:-4, 4:-4]) / 255 for image in low_res]
    assert scores["bicubic_niqe"] == pytest.approx(np.mean(means), abs=1e-6)
    assert f"NIQE {scores['niqe']:.2f} (bicubic {np.mean(means):.2f})" in describe(scores)


def test_lr_images_of_ones_own_have_niqe_too(valid, validate, pyiqa):
    valid("valid", {"a.png": (104, 208)})
    write_image(read_image("valid/a.png")[2::4, 2::4], Path("low/a.png"))
    pack = pack_folder(Path("valid"), 4, "low")
    assert "niqe" in validate(pack, valid_lr_dir="low")(Nearest(), At("gan", 1))


def test_images_that_niqe_cannot_judge_are_named_and_left_out(
    valid, validate, pyiqa, capsys, tmp_path
):
    valid("valid", {"a.png": (104, 208), "small.png": (192, 192)})
    write_image(np.full((104, 208, 3), 9, np.uint8), Path("valid/white.png"))
    # Noise and JPEG would leave no image flat.
    soft = dataclasses.replace(STRONG, noise=0.0, noise2=0.0, jpeg=0.0, jpeg2=0.0)
    pack = pack_folder(Path("valid"), 4)
    scores = validate(pack, soft)(Nearest(), At("psnr", 2))
    out = capsys.readouterr().out
    assert (
        "NIQE leaves out 2 of 3 images (smaller than two blocks of 96x96 pixels): "
        "small.png, white.png\n" in out
    )
    low_res = degrade_whole(pack.high_res(0), soft, 4, "a")
    mean = mean_of(np.kron(low_res, np.ones((4, 4, 1), np.uint8))[4:-4, 4:-4]) / 255
    assert scores["niqe"] == pytest.approx(mean, abs=1e-6)
    # None is large enough.
    pack = valid("others", SIZES)
    assert "niqe" not in validate(pack)(Nearest(), At("psnr", 2))


def test_an_output_that_niqe_cannot_judge_has_no_number(valid, validate, pyiqa):
    """A mean over the other images would be one of another set."""
    validation = validate(valid("valid", {"a.png": (104, 208), "b.png": (208, 104)}))
    scores = validation(Nearest(level=0.5), At("psnr", 2))
    assert math.isnan(scores["niqe"]) and math.isfinite(scores["bicubic_niqe"])
    assert "NIQE nan (bicubic" in describe(scores)


def test_without_pyiqa_a_degraded_run_says_how_to_get_niqe(valid, validate, no_pyiqa, capsys):
    pack = valid("valid", SIZES)
    scores = validate(pack)(Nearest(), At("psnr", 2))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "NIQE" in line]
    assert line.startswith("No NIQE in this run: ") and line.endswith("pip install pyiqa")
    assert not any("niqe" in name for name in scores)


@pytest.mark.parametrize(
    "error", [OSError("no network\nsecond line"), RuntimeError("damaged"), AssertionError()]
)
def test_a_pyiqa_that_fails_costs_the_run_nothing(error, valid, validate, pyiqa, capsys):
    def fail(name, device):
        raise error

    pyiqa.create_metric = fail
    scores = validate(valid("valid", SIZES))(Nearest(), At("psnr", 2))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "NIQE" in line]
    assert f"pyiqa cannot load niqe ({type(error).__name__}" in line
    assert line.endswith("it downloads weights on first use")
    assert scores["psnr"] > 0 and "niqe" not in scores


def test_a_rank_without_niqe_means_none_for_all(valid, validate, pyiqa, monkeypatch, capsys):
    """Else their rows would be means over different images."""
    monkeypatch.setattr(Ranks, "gather", lambda ranks, own: own or ["of the other rank"])
    monkeypatch.setattr(Validation, "_mean_scores", lambda *args: {})
    monkeypatch.setattr(Validation, "_tell_what_niqe_leaves_out", lambda *args: None)
    assert validate(valid("valid", SIZES), ranks=Ranks(count=2)).niqe is None
    assert "No NIQE in this run: of the other rank" in capsys.readouterr().out
