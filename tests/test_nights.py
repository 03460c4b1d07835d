"""A long list of pictures: what is told at once, what stops it, what is kept of it."""

import csv
import errno
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from programs import load_program

import images.files
from images.files import read_image, write_image
from images.kinds import find_images
from images.resize import imresize
from model import RRDBNet
from upscaling.inputs import UsageError, make_output, whereabouts
from utils import Bar, WriteError
from weights import save_generator

command = load_program("test")


@pytest.fixture
def run(tmp_path, photos, monkeypatch):
    """Runs test.py in a folder with photos/, low/ (half their size) and a generator at x2."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_generator(RRDBNet(scale=2, features=4, blocks=1, growth=4), tmp_path / "net.safetensors")
    for path in find_images(photos).images:
        write_image(imresize(read_image(path), 1 / 2), tmp_path / "low" / f"{path.stem}.png")

    def running(*words, ranks=None):
        words = [*words, "--weights", "net.safetensors", "--precision", "fp32", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["test.py", *words])
        return command.main(ranks or command.Ranks())

    return running


def interrupt_at(monkeypatch, count):
    """Ctrl-C while the count-th picture is enlarged."""
    calls, enlarge = [], command.enlarge

    def interrupted(*args):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        return enlarge(*args)

    monkeypatch.setattr(command, "enlarge", interrupted)


def test_ctrl_c_keeps_the_scores_and_the_page(run, monkeypatch, capsys):
    Path("low/0.png").write_text("no picture")
    interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run("low", "--hr", "photos", "--report")
    with open("results/metrics.csv") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["a.png", "b.png", "mean"]
    page = Path("results/index.html").read_text()
    assert '"name": "b.png"' in page and '"name": "c.png"' not in page
    captured = capsys.readouterr()
    assert captured.err.count("Failed: low/0.png") == 1 and "mean" in captured.out
    assert "2 of 5 images upscaled" in captured.out


def test_ctrl_c_before_the_first_result_leaves_the_page_of_before(run, monkeypatch, capsys):
    run("low", "--report")
    page = Path("results/index.html").read_text()
    interrupt_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run("low", "--report")
    assert Path("results/index.html").read_text() == page


def test_ctrl_c_while_others_are_waited_for_keeps_the_scores(run, monkeypatch, capsys):
    calls = []

    def gather(ranks, own):
        calls.append(own)
        if len(calls) == 1:  # of what is there already
            return own
        raise KeyboardInterrupt

    monkeypatch.setattr(command.Ranks, "gather", gather)
    with pytest.raises(KeyboardInterrupt):
        run("low", "--hr", "photos")
    assert Path("results/metrics.csv").exists() and "4 of 4 images" in capsys.readouterr().out


def test_what_is_not_read_is_told_before_the_work(run, monkeypatch, capsys):
    Path("low/x.cr2").write_bytes(b"II*\0" + bytes(4) + b"CR" + bytes(40))
    interrupt_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run("low")
    assert "Failed: low/x.cr2" in capsys.readouterr().err


def test_a_drive_that_is_not_there_is_an_error_in_words(monkeypatch):
    """As on Windows: nothing above a folder of it is there either."""
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert whereabouts(Path("/x/y")) == whereabouts(Path("/x/Y"))
    assert whereabouts(Path("/x/y")) != whereabouts(Path("/x/z"))


def test_a_failure_is_told_when_it_happens(run, monkeypatch, capsys):
    Path("photos/0.png").write_text("no picture")
    told, make_room = [], command.make_room
    watch = lambda *args: told.append(capsys.readouterr().err) or make_room(*args)  # noqa: E731
    monkeypatch.setattr(command, "make_room", watch)
    assert run("photos") == 1
    assert "Failed: photos/0.png" in told[0]
    assert not any("Failed" in said for said in (*told[1:], capsys.readouterr().err))


def full(monkeypatch, numbers, number=errno.ENOSPC):
    """No room for those results."""
    calls, write = [], images.files.write_picture

    def writing(picture, path, quality=None):
        calls.append(path.name)
        if len(calls) in numbers:
            error = WriteError(f"{path} cannot be written (no room)")
            error.errno = number
            raise error
        return write(picture, path, quality)

    monkeypatch.setattr("upscaling.saving.write_picture", writing)
    return calls


def six(photos):
    for i in range(6):
        write_image(read_image(photos / "a.png"), Path(f"more/{i}.png"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_two_results_in_a_row_that_are_not_written_end_the_work(
    number, run, photos, monkeypatch, capsys
):
    six(photos)
    Path("more/0.png").write_text("no picture")  # it counts as tried
    calls = full(monkeypatch, {2, 3, 4, 5, 6}, number)
    assert run("more", "--tile", "64") == 1  # each alone
    error = capsys.readouterr().err
    assert len(calls) <= 4  # one was being made meanwhile
    assert f"any more; images that were not tried: {5 - len(calls)}. Mend" in error
    assert "go on with --skip-existing" in error


def test_a_stick_that_is_pulled_out_ends_the_work(run, photos, monkeypatch, capsys):
    """Not even the folder of results is there then, nor can it be made."""
    six(photos)
    made = Path.mkdir

    def making(path, *args, **options):
        if path.name == "results" and path.exists() and len(os.listdir(path)) == 2:
            raise PermissionError(errno.EACCES, "Permission denied", "/media/stick")
        return made(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", making)
    assert run("more", "--tile", "64") == 1
    error = capsys.readouterr().err
    assert "the folder results cannot be made (Permission denied)" in error
    assert "images that were not tried: " in error and len(os.listdir("results")) == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT])
def test_results_that_alone_are_closed_stop_no_other(number, run, photos, monkeypatch):
    """A folder of another user's among those of the results, say."""
    six(photos)
    calls = full(monkeypatch, {2, 3, 4}, number)
    assert run("more", "--tile", "64") == 1 and len(calls) == 6


