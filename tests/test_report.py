"""The page of test.py --report, looked at by a real browser: headless Chromium."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from images.resize import enlarge_nearest
from upscaling.report import PageImage, write_page

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs the programs chromium and chromedriver",
)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,700"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, tmp_path, random_image):
    """A page of 200 images, the first with scores and an HR image, one with a spiteful name."""
    images = []
    for i in range(200):
        ours = enlarge_nearest(random_image(10, 15, seed=i), 8)
        pictures = {"bicubic": np.full_like(ours, 90), "ours": ours}
        score = {}
        if i == 0:
            pictures["HR"] = np.full_like(ours, 200)
            score = {"psnr_y": float("inf"), "ssim_y": 0.5}
        name = "001/</script><b>ü #1?%41.png" if i == 1 else f"{i:03d}.png"
        image = PageImage(tmp_path, Path(name))
        for label, picture in pictures.items():
            image.add(label, picture)
        images.append(image.entry(score))
    path = write_page(tmp_path, images[::-1], "200 images")
    browser.set_window_size(1000, 700)
    browser.get(path.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def find(browser, selector):
    return browser.find_element("css selector", selector)


def transform(browser):
    """x, y and zoom of the picture."""
    matrix = browser.execute_script("return new DOMMatrix(getComputedStyle(left).transform)")
    return matrix["e"], matrix["f"], matrix["a"]


def press(browser, key):
    webdriver.ActionChains(browser).send_keys(key).perform()


def test_every_image_has_a_thumbnail_that_loads_as_it_comes_into_view(page):
    thumbs = page.find_elements("css selector", "#grid img")
    assert len(thumbs) == 200
    loaded = "return [...document.querySelectorAll('#grid img')].map(i => i.naturalWidth > 0)"
    wait = WebDriverWait(page, 10)
    wait.until(lambda browser: browser.execute_script(loaded)[0])
    assert not page.execute_script(loaded)[199]
    page.execute_script("arguments[0].scrollIntoView()", thumbs[199])
    wait.until(lambda browser: browser.execute_script(loaded)[199])
    assert "001/</script><b>ü #1?%41.png" in find(page, "#grid").text
    cells = [cell.text for cell in page.find_elements("css selector", "td")]
    assert cells == ["000.png", "equal", "0.5000", "mean", "equal", "0.5000"]


def test_the_slider_moves_by_mouse_and_keyboard(page):
    find(page, "#grid button").click()
    top = find(page, "#top")
    assert "50%" in top.value_of_css_property("clip-path")
    handle, stage = find(page, "#handle"), find(page, "#stage")
    webdriver.ActionChains(page).drag_and_drop_by_offset(
        handle, stage.size["width"] // 4, 0
    ).perform()
    assert "75%" in top.value_of_css_property("clip-path")
    press(page, ",")
    assert "73%" in top.value_of_css_property("clip-path")
    before = transform(page)
    find(page, "#split").send_keys(webdriver.Keys.ARROW_LEFT)
    assert "72.5%" in top.value_of_css_property("clip-path")
    assert transform(page) == before


def test_zoom_and_pan_by_mouse_touch_and_keyboard(page):
    find(page, "#grid button").click()
    stage = find(page, "#stage")
    x, y, zoom = transform(page)
    assert zoom == pytest.approx(
        min(stage.size["width"] / 120, stage.size["height"] / 80), rel=0.01
    )
    press(page, "+")
    assert transform(page)[2] == pytest.approx(1.25 * zoom)
    press(page, webdriver.Keys.ARROW_RIGHT)
    moved = transform(page)
    webdriver.ActionChains(page).scroll_from_origin(
        webdriver.common.actions.wheel_input.ScrollOrigin.from_element(stage), 0, -200
    ).perform()
    assert transform(page)[2] > 1.5 * moved[2]
    before = transform(page)
    webdriver.ActionChains(page).move_to_element_with_offset(
        stage, 150, 60
    ).click_and_hold().move_by_offset(30, 20).release().perform()
    assert transform(page)[:2] == pytest.approx((before[0] + 30, before[1] + 20))
    press(page, "0")
    assert transform(page) == pytest.approx((x, y, zoom))
    centre = {
        key: page.execute_script(f"return stage.getBoundingClientRect().{key}")
        for key in ("x", "y")
    }
    for kind, spread in (("touchStart", 40), ("touchMove", 80), ("touchEnd", None)):
        points = (
            [
                dict(x=centre["x"] + 300 + side * spread, y=centre["y"] + 200, id=side)
                for side in (-1, 1)
            ]
            if spread
            else []
        )
        page.execute_cdp_cmd("Input.dispatchTouchEvent", dict(type=kind, touchPoints=points))
    assert transform(page)[2] == pytest.approx(2 * zoom, rel=0.02)


def test_hr_is_the_third_choice_and_images_follow_each_other(page):
    find(page, "#grid button").click()
    select = Select(find(page, "#other"))
    assert [option.text for option in select.options] == ["bicubic", "HR"]
    select.select_by_value("HR")
    assert find(page, "#left").get_attribute("src").endswith("000.png.HR.jpg")
    assert find(page, "#leftLabel").text == "HR"
    assert "ssim_y 0.5000" in find(page, "#scores").text
    find(page, "#next").click()
    wait = WebDriverWait(page, 10)
    wait.until(lambda browser: browser.execute_script("return left.naturalWidth"))
    assert find(page, "#left").get_attribute("src").endswith("%231%3F%2541.png.bicubic.jpg")
    assert "001/</script><b>ü #1?%41.png (120 × 80)" in find(page, "#name").text
    press(page, "p")
    assert find(page, "#right").get_attribute("src").endswith("000.png.ours.jpg")
    press(page, webdriver.Keys.ESCAPE)
    assert not find(page, "#viewer").is_displayed()


def test_looks_and_a_phone(page):
    dark = find(page, "body").value_of_css_property("background-color")
    find(page, "#look").click()
    assert find(page, "body").value_of_css_property("background-color") != dark
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        dict(width=360, height=700, deviceScaleFactor=2, mobile=True),
    )
    wide = "return document.documentElement.scrollWidth"
    assert page.execute_script(wide) <= 360
    find(page, "#grid button").click()
    assert page.execute_script(wide) <= 360
    stage = find(page, "#stage")
    assert stage.size["width"] == 360 and stage.size["height"] > 400
    for id in ("#close", "#next", "#split", "#other"):
        assert find(page, id).is_displayed()
        assert find(page, id).rect["x"] + find(page, id).rect["width"] <= 360
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
