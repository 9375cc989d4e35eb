"""Times as users give them: one for all images or one for each, and of the process or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_universal import BACKBONES, FAMILIES, SIDE, network_of, spec_of
from torch import Tensor

from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import denoising_loss, image_error
from maskdm.diffusion.process import Process
from maskdm.diffusion.schedules import cosine, edm, flow, linear, ve, vp
from maskdm.errors import ArgumentError
from maskdm.models import build
from maskdm.models.inference import for_inference
from maskdm.sampling.guidance import Guidance, estimator
from maskdm.sampling.samplers import Context, get_sampler, integrate, time_of

X = torch.randn(3, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
CALLS: dict[str, Callable[[Denoiser, Tensor | float], object]] = {
    "forward": lambda d, t: d.forward(X, t),
    "estimate": lambda d, t: d.estimate(X, t),
    "loss": lambda d, t: denoising_loss(d, X, t, X),
    "error of the image": lambda d, t: image_error(d, X, t, X),
    "times": lambda d, t: d.times(t, X),
    "process": lambda d, t: d.process.alpha_sigma(torch.as_tensor(t)),
    "guided": lambda d, t: estimator(d, Guidance(2.0), torch.tensor([0, 1, 0]))(X, t),
    "sampler": lambda d, t: integrate(
        get_sampler("ddim"), Context(d.process, d.estimate, lambda: X), X, (t, d.process.clean)
    ),
    "time of a sampler": lambda d, t: time_of(d.process, t),
}


def denoiser(family: str, backbone: str = "uvit") -> Denoiser:
    spec = spec_of(BACKBONES[backbone], FAMILIES[family])
    return build.denoiser(spec, network_of(spec))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("family", "t"),
    [("flow", 500), ("flow", -0.1), ("vp", 1.5), ("vp", float("nan")), ("ddpm", 1000), ("ddpm", 0.5), ("edm", 81.0)],
)
def test_a_time_that_the_process_does_not_have_is_refused(family, t, call):
    with pytest.raises(ArgumentError) as caught:
        CALLS[call](denoiser(family), t)
    assert caught.value.name == "t"
    assert caught.value.got == pytest.approx(t, nan_ok=True)
    assert "times of the process" in caught.value.wanted


@pytest.mark.parametrize("process", [linear(), cosine(), flow(), vp(), ve(), edm(), edm(0.1, 0.7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_all_times_of_a_process_are_taken_also_rounded(process: Process, dtype):
    least, most = process.ends
    if process.timesteps and dtype == torch.bfloat16:
        return  # which has no whole numbers beyond 256
    alpha, sigma = process.alpha_sigma(torch.tensor([process.clean, least, most], dtype=dtype))
    assert alpha.isfinite().all()
    assert sigma.isfinite().all()


def test_one_wrong_time_of_many_is_named():
    with pytest.raises(ArgumentError) as caught:
        denoiser("flow").forward(X, torch.tensor([0.5, 7.0, 0.1]))
    assert (caught.value.name, caught.value.got) == ("t", 7.0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_time_stands_for_all_images(backbone):
    with torch.no_grad():
        of = denoiser("vp", backbone)
        each = torch.full((3,), 0.5)
        wanted = of.forward(X, each)
        assert torch.equal(of.forward(X, 0.5), wanted)
        assert torch.equal(of.forward(X, torch.tensor(0.5)), wanted)
        assert torch.equal(denoising_loss(of, X, 0.5, X), denoising_loss(of, X, each, X))
        assert torch.equal(image_error(of, X, 0.5, X), image_error(of, X, each, X))
        half = for_inference(of.backbone, torch.device("cpu"), "bf16")
        for network in (of.backbone, half):
            out = network(X, each)
            assert torch.equal(network(X, 0.5), out)
            assert torch.equal(network(X, torch.tensor(0.5)), out)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("shape", [(2,), (3, 1), (1,)])
def test_other_shapes_of_times_are_refused(backbone, shape):
    of = denoiser("vp", backbone)
    for call in (of.backbone, of.forward):
        with pytest.raises(ArgumentError) as caught:
            call(X, torch.full(shape, 0.5))
        assert (caught.value.name, caught.value.got) == ("t", shape)


def test_the_last_timestep_is_itself_also_for_images_in_half_precision():
    """999 rounded to bf16 is 1000, which there is not."""
    seen = []

    def backbone(x_t: Tensor, t: Tensor, **condition: object) -> Tensor:
        seen.append(t)
        return torch.zeros_like(x_t)

    of = replace(denoiser("ddpm"), backbone=backbone)
    x_0, eps = of.estimate(X.bfloat16(), 999)
    assert x_0.dtype == eps.dtype == torch.bfloat16
    assert seen[0].tolist() == [999.0] * 3
