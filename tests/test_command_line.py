"""What people type: several inputs, patterns, other programs' flags, sizes in pixels, --quiet."""

import io
import itertools
import os
import re
import runpy
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import load_program

import utils
from formats.published import locate
from images.files import read_image, read_picture, write_image
from images.resize import enlarge_nearest, imresize, imresize_to
from training.ranks import Ranks
from upscaling.flags import ELSEWHERE, parse_args
from upscaling.inputs import UsageError
from upscaling.jobs import plan
from utils import Bar


@pytest.fixture
def run(tmp_path, monkeypatch, identity_weights):
    """test.py with a network that changes nothing, in this process: its exit status."""
    command = load_program("test")
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> int:
        flags = ["-n", str(identity_weights), "--precision", "fp32"]
        monkeypatch.setattr(sys, "argv", ["test.py", *map(str, arguments), *flags])
        return command.main(Ranks())

    return run


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Makes files by name in a folder where the test then is; their content is of no matter."""

    def make(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"some")

    monkeypatch.chdir(tmp_path)
    return make


def planned(*sources: str, output: str = "out", **options) -> dict[str, str]:
    """The inputs and their results, in order."""
    jobs, _, folder = plan([Path(source) for source in sources], Path(output), **options)
    targets = [job.target.relative_to(folder).as_posix() for job in jobs]
    return dict(zip([job.source.as_posix() for job in jobs], targets, strict=True))


# --------------------------------------------------------------------------------------- inputs


def test_a_file_within_a_named_folder_is_called_as_there_in_any_order(files):
    files("p/sub/a.jpg", "p/b.jpg")
    given = [planned("p/sub/a.jpg", "p"), planned("p", "p/sub/a.jpg"), planned("p/sub", "p")]
    assert [each["p/sub/a.jpg"] for each in given] == ["sub/a.png"] * 3
    assert [*given[0]] == ["p/sub/a.jpg", "p/b.jpg"]  # in the order in which they were named


def test_files_folders_and_patterns_together_each_file_once(files):
    files("a.png", "b.jpg", "c.jpg", "photos/d.png", "photos/sub/e.png", "photos/note.txt")
    sources = ("photos/sub/../d.png", "photos", "./a.png", "a.png", "*.jpg", "?.jpg")
    assert [*planned(*sources).values()] == ["d.png", "sub/e.png", "a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a[1].png", ["a[1].png"]),  # it exists as it is written
        ("b[12].png", ["b1.png", "b2.png"]),
        ("b[!1].png", ["b2.png"]),
        ("in[1]/x*", ["in[1]/x.png"]),  # and so does its folder
        ("i*/x.png", ["in1/x.png", "in[1]/x.png"]),
        ("*/y[1].png", ["in1/y[1].png", "in[1]/y1.png"]),  # in one folder, not in the other
        ("deep/**/*.png", ["deep/one/two/x.png", "deep/x.png"]),
        ("deep/*", ["deep/x.png", "deep/one/two/x.png"]),  # the folder in depth, no hidden file
        ("d*p/*/tw?/*", ["deep/one/two/x.png"]),
        ("../{here}/b?.png", ["../{here}/b1.png", "../{here}/b2.png"]),
        ("{path}/b1*", ["{path}/b1.png"]),
    ],
)
def test_patterns(pattern, expected, files, tmp_path):
    files("a[1].png", "a1.png", "b1.png", "b2.png", "b1.txt", "in[1]/x.png", "in[1]/y1.png")
    files("in1/x.png", "in1/y[1].png", "in1/y1.png", "deep/x.png", "deep/one/two/x.png")
    files("deep/.hidden.png", "deep/readme.md")
    places = {"here": tmp_path.name, "path": tmp_path.as_posix()}
    found = planned(pattern.format(**places))
    assert [*found] == [path.format(**places) for path in expected]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["*.gif"], r"^\*\.gif: no file or folder matches this pattern$"),
        (["a.png", "no/*.png"], r"^no/\*\.png: no file or folder matches"),
        (["x[1].png"], r"^x\[1\]\.png: no file or folder matches"),
        (["*.txt"], r"^\*\.txt: no image matches this pattern$"),
        (["a.png", "b.png"], r"^b\.png: no such file or folder$"),
        (["empty"], "^empty holds no PNG"),
        (["empt*"], "no image matches"),
    ],
)
def test_what_names_nothing_is_refused(sources, message, files):
    files("a.png", "note.txt", "empty/note.txt")
    with pytest.raises(UsageError, match=message):
        planned(*sources)


def test_an_empty_folder_among_others_is_told_and_the_rest_is_done(files):
    files("a.png", "empty/note.txt")
    jobs, others, _ = plan([Path("a.png"), Path("empty")], Path("out"))
    assert [job.source.name for job in jobs] == ["a.png"]
    assert len(others) == 1 and others[0].startswith("empty holds no PNG")


@pytest.mark.parametrize("sources", [["*"], ["**"], ["."], ["**/*.png"], ["a.png", "in", "out"]])
def test_results_of_an_earlier_call_are_no_input(sources, files):
    files("a.png", "in/b.png", "out/a.png", "out/b.png", "out/sub/c.png")
    assert sorted(planned(*sources)) == ["a.png", "in/b.png"]


def test_results_may_go_beside_or_above_their_inputs(files):
    files("in/b.png", "in/c.png")
    assert planned("in", output=".") == {"in/b.png": "b.png", "in/c.png": "c.png"}
    assert planned("in/?.png", output="in", suffix="_x4")["in/b.png"] == "b_x4.png"


def test_a_result_whose_name_differs_in_case_alone_is_its_original_where_that_is_ignored(files):
    """On macOS and on camera cards, that is; a second link stands for the second spelling."""
    files("p/A.PNG", "q/A.PNG")
    for folder in ("p", "q"):
        with suppress(FileExistsError):
            os.link(f"{folder}/A.PNG", f"{folder}/A.png")
    for sources in (["p"], ["p/A.PNG"]):
        with pytest.raises(UsageError, match=r"A\.png is an input; choose another output folder"):
            planned(*sources, output="p")
    assert planned("p/A.PNG", output="q")["p/A.PNG"] == "A.png"  # which is another file
    if len([*Path("p").iterdir()]) == 2:  # where case counts, they may be two files
        os.unlink("p/A.png")
        files("p/A.png")
        assert planned("p/A.PNG", output="p") == {"p/A.PNG": "A.png"}


def test_what_may_be_another_pictures_result_is_refused_among_the_inputs(files):
    """As of a second call: it would be upscaled once more, under a name of its own."""
    files("p/a.jpg")
    assert planned("p", output="p") == {"p/a.jpg": "a.png"}
    files("p/a.png")
    for sources in (["p"], ["p/a.*"], ["p/a.png", "p/a.jpg"]):
        with pytest.raises(UsageError, match=r"a\.png is an input; choose another output folder"):
            planned(*sources, output="p")
    assert planned("p", output="out") == {"p/a.jpg": "a.jpg.png", "p/a.png": "a.png.png"}
    files("r/a.jpg", "s/a.jpg", "r/a.png", "s/a.png")  # these are what a first call wrote
    with pytest.raises(UsageError, match=r"a\.png is an input"):
        planned("r", "s", output=".")
    files("q/a.jpg", "q/a_x4.png")
    with pytest.raises(UsageError, match=r"a_x4\.png is an input"):
        planned("q", output="q", suffix="_x4")


@pytest.mark.skipif(sys.platform == "win32", reason="links are for administrators")
def test_a_link_is_a_picture_of_its_own_and_one_that_leads_nowhere_is_told(files):
    files("a.png")
    os.symlink("a.png", "b.png")
    os.symlink("gone.png", "c.png")
    os.symlink("d.png", "d.png")
    assert planned("a.png", "b.png") == {"a.png": "a.png", "b.png": "b.png"}
    for dead in ("c.png", "d.png"):
        with pytest.raises(UsageError, match="leads nowhere"):
            planned(dead)


# ---------------------------------------------------------------------------------------- names


TOLD_APART = {
    ("a.jpg", "a.png"): {"a.jpg": "a.jpg.png", "a.png": "a.png.png"},
    ("a.jpg", "a.png", "b.png"): {"a.jpg": "a.jpg.png", "a.png": "a.png.png", "b.png": "b.png"},
    ("a.jpg", "A.png"): {"a.jpg": "a.jpg.png", "A.png": "A.png.png"},
    ("a.jpg", "a.png", "a.jpg.png"): {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png.png",
        "a.jpg.png": "a.jpg.png.png",
    },
    ("p/a.jpg", "q/a.jpg"): {"p/a.jpg": "p/a.png", "q/a.jpg": "q/a.png"},
    ("p/a.jpg", "q/a.png"): {"p/a.jpg": "a.jpg.png", "q/a.png": "a.png.png"},
    ("p/a.jpg", "p/a.png", "q/a.jpg", "q/a.png"): {
        "p/a.jpg": "p/a.jpg.png",
        "p/a.png": "p/a.png.png",
        "q/a.jpg": "q/a.jpg.png",
        "q/a.png": "q/a.png.png",
    },
}


@pytest.mark.parametrize("names", TOLD_APART, ids=" ".join)
def test_results_of_one_name_are_told_apart_in_any_order(names, files):
    files(*names)
    for order in itertools.permutations(names):
        assert planned(*order) == TOLD_APART[names]
    for name in names:
        if name.count(".") == 1:
            assert planned(name)[name] == f"{Path(name).stem}.png"  # alone it is plain


CLASHING = [
    ["x/a.png", "x/a.PNG"],
    ["x/A.png", "x/a.png", "x/a.jpg", "x/A.JPG"],
    ["p/in/a.png", "q/in/a.png", "r/IN/A.png"],
    ["p/é.png", "q/é.png"],  # composed and decomposed: one name on a Mac
    ["x/a", "x/a.jpg", "x/a.png"],
    ["x/a.jpg", "x/a.jpg.png", "x/a.jpg.jpg", "x/a.png"],
]


@pytest.mark.parametrize("names", CLASHING, ids=" ".join)
def test_names_are_unlike_on_any_file_system(names, files):
    files(*names)
    if len({os.stat(name).st_ino for name in names}) < len(names):
        pytest.skip("this file system has one file for them")
    found = planned(*names)
    folded = {os.path.normcase(name).casefold() for name in found.values()}
    assert len(found) == len(folded) == len(names)
    assert planned(*reversed(names)) == found
    files("other.png")
    assert planned("other.png", *names) == {"other.png": "other.png"} | found


def test_folders_alike_are_told_apart_in_depth_and_hold_their_strips(files):
    files("p/sub/a.jpg", "p/b.png", "q/sub/a.jpg", "q/c.png")
    assert [*planned("p", "q").values()] == ["b.png", "p/sub/a.png", "c.png", "q/sub/a.png"]
    jobs, *_ = plan([Path("p"), Path("q")], Path("out"), "same", "_x4", compare=True)
    strips = [job.comparison.relative_to("out/compare").as_posix() for job in jobs]
    assert strips == ["b_x4.png", "p/sub/a_x4.png", "c_x4.png", "q/sub/a_x4.png"]
    files("twins/a.jpg", "twins/a.png")
    jobs, *_ = plan([Path("twins")], Path("out"), "same", compare=True)
    assert [job.target.name for job in jobs] == ["a.jpg", "a.png"]
    assert [job.comparison.name for job in jobs] == ["a.jpg.png", "a.png.png"]


def test_what_still_meets_is_refused(files):
    files("in/x.png", "in/compare/x.png")
    with pytest.raises(UsageError, match=r"would both become out.compare.x\.png; rename one"):
        planned("in", compare=True)


def test_both_of_a_name_come_out_and_are_found_again(run, random_image, capsys):
    first, second = random_image(20, 24, seed=1), random_image(20, 24, seed=2)
    write_image(first, "in/a.png")
    write_image(second, "in/a.bmp")
    assert run("in", "--report") == 0
    assert np.array_equal(read_image("results/a.png.png"), first)
    assert np.array_equal(read_image("results/a.bmp.png"), second)
    assert run("in/a.bmp", "in/a.png", "--skip-existing") == 0
    assert "2 images had a result already" in capsys.readouterr().out
    assert {path.name for path in Path("results").glob("*.png")} == {"a.png.png", "a.bmp.png"}


# ---------------------------------------------------------------------------------------- flags


def parsed(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["test.py", *words])
    return parse_args()


def test_the_flags_of_the_real_esrgan_programs(monkeypatch):
    short = "-i a.png b -o out -n realesrgan-x4plus -s 2.5 -f jpg -x"
    long = "a.png b --output out --weights realesrgan-x4plus --outscale 2.5 --format jpg --ensemble"
    given, meant = (vars(parsed(monkeypatch, *words.split())) for words in (short, long))
    assert given == meant and given["input"] == [Path("a.png"), Path("b")]


def test_inputs_may_stand_anywhere(monkeypatch):
    words = "a.png --tile 0 b.png -i c.png d.png --quiet e.png -i f.png -- -g.png"
    given = parsed(monkeypatch, *words.split()).input
    assert {path.stem for path in given} == {*"abcdef", "-g"}


@pytest.mark.parametrize("flag", ELSEWHERE)
@pytest.mark.parametrize("value", [[], ["1"]])
def test_a_flag_that_only_others_have_names_ours(flag, value, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(monkeypatch, "a.png", flag, *value)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and f"error: argument {flag}: not a flag here; " in error
    named = re.findall(r"(?<![\w-])--?[a-z-]+(?= |$|,|;)", ELSEWHERE[flag])
    values = {"--tile": "0", "--device": "cpu", "--engine": "ncnn", "--format": "png", "-f": "png"}
    values |= {"--precision": "fp32", "--scale": "3", "--width": "5", "--height": "5"}
    for ours in named:
        takes = [] if ours in ("--quiet", "--wrap") else [values.get(ours, "x")]
        parsed(monkeypatch, "a.png", ours, *takes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "what is to be upscaled is missing"),
        ("-i", "expected at least one argument"),
        ("a.png --width 5 -s 2", "leave one out"),
        ("a.png --height 5 --outscale 2", "leave one out"),
        ("a.png --skip-existing --report", "leave out --skip-existing"),
        ("a.png --skip-existing --hr b", "leave out --skip-existing"),
        ("a.png --skip-existing --metrics niqe", "leave out --skip-existing"),
        ("a.png --width 5 --hr hr", "give --outscale"),
        ("a.png --height 5 --metrics niqe", "give --outscale"),
        ("a.png --check-tiles --quiet", "which --quiet hides: leave one out"),
        ("a.png --check-tiles --tile 0", "--tile 0 makes none: leave one out"),
        ("a.png --width 0", "invalid positive int value: '0'"),
        ("a.png --height 2.5", "invalid positive int value"),
        ("a.png -s 0", "invalid positive float value"),
        ("a.png -f gif", "invalid choice"),
        ("a.png -q", "unrecognized arguments: -q"),
    ],
)
def test_a_command_line_that_makes_no_sense(words, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(monkeypatch, *words.split())
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_several_images_have_no_one_file(run, random_image):
    for name in ("a.png", "b.png"):
        write_image(random_image(8, 8), name)
    with pytest.raises(UsageError, match=r"out\.png names one image, not 2: give -o a folder"):
        run("a.png", "b.png", "-o", "out.png")
    with pytest.raises(UsageError, match="not 2"):
        run("?.png", "-o", "out.png")
    assert run("[a].png", "./a.png", "-o", "out.png") == 0  # one, however often it is named
    assert np.array_equal(read_image("out.png"), read_image("a.png"))


# --------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        (["--width", "60"], (60, 45)),
        (["--height", "60"], (80, 60)),
        (["--width", "7", "--height", "50"], (7, 50)),
        (["--width", "1"], (1, 1)),
        (["--width", "40"], (40, 30)),
    ],
)
def test_a_width_or_height_in_pixels(flags, size, run):
    Image.linear_gradient("L").resize((40, 30)).convert("RGBA").save("a.png")
    Image.linear_gradient("L").resize((30, 40)).save("b.png")
    assert run("a.png", "b.png", *flags, "--report", "--compare") == 0
    assert Image.open("results/a.png").size == size
    with Image.open("a.png") as given, Image.open("results/a.png") as result:
        expected = np.asarray(given.resize(size, Image.Resampling.BICUBIC), int)
        assert np.abs(np.asarray(result, int) - expected).max() <= 2
    with Image.open("results/b.png") as turned:
        width = flags[flags.index("--width") + 1] if "--width" in flags else turned.width
        height = flags[flags.index("--height") + 1] if "--height" in flags else turned.height
        assert turned.size == (int(width), int(height))


def test_resizing_to_a_size_is_matlabs_where_that_is_a_scale(random_image):
    image = random_image(24, 36)
    for size in ((12, 18), (36, 54), (96, 144)):
        assert np.array_equal(imresize_to(image, size), imresize(image, size[0] / 24))
    tiled = np.tile(image, (3, 3, 1))
    for size in ((12, 18), (36, 54), (96, 144)):  # wrapping is the middle of nine
        middle = imresize(tiled, size[0] / 24)[size[0] : 2 * size[0], size[1] : 2 * size[1]]
        difference = imresize_to(image, size, wrap=True).astype(int) - middle
        assert np.abs(difference).max() <= 1 and np.abs(difference).mean() < 0.01  # halves


# ---------------------------------------------------------------------------------------- quiet


def test_quiet_says_nothing_but_what_went_wrong(run, random_image, capfd):
    write_image(random_image(80, 80), "a.png")
    assert run("a.png", "--quiet", "--tile", "64", "--report") == 0
    assert capfd.readouterr() == ("", "")
    Path("b.png").write_bytes(b"no picture")
    assert run("a.png", "b.png", "--quiet", "--tile", "64", "--hr", ".") == 1
    told = capfd.readouterr()
    assert told.out == "" and re.fullmatch(r"Failed: b\.png: .*\n", told.err)
    assert run("a.png") == 0
    assert "1 of 1 images upscaled" in capfd.readouterr().out


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(utils.time, "monotonic", clock.monotonic)
    return clock


@pytest.mark.parametrize("leave", [True, False])
def test_without_a_terminal_the_bar_is_a_line_a_minute(leave, clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for i in Bar(range(300), desc="tiles", leave=leave, mininterval=0):
        clock.now = i  # seconds
        Bar.write("said", file=sys.stderr) if i == 100 else None
    lines = sys.stderr.getvalue().split("\n")
    assert "\r" not in sys.stderr.getvalue() and lines.pop() == ""
    lines.remove("said")
    assert len(lines) == 4 + leave
    assert all(line.startswith("tiles: ") for line in lines)
    counts = [int(re.search(r" (\d+)/300 ", line)[1]) for line in lines]
    assert counts == [61, 121, 181, 241, 300][: len(counts)]


def test_in_a_terminal_the_bar_stays_in_its_line(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in Bar(range(3), mininterval=0):
        pass
    text = sys.stderr.getvalue()
    assert text.count("\r") >= 4 and text.count("\n") == 1 and "3/3" in text


def test_every_bar_is_of_that_kind():
    """One that is tqdm's own would write carriage returns into logs."""
    root = Path(__file__).parents[1]
    sources = [*root.glob("*.py"), *(p for p in root.glob("*/*.py") if p.parent.name != "tests")]
    assert len(sources) > 50
    for path in sources:
        assert not re.search(r"\btqdm\((?!\))", path.read_text("utf-8").replace("Bar(tqdm)", ""))


