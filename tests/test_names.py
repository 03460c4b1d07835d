"""Names that file systems allow and programs trip over, what -o can name, memory."""

import csv
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import psutil
import pytest
from PIL import Image
from programs import load_program

from formats.tensors import UnreadableError, load_tensors
from images.files import Picture, read_image, write_image, write_picture
from model import RRDBNet
from training.ranks import Ranks
from training.validation import strip_names
from upscaling.jobs import plan
from weights import WeightsError, load_generator, save_generator

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path, monkeypatch, identity_weights):
    """test.py with a network that changes nothing, in this process: its exit status."""
    command = load_program("test")
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> int:
        flags = ["--weights", str(identity_weights), "--precision", "fp32"]
        monkeypatch.setattr(sys, "argv", ["test.py", *map(str, arguments), *flags])
        return command.main(Ranks())

    run.command = command
    return run


def failures(errors: str) -> list[str]:
    """The lines about failed images; the bar ends with a line of its own."""
    return [line for line in errors.split("\n") if line.startswith("Failed: ")]


ODD = [  # as bytes, for not every name is text
    b"plain.png",
    b"caf\xe9.png",
    b"two\nlines.png",
    b"\x1b[31mred.png",
    "ü € 😀.png".encode(),
    b"q\"uo'te<b>&?#%41.png",
    b"a" * 251 + b".png",
    ("é" * 125).encode() + b".png",
    b"b" * 250 + b".jpeg",
]


@pytest.fixture
def odd(tmp_path, random_image):
    """A folder of images with odd names, and their pixels (but for the JPEG's)."""
    if sys.platform != "linux":
        pytest.skip("other systems refuse such names themselves")
    folder = tmp_path / "odd"
    folder.mkdir()
    for i, name in enumerate(ODD):
        Image.fromarray(random_image(16, 16, seed=i)).save(folder / os.fsdecode(name))
    return folder


def test_images_of_any_name_are_upscaled_scored_and_shown(run, odd, capsys):
    assert run("odd", "--hr", "odd", "--report", "--compare", "-o", "out") == 0
    output = capsys.readouterr()
    assert "\x1b" not in output.out and r"two\nlines.png" in output.out
    results = {os.fsencode(path.stem): path for path in Path("out").glob("*.png")}
    assert set(results) == {name.rpartition(b".")[0] for name in ODD}
    for source in odd.glob("*.png"):
        assert np.array_equal(read_image(results[os.fsencode(source.stem)]), read_image(source))
    assert len(list(Path("out/compare").iterdir())) == len(ODD)

    with open("out/metrics.csv", newline="", encoding="utf-8") as file:
        rows = [row["image"] for row in csv.DictReader(file)]
    assert len(rows) == len(ODD) + 1 and "two\nlines.png" in rows and r"caf\udce9.png" in rows

    page = Path("out/index.html").read_text("utf-8")
    data = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    linked = set()
    for image in data["images"]:
        assert image["name"].isprintable()
        for address in (image["thumb"], *image["files"].values()):
            file = os.path.join(b"out", unquote_to_bytes(address))
            assert os.path.isfile(file) and len(os.path.basename(file)) <= 255
            linked.add(file)
    assert len(linked) == 4 * len(ODD) == len(list(Path("out/index_files").iterdir()))


def test_a_result_whose_name_is_too_long_is_a_failure_and_the_others_are_done(run, odd, capsys):
    assert run("odd", "--suffix", "_x1", "-o", "out") == 1
    failed = failures(capsys.readouterr().err)
    assert len(failed) == 3 and all("and at most 255" in line for line in failed)
    assert "258 bytes long" in failed[0] and "shorten --suffix" in failed[0]
    assert len(list(Path("out").glob("*.png"))) == len(ODD) - 3
    assert run("odd", "--suffix", "_x1", "-o", "out", "--skip-existing") == 1
    assert len(list(Path("out").iterdir())) == len(ODD) - 3


def test_a_failure_of_a_name_with_a_line_break_is_one_line(run, tmp_path, capsys):
    (tmp_path / "two\nlines.png").write_bytes(b"no picture")
    assert run("two\nlines.png") == 1
    (failed,) = failures(capsys.readouterr().err)
    assert failed.startswith(r"Failed: two\nlines.png: it is no image")


def test_weights_are_read_from_any_path(tmp_path, identity_weights):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this system refuses such names itself")
    (folder / "net.safetensors").write_bytes(identity_weights.read_bytes())
    expected, given = load_tensors(identity_weights), load_tensors(folder / "net.safetensors")
    assert given[1] == expected[1] and given[0].keys() == expected[0].keys()
    with pytest.raises(WeightsError, match="no such file"):
        load_generator("x" * 300)
    (folder / "cut").write_bytes(identity_weights.read_bytes()[:-1])
    with pytest.raises(UnreadableError, match="cut short"):
        load_tensors(folder / "cut")