@pytest.mark.parametrize("numbers, number", [({1, 3}, errno.ENOSPC), ({1, 2, 3}, errno.EFBIG)])
def test_a_result_that_alone_is_not_written_stops_no_other(numbers, number, run, monkeypatch):
    six(Path("photos"))
    calls = full(monkeypatch, numbers, number)
    assert run("more", "--tile", "64") == 1 and len(calls) == 6


@pytest.mark.parametrize("numbers", [{2, 3}, {3, 4}])
def test_where_all_are_tried_nothing_is_said_of_others(numbers, run, monkeypatch, capsys):
    calls = full(monkeypatch, numbers)
    assert run("photos") == 1 and len(calls) == 4
    assert "not tried" not in capsys.readouterr().err


def test_all_processes_go_by_the_results_that_the_first_one_found(run, monkeypatch, capsys):
    """A later one may start when others have written; what is left is shared evenly."""
    run("photos/a.png", "photos/c.bmp")
    done = [(Path("results/a.png"), ""), (Path("results/c.png"), "")]
    seen, gathered = [], []
    monkeypatch.setattr(command, "work", lambda jobs, *_, **__: seen.append(jobs))

    def gather(ranks, own):
        gathered.append(own)
        return done if len(gathered) == 1 else []

    monkeypatch.setattr(command.Ranks, "gather", gather)
    for rank in range(2):
        for name in ("b.png", "d.png"):
            Path("results", name).touch()  # just written by another one
        gathered.clear()
        run("photos", "--skip-existing", ranks=command.Ranks(rank, 2))
        own = [(Path("results", f"{name}.png"), "") for name in "abc"]
        assert sorted(gathered[0]) == ([] if rank else own)
    assert [[job.source.name for job in jobs] for jobs in seen] == [["b.png"], ["d.png"]]


def test_a_folder_that_only_writing_finds_closed_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("upscaling.inputs.is_writable", lambda folder: False)
    with pytest.raises(UsageError, match=r"output folder .*out is not writable; choose another"):
        make_output(tmp_path / "out")


def test_a_strip_never_takes_the_place_of_a_result(run, photos):
    """Where names have no case, Compare/ is the folder of strips."""
    write_image(read_image(photos / "a.png"), photos / "Compare" / "b.png")
    with pytest.raises(UsageError, match="would both become"):
        run("photos", "--compare")


# -------------------------------------------------------------- folders under two spellings


@pytest.fixture
def without_case(monkeypatch):
    """As on a Mac, names have no case: of what the system is asked, not of what is written."""
    stat, lstat, listdir = os.stat, os.lstat, os.listdir

    def found(path):
        whole = Path("/")
        for part in Path(os.path.abspath(path)).parts[1:]:
            with suppress(OSError):
                alike = [name for name in listdir(whole) if name.casefold() == part.casefold()]
                part = next(iter(alike), part)
            whole /= part
        return whole

    def asking(ask):
        return lambda path, **o: ask(path if isinstance(path, int) else found(path), **o)

    monkeypatch.setattr(os, "stat", asking(stat))
    monkeypatch.setattr(os, "lstat", asking(lstat))


@pytest.mark.parametrize(
    "source, output", [("Album", "album"), ("Album", "ALBUM/../album"), ("Album/a.png", "album")]
)
def test_an_original_is_safe_under_another_spelling_of_its_folder(
    source, output, run, photos, without_case
):
    write_image(read_image(photos / "a.png"), Path("Album/a.png"))
    before = Path("Album/a.png").read_bytes()
    with pytest.raises(UsageError, match=r"a\.png is an input; choose another output folder"):
        run(source, "-o", output)
    assert Path("Album/a.png").read_bytes() == before