@pytest.mark.parametrize("watched", [True, False])
def test_a_download_has_a_bar_only_where_somebody_watches(watched, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "torch.hub.download_url_to_file", lambda *_, progress: asked.append(progress)
    )
    monkeypatch.chdir(tmp_path)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal() if watched else io.StringIO())
    target = locate("realesrgan-x4plus-anime")  # as realesrgan-ncnn-vulkan calls it
    assert target == Path("checkpoints/RealESRGAN_x4plus_anime_6B.pth") and asked == [watched]


# ------------------------------------------------------------------------------- hidden colours


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_colour_under_alpha_0_is_kept_if_asked_for(kind, run, random_image):
    rgba = np.dstack([random_image(40, 40), np.zeros((40, 40), np.uint8)])
    rgba[:20, :, 3] = 255
    smooth = enlarge_nearest(rgba[::8, ::8], 8)  # which a lossy file holds
    Image.fromarray(smooth).save("a.png")
    assert run("a.png", "--keep-hidden", "-f", kind) == 0
    kept = read_picture(f"results/a.{kind}")
    assert np.array_equal(kept.alpha, smooth[..., 3])
    difference = np.abs(kept.rgb.astype(int) - smooth[..., :3])[20:]
    assert difference.mean() <= (0 if kind == "png" else 12)
    assert run("a.png") == 0
    made_up = read_picture("results/a.png").rgb
    assert np.array_equal(made_up[:20], smooth[:20, :, :3])
    assert np.array_equal(made_up[20:], np.broadcast_to(made_up[19], (20, 40, 3)))


