"""Every command that the documentation shows works: each is run as shown, in a folder of its own.

A command that says how long it takes, which data it needs or how many GPUs it wants is made small:
small pictures, a small network, one step. What cannot be run here is in EXCEPTED, by name and with
its reason. Without `-m "slow or not slow"` only some commands are run, but all flags are checked.
"""

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import load_program

import config
import weights
from images.files import write_image
from images.resize import imresize
from model import RRDBNet

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "reference" / "README.md"),
]

EXCEPTED = {  # part of a command -> why it is not run
    "python3 -m venv": "makes an environment, and .ci/run does it",
    "bin/activate": "changes the shell that it is typed into, and .ci/run does it",
    "pip install": "needs the network, and .ci/run does it",
    "RealESRGAN_x4plus": "downloads 64 MB",
    "RealESRGAN_x2plus": "downloads 64 MB; test_train.py has a small network like it",
    "dataset.py div2k": "downloads 4 GB",
    "--nnodes": "needs two machines",
    "pytest": "is this suite itself",
    ".ci/run": "runs this suite, after downloads",
    "kill_and_resume.py": "takes minutes; test_train.py runs it, marked slow",
    "/usr/bin/time": "GNU time is not on every machine; `test.py PHOTO` is run without it",
    "benchmarks/speed.py": "takes 10 minutes; test_benchmarks.py runs it small",
    "benchmarks/growth.py": "takes minutes; test_benchmarks.py runs it small",
    "benchmarks/commands.py": "takes 40 minutes; test_benchmarks.py runs it small",
    "benchmarks/busy.py": "takes 10 minutes; test_benchmarks.py runs it small",
    "benchmarks/recipe.py": "takes 8 hours; test_benchmarks.py runs it small",
    "benchmarks/ablation.py": "takes minutes; test_benchmarks.py tests its parts",
    "--device vulkan": "needs a GPU with Vulkan; test_engine.py runs it where one is",
    "tensorboard": "serves pages until it is stopped",
    "python app.py": "serves a page until it is stopped; test_app.py opens it in Chromium",
    "--train-dir ...": "a sketch, with dots for folders; docs/training.md has the whole command",
}

# The first command that begins like each of these runs in a process of its own, as a user's would;
# the others of the same program in this one, which has spent the seconds to import torch.
STARTED = ("python test.py", "python weights.py convert", "python train.py --name")

NEEDS = {  # part of a command -> the documented command that comes before it
    "compare_runs.py checkpoints/demo": "python train.py --preset demo",
    "interpolate checkpoints/mine-real/psnr": "python train.py --preset compact-real"
    " --name mine-real --train-dir A --valid-dir C",
    "interpolate compact_x4_real_psnr": "python train.py --preset compact-real --name real"
    " --psnr.steps 0 --degradation.mild 0 --init-from compact_x4_real_psnr"
    " --train-dir A --valid-dir C",
    "--weights net-x4.param": "python weights.py convert FILE -o net-x4.param --to ncnn",
    "--weights net.safetensors": "python weights.py interpolate PSNR GAN --alpha 0.8"
    " -o net.safetensors",
}

# For every training command: later flags win. The steps and the network are added by `shrunk`.
TINY = [
    *("--batch-size", "8", "--psnr.patch", "32", "--gan.patch", "32", "--workers", "0"),
    *("--vgg-weights", "random", "--vgg-layer", "conv1_2", "--val-every", "1"),
]

# ---------------------------------------------------------------------------- out of the documents


@dataclass
class Command:
    """One command, at all the places that show it.

    Attributes:
        words: as a shell would split it; of a block of Python, ("python", "-c", the block).
        places: "README.md:25", ...
        promises: files and folders that have to be there afterwards: what follows -o, and what the
            comment behind the command says is in results/.
    """

    words: tuple[str, ...]
    places: list[str] = field(default_factory=list)
    promises: set[str] = field(default_factory=set)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def id(self) -> str:
        return f"{' '.join(self.places)} {'block of Python' if self.is_python else self.text}"

    @property
    def is_python(self) -> bool:
        return self.words[:2] == ("python", "-c")

    @property
    def excepted(self) -> bool:
        return any(part in self.text for part in EXCEPTED)


FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Code in a sentence or a table, which may go on in the next line, but not in the next paragraph.
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)*)`")
PROGRAMS = ("python", "pytest", "torchrun", "bash", "tensorboard", "/usr/bin/time")


def documented(documents: list[Path]) -> list[Command]:
    """All commands, in order, each once."""
    found: dict[tuple[str, ...], Command] = {}

    def add(path: Path, line: int, words: list[str], comment: str = "") -> None:
        command = found.setdefault(tuple(words), Command(tuple(words)))
        name = path.relative_to(ROOT) if ROOT in path.parents else path.name
        command.places.append(f"{Path(name).as_posix()}:{line}")
        command.promises |= set(re.findall(r"\bresults/[\w./]*\w|\bresults(?=/)", comment))
        command.promises |= {words[i + 1] for i in range(len(words) - 1) if words[i] == "-o"}

    for path in documents:
        text = path.read_text(encoding="utf-8")
        for fence in FENCE.finditer(text):
            first = line_of(text, fence.start(2))
            if fence[1] == "python":
                add(path, first, ["python", "-c", fence[2]])
            for line, shown in shell_lines(fence[2], first) if fence[1] == "bash" else ():
                comment = shown.partition(" # ")[2]
                for words in split_at_ands(shlex.split(shown, comments=True)):
                    add(path, line, words, comment)
        prose = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
        for span in SPAN.finditer(prose):
            words = span[1].split()
            if words[0] in PROGRAMS and len(words) > 1:
                add(path, line_of(prose, span.start()), words)
    return list(found.values())


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def shell_lines(block: str, first: int) -> list[tuple[int, str]]:
    """The lines with their numbers; one that ends in a backslash is joined to the next."""
    lines, begun = [], ""
    for number, line in enumerate(block.splitlines(), first):
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1]
        else:
            lines.append((number, begun))
            begun = ""
    return lines


def split_at_ands(words: list[str]) -> list[list[str]]:
    """The commands of `a && b`; none of an empty line."""
    commands: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


PARSERS = {
    "train.py": config.parse_args,
    "test.py": load_program("test").parse_args,
    "weights.py": weights.parse_args,
}

COMMANDS = documented(DOCUMENTS)
RUN = [command for command in COMMANDS if not command.excepted]
NOT_RUN = [command for command in COMMANDS if command.excepted]


def runs_here(command: Command) -> bool:
    firsts = [next((c for c in RUN if c.text.startswith(start)), None) for start in STARTED]
    ours = command.is_python or command.words[1] in PARSERS
    return ours and command.words[0] == "python" and command not in firsts


def is_quick(command: Command) -> bool:
    """What is not marked slow: upscaling and converting in this process, and blocks of Python."""
    return runs_here(command) and command.words[1] != "train.py"


def by_name(commands: list[Command]) -> list:
    """Parameters of a test whose names say where a command is shown."""
    return [pytest.param(command, id=command.id) for command in commands]


# ------------------------------------------------------------------------------- where they are run


class Sandbox:
    """A copy of the repository, and what the documents call PHOTOS, A, FILE and so on."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.done: set[tuple[str, ...]] = set()
        # Copies: a program that is reached by a link would write into the true repository.
        for name in ("benchmarks", "docs", "formats", "images", "tests", "training", "upscaling"):
            # Of recipe.py's runs, which may go on now, the logs alone belong to the repository.
            ignored = shutil.ignore_patterns("__pycache__", "*.pt", "*.safetensors", "*.tmp")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for pattern in ("*.py", "*.md", "*.toml", "*.txt", "checkpoints/compact_x4_*.safetensors"):
            for path in ROOT.glob(pattern):
                copy = folder / path.relative_to(ROOT)
                copy.parent.mkdir(exist_ok=True)
                shutil.copy(path, copy)
        self._write_pictures()
        for seed, name in enumerate(("FILE", "PSNR", "GAN")):
            self._write_network(name, seed)

    def _write_pictures(self) -> None:
        for name in ("A", "B", "C", "data/train", "data/valid"):
            for i in range(2):
                write_image(picture(64, 72, seed=i), self._new(f"{name}/{i}.png"))
        for i, name in enumerate(("one.png", "deeper/two.jpg")):
            write_image(picture(24, 32, seed=i), self._new(f"PHOTOS/{name}"))
        write_image(picture(24, 32), self._new("photo.jpg"))
        write_image(picture(80, 96), self._new("photo.png"))
        (self.folder / "photo.png").rename(self.folder / "PHOTO")
        for i, name in enumerate(("baby", "bird")):
            high_res = picture(96, 128, seed=i)
            for folder in ("Set5", "Set14"):
                write_image(high_res, self._new(f"{folder}/HR/{name}.png"))
            low_res = imresize(high_res, 1 / 4)
            write_image(low_res, self._new(f"Set5/LR_bicubic/X4/{name}x4.png"))

    def _write_network(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        file = self.folder / f"{name}.safetensors"
        weights.save_generator(RRDBNet(features=4, blocks=1), file)
        file.rename(self.folder / name)

    def _new(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def run(self, command: Command) -> None:
        """The command, after what it needs.

        Raises:
            AssertionError: it failed, or what it promises is not there.
        """
        for part, need in NEEDS.items():
            before = next(other for other in COMMANDS if other.text == need)
            if part in command.text and before.words not in self.done:
                self.run(before)
        settings = settings_of(command.words)
        written = set(command.promises)
        # What earlier commands left must not hide that this one does nothing.
        left = {"results", *written}
        if settings:
            run_folder = f"checkpoints/{settings.name}"
            left.add(run_folder)
            written |= {f"{run_folder}/{name}.safetensors" for name in phases_of(settings)}
        for name in left:
            self._remove(name)
        words = as_run(command.words)
        status, output = (self.run_here if runs_here(command) else self.start)(words)
        assert status == 0, f"{command.id}\nwas run as {words}\n{output[-4000:]}"
        for name in written:
            path = self.folder / name
            empty = path.is_dir() and not any(path.iterdir())
            assert path.exists() and not empty, f"{command.id}\ndid not write {name}"
        if settings:
            self._remove(f"{run_folder}/last.pt")  # 170 MB, which no command needs
        self.done.add(command.words)

    def _remove(self, name: str) -> None:
        path = (self.folder / name).resolve()
        assert self.folder in path.parents, f"{name}: nothing outside of the sandbox is removed"
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def run_here(self, words: list[str]) -> tuple[int, str]:
        """A program or a block, without the seconds that a new Python needs to import torch."""
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(io.StringIO()) as out,
        ):
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", words[1:])
            patch.setattr(sys, "stderr", out)
            try:
                if words[1] == "-c":
                    exec(words[2], {"__name__": "__main__"})
                else:
                    runpy.run_path(str(ROOT / words[1]), run_name="__main__")
            except SystemExit as exit:
                return exit.code or 0, out.getvalue()
            return 0, out.getvalue()

    def start(self, words: list[str]) -> tuple[int, str]:
        environment = dict(os.environ)
        if "torch.distributed.run" in words:
            # Two processes cannot share one GPU; on the CPU each would take all the cores.
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=300,
        )
        return done.returncode, done.stdout


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth one, uint8 (height, width, 3)."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def arguments_of(program: str, words: tuple[str, ...]) -> list[str] | None:
    """What a command, torchrun's too, gives the program; None if it is about another."""
    return list(words[words.index(program) + 1 :]) if program in words else None


def settings_of(words: tuple[str, ...]) -> config.Config | None:
    """Of the run that a command starts, as it is shown; None if it starts none."""
    arguments = arguments_of("train.py", words)
    if arguments is None or "--help" in arguments:
        return None
    return config.parse_args(arguments)


def phases_of(settings: config.Config) -> list[str]:
    return [name for name in config.PHASES if getattr(settings, name).steps > 0]


def as_run(words: tuple[str, ...]) -> list[str]:
    """The command as it is run here: by this Python, with two processes instead of four, small."""
    first, rest = [words[0]], list(words[1:])
    if first == ["python"]:
        first = [sys.executable]
    elif first == ["torchrun"]:
        first = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        rest = [re.sub(r"^(--nproc[_-]per[_-]node)=\d+$", r"\1=2", word) for word in rest]
    if arguments_of("dataset.py", words) is not None and "preview" in rest:
        rest += ["--patch", "32"]  # the sandbox's images are smaller than the default
    settings = settings_of(words)
    return [*first, *rest, *(shrunk(settings) if settings else ())]


def shrunk(settings: config.Config) -> list[str]:
    """Flags that make a run tiny, but leave out no phase and keep the network of --init-from."""
    network = [] if settings.init_from else ["--features", "4", "--blocks", "1"]
    steps = [flag for name in phases_of(settings) for flag in (f"--{name}.steps", "1")]
    return [*TINY, *network, *steps]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sandbox")
    yield Sandbox(folder)
    shutil.rmtree(folder, ignore_errors=True)  # pytest would keep those of three sessions


# ---------------------------------------------------------------------------------- they are run


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, id=c.id, marks=() if is_quick(c) else pytest.mark.slow) for c in RUN],
)
def test_it_runs(command, sandbox):
    sandbox.run(command)


PARSED = [
    command
    for command in COMMANDS
    if PARSERS.keys() & set(command.words) and "--help" not in command.words
]


@pytest.mark.parametrize("command", by_name(PARSED))
def test_its_flags_exist(command, monkeypatch):
    accept(command, monkeypatch)


def accept(command: Command, monkeypatch) -> None:
    """Parse the flags as the program itself does, which takes no time.

    Raises:
        SystemExit: it refuses them; why is on stderr, which pytest shows.
    """
    for program, parse_args in PARSERS.items():
        arguments = arguments_of(program, command.words)
        if arguments is not None:
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            parse_args()


# ------------------------------------------------------------------------------- they are not run


@pytest.mark.parametrize("command", by_name(NOT_RUN))
def test_the_files_that_it_names_exist(command):
    named = [word for word in command.words if re.search(r"\.(py|txt)$|^\.ci/", word)]
    assert [word for word in named if not (ROOT / word).is_file()] == []


# ----------------------------------------------------------------------- this file's own promises


def test_the_tables_name_nothing_that_is_gone():
    texts = [command.text for command in COMMANDS]
    parts = [*EXCEPTED, *NEEDS, *NEEDS.values()]
    assert [part for part in parts if not any(part in text for text in texts)] == []
    starts = [start for start in STARTED if not any(c.text.startswith(start) for c in RUN)]
    assert starts == []


def test_no_block_is_left_unread():
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    languages = {fence[1] for text in texts for fence in FENCE.finditer(text)}
    assert languages >= {"bash", "python"}
    assert languages.isdisjoint({"sh", "shell", "console", "py", "powershell"})


DOCUMENT = """\
Type `python a.py`, or `python`, or `pytest
-q`.

| `python a.py` | \\* |

```bash
python3 -m venv v && . v/bin/activate   # first
python b.py X --flag \\
    -o out   # and a page, results/index.html

