"""Losses against values computed by hand, torchvision's own VGG19, and their gradients."""

import urllib.error

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torchvision.transforms import functional as TF

from loss import (
    VGGError,
    VGGFeatures,
    generator_loss,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
    standard_discriminator_loss,
    standard_generator_loss,
)
from model import RRDBNet, VGGDiscriminator


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
    vgg, net_d = VGGFeatures("random", "conv2_1", before_activation=False), VGGDiscriminator(32)
    weights = dict(pixel=2.0, perceptual=3.0, adversarial=4.0, vgg=vgg, net_d=net_d.eval())
    terms = generator_loss(
        fake, high_res, **weights, relativistic=False, distance=torch.nn.functional.mse_loss
    )
    features = [vgg(image).double().numpy() for image in (fake, high_res)]
    logits = net_d(fake).detach().double().numpy()
    expected = {
        "pixel": 2 * np.mean((fake.double() - high_res.double()).numpy() ** 2),
        "perceptual": 3 * np.mean((features[0] - features[1]) ** 2),
        "adversarial": 4 * -log_sigmoid(logits).mean(),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)


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
        actual = VGGFeatures(vgg19_file, layer, before)(image)
        torch.testing.assert_close(actual, expected(normalised))
    assert (actual.min() < 0) == before


def test_vgg_is_never_trained_and_never_changes_mode():
    vgg = VGGFeatures("random", "conv1_2")
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
    features = [VGGFeatures(file, "conv1_2")(image) for file in (path, vgg19_file)]
    assert torch.equal(*features)


def test_files_that_are_no_vgg19_are_named(tmp_path, malicious_pickle):
    (tmp_path / "text.pth").write_text("<html>")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    bomb, marker = malicious_pickle
    for path in (*(tmp_path / f"{name}.pth" for name in ("none", "text", "other", "list")), bomb):
        with pytest.raises(VGGError, match=path.name):
            VGGFeatures(str(path), "conv1_2")
    assert not marker.exists()
    with pytest.raises(VGGError, match="conv6_1"):
        VGGFeatures("random", "conv6_1")


def test_failed_download_names_the_remedies(monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models.VGG19_Weights, "get_state_dict", fail)
    with pytest.raises(VGGError, match=r"(?s)https://.*--vgg-weights FILE.*--vgg-weights random"):
        VGGFeatures("imagenet")


def test_perceptual_term_is_zero_for_identical_images():
    image = torch.rand(1, 3, 32, 32)
    terms = generator_loss(image, image, pixel=0, perceptual=1, vgg=VGGFeatures("random"))
    assert list(terms) == ["perceptual"] and terms["perceptual"].item() == 0


@pytest.mark.parametrize("term", ["pixel", "perceptual", "adversarial"])
def test_each_term_alone_moves_the_generator_and_nothing_else(term):
    torch.manual_seed(0)
    net_g = RRDBNet(features=4, blocks=1, growth=4)
    net_d = VGGDiscriminator(32).requires_grad_(False)
    vgg = VGGFeatures("random", "conv2_1")
    weights = dict(pixel=0.0, perceptual=0.0, adversarial=0.0) | {term: 1.0}
    fake = net_g(torch.rand(2, 3, 8, 8))
    terms = generator_loss(fake, torch.rand(2, 3, 32, 32), vgg=vgg, net_d=net_d, **weights)
    assert list(terms) == [term]
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in net_g.parameters())
    assert all(p.grad is None for p in (*net_d.parameters(), *vgg.parameters()))


def test_terms_carry_their_weights_and_l1_is_the_mean_absolute_error():
    fake, real = torch.full((1, 3, 4, 4), 0.75), torch.full((1, 3, 4, 4), 0.5)
    assert generator_loss(fake, real, pixel=0.01)["pixel"].item() == pytest.approx(0.0025)
