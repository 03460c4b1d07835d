"""app.py: its page in a real browser, headless Chromium, beside test.py."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from images.files import Picture, write_picture
from model import RRDBNet
from weights import save_generator

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120  # seconds; other processes may be using the machine

in_a_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs the programs chromium and chromedriver",
    ),
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio"),
]


def marked(test):
    for mark in in_a_browser:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where app.py and test.py run, with a generator that train.py might have written."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "checkpoints" / "mine").mkdir(parents=True)
    torch.manual_seed(0)
    net = RRDBNet(scale=4, features=8, blocks=2)
    save_generator(net, folder / "checkpoints" / "mine" / "gan.safetensors")
    return folder


@pytest.fixture(scope="module")
def address(place):
    """Of a page that is served."""
    command = [sys.executable, str(ROOT / "app.py")]
    # A server that shares itself, or answers other machines, is what these ask gradio for.
    environment = os.environ | {"GRADIO_SHARE": "True", "GRADIO_SERVER_NAME": "0.0.0.0"}
    with open(place / "log", "w") as log:
        server = subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    line = server.stdout.readline()
    assert "Ctrl-C" in line, (place / "log").read_text()
    yield re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
    server.terminate()
    server.wait(PATIENCE)
    assert "Traceback" not in (place / "log").read_text()


@pytest.fixture(scope="module")
def chromium(place):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(place / "down")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, address):
    """With the page fresh in one window."""
    open_page(chromium, address)
    return chromium


def open_page(browser, address):
    browser.get(address)
    until(browser, lambda: browser.find_elements("css selector", "#picture input[type=file]"))


def until(browser, condition):
    return WebDriverWait(browser, PATIENCE, 0.1).until(lambda _: condition())


def click(browser, text):
    buttons = browser.find_elements("css selector", "button, label")
    next(button for button in buttons if button.text == text).click()


def give(browser, path):
    """Drop a file on the page, in place of the one that is there."""
    for clear in browser.find_elements("css selector", '#picture [aria-label="Clear"]'):
        clear.click()
    drop = "#picture input[type=file]"
    until(browser, lambda: browser.find_elements("css selector", drop))
    browser.find_element("css selector", drop).send_keys(str(path))
    stem = path.stem
    until(browser, lambda: stem in browser.find_element("css selector", "#picture").text)


def said(browser):
    return browser.find_element("css selector", "#said textarea").get_attribute("value")


def sources(browser):
    images = browser.find_elements("css selector", "#compared img")
    return [image.get_attribute("src") for image in images]


def download(browser, place, name):
    shutil.rmtree(place / "down", ignore_errors=True)
    click(browser, "Download")
    until(browser, (place / "down" / name).exists)
    return (place / "down" / name).read_bytes()


def by_test_py(place, path, *flags):
    """The bytes that test.py writes."""
    shutil.rmtree(place / "results", ignore_errors=True)
    command = [sys.executable, str(ROOT / "test.py"), str(path), *flags]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = (place / "results").iterdir()
    return result.name, result.read_bytes()


def deep_picture(path):
    """16 bits, with alpha, a profile and text."""
    values = np.random.default_rng(0).integers(0, 2**16, (24, 30, 4), np.uint16)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_picture(Picture(values[..., :3], values[..., 3], profile=profile), path)


def photo(path):
    noted = PngInfo()
    noted.add_text("parameters", "a cat, steps: 20")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 28, 3), np.uint8))
    image.save(path, pnginfo=noted, dpi=(300, 300))


def pages(path):
    first, *others = (Image.new("RGB", (20, 16), colour) for colour in ("red", "green", "blue"))
    first.save(path, save_all=True, append_images=others)


@marked
@pytest.mark.parametrize(
    ("name", "make", "size", "flags"),
    [
        ("ü #1 (a).png", photo, "the network's own", ()),
        ("deep.png", deep_picture, "x2", ("-s", "2")),
        ("pages.tif", pages, "x4", ("-s", "4")),
        ("frames.gif", pages, "the network's own", ()),
    ],
)
def test_what_is_downloaded_is_what_test_py_writes(browser, place, name, make, size, flags):
    make(place / name)
    give(browser, place / name)
    click(browser, size)
    click(browser, "Upscale")
    until(browser, lambda: "pixels" in said(browser))
    wanted, content = by_test_py(place, place / name, *flags)
    assert wanted in said(browser)
    assert download(browser, place, wanted) == content
