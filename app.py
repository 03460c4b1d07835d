"""A page on this machine: drop a picture, compare the result with bicubic, download it.

    python app.py                                   then open the address that it prints
    python app.py --weights checkpoints/demo/gan.safetensors --port 8000

Only this machine reaches the page, and it fetches nothing from the net but the published networks
that are asked for by name. What is downloaded from it is the file that test.py would write.
"""

import html
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import filterfalse
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from upscaling.app_flags import parse_args
from utils import hear_kill, prepare_for_torch, prepare_output, printable

if __name__ == "__main__":  # --help and wrong flags are answered before torch takes its seconds
    prepare_output()
    parse_args()
    prepare_for_torch()

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # which gradio reads as it is imported

import gradio as gr
from torch import nn

if tuple(map(int, gr.__version__.split(".")[:2])) < (5, 42):  # the first with `failure`
    sys.exit(f"app.py: gradio {gr.__version__} is too old for it: pip install -U gradio")

from formats.layouts import WeightsError
from formats.published import known_names, networks
from images.opening import silence_pillow
from upscaling.comparing import upscale_file
from upscaling.inputs import UsageError
from upscaling.upscaler import Upscaler, check_channels
from weights import read_generator

SIZES = {"x2": 2, "x4": 4, "the network's own": None}
AT_WORK = threading.Lock()  # one picture at a time
PROGRESS = gr.Progress()  # as a default, it is replaced by that of each call
RUNS: dict[str | None, threading.Event] = {}  # session, an open page -> set once it is cancelled


def begin(request: gr.Request) -> tuple:
    """Clears the outputs at once, while `upscale` may have to wait."""
    if request.session_hash in RUNS:  # a page starts no second run, whatever it shows by now
        return gr.skip(), gr.skip(), "Your last picture is still being upscaled; Cancel stops it."
    RUNS[request.session_hash] = threading.Event()
    waits = "Another picture is being upscaled; yours waits in the queue for its turn."
    return None, gr.DownloadButton(interactive=False), waits if AT_WORK.locked() else "At work."


def cancel(request: gr.Request) -> None:
    if run := RUNS.pop(request.session_hash, None):
        run.set()


def upscale(file: str | None, weights: str, size: str, request: gr.Request, progress=PROGRESS):
    """What goes to `outputs`; where there is nothing, gr.Error tells the page why."""

    cancelled = RUNS.setdefault(request.session_hash, threading.Event())

    def check(*_) -> None:
        if cancelled.is_set():
            raise UsageError("cancelled")

    try:
        if not file:
            raise UsageError("drop a picture first")
        with AT_WORK:
            net = read_generator(weights).net
            check_channels(net, weights)
            # Since a single tile can take minutes; convolutions are fastest without a hook.
            for module in filterfalse(lambda each: isinstance(each, nn.Conv2d), net.modules()):
                module.register_forward_pre_hook(check)
            upscaler = Upscaler(
                net, scale=SIZES[size], progress=lambda *tiles: progress(tiles, unit="tiles")
            )
            result = upscale_file(Path(file), Path(mkdtemp(dir=Path(file).parent)), upscaler)
        return result.pictures, gr.DownloadButton(value=result.file, interactive=True), result.words
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        sentence = html.escape(printable(str(error)), quote=False)
    finally:
        if RUNS.get(request.session_hash) is cancelled:
            del RUNS[request.session_hash]
    raise gr.Error(sentence, duration=None, print_exception=False)


def build_page(weights: str) -> gr.Blocks:
    with gr.Blocks(title="Upscaling") as page:
        with gr.Row():
            file = gr.File(label="Picture", elem_id="picture")
            with gr.Column():
                choices: dict = dict(label="Network", info=known_names(), allow_custom_value=True)
                net = gr.Dropdown(networks(), value=weights, **choices)
                size = gr.Radio([*SIZES], value=[*SIZES][-1], label="Size")
                start, stop = gr.Button("Upscale", variant="primary"), gr.Button("Cancel")
        said = gr.Textbox(label="Result", interactive=False, elem_id="said")
        slider = gr.ImageSlider(label="Left: bicubic; right: the network", elem_id="compared")
        save = gr.DownloadButton("Download", interactive=False, elem_id="download")
        outputs = [slider, save, said]
        start.click(begin, None, outputs, queue=False, show_progress="hidden")
        run = start.click(upscale, [file, net, size], outputs, show_progress_on=slider)
        run.failure(lambda: "There is no result.", None, said)
        stop.click(cancel, queue=False, cancels=run)
        page.load(lambda: gr.Dropdown(choices=networks()), None, net)
        page.unload(cancel)
    return page


@contextmanager
def past_proxies() -> Iterator[None]:
    """While gradio asks its own page whether it is there; downloads take the system's proxy again.

    Raises:
        UsageError: it is not; gradio raises a dozen types.
    """
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    for name, others in before.items():
        os.environ[name] = ",".join(filter(None, (others, "127.0.0.1,localhost")))
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise UsageError(f"the page does not open: {str(error).splitlines()[0]}") from error
    finally:
        for name, others in before.items():
            # On Windows both names are one variable.
            os.environ.pop(name, None) if others is None else os.environ.update({name: others})


def main() -> None:
    arguments = parse_args()
    silence_pillow()
    if arguments.weights:
        read_generator(arguments.weights)
    options: dict = {"share": False, "ssr_mode": False, "quiet": True, "prevent_thread_lock": True}
    with TemporaryDirectory(prefix="upscaled-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(arguments.weights or networks()[0])
        with past_proxies():
            _, url, _ = page.launch(server_name="127.0.0.1", server_port=arguments.port, **options)
        print(f"The page is at {url} and ends with Ctrl-C.")
        page.block_thread()


if __name__ == "__main__":
    hear_kill()
    try:
        main()
    except (OSError, UsageError, WeightsError) as error:
        print(printable(f"app.py: {error}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("app.py: interrupted")
