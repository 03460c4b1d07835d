"""The networks of ESRGAN (Wang et al., 2018, https://arxiv.org/abs/1809.00219).

RRDBNet             generator: low-resolution image in, high-resolution image out (section 3.1)
SRResNet            the generator that it replaced, of SRGAN (Ledig et al., 2017)
VGGDiscriminator    judges high-resolution patches during the GAN phase
UNetDiscriminator   judges each pixel of them: that of Real-ESRGAN (Wang et al., 2021)

RRDBNet's and UNetDiscriminator's parameters have BasicSR's names, so published weights and other
tools fit as they are.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from layers import (
    RowsConv2d,
    concatenation,
    convolve_enlarged,
    exactly,
    in_bands,
    to_autocast_dtype,
)

SCALES = (1, 2, 3, 4, 8, 16)
RESIDUAL_SCALE = 0.2  # beta of figure 4, so that what each block adds stays small
# The supplement's "smaller initialization", which by its section 2 does more for the training than
# beta; of the residual branches alone, as in the authors' later code (BasicSR).
SMALL_INIT = 0.1


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=1, padding=1)


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each of which sees the outputs of all before it (in figure 4, right).

    Args:
        features: channels that enter and leave.
        growth: channels that each of the first four convolutions adds.
        plus: with the two extra additions of ESRGAN+ (Rakotonirina and Rasoanaivo, 2020).
    """

    def __init__(self, features: int = 64, growth: int = 32, plus: bool = False):
        super().__init__()
        self.conv1 = conv3x3(features, growth)
        self.conv2 = conv3x3(features + 1 * growth, growth)
        self.conv3 = conv3x3(features + 2 * growth, growth)
        self.conv4 = conv3x3(features + 3 * growth, growth)
        self.conv5 = conv3x3(features + 4 * growth, features)
        self.conv1x1 = nn.Conv2d(features, growth, kernel_size=1, bias=False) if plus else None
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            if conv.weight.is_meta:  # without numbers; drawing some would import torch's compiler
                continue
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data.mul_(SMALL_INIT)
            nn.init.zeros_(conv.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        seen = concatenation(x, (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5))
        x1 = self.lrelu(seen.convolve(self.conv1))  # (N, growth, H, W)
        seen.append(x1)
        x2 = self.lrelu(seen.convolve(self.conv2))  # (N, growth, H, W)
        if self.conv1x1 is not None:
            x2 = x2 + self.conv1x1(x)
        seen.append(x2)
        x3 = self.lrelu(seen.convolve(self.conv3))  # (N, growth, H, W)
        seen.append(x3)
        x4 = self.lrelu(seen.convolve(self.conv4))  # (N, growth, H, W)
        if self.conv1x1 is not None:
            x4 = x4 + x2
        seen.append(x4)
        return x + RESIDUAL_SCALE * seen.convolve(self.conv5)  # (N, features, H, W)


class RRDB(nn.Module):
    """Residual-in-residual dense block: three dense blocks inside one skip (figure 4, right)."""

    def __init__(self, features: int = 64, growth: int = 32, plus: bool = False):
        super().__init__()
        self.rdb1 = ResidualDenseBlock(features, growth, plus)
        self.rdb2 = ResidualDenseBlock(features, growth, plus)
        self.rdb3 = ResidualDenseBlock(features, growth, plus)

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(x)))  # (N, features, H, W)