```

```python
print("`python c.py`")
```
"""


def test_commands_are_found_wherever_a_document_shows_them(tmp_path):
    path = tmp_path / "doc.md"
    path.write_text(DOCUMENT)
    found = {command.words: command for command in documented([path])}
    assert {words: command.places for words, command in found.items()} == {
        ("python3", "-m", "venv", "v"): ["doc.md:7"],
        (".", "v/bin/activate"): ["doc.md:7"],
        ("python", "b.py", "X", "--flag", "-o", "out"): ["doc.md:9"],
        ("python", "-c", 'print("`python c.py`")\n'): ["doc.md:14"],
        ("python", "a.py"): ["doc.md:1", "doc.md:4"],
        ("pytest", "-q"): ["doc.md:1"],
    }
    wanted = {"out", "results/index.html"}
    assert found["python", "b.py", "X", "--flag", "-o", "out"].promises == wanted


@pytest.mark.parametrize(
    "line",
    [
        "python train.py --name mine --train-dir A --no-such-flag 1",
        "torchrun --nproc_per_node=4 train.py --preset no-such-preset",
        "python test.py PHOTOS --no-such-flag",
        "python weights.py convert FILE -o net.pth --to no-such-layout",
    ],
)
def test_a_flag_that_does_not_exist_is_seen(line, tmp_path, monkeypatch):
    (tmp_path / "doc.md").write_text(f"```bash\n{line}\n```\n")
    (command,) = documented([tmp_path / "doc.md"])
    with pytest.raises(SystemExit) as exit:
        accept(command, monkeypatch)
    assert exit.value.code == 2


@pytest.mark.slow
def test_a_command_that_fails_or_writes_nothing_is_seen(sandbox):
    with pytest.raises(AssertionError, match="no such file or folder"):
        sandbox.run(Command(("python", "test.py", "NOWHERE"), ["doc.md:1"]))
    with pytest.raises(AssertionError, match="did not write results/compare"):
        sandbox.run(Command(("python", "test.py", "PHOTOS"), ["doc.md:2"], {"results/compare"}))
