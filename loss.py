"""The losses of ESRGAN (Wang et al., 2018, sections 3.2 and 3.3).

    L_G = perceptual * L_percep + adversarial * L_G^Ra + pixel * L_1        (equation 3)

The PSNR phase uses the pixel term alone; the weights live in config.py. SRGAN's losses (Ledig et
al., 2017) are here too: mean squared distances, and the standard adversarial loss, which is also
Real-ESRGAN's (Wang et al., 2021). Feature matching is pix2pixHD's (Wang et al., 2018), the
logarithm of each image's error HINet's (Chen et al., 2021).

Logits are one per image, (N, 1), or one per pixel, (N, 1, H, W); the means are over all of them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from formats.published import DOWNLOAD_ERRORS, is_watched, patience
from formats.tensors import UnreadableError, load_tensors

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VGG19_CONVS_PER_BLOCK = (2, 2, 4, 4, 4)
PAPERS_LAYERS = {"conv5_4": 1.0}
TINY = 1e-6  # keeps the size of activations that are all 0 from being divided by


class Discriminator(Protocol):
    """What the losses ask of one; model.py has two."""

    def __call__(self, image: Tensor) -> Tensor: ...

    def activations(self, image: Tensor) -> list[Tensor]: ...


class VGGError(ValueError):
    """VGG19 weights that cannot be had; the message says what to do."""


class VGGFeatures(nn.Module):
    """VGG19 up to a convolution: the space in which the perceptual loss compares images.

    Frozen, and in eval mode even while the module that holds it trains.

    Args:
        weights: "imagenet" (torchvision downloads 548 MB once), "random" (seeded, He-initialised:
            random deep features are a usable perceptual loss, Liu et al., CVPR 2021), or the path
            of a torchvision VGG19 state dict (.pth or .safetensors).
        layers: "conv<block>_<number>" -> the weight of its features in the loss.
        before_activation: features before the ReLU (ESRGAN) or after it (SRGAN).
        seed: for "random" only.

    Raises:
        VGGError: unknown layer, or weights that cannot be had.
    """

    def __init__(
        self,
        weights: str = "imagenet",
        layers: Mapping[str, float] = PAPERS_LAYERS,
        before_activation: bool = True,
        seed: int = 0,
    ):
        from torchvision.models import vgg19  # takes seconds, which only this loss is worth

        super().__init__()
        self.layers = dict(layers)
        self.outputs = {conv_index(name) + (not before_activation): name for name in layers}
        with torch.device("meta"):  # the classifier, 86% of VGG19, is never allocated
            features = vgg19(init_weights=False).features[: max(self.outputs) + 1]
        self.features = features.to_empty(device="cpu")
        if weights == "random":
            generator = torch.Generator().manual_seed(seed)
            for module in self.features:
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, generator=generator)
                    nn.init.zeros_(module.get_parameter("bias"))
        else:
            self.features.load_state_dict(vgg19_state_dict(weights, features.state_dict()))
        if before_activation:
            for end in sorted(self.outputs)[:-1]:
                self.features[end + 1] = nn.ReLU()  # torchvision's overwrites what it is given

        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "VGGFeatures":
        return super().train(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """RGB in [0, 1], (N, 3, H, W), to the features of each layer, from one pass.

        They are (N, C, h, w); at conv5_4 C is 512, h H / 16 and w W / 16.
        """
        x, features = (image - self.mean) / self.std, {}
        for i, module in enumerate(self.features):
            x = module(x)
            if i in self.outputs:
                features[self.outputs[i]] = x
        return features


def conv_index(layer: str) -> int:
    """Where `conv<block>_<number>` stands in torchvision's `vgg19().features`."""
    index = 0
    for block, convs in enumerate(VGG19_CONVS_PER_BLOCK, start=1):
        for number in range(1, convs + 1):
            if layer == f"conv{block}_{number}":
                return index
            index += 2  # the convolution and its ReLU
        index += 1  # the pooling that closes the block
    raise VGGError(f"vgg_layer is {layer!r}: VGG19 has conv1_1 to conv5_4")


