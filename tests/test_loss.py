"""Losses against values computed by hand, torchvision's own VGG19, and their gradients."""

import http.client
import socket
import urllib.error
from itertools import pairwise

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from skimage.color import rgb2ycbcr
from skimage.metrics import mean_squared_error
from torchvision.transforms import functional as TF

from config import TERMS
from formats.published import PATIENCE
from loss import (
    VGGError,
    VGGFeatures,
    generator_loss,
    log_mse_loss,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
    standard_discriminator_loss,
    standard_generator_loss,
)
from model import RRDBNet, UNetDiscriminator, VGGDiscriminator


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


@pytest.fixture(scope="module")
def vgg19():
    """Torchvision's own, with a classifier of which nothing is read; 86% of the network is one."""
    torch.manual_seed(0)
    with torch.device("meta"):
        net = torchvision.models.vgg19(weights=None, init_weights=False)
    net.classifier = torch.nn.Linear(2, 2, device="meta")
    net.to_empty(device="cpu")
    for parameter in net.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


@pytest.fixture(scope="module")
def vgg19_file(vgg19, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(vgg19.state_dict(), path)
    return str(path)


def test_relativistic_losses_equal_the_papers_equations_in_float64():
    real, fake = np.array([1.5, -0.3, 2.0]), np.array([-1.0, 0.4, 0.1])
    real_than_fake, fake_than_real = real - fake.mean(), fake - real.mean()
    # Equations 1 and 2, with 1 - sigmoid(x) = sigmoid(-x).
    loss_d = -log_sigmoid(real_than_fake).mean() - log_sigmoid(-fake_than_real).mean()
    loss_g = -log_sigmoid(-real_than_fake).mean() - log_sigmoid(fake_than_real).mean()
    logits = [torch.tensor(x, dtype=torch.float32)[:, None] for x in (real, fake)]
    assert relativistic_discriminator_loss(*logits).item() == pytest.approx(loss_d, rel=1e-6)
    assert relativistic_generator_loss(*logits).item() == pytest.approx(loss_g, rel=1e-6)


def test_standard_losses_equal_srgans_equations_in_float64():
    real, fake = np.array([1.5, -0.3, 2.0]), np.array([-1.0, 0.4, 0.1])
    loss_d = -log_sigmoid(real).mean() - log_sigmoid(-fake).mean()
    logits = [torch.tensor(x, dtype=torch.float32)[:, None] for x in (real, fake)]
    assert standard_discriminator_loss(*logits).item() == pytest.approx(loss_d, rel=1e-6)
    assert standard_generator_loss(logits[1]).item() == pytest.approx(
        -log_sigmoid(fake).mean(), rel=1e-6
    )


def test_srgans_generator_loss_is_squared_and_not_relativistic():
    fake, high_res = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vgg, net_d = (
        VGGFeatures("random", {"conv2_1": 1}, before_activation=False),
        VGGDiscriminator(32),
    )
    weights = dict(pixel=2.0, perceptual=3.0, adversarial=4.0, vgg=vgg, net_d=net_d.eval())
    terms = generator_loss(
        fake, high_res, **weights, relativistic=False, distance=torch.nn.functional.mse_loss
    )
    features = [vgg(image)["conv2_1"].double().numpy() for image in (fake, high_res)]
    logits = net_d(fake).detach().double().numpy()
    expected = {
        "pixel": 2 * np.mean((fake.double() - high_res.double()).numpy() ** 2),
        "perceptual": 3 * np.mean((features[0] - features[1]) ** 2),
        "adversarial": 4 * -log_sigmoid(logits).mean(),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)


def test_log_mse_is_psnr_but_for_its_scale():
    """Of images near and far, whose mean MSE would be the far one's; on Y and a bit on RGB."""
    random = np.random.default_rng(0)
    target = random.random((3, 40, 30, 3), dtype=np.float32)
    sizes = np.array([0.05, 0.1, 0.3], np.float32)[:, None, None, None]
    fake = target + sizes * random.standard_normal(target.shape, dtype=np.float32)
    decibels = []
    for a, b in zip(fake, target, strict=True):
        on_y = mean_squared_error(rgb2ycbcr(a)[..., 0], rgb2ycbcr(b)[..., 0]) / 255**2
        decibels.append(-10 * np.log10(on_y + mean_squared_error(a, b) / 4))
    given = (torch.from_numpy(images).permute(0, 3, 1, 2) for images in (fake, target))
    loss = log_mse_loss(*given).item()
    assert 50 - 10 / np.log(10) * loss == pytest.approx(np.mean(decibels), abs=0.05)


def test_log_mse_can_be_learned_from_where_nothing_is_wrong():
    target = torch.rand(2, 3, 8, 8)
    fake = target.clone().requires_grad_()
    loss = generator_loss(fake, target, pixel=0, log_mse=2)["log_mse"]
    loss.backward()
    assert loss.item() == 0 and fake.grad.count_nonzero() == 0
    near = generator_loss(target + 1e-3, target, pixel=0, log_mse=2)["log_mse"]
    on_y = 219 / 255 * 1e-3  # the range of Y is shorter
    mse = on_y**2 + 1e-6 / 4
    assert near.item() == pytest.approx(2 * np.log(1 + mse / 1e-5), rel=1e-3)


def test_relativistic_losses_are_fp32_whatever_the_autocast():
    real, fake = torch.tensor([[8.0], [8.0]]).bfloat16(), torch.tensor([[8.03], [7.0]])
    with torch.autocast("cpu", torch.bfloat16):
        loss = relativistic_generator_loss(real, fake)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, relativistic_generator_loss(real.float(), fake))