class RRDBNet(nn.Module):
    """ESRGAN's generator: a trunk of RRDBs at low resolution, then nearest-neighbour upsampling.

    Args:
        in_channels, out_channels: 3 for RGB.
        scale: 1, 2, 3, 4, 8 or 16; the output is that many times as wide and as high.
        features: channels of the trunk.
        blocks: number of RRDBs.
        growth: channels each dense convolution adds. Tools that load ESRGAN models assume 32.
        unshuffle: 2 or 4 folds squares of 2x2 or 4x4 pixels into channels before the first
            convolution, which saves time at scales 1 and 2 (Real-ESRGAN's x2 model, 2021).
        plus: the dense blocks are ESRGAN+'s.

    Raises:
        ValueError: a scale that is not listed above, or scale 3 with unshuffle.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        scale: int = 4,
        features: int = 64,
        blocks: int = 23,
        growth: int = 32,
        unshuffle: int = 1,
        plus: bool = False,
    ):
        super().__init__()
        check_scale(scale)
        if scale == 3 and unshuffle != 1:
            raise ValueError(f"unshuffle is {unshuffle}; at scale 3 it can only be 1")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.scale = scale
        self.unshuffle = unshuffle
        self.recompute = False  # blocks run again in the backward pass: less memory, more time
        self.stages = upsampling_stages(scale * unshuffle)

        self.conv_first = conv3x3(in_channels * unshuffle**2, features)
        self.body = nn.Sequential(*(RRDB(features, growth, plus) for _ in range(blocks)))
        self.conv_body = conv3x3(features, features)
        for i in range(len(self.stages)):
            self.add_module(f"conv_up{i + 1}", conv3x3(features, features))
        self.conv_hr = conv3x3(features, features)
        self.conv_last = RowsConv2d(features, out_channels, kernel_size=3, padding=1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, low_res: Tensor) -> Tensor:
        """RGB in [0, 1], (N, in, H, W), to RGB near [0, 1], (N, out, scale * H, scale * W).

        It is not clamped, so that the losses keep a gradient.
        """
        if self.unshuffle == 1:
            return self._upscale(low_res)
        height, width = low_res.shape[-2:]
        # Images of one to three pixels have too little to reflect.
        mode = "reflect" if min(height, width) >= self.unshuffle else "replicate"
        padding = (0, -width % self.unshuffle, 0, -height % self.unshuffle)
        folded = F.pixel_unshuffle(F.pad(low_res, padding, mode), self.unshuffle)
        return self._upscale(folded)[..., : height * self.scale, : width * self.scale]

    def _upscale(self, low_res: Tensor) -> Tensor:
        x = shallow = to_autocast_dtype(exactly(self.conv_first, low_res))  # (N, features, H, W)
        for block in self.body:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        x = shallow + self.conv_body(x)  # (N, features, H, W)
        for i, factor in enumerate(self.stages):
            x = self.lrelu(convolve_enlarged(getattr(self, f"conv_up{i + 1}"), x, factor))
        return in_bands(self._finish, x, reach=2)  # (N, out, scale * H, scale * W)

    def _finish(self, x: Tensor) -> Tensor:
        x = self.lrelu(self.conv_hr(x))  # (N, features, scale * H, scale * W)
        return exactly(self.conv_last, x)  # (N, out, scale * H, scale * W)


class ResidualBlock(nn.Module):
    """Two convolutions with a skip around them (SRGAN's figure 4), batch norm or none."""

    def __init__(self, features: int = 64, batch_norm: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, bias=not batch_norm)
        self.bn1 = nn.BatchNorm2d(features) if batch_norm else nn.Identity()
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=not batch_norm)
        self.bn2 = nn.BatchNorm2d(features) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.prelu(self.bn1(self.conv1(x)))  # (N, features, H, W)
        return x + self.bn2(self.conv2(residual))  # (N, features, H, W)


