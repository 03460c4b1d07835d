"""A training step beside the same step written out in plain torch, and what settings do to it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import train
from config import parse_args
from dataset import Crops
from training.ranks import Ranks
from upscaling.devices import choose_precision, place

TINY = [
    *("--features", "4", "--blocks", "1", "--growth", "4", "--psnr.steps", "3"),
    *("--vgg-weights", "random", "--vgg-layer", "conv1_2:0.3,conv2_1:0.7"),
    *("--precision", "fp32", "--device", "cpu", "--betas", "0.6", "0.9", "--ema-decay", "0.8"),
    *("--accumulate", "2", "--psnr.pixel", "3", "--gan.clip-grad-norm", "0.01"),
    *("--gan.pixel", "0.3", "--gan.perceptual", "0.7", "--gan.adversarial", "0.2"),
    *("--gan.feature-matching", "0.4"),
]
LR = 0.01
CPU = torch.device("cpu")


class Judge(nn.Module):
    """A discriminator of two layers, whose logits are one per pixel."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, stride=2)
        self.last = nn.Conv2d(5, 1, 3, bias=False)  # to the relativistic losses it is nothing

    def activations(self, image: Tensor) -> list[Tensor]:
        return [F.leaky_relu(self.first(image), 0.2)]

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.activations(image)[0])


@pytest.fixture
def learn(monkeypatch):
    """Makes the Learner of a phase, with a small discriminator."""
    monkeypatch.setattr(train, "build_discriminator", lambda config, phase: Judge())

    def making(*flags, phase="gan", device=CPU):
        config = parse_args([*TINY, *flags])
        torch.manual_seed(0)
        generator = place(train.build_generator(config), device)
        vgg = train.load_vgg(config, [phase], device)
        dtype = choose_precision(config.precision, device)
        return train.Learner(config, phase, generator, vgg, dtype, Ranks())

    return making


def draw_parts(seed):
    """Two parts of a batch; the target is another image than the one D sees."""
    random = torch.Generator().manual_seed(seed)

    def images(side):
        return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=random)

    return [Crops(images(4), images(16), images(16)) for _ in range(2)]


class Plain:
    """The same networks, and the paper's equations without any of the repository's functions."""

    def __init__(self, learner, relativistic=True, squared=False):
        self.net_g, self.net_d = copy.deepcopy(learner.net_g), copy.deepcopy(learner.net_d)
        self.average = {name: p.detach().clone() for name, p in self.net_g.named_parameters()}
        self.vgg, self.relativistic = learner.vgg, relativistic
        self.distance = (lambda a, b: ((a - b) ** 2).mean()) if squared else self.absolute
        nets = [net for net in (self.net_g, self.net_d) if net]
        self.adams = [torch.optim.Adam(net.parameters(), LR, (0.6, 0.9)) for net in nets]

    @staticmethod
    def absolute(a, b):
        return (a - b).abs().mean()

    def judged(self, d_real, d_fake):
        """Minus the logarithms of two probabilities: real called real, fake called fake."""
        if self.relativistic:
            d_real, d_fake = d_real - d_fake.mean(), d_fake - d_real.mean()
        return F.softplus(-d_real).mean() + F.softplus(d_fake).mean()

    def terms(self, fake, part):
        yield "pixel", 0.3 * self.distance(fake, part.target)
        made, wanted = self.vgg(fake), self.vgg(part.target)
        near = self.distance(made["conv1_2"], wanted["conv1_2"])
        far = self.distance(made["conv2_1"], wanted["conv2_1"])
        yield "perceptual", 0.7 * (0.3 * near + 0.7 * far)
        d_fake = self.net_d(fake)
        if self.relativistic:
            fooled = self.judged(d_fake, self.net_d(part.high_res))  # each in the other's place
        else:
            fooled = F.softplus(-d_fake).mean()
        yield "adversarial", 0.2 * fooled
        (made,), (wanted,) = self.net_d.activations(fake), self.net_d.activations(part.target)
        matched = (made - wanted).abs().mean() / wanted.detach().abs().mean()
        yield "feature_matching", 0.4 * matched

    def update(self, number, loss):
        """Clip and step one of the networks; returns its gradient's norm before clipping."""
        net = (self.net_g, self.net_d)[number]
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        norm = torch.stack([g.norm() for g in gradients]).norm()
        for p, gradient in zip(net.parameters(), gradients, strict=True):
            p.grad = gradient * min(1, 0.01 / norm.item())
        self.adams[number].step()
        return norm

    def gan_step(self, parts, number):
        parts = [Crops(*(images.float() / 255 for images in part)) for part in parts]
        fakes = [self.net_g(part.low_res) for part in parts]
        by_part = [dict(self.terms(f, p)) for f, p in zip(fakes, parts, strict=True)]
        values = {name: sum(terms[name] for terms in by_part) / 2 for name in by_part[0]}
        values["generator gradient"] = self.update(0, sum(values.values()))
        judged = [
            self.judged(self.net_d(part.high_res), self.net_d(fake.detach()))
            for part, fake in zip(parts, fakes, strict=True)
        ]
        values["discriminator"] = sum(judged) / 2
        values["discriminator gradient"] = self.update(1, values["discriminator"])
        # Step `number` of the phase is 3 more of the run, for which its average is young.
        decay = min(0.8, (3 + number) / (13 + number))
        for name, p in self.net_g.named_parameters():
            self.average[name] = decay * self.average[name] + (1 - decay) * p.detach()
        return values