def test_a_folder_that_is_not_there_yet_is_known_under_any_spelling(tmp_path):
    plain, other = tmp_path / "New" / "Caf\u00e9", tmp_path / "new" / "Cafe\u0301"
    assert whereabouts(plain) == whereabouts(other) != whereabouts(tmp_path / "New" / "Cafe")


def test_results_are_no_input_under_another_spelling_of_their_folder(run, photos, without_case):
    write_image(read_image(photos / "a.png"), Path("Album/a.png"))
    write_image(read_image(photos / "b.png"), Path("Album/Results/b.png"))
    assert run("Album", "-o", "Album/results") == 0
    assert os.listdir("Album/results") == ["a.png"]


def test_a_result_may_be_another_ones_input_under_another_spelling(run, photos, without_case):
    for name in ("a.png", "a.bmp"):
        write_image(read_image(photos / "a.png"), Path("Album", name))
    write_image(read_image(photos / "a.png"), Path("Other/a.bmp.png"))
    with pytest.raises(UsageError, match=r"Other/a\.bmp\.png is an input"):
        run("Album", "Other/a.bmp.png", "-o", "OTHER")


def test_a_link_to_a_folder_around_is_not_followed(tmp_path, photos):
    """As in Wine's folders, where z: is all of the disk."""
    write_image(read_image(photos / "a.png"), tmp_path / "around" / "elsewhere" / "x.png")
    write_image(read_image(photos / "a.png"), tmp_path / "around" / "z.png")
    folder = tmp_path / "around" / "mine"
    write_image(read_image(photos / "a.png"), folder / "deep" / "y.png")
    (folder / "deep" / "up").symlink_to(tmp_path / "around", target_is_directory=True)
    (folder / "deep" / "other").symlink_to(tmp_path / "around" / "elsewhere")
    found = find_images(folder)
    assert [path.name for path in found.images] == ["x.png", "y.png"]
    [line] = found.others
    assert "link to a folder that this one is in" in line and "deep/up" in line


def test_what_was_not_read_is_told_at_the_end_too(run, capsys):
    """A line may stand for a thousand files, and have scrolled away for hours."""
    Path("low/a.nef").write_bytes(b"MM\0*")
    assert run("low") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"of 4 images upscaled.*what failed or is not read is named above", last)
    Path("low/a.nef").unlink()
    assert run("low") == 0
    assert "named above" not in capsys.readouterr().out


def test_no_photograph_beside_an_input_is_replaced(run, capsys):
    pixels = read_image("low/a.png")
    write_image(pixels, "album/x.jpg")
    write_image(pixels, "album/x.png")
    before = Path("album/x.png").read_bytes()
    for output in ("album", os.path.join("album", "..", "album")):
        with pytest.raises(UsageError, match=r"x\.png lies beside .*x\.jpg already.*--suffix _x4"):
            run("album/x.jpg", "-o", output)
    assert run("album/x.jpg", "-o", "album", "--skip-existing") == 0
    assert Path("album/x.png").read_bytes() == before
    write_image(pixels, "album/y.jpg")
    capsys.readouterr()
    assert run("album/*.jpg", "-o", "album", "--skip-existing", "--compare") == 1
    # It has no strip, so it may be a photograph; the others are done.
    assert capsys.readouterr().err.count("x.png lies beside") == 1
    assert Path("album/x.png").read_bytes() == before and Path("album/y.png").exists()
    for path in ("album/y.jpg", "album/y.png", "album/compare/y.png"):
        Path(path).unlink()
    Path("album/compare").rmdir()
    for _ in range(2):  # what was named, and what is called a result, is replaced
        assert run("album/x.jpg", "-o", "album", "--suffix", "_x2") == 0
    assert run("album/x.jpg", "-o", "album/x.png") == 0
    assert read_image("album/x.png").shape == (2 * pixels.shape[0], 2 * pixels.shape[1], 3)
    assert sorted(path.name for path in Path("album").iterdir()) == ["x.jpg", "x.png", "x_x2.png"]


def test_no_photograph_beside_an_input_is_replaced_by_a_strip(run):
    pixels = read_image("low/a.png")
    for name in ("x.jpg", "x.png"):
        write_image(pixels, f"album/compare/{name}")
    for output in ("album", "album/x.png"):
        with pytest.raises(UsageError, match=r"compare.x\.png lies beside .*x\.jpg already"):
            run("album/compare/x.jpg", "-o", output, "--compare")
    assert read_image("album/compare/x.png").shape == pixels.shape


def test_of_several_processes_one_draws_bars(run, monkeypatch):
    silent = []
    monkeypatch.setattr(command.Ranks, "gather", lambda self, values: values)
    monkeypatch.setattr(command, "work", lambda *_: silent.append(Bar.silent))
    for rank in (1, 0):
        run("low", ranks=command.Ranks(rank, 2))
    assert silent == [True, False]