def vgg19_state_dict(weights: str, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The wanted tensors of a torchvision VGG19's `features`, from torchvision or from a file."""
    if weights == "imagenet":
        from torchvision.models import VGG19_Weights

        published = VGG19_Weights.IMAGENET1K_V1
        try:
            with patience():
                state = published.get_state_dict(progress=is_watched(), check_hash=True)
        except DOWNLOAD_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise VGGError(
                f"the VGG19 ImageNet weights could not be downloaded ({reason}).\n"
                "Run again with a network, or fetch "
                f"{published.url} elsewhere and pass "
                "--vgg-weights FILE, or pass --vgg-weights random (a usable, weaker loss)."
            ) from error
    else:
        state = read_state_dict(weights)
    for name, tensor in wanted.items():
        found = state.get(f"features.{name}") if isinstance(state, dict) else None
        if not isinstance(found, Tensor) or found.shape != tensor.shape:
            raise VGGError(
                f"{weights} is not a torchvision VGG19: it has no fitting features.{name} "
                "(vgg_weights takes imagenet, random, or such a file)"
            )
    return {name: state[f"features.{name}"] for name in wanted}


def read_state_dict(path: str) -> object:
    if not Path(path).is_file():
        raise VGGError(f"vgg_weights is {path!r}: no such file; or use imagenet, or random")
    try:
        return load_tensors(path)[0]
    except UnreadableError as error:
        raise VGGError(f"vgg_weights: {path} cannot be read as weights ({error})") from error


def relativistic_generator_loss(d_real: Tensor, d_fake: Tensor) -> Tensor:
    """L_G^Ra, equation 2, from logits: fake should look more real than the average real.

    The reference implementation halves this sum; the paper does not, and neither do we.
    """
    real, fake = relativistic_logits(d_real, d_fake)
    return bce(real, 0.0) + bce(fake, 1.0)


def relativistic_discriminator_loss(d_real: Tensor, d_fake: Tensor) -> Tensor:
    """L_D^Ra, equation 1, from logits; the mirror image of the generator's."""
    real, fake = relativistic_logits(d_real, d_fake)
    return bce(real, 1.0) + bce(fake, 0.0)


def standard_generator_loss(d_fake: Tensor) -> Tensor:
    """-log D(fake), from logits: SRGAN's adversarial loss (Ledig et al., 2017, equation 6)."""
    return bce(d_fake.float(), 1.0)


def standard_discriminator_loss(d_real: Tensor, d_fake: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(fake)), from logits: SRGAN's discriminator (equation 2)."""
    return bce(d_real.float(), 1.0) + bce(d_fake.float(), 0.0)


def relativistic_logits(d_real: Tensor, d_fake: Tensor) -> tuple[Tensor, Tensor]:
    """C(x) - E[C(other kind)], in fp32: bf16's 8 bits would drown the differences."""
    d_real, d_fake = d_real.float(), d_fake.float()
    return d_real - d_fake.mean(), d_fake - d_real.mean()


def bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def generator_loss(
    fake: Tensor,
    target: Tensor,
    real: Tensor | None = None,
    *,
    pixel: float,
    log_mse: float = 0.0,
    perceptual: float = 0.0,
    adversarial: float = 0.0,
    feature_matching: float = 0.0,
    vgg: VGGFeatures | None = None,
    net_d: Discriminator | None = None,
    relativistic: bool = True,
    distance: Callable[[Tensor, Tensor], Tensor] = F.l1_loss,
) -> dict[str, Tensor]:
    """The weighted terms of L_G (equation 3); their sum is what the generator minimises.

    Args:
        fake: what the generator made, RGB in [0, 1], (N, 3, H, W).
        target: what pixels and features are compared with.
        real: what the discriminator compares with; none given: the target.
        pixel, log_mse, perceptual, adversarial, feature_matching: weights; a term of weight 0 is
            neither computed nor listed.
        vgg: needed where perceptual > 0.
        net_d: the discriminator, its parameters frozen; needed for the last two.
        relativistic: the adversarial term is ESRGAN's, or else SRGAN's.
        distance: between images and between VGG19's features (the discriminator's are compared by
            L1); SRGAN's is F.mse_loss.

    Returns:
        name -> scalar, weight included.
    """
    terms = {}
    if pixel > 0:
        terms["pixel"] = pixel * distance(fake.float(), target)
    if log_mse > 0:
        terms["log_mse"] = log_mse * log_mse_loss(fake.float(), target)
    if perceptual > 0:
        assert vgg is not None, "a perceptual loss needs vgg"
        terms["perceptual"] = perceptual * perceptual_loss(vgg, fake, target, distance)
    if adversarial > 0:
        assert net_d is not None, "an adversarial loss needs net_d"
        terms["adversarial"] = adversarial * adversarial_loss(
            net_d, fake, target if real is None else real, relativistic
        )
    if feature_matching > 0:
        assert net_d is not None, "feature matching needs net_d"
        terms["feature_matching"] = feature_matching * feature_matching_loss(net_d, fake, target)
    return terms


def log_mse_loss(fake: Tensor, target: Tensor) -> Tensor:
    """Mean of log(1 + MSE / 1e-5) over the images, each with its own: the MSE of Y (BT.601), on
    which networks are compared, and a quarter of RGB's, so that colours are learned, too.

    Minus the mean PSNR but for a factor and an offset: HINet's PSNR loss (Chen et al., 2021, arXiv
    2105.06086), shifted so that 0 is perfect; it flattens out above some 50 dB. A mean of MSEs is
    mostly that of the images that are hardest to restore; here each counts alike.
    """
    error = fake - target
    red, green, blue = error.unbind(1)
    luma = (65.481 * red + 128.553 * green + 24.966 * blue) / 255
    squared_errors = luma.square().flatten(1).mean(1) + error.square().flatten(1).mean(1) / 4
    return torch.log1p(squared_errors / 1e-5).mean()


def perceptual_loss(
    vgg: VGGFeatures, fake: Tensor, target: Tensor, distance: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The weighted sum of the layers' distances; only `fake` gets a gradient."""
    with torch.no_grad():
        wanted = vgg(target)
    made = vgg(fake)
    distances = [
        weight * distance(made[layer].float(), wanted[layer].float())
        for layer, weight in vgg.layers.items()
    ]
    return torch.stack(distances).sum()


def adversarial_loss(
    net_d: Discriminator, fake: Tensor, real: Tensor, relativistic: bool
) -> Tensor:
    """The generator's, ESRGAN's or SRGAN's; only `fake` gets a gradient."""
    if not relativistic:
        return standard_generator_loss(net_d(fake))
    with torch.no_grad():
        d_real = net_d(real)
    return relativistic_generator_loss(d_real, net_d(fake))


def feature_matching_loss(net_d: Discriminator, fake: Tensor, target: Tensor) -> Tensor:
    """Mean distance of the discriminator's activations, each relative to its mean size.

    Feature matching as pix2pixHD has it (Wang et al., 2018, arXiv 1711.11585, equation 4), but for
    the division: it keeps the weight's meaning while the discriminator grows. Only `fake` gets a
    gradient.
    """
    with torch.no_grad():
        wanted = [activation.float() for activation in net_d.activations(target)]
    distances = [
        F.l1_loss(made.float(), original) / original.abs().mean().clamp_min(TINY)
        for made, original in zip(net_d.activations(fake), wanted, strict=True)
    ]
    return torch.stack(distances).mean()