@pytest.mark.parametrize("relativistic", [True, False])
@pytest.mark.parametrize("squared", [True, False])
def test_a_gan_step_is_the_papers(learn, relativistic, squared):
    learner = learn("--relativistic", str(relativistic), "--squared-error", str(squared))
    plain = Plain(learner, relativistic, squared)
    for number in (1, 2, 3):
        parts = draw_parts(number)
        ours, theirs = learner.step(parts, LR), plain.gan_step(parts, number)
        assert theirs["generator gradient"] > 0.01 < theirs["discriminator gradient"]  # clipped
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value.detach(), rtol=1e-3, atol=1e-6)
    # A tenth of a step: where a gradient is next to nothing, Adam's step is its rounding error's.
    for ours, theirs in ((learner.net_g, plain.net_g), (learner.net_d, plain.net_d)):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=LR / 10)
    torch.testing.assert_close(learner.ema.state_dict(), plain.average, rtol=0, atol=LR / 10)
    assert learner.at.step == 3 and learner.at.run_step == 6


@pytest.mark.parametrize("squared", [True, False])
def test_a_psnr_step_compares_pixels_alone(learn, squared):
    learner = learn("--squared-error", str(squared), phase="psnr")
    net = copy.deepcopy(learner.net_g)
    adam = torch.optim.Adam(net.parameters(), LR, (0.6, 0.9))
    for number in (1, 2, 3):
        parts = draw_parts(number)
        values = learner.step(parts, LR)
        images = [torch.cat(both).float() / 255 for both in zip(*parts, strict=True)]
        low_res, _, target = images
        difference = net(low_res) - target
        loss = 3 * (difference**2 if squared else difference.abs()).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert values.keys() == {"pixel", "generator gradient"}
        torch.testing.assert_close(values["pixel"], loss.detach())
    torch.testing.assert_close(learner.net_g.state_dict(), net.state_dict(), rtol=0, atol=LR / 10)


def test_a_psnr_step_lowers_the_logarithm_of_each_images_error(learn):
    learner = learn("--psnr.pixel", "0", "--psnr.log-mse", "0.5", phase="psnr")
    net = copy.deepcopy(learner.net_g)
    parts = draw_parts(1)
    values = learner.step(parts, LR)
    low_res, _, target = [torch.cat(both).double() / 255 for both in zip(*parts, strict=True)]
    error = net.double()(low_res) - target
    luma = torch.tensor([65.481, 128.553, 24.966]).double().view(3, 1, 1) / 255  # of BT.601
    errors = (error * luma).sum(1).square().mean((1, 2)) + (error**2).mean((1, 2, 3)) / 4
    loss = 0.5 * torch.log(1 + errors / 1e-5).mean()
    torch.testing.assert_close(values["log_mse"], loss.detach().float())
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().float()
    torch.testing.assert_close(values["generator gradient"], norm, rtol=1e-3, atol=0)
    assert values.keys() == {"log_mse", "generator gradient"}