@pytest.mark.parametrize(
    "layer, before, index",
    [("conv5_4", True, 34), ("conv5_4", False, 35), ("conv2_2", True, 7), ("conv1_1", True, 0)],
)
def test_features_are_torchvisions(layer, before, index, vgg19, vgg19_file):
    image = torch.rand(2, 3, 48, 48)
    normalised = TF.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        # Before activation: what the last convolution says, not what an in-place ReLU made of it.
        expected = vgg19.features[: index + 1]
        actual = VGGFeatures(vgg19_file, {layer: 1}, before)(image)[layer]
        torch.testing.assert_close(actual, expected(normalised))
    assert (actual.min() < 0) == before


def hooked_features(vgg19, image, indices):
    """What torchvision's own modules gave, caught before the next one could overwrite it."""
    caught, handles = {}, []
    for i in indices:
        hook = lambda module, given, result, i=i: caught.__setitem__(i, result.clone())  # noqa: E731
        handles.append(vgg19.features[i].register_forward_hook(hook))
    vgg19.features(TF.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for handle in handles:
        handle.remove()
    return [caught[i] for i in indices]


LAYERS = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}
INDICES = [2, 7, 16, 25, 34]  # in torchvision's vgg19().features


@pytest.mark.parametrize("before", [True, False])
def test_features_of_several_layers_are_torchvisions(before, vgg19, vgg19_file):
    image = torch.rand(1, 3, 32, 32)
    vgg = VGGFeatures(vgg19_file, dict(reversed(LAYERS.items())), before)
    passes = []
    vgg.features[0].register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        expected = hooked_features(vgg19, image, [i + (not before) for i in INDICES])
        actual = vgg(image)
    torch.testing.assert_close([actual[layer] for layer in LAYERS], expected)
    assert passes == [1]


def test_the_perceptual_loss_is_the_weighted_sum_with_its_gradient(vgg19, vgg19_file):
    images = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fake, target = images[0].requires_grad_(), images[1]
    made, wanted = (hooked_features(vgg19, image, INDICES) for image in (fake, target))
    means = [(a - b).abs().mean() for a, b in zip(made, wanted, strict=True)]
    expected = 3 * sum(weight * mean for weight, mean in zip(LAYERS.values(), means, strict=True))
    vgg = VGGFeatures(vgg19_file, LAYERS)
    actual = generator_loss(fake, target, pixel=0, perceptual=3, vgg=vgg)["perceptual"]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, fake)[0] for loss in (actual, expected)), rtol=1e-4, atol=1e-9
    )


