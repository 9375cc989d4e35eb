"""The convolutional head of transformers: what it shows of a mask, what it costs, and what weights it passes on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskdm.config.model_config import JiTConfig, UViTConfig
from maskdm.config.process_config import DDPMConfig
from maskdm.diffusion.loss import visible_mean
from maskdm.diffusion.masks import Masking, masking
from maskdm.diffusion.patches import gather, patchify
from maskdm.models import build
from maskdm.models.flops import forward_flops
from maskdm.models.pixel_head import PixelHead
from maskdm.models.spec import ModelSpec
from maskdm.models.transfer import fit
from maskdm.models.weights import Weights

GRID, PATCH = (4, 6), 2
MASKS = {
    "none": masking("none", GRID),
    "patch": masking("patch", GRID, 0.5),
    "block": masking("block", GRID, 0.5, block=2),
    "offset": masking("block", GRID, 0.5, block=2, offset=True),
    "crop": masking("crop", GRID, 0.6),
    "route": masking("route", GRID, 0.5),
}


def spec(
    kind: str = "jit", size: tuple[int, int] = (8, 12), patch_size: int = PATCH, channels: int = 3, **more: object
):
    config = {"jit": JiTConfig, "uvit": UViTConfig}[kind]
    options = {"pixel_head": "conv", "pixel_features": 5, **more}
    model = config(width=16, depth=3, heads=2, patch_size=patch_size, **options)
    return ModelSpec(model=model, process=DDPMConfig(), image_size=size, channels=channels)


def awake(network: nn.Module) -> nn.Module:
    """With weights that are not zero anywhere, so that the output shows what it depends on."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return network


def head() -> PixelHead:
    return awake(PixelHead(width=7, grid=GRID, patch_size=PATCH, channels=3, features=5, layers=3))


def draw(mask: Masking, images: int = 2):
    return mask.draw(images, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["jit", "uvit"])
def test_its_output_is_zero_at_first(kind):
    network = build.backbone(spec(kind))
    x = torch.randn(2, 3, 8, 12)
    out = network(x, torch.tensor([10.0, 500.0]))
    assert torch.equal(out, torch.zeros_like(x))
    out.sum().backward()
    assert network.head.last.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["jit", "uvit"])
@pytest.mark.parametrize("name", MASKS)
def test_nothing_of_masked_patches_is_seen_or_answered(kind, name):
    network = awake(build.backbone(spec(kind)))
    mask = draw(MASKS[name])
    x, t = torch.randn(2, 3, 8, 12), torch.tensor([10.0, 500.0])
    out = network(x, t, mask=mask)
    if mask is None or mask.visible is None:
        assert (patchify(out, PATCH) != 0).any(dim=2).all()
        return
    seen = torch.zeros(2, 24, dtype=torch.bool).scatter(1, mask.visible.flatten(1), True)
    assert torch.equal((patchify(out, PATCH) != 0).any(dim=2), seen)
    pixels = torch.zeros(2, 24, 1).scatter(1, mask.visible.flatten(1)[..., None], 1.0)
    hidden = torch.where(patch_image(pixels) > 0, x, torch.randn_like(x))
    assert torch.equal(network(hidden, t, mask=mask), out)


def patch_image(flags: torch.Tensor) -> torch.Tensor:
    """(B, N, 1) -> (B, 1, H, W)."""
    rows, columns = GRID
    return flags.view(-1, 1, rows, columns).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