class Names:
    """What `strip_names` asks of a pack."""

    def __init__(self, *names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, i):
        return self.names[i]

    def stem(self, i):
        return Path(self.names[i]).with_suffix("").as_posix().replace("/", "_")


def test_the_strips_of_validation_images_have_names_of_their_own():
    names = ("a.png", "a.jpg", "sub/d.png", "sub_d.png", "B.png", "b.png", "plain.png", "e" * 251)
    names += ("caf\udce9.png", "caf\udce8.png", "x\ny.png")
    strips = strip_names(Names(*names), 200)
    assert len({name.casefold() for name in strips}) == len(names)
    assert strips[6] == "plain"
    assert all(name.isprintable() and len(name.encode()) <= 200 for name in strips)
    assert not any("/" in name or "\\" in name for name in strips)
    backwards = strip_names(Names(*names[::-1]), 200)
    assert backwards[::-1] == strips  # whatever comes or goes, but for those of its own stem


# ------------------------------------------------------------------------------------------ -o


@pytest.fixture
def photo(tmp_path, random_image):
    pixels = random_image(20, 24)
    write_image(pixels, tmp_path / "photo.png")
    return pixels


@pytest.mark.parametrize("name", ["out.png", "new/deep/OUT.TIFF", "x.bmp", "y.tif"])
def test_an_image_suffix_names_the_file_to_write(name, run, photo):
    for _ in range(2):  # an existing file is replaced, as results are
        assert run("photo.png", "-o", name) == 0
        assert np.array_equal(read_image(name), photo)
    made = {path.name for path in Path(name).parent.glob("*.*")}
    assert made - {"photo.png", "identity.safetensors"} == {Path(name).name}


def test_the_rest_goes_beside_the_file_that_is_named(run, photo, tmp_path):
    write_image(photo, tmp_path / "hr/photo.png")
    flags = ("--hr", "hr", "--compare", "--report", "--format", "jpg")
    assert run("photo.png", "-o", "new/out.jpeg", *flags) == 0
    made = {path.relative_to("new").as_posix() for path in Path("new").rglob("*.*")}
    assert {"out.jpeg", "compare/out.png", "index.html", "metrics.csv"} <= made
    assert "index_files/out.jpeg.HR.jpg" in made


def test_a_folder_may_have_an_images_suffix(run, photo):
    Path("out.png").mkdir()
    assert run("photo.png", "-o", "out.png") == 0
    assert np.array_equal(read_image("out.png/photo.png"), photo)
    assert run("photo.png", "-o", "version.2") == 0
    assert Path("version.2/photo.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "-o", "out.png"], "photos is a folder, but out.png names one image"),
        (["photo.png", "-o", "out.jp2"], "out.jp2: results cannot be .jp2; they can be .png"),
        (["photo.png", "-o", "out.heic"], "results cannot be .heic"),
        (["photo.png", "-o", "out.cr2"], "results cannot be .cr2"),
        (["photo.png", "-o", "out.png", "--format", "jpg"], "not what --format jpg says"),
        (["photo.png", "-o", "out.jpg", "--format", "same"], "not what --format same says"),
        (["photo.png", "-o", "out.png", "--suffix", "_x4"], "leave out --suffix"),
        (["photo.png", "-o", "photo.png"], "photo.png is an input"),
        (["photo.png", "-o", "file/out.png"], "file cannot be made"),
        (["photo.png", "--hr", "file"], "--hr file is a file; name the folder"),
        (["-"], "-: no such file"),
        (["x" * 300], "no such file or folder"),
        (["photo.png", "-o", "x" * 300, "--compare"], "cannot be made: File name too long"),
        (["photo.png", "--hr", "x" * 300], "no such folder"),
    ],
)
def test_what_cannot_be_carried_out_is_a_line(arguments, message, run, photo, photos):
    Path("file").write_text("in the way")
    with pytest.raises(run.command.UsageError, match=message):
        run(*arguments)
    assert not Path("out.png").exists()


def test_a_wrong_command_leaves_no_folder(run, photo):
    with pytest.raises(run.command.WeightsError, match="is x1, not x3"):
        run("photo.png", "-o", "made", "--scale", "3")
    assert not Path("made").exists()


