"""Images as tensors and back: uint8 or uint16 (H, W, 3), and fp32 planes in [0, 1]."""

import numpy as np
import torch
from torch import Tensor

from images.bands import bands


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) to (1, 3, H, W) fp32 in [0, 1]."""
    planes = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    return planes / np.iinfo(image.dtype).max


def to_image(tensor: Tensor, dtype: np.dtype | type = np.uint8) -> np.ndarray:
    """(3, H, W) in [0, 1], clamped and rounded, to (H, W, 3) uint8 or uint16."""
    top = np.iinfo(dtype).max
    planes = tensor.cpu()
    image = np.empty((*planes.shape[1:], 3), dtype)
    for band in bands(*planes.shape[1:]):
        levels = (planes[:, band].float() * top).round().clamp(0, top)
        image[band] = levels.permute(1, 2, 0).numpy()
    return image
