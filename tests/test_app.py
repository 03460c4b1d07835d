"""app.py: its page in a real browser, headless Chromium, beside test.py."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock, Mock

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from programs import load_program
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from images.files import Picture, read_image, write_image, write_picture
from images.resize import imresize
from model import RRDBNet
from upscaling.app_flags import parse_args
from upscaling.inputs import UsageError
from weights import save_generator

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60  # seconds; other processes may be using the machine

in_a_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs the programs chromium and chromedriver",
    ),
    pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio: pip install gradio"),
]


def marked(test):
    for mark in in_a_browser:
        test = mark(test)
    return test


def stand_in(version):
    return MagicMock(__spec__=ModuleSpec("gradio", None), __version__=version)


def test_only_this_machine_reaches_the_page(monkeypatch, capsys, tmp_path):
    """Whatever the environment asks gradio for; with a stand-in for it, where it is missing."""
    gradio = stand_in("5.42.0")
    page = gradio.Blocks.return_value.__enter__.return_value
    page.launch.return_value = (None, "http://127.0.0.1:7860/", None)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    load_program("app").main()
    (call,) = page.launch.call_args_list
    assert call.kwargs["server_name"] == "127.0.0.1" and call.kwargs["share"] is False
    assert "The page is at http://127.0.0.1:7860/" in capsys.readouterr().out


@pytest.mark.parametrize("before", [{}, {"no_proxy": "a.b", "NO_PROXY": "a.b"}])
def test_the_page_is_not_asked_for_through_a_proxy(before, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", stand_in("5.42.0"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        if name in before:
            monkeypatch.setenv(name, before[name])
    past_proxies = load_program("app").past_proxies
    with past_proxies():
        assert os.environ["no_proxy"].endswith("127.0.0.1,localhost")
        assert os.environ["NO_PROXY"].startswith(before.get("NO_PROXY", ""))
    assert {n: v for n, v in os.environ.items() if n.lower() == "no_proxy"} == before
    with pytest.raises(UsageError, match=r"does not open: not accessible$"), past_proxies():
        raise ValueError("not accessible\nset share=True")
    with pytest.raises(OSError, match="port"), past_proxies():
        raise OSError("port")


def test_windows_has_one_variable_for_both_names_of_a_proxy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", stand_in("5.42.0"))
    past_proxies = load_program("app").past_proxies
    environ = os._Environ({}, str.upper, str, str, str)
    monkeypatch.setattr(environ, "_data", {})
    monkeypatch.setattr("os.environ", environ)
    monkeypatch.setattr("os.putenv", lambda *_: None)
    monkeypatch.setattr("os.unsetenv", lambda *_: None)
    with past_proxies():
        assert environ["no_proxy"].endswith("127.0.0.1,localhost")
    assert not environ


@pytest.mark.parametrize("version", ["4.1", "5.41.1"])
def test_an_old_gradio_is_named_with_the_remedy(version, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", stand_in(version))
    with pytest.raises(SystemExit, match=rf"gradio {version} is too old.*pip install -U gradio"):
        load_program("app")


class PageError(Exception):
    """In place of gradio's."""

    def __init__(self, message, **_):
        super().__init__(message)