def test_a_single_layer_is_where_vgg19_ends():
    """So that it costs no more than it did: no copy, and nothing behind it."""
    assert len(VGGFeatures("random", {"conv2_2": 1}).features) == 8
    modules = list(VGGFeatures("random", {"conv2_2": 1, "conv1_1": 1}).features)
    relus = [module.inplace for module in modules if isinstance(module, torch.nn.ReLU)]
    assert relus == [False, True, True] and len(modules) == 8


def test_vgg_is_never_trained_and_never_changes_mode():
    vgg = VGGFeatures("random", {"conv1_2": 1})
    holder = torch.nn.Sequential(vgg).train()
    assert holder.training and not any(module.training for module in vgg.modules())
    assert not any(parameter.requires_grad for parameter in vgg.parameters())


def test_random_weights_are_seeded_and_he_initialised():
    a, b, c = (VGGFeatures("random", seed=seed).features[34].weight for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


def test_safetensors_are_read_too(vgg19, vgg19_file, tmp_path):
    path = str(tmp_path / "vgg.safetensors")
    safetensors.torch.save_file(vgg19.state_dict(), path)
    image = torch.rand(1, 3, 16, 16)
    features = [VGGFeatures(file, {"conv1_2": 1})(image)["conv1_2"] for file in (path, vgg19_file)]
    assert torch.equal(*features)


def test_files_that_are_no_vgg19_are_named(tmp_path, malicious_pickle):
    (tmp_path / "text.pth").write_text("<html>")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    bomb, marker = malicious_pickle
    for path in (*(tmp_path / f"{name}.pth" for name in ("none", "text", "other", "list")), bomb):
        with pytest.raises(VGGError, match=path.name):
            VGGFeatures(str(path), {"conv1_2": 1})
    assert not marker.exists()
    with pytest.raises(VGGError, match="conv6_1"):
        VGGFeatures("random", {"conv6_1": 1})


@pytest.mark.parametrize(
    "error, reason",
    [
        (urllib.error.URLError("no network"), "no network"),
        (RuntimeError("invalid hash value"), "invalid hash"),
        (http.client.IncompleteRead(b""), "IncompleteRead"),
    ],
)
def test_failed_download_names_the_remedies(error, reason, monkeypatch):
    def fail(*args, **kwargs):
        assert socket.getdefaulttimeout() == PATIENCE  # a server gone silent is not waited for
        raise error

    monkeypatch.setattr(torchvision.models.VGG19_Weights, "get_state_dict", fail)
    with pytest.raises(
        VGGError, match=rf"(?s){reason}.*https://.*--vgg-weights FILE.*--vgg-weights random"
    ):
        VGGFeatures("imagenet")
    assert socket.getdefaulttimeout() is None


def test_perceptual_term_is_zero_for_identical_images():
    image = torch.rand(1, 3, 32, 32)
    terms = generator_loss(image, image, pixel=0, perceptual=1, vgg=VGGFeatures("random"))
    assert list(terms) == ["perceptual"] and terms["perceptual"].item() == 0


def test_logits_of_pixels_are_judged_like_those_of_images():
    """In float64, from the equations; the means are over all pixels of all images."""
    real, fake = np.random.default_rng(0).normal(size=(2, 2, 1, 4, 6))
    logits = [torch.tensor(x, dtype=torch.float32) for x in (real, fake)]
    real_than_fake, fake_than_real = real - fake.mean(), fake - real.mean()
    expected = {
        relativistic_discriminator_loss: -log_sigmoid(real_than_fake)
        - log_sigmoid(-fake_than_real),
        relativistic_generator_loss: -log_sigmoid(-real_than_fake) - log_sigmoid(fake_than_real),
        standard_discriminator_loss: -log_sigmoid(real) - log_sigmoid(-fake),
    }
    for loss, values in expected.items():
        assert loss(*logits).item() == pytest.approx(values.mean(), rel=1e-6)
    generated = standard_generator_loss(logits[1]).item()
    assert generated == pytest.approx(-log_sigmoid(fake).mean(), rel=1e-6)


@pytest.mark.parametrize("relativistic", [True, False])
def test_pixels_and_features_meet_the_target_and_the_discriminator_the_real_image(relativistic):
    torch.manual_seed(0)
    fake, target, real = torch.rand(3, 2, 3, 16, 16)
    net_d = UNetDiscriminator(4).eval()  # each pass the same
    vgg = VGGFeatures("random", {"conv1_1": 1})
    weights = dict(pixel=1.0, perceptual=1.0, adversarial=1.0, vgg=vgg, net_d=net_d)
    terms = generator_loss(fake, target, real, **weights, relativistic=relativistic)
    torch.testing.assert_close(terms["pixel"], (fake - target).abs().mean())
    features = [vgg(image)["conv1_1"] for image in (fake, target)]
    torch.testing.assert_close(terms["perceptual"], (features[0] - features[1]).abs().mean())
    seen = (net_d(real), net_d(fake)) if relativistic else (net_d(fake),)
    loss = relativistic_generator_loss if relativistic else standard_generator_loss
    torch.testing.assert_close(terms["adversarial"], loss(*seen))


@pytest.mark.parametrize("kind", ["unet", "vgg"])
def test_feature_matching_is_the_relative_distance_of_what_its_convolutions_give(kind):
    """Seen by hooks where LeakyReLU comes in, and summed in float64."""
    torch.manual_seed(0)
    fake, target = torch.rand(2, 2, 3, 32, 32)
    net_d = (UNetDiscriminator(4) if kind == "unet" else VGGDiscriminator(32)).eval()
    if kind == "unet":
        before = [net_d.conv0, net_d.conv1, net_d.conv2, net_d.conv3]
    else:
        layers = list(net_d.features)
        before = [a for a, b in pairwise(layers) if isinstance(b, torch.nn.LeakyReLU)]
        assert len(before) == 10
    seen = []
    for module in before:
        module.register_forward_hook(lambda _, __, output: seen.append(output.detach().clone()))
    net_d(fake), net_d(target)
    seen = [np.where(x > 0, x, 0.2 * x) for x in (x.double().numpy() for x in seen)]
    pairs = zip(seen[: len(before)], seen[len(before) :], strict=True)
    expected = np.mean([abs(made - wanted).mean() / abs(wanted).mean() for made, wanted in pairs])
    terms = generator_loss(fake, target, pixel=0, feature_matching=0.5, net_d=net_d)
    assert terms["feature_matching"].item() == pytest.approx(0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_moves_the_generator_and_nothing_else(term):
    torch.manual_seed(0)
    net_g = RRDBNet(features=4, blocks=1, growth=4)
    net_d = VGGDiscriminator(32).requires_grad_(False)
    vgg = VGGFeatures("random", {"conv2_1": 1})
    weights = {"pixel": 0.0, term: 1.0}
    fake = net_g(torch.rand(2, 3, 8, 8))
    terms = generator_loss(fake, torch.rand(2, 3, 32, 32), vgg=vgg, net_d=net_d, **weights)
    assert list(terms) == [term]
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in net_g.parameters())
    assert all(p.grad is None for p in (*net_d.parameters(), *vgg.parameters()))


def test_terms_carry_their_weights_and_l1_is_the_mean_absolute_error():
    fake, real = torch.full((1, 3, 4, 4), 0.75), torch.full((1, 3, 4, 4), 0.5)
    assert generator_loss(fake, real, pixel=0.01)["pixel"].item() == pytest.approx(0.0025)
