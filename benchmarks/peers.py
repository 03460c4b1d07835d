"""What people run instead of test.py on a CPU: the program of each engine, as its users write it.

    python benchmarks/peers.py ENGINE MODEL FOLDER OUT [--tile 512]

ENGINE is official (the ESRGAN repository's way: eager torch in fp32), onnxruntime, openvino or
ncnn; MODEL is what it reads. Tiles are Real-ESRGAN's, with 10 pixels around each. This is for
benchmarks/commands.py, and imports nothing of this project.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

SCALE, TILE_PAD = 4, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tile", type=int, default=0, help="its side; 0: the whole image")
    arguments = parser.parse_args()
    network = ENGINES[arguments.engine](arguments.model)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(arguments.folder.iterdir()):
        image = np.asarray(cv2.imread(str(path)))[..., ::-1].astype(np.float32) / 255
        low_res = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
        high_res = in_tiles(network, low_res, arguments.tile or max(image.shape))
        pixels = (high_res[0].transpose(1, 2, 0)[..., ::-1].clip(0, 1) * 255).round()
        cv2.imwrite(str(arguments.out / path.name), pixels.astype(np.uint8))


def in_tiles(
    network: Callable[[np.ndarray], np.ndarray], low_res: np.ndarray, tile: int
) -> np.ndarray:
    height, width = low_res.shape[2:]
    output = np.empty((1, 3, height * SCALE, width * SCALE), np.float32)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            above, before = max(top - TILE_PAD, 0), max(left - TILE_PAD, 0)
            padded = low_res[:, :, above : bottom + TILE_PAD, before : right + TILE_PAD]
            result = network(np.ascontiguousarray(padded))
            rows = slice((top - above) * SCALE, (bottom - above) * SCALE)
            columns = slice((left - before) * SCALE, (right - before) * SCALE)
            place = np.s_[:, :, top * SCALE : bottom * SCALE, left * SCALE : right * SCALE]
            output[place] = result[:, :, rows, columns]
    return output


def limited_threads() -> int:
    """As many as taskset leaves, which not every engine notices by itself; 0: all."""
    if not hasattr(os, "sched_getaffinity"):  # on Linux alone
        return 0
    left = len(os.sched_getaffinity(0))
    return left if left < (os.cpu_count() or left) else 0


def official(model: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The network of the paper written down plainly, with the weights of a .pth of BasicSR's."""
    import torch
    from torch.nn import functional as F

    weights = torch.load(model)
    blocks = len({name.split(".")[1] for name in weights if name.startswith("body.")})

    def conv(name: str, x):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def lrelu(x):
        return F.leaky_relu(x, 0.2, inplace=True)

    def dense_block(name: str, x):
        seen = [x]
        for i in range(1, 5):
            seen.append(lrelu(conv(f"{name}.conv{i}", torch.cat(seen, 1))))
        return x + 0.2 * conv(f"{name}.conv5", torch.cat(seen, 1))

    @torch.no_grad()
    def network(low_res: np.ndarray) -> np.ndarray:
        x = shallow = conv("conv_first", torch.from_numpy(low_res))
        for i in range(blocks):
            residual = x
            for j in (1, 2, 3):
                residual = dense_block(f"body.{i}.rdb{j}", residual)
            x = x + 0.2 * residual
        x = shallow + conv("conv_body", x)
        for name in ("conv_up1", "conv_up2"):
            x = lrelu(conv(name, F.interpolate(x, scale_factor=2, mode="nearest")))
        return conv("conv_last", lrelu(conv("conv_hr", x))).numpy()

    return network


def onnxruntime(model: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = limited_threads()
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    name = session.get_inputs()[0].name
    return lambda low_res: session.run(None, {name: low_res})[0]


def openvino(model: Path) -> Callable[[np.ndarray], np.ndarray]:
    """In the precision that it takes by itself: bf16 where the hardware has it."""
    import openvino

    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": limited_threads()}
    compiled = openvino.compile_model(model, "CPU", options)
    return lambda low_res: compiled(low_res)[0]


def ncnn(model: Path) -> Callable[[np.ndarray], np.ndarray]:
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = limited_threads() or net.opt.num_threads
    net.load_param(str(model))
    net.load_model(str(model.with_suffix(".bin")))

    def network(low_res: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(low_res[0]))
        return np.array(extractor.extract("output")[1])[None]

    return network


ENGINES = {"official": official, "onnxruntime": onnxruntime, "openvino": openvino, "ncnn": ncnn}

if __name__ == "__main__":
    main()
