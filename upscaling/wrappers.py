"""Networks around a network: for other channels than RGB's, and for the mean of 8 flips."""

from typing import Any

from torch import Tensor, nn

from upscaling.tiles import Network

RED, BLUE = 0.299, 0.114  # shares in luma; green has the rest (ITU-R BT.601, section 2.5.1)


class Wrapper(nn.Module):
    """A network around another one, `net`, of its scale."""

    def __init__(self, net: Network):
        super().__init__()
        self.net = net
        self.scale, self.unshuffle = net.scale, getattr(net, "unshuffle", 1)


class PerChannel(Wrapper):
    """A network for grayscale images, which is given each colour as one."""

    def forward(self, low_res: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, scale * H, scale * W)."""
        return self.net(low_res.flatten(0, 1)[:, None]).unflatten(0, low_res.shape[:2])[:, :, 0]


class Recoloured(Wrapper):
    """A network that takes gray and gives colour, or the other way round, between RGB and RGB."""

    def forward(self, low_res: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, scale * H, scale * W)."""
        if self.net.in_channels == 1:
            red, green, blue = low_res.split(1, 1)
            # In this form the luma of gray is that gray to the last bit.
            low_res = green + RED * (red - green) + BLUE * (blue - green)
        high_res = self.net(low_res)
        return high_res.expand(-1, 3, -1, -1)


class Ensemble(Wrapper):
    """The mean of what a network makes of the 8 flips and rotations (Timofte et al., 2016)."""

    def forward(self, low_res: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, scale * H, scale * W)."""
        total: Any = 0
        for quarters in range(4):
            turned = low_res.rot90(quarters, (2, 3))
            both = self.net(turned) + self.net(turned.flip(3)).flip(3)
            total = total + both.rot90(-quarters, (2, 3))
        return total / 8