@pytest.mark.parametrize("name", ["patch", "block", "offset", "crop"])
def test_visible_patches_are_images_of_their_own(name):
    """Each block, single patch or crop gives what a head that has no other patches makes of it."""
    layer, mask = head(), draw(MASKS[name])
    tokens, x = torch.randn(2, mask.keep.flatten(1).shape[1], 7), torch.randn(2, 3, 8, 12)
    out = patchify(layer(tokens, x, mask), PATCH)
    side = {"patch": (1, 1), "offset": (1, 1), "block": (2, 2), "crop": MASKS["crop"].crop}[name]
    for image in range(2):
        numbers = mask.keep[image].flatten().tolist()
        if name == "block":  # of one block: those with the same place after division
            groups: dict[tuple[int, int], list[int]] = {}
            for number in numbers:
                groups.setdefault((number // 6 // 2, number % 6 // 2), []).append(number)
            pieces = list(groups.values())
        else:
            pieces = [numbers] if name == "crop" else [[number] for number in numbers]
        for piece in pieces:
            alone = PixelHead(width=7, grid=side, patch_size=PATCH, channels=3, features=5, layers=3)
            alone.load_state_dict(layer.state_dict())
            which = torch.tensor([[numbers.index(number) for number in piece]])
            patches = gather(patchify(x[image : image + 1], PATCH), torch.tensor([piece]))
            small = patches.view(1, *side, PATCH, PATCH, 3).permute(0, 5, 1, 3, 2, 4)
            small = small.reshape(1, 3, side[0] * PATCH, side[1] * PATCH)
            wanted = patchify(alone(gather(tokens[image : image + 1], which), small, None), PATCH)
            torch.testing.assert_close(out[image, piece], wanted[0])


@pytest.mark.parametrize("name", MASKS)
def test_an_image_does_not_depend_on_others_of_its_batch(name):
    layer, mask = head(), draw(MASKS[name])
    count = 24 if mask is None or mask.visible is None else mask.keep.flatten(1).shape[1]
    tokens, x = torch.randn(2, count, 7), torch.randn(2, 3, 8, 12)
    both = layer(tokens, x, mask)
    for i in range(2):
        one = layer(tokens[i : i + 1], x[i : i + 1], None if mask is None else mask.rows(slice(i, i + 1)))
        torch.testing.assert_close(both[i : i + 1], one)


def test_it_costs_what_is_visible():
    grid, large = (8, 8), spec(size=(64, 64), patch_size=8, mixer_depth=0)
    plain = spec(size=(64, 64), patch_size=8, pixel_head="none")

    def of_head(mask: Masking) -> int:
        return forward_flops(large, mask) - forward_flops(plain, mask)

    whole = of_head(masking("none", grid))
    assert of_head(masking("crop", grid, 0.75)) == pytest.approx(whole / 4, rel=0.01)
    assert of_head(masking("block", grid, 0.75, block=2)) == pytest.approx(whole / 4, rel=0.10)  # rows in between
    assert of_head(masking("patch", grid, 0.75)) == pytest.approx(whole / 4, rel=0.20)


def state(of: ModelSpec) -> Weights:
    return Weights(of, {}, awake(build.backbone(of)).state_dict())


def test_its_weights_fit_patches_of_another_size():
    """A constant stays one: what the head answers to larger patches of even features is what it answered."""
    old, new = state(spec(size=(8, 8), patch_size=2)), spec(size=(16, 16), patch_size=4)
    network = build.backbone(new)
    fitted, said = fit(network, new, old)
    assert not any(line.startswith("new") for line in said)
    for name in ("head.expand.weight", "head.expand.bias"):
        before, after = old.tensors[name], fitted[name]
        small = before.reshape(2, 2, 5, -1)
        large = after.reshape(4, 4, 5, -1)
        torch.testing.assert_close(large.mean(dim=(0, 1)), small.mean(dim=(0, 1)))
    same, _ = fit(build.backbone(old.spec), old.spec, old)
    assert all(same[name] is old.tensors[name] for name in same if name.startswith("head."))


def test_its_weights_fit_images_of_other_channels():
    old, new = state(spec(channels=1)), spec(channels=3)
    fitted, said = fit(build.backbone(new), new, old)
    assert not any(line.startswith("new") for line in said)
    torch.testing.assert_close(
        fitted["head.inner.0.weight"][:, :3].sum(dim=1), old.tensors["head.inner.0.weight"][:, 0]
    )
    assert torch.equal(fitted["head.inner.0.weight"][:, 3:], old.tensors["head.inner.0.weight"][:, 1:])


def test_it_learns_an_image_by_heart():
    torch.manual_seed(0)
    network = build.backbone(spec(size=(8, 8), patch_size=4, pixel_features=16))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    image, x, t = torch.rand(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.full((4,), 500.0)
    mask = masking("block", (2, 2), 0.5, block=1).draw(4, torch.Generator().manual_seed(0))
    for step in range(250):
        shown = None if step % 2 else mask
        loss = visible_mean((network(x, t, mask=shown) - image) ** 2, shown, 4).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((network(x, t) - image) ** 2).mean() < 0.2 * image.var()