@pytest.mark.parametrize("program", ["test.py", "weights.py"])
def test_messages_of_several_lines_are_printed_as_such(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("raws").mkdir()
    Path("raws", "a\nb.nef").write_bytes(b"MM\0*")
    strips = ["interpolate", "compact_x4_psnr", "compact_x4_gan", "--pictures"]
    flags = strips if program == "weights.py" else []
    path = str(Path(__file__).parents[1] / program)
    monkeypatch.setattr("utils.hear_kill", lambda: None)

    def said(source):
        monkeypatch.setattr(sys, "argv", [program, *flags, source])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(path, run_name="__main__")
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()

    first, second = said("raws")
    assert first.startswith(f"{program}: raws holds no PNG") and second[:2] == "  "
    assert "a\\nb.nef: " in second  # a name breaks no line
    assert said("no\nfile") == [f"{program}: no\\nfile: no such file or folder"]


def test_inputs_behind_metrics_are_said_to_stand_before(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["test.py", "--metrics", "niqe", "PHOTOS"])
    with pytest.raises(SystemExit):
        parse_args()
    assert "stands before --metrics, which takes all that follows" in capsys.readouterr().err


def test_the_first_frame_of_a_gif_that_moves_is_png_by_any_way_to_name_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = [Image.new("P", (4, 4), i) for i in range(3)]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:], palette=bytes(range(9)))
    for output in ("out", "out.png"):
        ((job,), _, _) = plan([Path("a.gif")], Path(output), "same", first_frame=True)
        assert job.target.suffix == ".png"
    with pytest.raises(UsageError, match=r"out\.gif is not what --format same says"):
        plan([Path("a.gif")], Path("out.gif"), "same", first_frame=True)
