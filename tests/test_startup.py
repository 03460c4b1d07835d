"""What the commands import before they answer. Seconds depend on the machine, modules do not."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from images.files import write_image

ROOT = Path(__file__).resolve().parents[1]

# Runs a program, and writes which modules it imported beyond those of `import torch`.
AFTER_TORCH = """
import atexit, os, runpy, sys
import torch
before = {*sys.modules}
atexit.register(lambda: print(*sorted({*sys.modules} - before), sep="\\n", file=open("new", "w")))
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(*words: str, status: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def roots(modules) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def imported(done: subprocess.CompletedProcess) -> set[str]:
    """The top-level modules that Python listed on standard error."""
    return roots(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)", done.stderr, re.MULTILINE))


@pytest.fixture(scope="module")
def always():
    """What Python imports in any case, its own modules and those that an environment adds; tqdm."""
    return imported(start("-c", "pass", status=0)) | {*sys.stdlib_module_names, "tqdm"}


@pytest.mark.parametrize(
    ("command", "status", "answer"),
    [
        ("train.py --help", 0, "--psnr.lr"),
        ("train.py --preset demo --psnr.rate 1", 2, "--psnr.rate"),
        ("train.py --psnr.lr -1", 2, "psnr.lr is -1.0"),
        ("train.py --psnr.patch 50", 2, "psnr.patch is 50"),
        ("test.py --help", 0, "--outscale"),
        ("test.py", 2, "is missing"),
        ("test.py photo.png --outscales 2", 2, "--outscales"),
        ("test.py photo.png --tile 3", 2, "--tile"),
        ("weights.py --help", 0, "interpolate"),
        ("weights.py interpolate --help", 0, "--alpha"),
        ("weights.py interpolate", 2, "WEIGHTS"),
        ("weights.py convert net.pth -o net.txt --to nothing", 2, "--to"),
        ("weights.py convert net.pth", 2, "-o OUT is missing"),
        ("app.py --help", 0, "--port"),
        ("app.py --port x", 2, "--port"),
        ("dataset.py --help", 0, "preview"),
        ("dataset.py preview --help", 0, "--degradation.blur"),
        ("dataset.py preview photos --samples 0", 2, "samples is 0"),
        ("dataset.py preview photos --patch 50", 2, "patch is 50"),
        ("dataset.py preview photos --degradation.level weak", 2, "degradation.level is 'weak'"),
        ("dataset.py div2k --roots x", 2, "--roots"),
    ],
)
def test_help_and_refusals_import_nobody_elses_modules(command, status, answer, always):
    program, *words = command.split()
    done = start(str(ROOT / program), *words, status=status)
    assert answer in (done.stderr if status else done.stdout)
    own = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    others = imported(done) - always - own
    assert not [name for name in others if find_spec(name)]  # pickle looks for Jython's, in vain


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
@pytest.mark.parametrize("program", ["train.py", "test.py", "weights.py", "dataset.py", "app.py"])
def test_help_ends_quietly_when_nobody_reads_it(program):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, str(ROOT / program), "--help"], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert done.stderr == b"" and done.returncode == (0 if program == "train.py" else 141)


def test_upscaling_an_image_imports_neither_torchs_compiler_nor_what_trains(
    identity_weights, tmp_path, random_image, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_image(random_image(64, 64), tmp_path / "in.png")
    flags = ("--weights", str(identity_weights), "--precision", "fp32")
    start("-c", AFTER_TORCH, str(ROOT / "test.py"), "in.png", "-o", "out.png", *flags, status=0)
    assert Path("out.png").exists()
    new = set(Path("new").read_text().split())
    assert not {name for name in new if re.match(r"torch\._(dynamo|inductor|export)\b", name)}
    assert not {name for name in new if re.match(r"torch\.(onnx|distributed\.fsdp)\b", name)}
    others = {"albumentations", "torchvision", "matplotlib", "tensorboard", "skimage", "scipy"}
    assert "weights" in new and not roots(new) & {"dataset", "loss", "train", "sympy", *others}