def test_a_page_has_one_run_and_what_was_cancelled_stays_so(tmp_path, monkeypatch):
    """The first is cancelled while its network is downloaded, and the next is begun."""
    gradio = stand_in("5.42.0")
    gradio.Error = PageError
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    app = load_program("app")
    asked, there, errors = threading.Event(), threading.Event(), []

    def read_generator(weights):
        asked.set()
        assert there.wait(PATIENCE)
        return Mock(net=RRDBNet(features=4, blocks=1, growth=4))

    def run(request):
        try:
            app.upscale(str(tmp_path / "a.png"), "mine", [*app.SIZES][-1], request)
        except PageError as error:
            errors.append(str(error))

    write_image(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.png")
    monkeypatch.setattr(app, "read_generator", read_generator)
    one, other = Mock(session_hash="one"), Mock(session_hash="other")
    assert app.begin(one)[2] == "At work."
    thread = threading.Thread(target=run, args=(one,))
    thread.start()
    assert asked.wait(PATIENCE)
    assert app.begin(one)[2].startswith("Your last picture is still being upscaled")
    assert "waits in the queue" in app.begin(other)[2]
    app.cancel(one)
    assert "waits in the queue" in app.begin(one)[2]
    there.set()
    thread.join(PATIENCE)
    assert errors == ["cancelled"] and app.RUNS.keys() == {"one", "other"}
    run(one)
    assert len(errors) == 1 and app.RUNS.keys() == {"other"}


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


@marked
def test_the_slider_compares_with_bicubic(browser, place):
    """JPEG keeps the mean colour of each quarter to a few levels."""
    image = imresize(np.random.default_rng(2).integers(0, 256, (3, 4, 3), np.uint8), 10)
    write_image(image, place / "smooth.png")
    give(browser, place / "smooth.png")
    click(browser, "Upscale")
    until(browser, lambda: len(sources(browser)) == 2)
    script = """const done = arguments[1];
        fetch(arguments[0]).then(answer => answer.blob()).then(blob => {
            const reader = new FileReader();
            reader.onload = () => done(reader.result.split(',')[1]);
            reader.readAsDataURL(blob);
        });"""
    shown = []
    for i, source in enumerate(sources(browser)):
        (place / f"{i}.jpg").write_bytes(
            base64.b64decode(browser.execute_async_script(script, source))
        )
        shown.append(read_image(place / f"{i}.jpg").astype(float))
    bicubic = Image.fromarray(image).resize((160, 120), Image.Resampling.BICUBIC)
    assert np.abs(shown[0] - np.asarray(bicubic)).mean() < 3
    _, content = by_test_py(place, place / "smooth.png")
    (place / "ours.png").write_bytes(content)
    assert np.abs(shown[1] - read_image(place / "ours.png")).mean() < 3
    assert np.abs(shown[1] - shown[0]).mean() > 10  # the network is random


@marked
def test_what_cannot_be_upscaled_is_told_in_a_sentence(browser, place):
    (place / "text.png").write_text("no picture")
    write_image(np.zeros((20, 20, 3), np.uint8), place / "fine.png")
    give(browser, place / "fine.png")
    click(browser, "Upscale")
    until(browser, lambda: "pixels" in said(browser))
    give(browser, place / "text.png")
    click(browser, "Upscale")
    toast = ".toast-body"
    until(browser, lambda: any(t.text for t in browser.find_elements("css selector", toast)))
    told = browser.find_element("css selector", toast).text
    assert told.splitlines()[-1].startswith("text.png: ")
    assert "Traceback" not in told and "/" not in told
    until(browser, lambda: said(browser) == "There is no result.")
    assert sources(browser) == []  # of the picture before


@marked
def test_a_second_user_waits_is_told_so_and_goes_on_when_the_first_cancels(browser, place, address):
    write_image(np.zeros((2000, 3000, 3), np.uint8), place / "long.png")
    photo(place / "short.png")
    first = browser.current_window_handle
    give(browser, place / "long.png")
    click(browser, "Upscale")
    progress = "#compared .progress-text, #compared .meta-text, #compared .progress-level-inner"
    until(browser, lambda: browser.find_elements("css selector", progress))
    until(browser, lambda: "tiles" in browser.find_element("css selector", "#compared").text)
    browser.switch_to.new_window("tab")
    try:
        open_page(browser, address)
        give(browser, place / "short.png")
        click(browser, "Upscale")
        until(browser, lambda: "waits in the queue" in said(browser))
        click(browser, "Cancel")
        until(browser, lambda: said(browser) == "There is no result.")
        click(browser, "Upscale")
        until(browser, lambda: "waits in the queue" in said(browser))
        second = browser.current_window_handle
        browser.switch_to.window(first)
        click(browser, "Cancel")
        until(browser, lambda: said(browser) == "There is no result.")
        assert sources(browser) == []
        browser.switch_to.window(second)
        until(browser, lambda: "short.png: 112x80 pixels" in said(browser))
        browser.close()
    finally:
        browser.switch_to.window(first)


@marked
def test_closing_the_page_frees_the_queue(browser, place, address):
    write_image(np.zeros((2000, 3000, 3), np.uint8), place / "long.png")
    give(browser, place / "long.png")
    click(browser, "Upscale")
    until(browser, lambda: "tiles" in browser.find_element("css selector", "#compared").text)
    photo(place / "short.png")
    open_page(browser, address)
    give(browser, place / "short.png")
    click(browser, "Upscale")
    until(browser, lambda: "short.png: 112x80 pixels" in said(browser))


@marked
def test_the_page_asks_nobody_else_and_nobody_else_reaches_it(browser, address):
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    port = int(address.rpartition(":")[2].strip("/"))
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in listening if c.laddr.port == port} == {"127.0.0.1"}


@pytest.mark.parametrize("flags", [("--port", "65536"), ("--port", "-1"), ("--weights", "")])
def test_wrong_flags(flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py", *flags])
    with pytest.raises(SystemExit) as exit:
        parse_args()
    assert exit.value.code == 2 and f"argument {flags[0]}" in capsys.readouterr().err


def test_without_gradio_a_sentence_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.setattr("upscaling.app_flags.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit:
        parse_args()
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install gradio" in error
