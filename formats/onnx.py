"""ONNX, for programs in any language: a generator with dynamic height and width."""

import io
import warnings
from typing import Any

import torch

from formats.layouts import WeightsError


def onnx_program(net: Any, metadata: dict[str, str]) -> bytes:
    """A generator as an ONNX file's content: low_res, (1, channels, H, W), to high_res.

    Both are of the weights' own type: an fp16 network takes and gives fp16.

    Raises:
        WeightsError: the onnx package is not installed.
    """
    try:
        import onnx  # optional: only whoever converts to ONNX needs it
    except ImportError:
        raise WeightsError("writing ONNX needs the onnx package: pip install onnx") from None
    example = torch.zeros(1, net.in_channels, 32, 48)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch 2.6's newer exporter fixes height and width; this one is right from 2.6 to 2.15.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (example.to(net.conv_last.weight),),
            buffer,  # type: ignore[arg-type]  # this exporter takes more than its types say
            input_names=["low_res"],
            output_names=["high_res"],
            dynamic_axes={
                "low_res": {2: "height", 3: "width"},
                "high_res": {2: "high_height", 3: "high_width"},
            },
            opset_version=17,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    return model.SerializeToString()