class SRResNet(nn.Module):
    """SRGAN's generator (Ledig et al., 2017, arXiv 1609.04802, figure 4): the ablation's start.

    Args:
        in_channels, out_channels: 3 for RGB.
        scale: 1, 2, 3, 4, 8 or 16; the output is that many times as wide and as high.
        features: channels of the trunk.
        blocks: number of residual blocks.
        batch_norm: in the trunk, as SRGAN has it; ESRGAN begins by leaving it out.

    Raises:
        ValueError: a scale that is not listed above.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        scale: int = 4,
        features: int = 64,
        blocks: int = 16,
        batch_norm: bool = True,
    ):
        super().__init__()
        check_scale(scale)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.scale = scale
        self.stages = upsampling_stages(scale)

        self.conv_first = nn.Conv2d(in_channels, features, kernel_size=9, padding=4)
        self.prelu_first = nn.PReLU()
        self.body = nn.Sequential(*(ResidualBlock(features, batch_norm) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, padding=1, bias=not batch_norm)
        self.bn_body = nn.BatchNorm2d(features) if batch_norm else nn.Identity()
        for i, factor in enumerate(self.stages, start=1):
            self.add_module(f"conv_up{i}", conv3x3(features, features * factor**2))
            self.add_module(f"prelu_up{i}", nn.PReLU())
        self.conv_last = RowsConv2d(features, out_channels, kernel_size=9, padding=4)

    def forward(self, low_res: Tensor) -> Tensor:
        """RGB in [0, 1], (N, in, H, W), to RGB near [0, 1], (N, out, scale * H, scale * W).

        It is not clamped, so that the losses keep a gradient.
        """
        x = to_autocast_dtype(exactly(self.conv_first, low_res))
        x = shallow = self.prelu_first(x)  # (N, features, H, W)
        x = shallow + self.bn_body(self.conv_body(self.body(x)))  # (N, features, H, W)
        for i, factor in enumerate(self.stages, start=1):
            x = F.pixel_shuffle(getattr(self, f"conv_up{i}")(x), factor)
            x = getattr(self, f"prelu_up{i}")(x)
        return exactly(self.conv_last, x)  # (N, out, scale * H, scale * W)


def check_scale(scale: int) -> None:
    if scale not in SCALES:
        raise ValueError(f"scale is {scale}; the generators know {', '.join(map(str, SCALES))}")


def upsampling_stages(scale: int) -> list[int]:
    """Powers of two are reached in steps of two, each smoothed by a convolution of its own."""
    return [3] if scale == 3 else [2] * int(math.log2(scale))


class VGGDiscriminator(nn.Module):
    """VGG-style discriminator; five halvings, then two linear layers to one logit per patch.

    Args:
        patch_size: height and width of the patches it judges, a multiple of 32
            (128 in the paper, 14,499,401 parameters).

    Raises:
        ValueError: a patch_size that is not a multiple of 32.
    """

    def __init__(self, patch_size: int = 128):
        super().__init__()
        if patch_size <= 0 or patch_size % 32:
            raise ValueError(f"patch_size is {patch_size}; it has to be a multiple of 32")
        self.features = nn.Sequential(
            conv3x3(3, 64),  # the one convolution with a bias: no batch norm follows it
            nn.LeakyReLU(0.2, inplace=True),
            *self._halve(64),
            *self._widen(64, 128),
            *self._halve(128),
            *self._widen(128, 256),
            *self._halve(256),
            *self._widen(256, 512),
            *self._halve(512),
            *self._widen(512, 512),
            *self._halve(512),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(512 * (patch_size // 32) ** 2, 100),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(100, 1),
        )

    @staticmethod
    def _halve(channels: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels, channels, kernel_size=4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.2, inplace=True),
        ]

    @staticmethod
    def _widen(in_channels: int, out_channels: int) -> list[nn.Module]:
        return [
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(0.2, inplace=True),
        ]

    def forward(self, image: Tensor) -> Tensor:
        """RGB in [0, 1], (N, 3, patch_size, patch_size), to logits (N, 1): real is positive."""
        features = self.activations(image)[-1]
        # The losses take differences and logarithms of logits: bf16 would have rounded them away.
        with torch.autocast(image.device.type, enabled=False):
            return self.classifier(features.float())

    def activations(self, image: Tensor) -> list[Tensor]:
        """What each of its convolutions makes of an image, after batch norm and LeakyReLU."""
        activations = []
        for layer in self.features:
            image = layer(image)
            if isinstance(layer, nn.LeakyReLU):
                activations.append(image)
        return activations


class UNetDiscriminator(nn.Module):
    """U-Net with spectral norm: one logit per pixel, so that it also says where an image is wrong.

    Section 3.4 of Real-ESRGAN (Wang et al., 2021, arXiv 2107.10833), as in its published weights.

    Args:
        features: channels at full size; they double with each of the three halvings
            (64 in the paper, 4,376,897 parameters).
    """

    def __init__(self, features: int = 64):
        super().__init__()
        self.conv0 = conv3x3(3, features)
        self.conv1 = SpectralConv2d(1 * features, 2 * features, kernel_size=4, stride=2)
        self.conv2 = SpectralConv2d(2 * features, 4 * features, kernel_size=4, stride=2)
        self.conv3 = SpectralConv2d(4 * features, 8 * features, kernel_size=4, stride=2)
        self.conv4 = SpectralConv2d(8 * features, 4 * features, kernel_size=3)
        self.conv5 = SpectralConv2d(4 * features, 2 * features, kernel_size=3)
        self.conv6 = SpectralConv2d(2 * features, 1 * features, kernel_size=3)
        self.conv7 = SpectralConv2d(features, features, kernel_size=3)
        self.conv8 = SpectralConv2d(features, features, kernel_size=3)
        self.conv9 = conv3x3(features, 1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, image: Tensor) -> Tensor:
        """RGB in [0, 1], (N, 3, H, W), to logits (N, 1, H, W): real is positive.

        H and W are multiples of 8.
        """
        x0, x1, x2, x3 = self.activations(image)
        x4 = self.lrelu(self.conv4(enlarge_bilinear(x3))) + x2
        x5 = self.lrelu(self.conv5(enlarge_bilinear(x4))) + x1
        x6 = self.lrelu(self.conv6(enlarge_bilinear(x5))) + x0  # (N, features, H, W)
        x = self.lrelu(self.conv8(self.lrelu(self.conv7(x6))))
        return exactly(self.conv9, x)  # in fp32, for the losses: see VGGDiscriminator.forward

    def activations(self, image: Tensor) -> list[Tensor]:
        """Of the four convolutions on the way down."""
        x0 = self.lrelu(self.conv0(image))  # (N, features, H, W)
        x1 = self.lrelu(self.conv1(x0))  # (N, 2 * features, H / 2, W / 2)
        x2 = self.lrelu(self.conv2(x1))  # (N, 4 * features, H / 4, W / 4)
        x3 = self.lrelu(self.conv3(x2))  # (N, 8 * features, H / 8, W / 8)
        return [x0, x1, x2, x3]


def enlarge_bilinear(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class SpectralConv2d(nn.Module):
    """A convolution without bias whose kernel, as a matrix, has the spectral norm 1.

    Spectral normalization (Miyato et al., 2018, arXiv 1802.05957, algorithm 1): each pass in
    training mode takes one step of the power iteration. Tensors are called as by
    torch.nn.utils.spectral_norm, which would iterate in autocast's precision on a GPU, and whose
    modules cannot be copied.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        # A random kernel as torch's own convolutions have it.
        self.weight_orig = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False).weight
        self.stride = stride
        self.weight_u: Tensor
        self.weight_v: Tensor
        rows, columns = self.weight_orig.flatten(1).shape
        self.register_buffer("weight_u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(columns), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H / stride, W / stride)."""
        return F.conv2d(x, self.weight_orig / self._norm(), stride=self.stride, padding=1)

    def _norm(self) -> Tensor:
        """The estimate of the largest singular value, of which only the kernel gets a gradient."""
        with torch.autocast(self.weight_orig.device.type, enabled=False):
            matrix = self.weight_orig.flatten(1)
            u, v = self.weight_u, self.weight_v
            if self.training:
                with torch.no_grad():
                    v = F.normalize(matrix.t() @ u, dim=0)
                    u = F.normalize(matrix @ v, dim=0)
                    self.weight_u.copy_(u)  # u and v stay as they are for the way back
                    self.weight_v.copy_(v)
            return u.dot(matrix @ v)