def test_an_error_of_any_kind_stops_no_other_image(run, photos, monkeypatch, capsys):
    def fail_once(picture, path, *rest):
        if path.name == "b.png":
            raise KeyError("an encoder's own")
        return write_picture(picture, path, *rest)

    monkeypatch.setattr("upscaling.saving.write_picture", fail_once)
    assert run("photos", "-o", "out") == 1
    assert failures(capsys.readouterr().err) == [
        'Failed: photos/b.png: KeyError: "an encoder\'s own"'
    ]
    assert len(list(Path("out").rglob("*.png"))) == 3


@pytest.mark.parametrize(
    "flags",
    [
        *([f"--suffix={suffix}"] for suffix in ("/../x", "a/b", "a\\b", "\n", "a:b", "*")),
        *([f"--{flag}="] for flag in ("suffix=/", "weights", "hr", "output")),
        *([f"--outscale={value}"] for value in ("nan", "inf", "0", "-2", "x")),
        *([f"--batch={value}"] for value in ("0", "-1", "1.5")),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused(flags, run, photo, capsys):
    with pytest.raises(SystemExit) as ended:
        run("photo.png", *flags)
    assert ended.value.code == 2 and "error: argument" in capsys.readouterr().err


def test_an_empty_input_is_not_the_folder_one_is_in(run, photo, capsys):
    with pytest.raises(SystemExit) as ended:
        run("")
    assert ended.value.code == 2 and "it is empty" in capsys.readouterr().err


def test_same_for_a_type_that_is_not_written_is_png(tmp_path, photo):
    for name in ("bare", "x.gif", "y.TIF"):
        write_picture(Picture(photo), tmp_path / "in.png")
        os.replace(tmp_path / "in.png", tmp_path / name)
    made = [plan([tmp_path / name], tmp_path / "out", "same")[0][0] for name in ("bare", "x.gif")]
    assert [job.target.name for job in made] == ["bare.png", "x.png"]
    assert plan([tmp_path / "y.TIF"], tmp_path / "out", "same")[0][0].target.name == "y.tif"


# -------------------------------------------------------------------------------------- memory


def test_an_image_that_cannot_fit_in_memory_is_named_and_the_others_are_done(
    run, photo, photos, monkeypatch, capsys
):
    free = 64 * 64 * (3 + 12)  # of b.png the result, and its tile in floating point
    memory = psutil.virtual_memory()._replace(available=free)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr("images.kinds.PIXEL_BYTES", 1)  # they can all be read
    monkeypatch.setattr(psutil, "swap_memory", lambda: types.SimpleNamespace(free=0))
    assert run("photos", "--tile", "64", "-o", "out") == 1
    error = capsys.readouterr().err
    assert "photos/c.bmp: its result of 80x64 pixels takes" in error and len(failures(error)) == 2
    assert sorted(path.name for path in Path("out").rglob("*.png")) == ["a.png", "b.png"]


def test_a_scale_that_leaves_nothing_is_a_failure(run, photo, capsys):
    assert run("photo.png", "--outscale", "0.01") == 1
    assert "x0.01 leaves nothing of 24x20 pixels" in capsys.readouterr().err
    assert run("photo.png", "--outscale", "0.05") == 0
    assert read_image("results/photo.png").shape == (1, 2, 3)


MEASURED = """
import runpy, sys, torch
from training.monitor import peak_memory
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    print(f"peak {peak_memory(torch.device('cpu'))} status {ended.code}", file=sys.__stdout__)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux counts")
def test_showing_takes_hardly_more_memory_than_upscaling(tmp_path, random_image):
    small = Image.fromarray(random_image(40, 60))
    small.resize((600, 400), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    (tmp_path / "hr").mkdir()
    small.resize((2400, 1600), Image.Resampling.BICUBIC).save(tmp_path / "hr/photo.jpg")
    net = RRDBNet(scale=4, features=4, blocks=1, growth=4)
    save_generator(net, tmp_path / "net.safetensors")

    def peak(*flags: str) -> float:
        """GiB that a process of its own takes at most."""
        program = f"import sys; sys.argv = sys.argv[1:]{MEASURED}"
        arguments = ["photo.png", "--weights", "net.safetensors", "--precision", "fp32", *flags]
        done = subprocess.run(
            [sys.executable, "-c", program, str(ROOT / "test.py"), *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        peak, status = re.search(r"peak ([\d.]+) status (\d+)", done.stdout).groups()
        assert status == "0"
        return float(peak)

    # Measured: -4 to 8 bytes a pixel of the result, of which the largest picture alone has 12.
    plain, allowed = peak(), 27 * 2400 * 1600 / 2**30
    assert peak("--report", "--compare", "--outscale", "2") < plain + allowed
    assert peak("--report", "--compare", "--hr", "hr") < plain + allowed