def test_random_networks_are_of_the_runs_seed(learn):
    """The discriminator and VGG, however many numbers were drawn before."""
    learner = learn("--seed", "3")
    torch.manual_seed(3)
    torch.testing.assert_close(learner.net_d.state_dict(), Judge().state_dict(), rtol=0, atol=0)
    own = torch.Generator().manual_seed(3)
    weight = nn.init.kaiming_normal_(torch.empty(64, 3, 3, 3), generator=own)
    torch.testing.assert_close(learner.vgg.features[0].weight, weight, rtol=0, atol=0)


@pytest.mark.parametrize("before", [True, False])
def test_vgg_compares_the_layers_of_the_settings_before_or_after_activation(before):
    config = parse_args([*TINY, "--vgg-before-activation", str(before)])
    vgg = train.load_vgg(config, ["psnr", "gan"], CPU)
    assert vgg.layers == {"conv1_2": 0.3, "conv2_1": 0.7}
    features = vgg(torch.rand(1, 3, 16, 16))["conv2_1"]
    assert (features < 0).any() == before
    assert train.load_vgg(config, ["psnr"], CPU) is None


def test_convolutions_compute_in_the_precision_of_the_run(learn):
    learner = learn("--precision", "bf16")
    seen = {}
    for name, layer in (
        *(("trunk", learner.net_g.conv_body), ("vgg", learner.vgg.features[2])),
        ("judge", learner.net_d.first),
    ):
        layer.register_forward_hook(
            lambda layer, inputs, made, name=name: seen.setdefault(name, []).append(made.dtype)
        )
    learner.step(draw_parts(0), LR)
    assert seen.keys() == {"trunk", "vgg", "judge"}
    assert all(set(dtypes) == {torch.bfloat16} for dtypes in seen.values())


@pytest.mark.parametrize("wanted", [True, False])
def test_settings_of_memory_and_speed_reach_the_networks(wanted, learn, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda net, **how: compiled.append(net))
    learner = learn("--recompute", str(wanted), "--compile", str(wanted))
    assert learner.net_g.recompute is wanted
    assert compiled == ([learner.net_g, learner.net_d, learner.vgg] if wanted else [])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("phase", ["psnr", "gan"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_of_compiled_networks_are_those_of_others(phase, accumulate, learn):
    flags, device = ("--accumulate", str(accumulate)), torch.device("cuda")
    ours = learn(*flags, "--compile", "true", phase=phase, device=device)
    plain = learn(*flags, phase=phase, device=device)
    for number in range(4):
        parts = draw_parts(number)[:accumulate]
        made, wanted = ours.step(parts, LR), plain.step(parts, LR)
        torch.testing.assert_close(made, wanted, rtol=0.02, atol=1e-4)  # 11 bits: TF32
    torch.testing.assert_close(
        ours.net_g.state_dict(), plain.net_g.state_dict(), rtol=0, atol=LR / 2
    )


def test_the_average_of_a_network_with_batch_norm_keeps_its_statistics(learn):
    """Validation, which runs the average, would otherwise change what is saved."""
    flags = ["--generator", "srresnet", "--batch-norm", "true", "--blocks", "1", "--features", "4"]
    learner = learn(*flags)
    learner.step(draw_parts(0), LR)
    before = copy.deepcopy(learner.ema.state_dict())
    learner.ema(torch.rand(1, 3, 8, 8))
    torch.testing.assert_close(learner.ema.state_dict(), before, rtol=0, atol=0)
    assert learner.net_g.training
