"""The U-Net: what the method asks of every backbone, and crops that are really smaller images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from maskdm.diffusion.masks import Mask, masking
from maskdm.diffusion.patches import patchify
from maskdm.errors import ArgumentError
from maskdm.models.unet import SIZES, Downsample, SelfAttention, UNet, UNetBlock, Upsample, group_norm

PATCH, CLASSES, IMAGES = 4, 3, 4
CROP = (2, 3)
SIZE = (16, 24)
CORNERS = ((0, 0), (2, 3), (1, 2), (2, 0))
"""Row and column of a crop's first patch, for every image of a batch; on the grid of 4 x 6 patches of 16 x 24 px."""

SETTINGS = [
    {"image_size": (8, 8), "channels": 1, "levels": (1,)},
    {"image_size": (16, 24), "channels": 3, "levels": (1, 2), "classes": CLASSES, "attention_levels": 0},
    {"image_size": (24, 16), "channels": 1, "levels": (1, 2, 2), "classes": CLASSES, "attention_levels": 3},
    {"image_size": (16, 24), "channels": 3, "levels": (2, 1, 3), "depth": 2},
]
KINDS = ["none", "patch", "block", "crop"]
MASKS = KINDS[1:]


def fresh(**settings: object) -> UNet:
    sizes = {"image_size": SIZE, "channels": 3, "patch_size": PATCH, "width": 16, "depth": 1, "heads": 2}
    return UNet(**(sizes | settings))


def awake(**settings: object) -> UNet:
    """A network whose zero weights are random: fresh ones answer zero, whatever is asked, and would pass any test."""
    torch.manual_seed(0)
    network = fresh(**settings)
    for parameter in network.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network


def rectangles(grid: tuple[int, int], crop: tuple[int, int], corners: Sequence[Sequence[int]]) -> Mask:
    """A crop for every image, from the first row and column of every rectangle."""
    numbers = torch.arange(grid[0] * grid[1]).reshape(grid)
    return Mask(torch.stack([numbers[y : y + crop[0], x : x + crop[1]] for y, x in corners]))


def mask_of(kind: str, grid: tuple[int, int]) -> Mask | None:
    if kind == "none":
        return None
    if kind == "crop":
        crop = (max(1, grid[0] // 2), max(1, grid[1] // 2))
        corners = tuple((y % (grid[0] - crop[0] + 1), x % (grid[1] - crop[1] + 1)) for y, x in CORNERS)
        return rectangles(grid, crop, corners)
    return masking(kind, grid, 0.5, block=2).draw(IMAGES, torch.Generator().manual_seed(1))


def pixels_shown(mask: Mask | None, network: UNet, images: int = IMAGES) -> Tensor:
    """(B, 1, H, W) bool, the slow and obvious way."""
    rows, columns = network.grid
    p = network.patch_size
    shown = torch.full((images, 1, rows * p, columns * p), mask is None)
    if mask is not None:
        for image, numbers in zip(shown, mask.keep.flatten(1).tolist(), strict=True):
            for number in numbers:
                y, x = p * (number // columns), p * (number % columns)
                image[:, y : y + p, x : x + p] = True
    return shown


class Case:
    """A network and a batch to ask it."""

    def __init__(self, kind: str = "none", **settings: object) -> None:
        self.network = awake(**settings)
        self.mask = mask_of(kind, self.network.grid)
        height, width = (side * PATCH for side in self.network.grid)
        self.x_t = torch.randn(IMAGES, self.network.channels, height, width)
        self.t = torch.tensor([0, 10, 500, 999])
        classes = self.network.classes
        self.label = torch.arange(IMAGES) % (classes + 1) if classes else None  # the last is "no class"

    def __call__(self) -> Tensor:
        return self.network(self.x_t, self.t, mask=self.mask, label=self.label)

    def gradients(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad((self() ** 2).mean(), list(self.network.parameters()))


def spy(case: Case) -> Tensor:
    """What enters the first convolution."""
    entered: list[Tensor] = []
    handle = case.network.conv_in.register_forward_pre_hook(lambda module, arguments: entered.append(arguments[0]))
    case()
    handle.remove()
    assert len(entered) == 1
    return entered[0]


@pytest.fixture(params=SETTINGS, ids=lambda s: "x".join(map(str, (s["channels"], *s["image_size"], len(s["levels"])))))
def settings(request) -> dict[str, object]:
    return request.param


@pytest.fixture(params=KINDS)
def case(settings, request) -> Case:
    return Case(request.param, **settings)


# --- contract --------------------------------------------------------------------------------------------------------


def test_the_output_is_an_image_that_is_zero_exactly_where_hidden(case):
    out = case()
    assert out.shape == case.x_t.shape
    assert out.dtype == torch.float32
    assert torch.equal(out != 0, pixels_shown(case.mask, case.network).expand_as(out))


def test_every_parameter_has_a_finite_gradient(case):
    for (name, _), gradient in zip(case.network.named_parameters(), case.gradients(), strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_slopes_of_the_output(kind):
    case, step = Case(kind), 1e-6
    case.network.double()
    case.x_t = case.x_t.double()
    directions = [torch.randn_like(parameter) for parameter in case.network.parameters()]
    slope = sum((gradient * way).sum() for gradient, way in zip(case.gradients(), directions, strict=True))
    heights = []
    for shift in (step, -2 * step):
        for parameter, way in zip(case.network.parameters(), directions, strict=True):
            parameter.data.add_(shift * way)
        heights.append((case() ** 2).mean().detach())
    torch.testing.assert_close((heights[0] - heights[1]) / (2 * step), slope, rtol=1e-5, atol=0)


def test_it_runs_in_bfloat16(case):
    full = case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = case()
    assert half.dtype == torch.bfloat16
    assert (half - full).norm() < 0.05 * full.norm()
    half.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in case.network.parameters())


def test_an_image_is_answered_alone(case):
    together = case()
    for i in range(IMAGES):
        one = slice(i, i + 1)
        mask = None if case.mask is None else case.mask.rows(one)
        alone = case.network(
            case.x_t[one], case.t[one], mask=mask, label=None if case.label is None else case.label[one]
        )
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-5)


def test_no_step_depends_on_what_is_in_the_tensors(case):
    """So that nothing waits for the device: tensors of the device "meta" have shapes only."""
    case.network.to("meta")
    case.x_t, case.t = case.x_t.to("meta"), case.t.to("meta")
    case.mask = None if case.mask is None else Mask(case.mask.keep.to("meta"))
    case.label = None if case.label is None else case.label.to("meta")
    out = case()
    assert out.is_meta
    assert out.shape == case.x_t.shape


def test_a_state_gives_the_same_network_back(settings):
    case = Case(**settings)
    other = fresh(**settings)
    other.load_state_dict(case.network.state_dict(), strict=True)
    assert torch.equal(other(case.x_t, case.t, label=case.label), case())


def test_the_state_holds_parameters_alone(settings):
    network = fresh(**settings)
    assert network.state_dict().keys() == {name for name, _ in network.named_parameters()}


def test_the_same_weights_serve_images_of_another_size():
    small, large = awake(classes=CLASSES), fresh(image_size=(32, 8), classes=CLASSES)
    large.load_state_dict(small.state_dict(), strict=True)
    assert large(torch.randn(1, 3, 32, 8), torch.zeros(1)).shape == (1, 3, 32, 8)


def test_no_label_is_the_label_of_no_class():
    case = Case(classes=CLASSES)
    nothing = torch.full((IMAGES,), CLASSES)
    assert torch.equal(case.network(case.x_t, case.t), case.network(case.x_t, case.t, label=nothing))


def test_the_answer_depends_on_time_and_label():
    case = Case(classes=CLASSES)
    for t, label in [(case.t.flip(0), case.label), (case.t, (case.label + 1) % (CLASSES + 1))]:
        out = case.network(case.x_t, t, label=label)
        assert ((out - case()).abs().amax(dim=(1, 2, 3)) > 1e-4).all()


def test_times_may_be_fractions():
    case = Case()
    whole = case()
    case.t = case.t.float()
    assert torch.equal(case(), whole)
    case.t = case.t + 0.5
    assert not torch.equal(case(), whole)


def test_a_fresh_network_answers_zero():
    assert not fresh()(torch.randn(2, 3, *SIZE), torch.zeros(2)).any()


# --- hidden pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, math.nan, math.inf], ids=["noise", "nan", "inf"])
@pytest.mark.parametrize("kind", MASKS)
def test_hidden_pixels_change_no_bit_of_output_or_gradients(kind, value):
    case = Case(kind, classes=CLASSES, attention_levels=2)
    before = case(), *case.gradients()
    shown = pixels_shown(case.mask, case.network)
    other = torch.randn_like(case.x_t) * 100 if value is None else torch.full_like(case.x_t, value)
    case.x_t = torch.where(shown, case.x_t, other)
    assert all(torch.equal(a, b) for a, b in zip(before, (case(), *case.gradients()), strict=True))
    case.x_t = torch.where(shown, case.x_t + 0.1, case.x_t)  # the measure works: what is visible matters
    assert not torch.equal(before[0], case())


@pytest.mark.parametrize("kind", MASKS)
def test_errors_at_hidden_pixels_train_nothing(kind):
    case = Case(kind)
    hidden = ~pixels_shown(case.mask, case.network)
    (case() * hidden * 1e6).sum().backward()
    assert not any(parameter.grad.any() for parameter in case.network.parameters())


@pytest.mark.parametrize("kind", ["patch", "block"])
def test_the_first_convolution_is_told_what_is_hidden(kind):
    case = Case(kind)
    entered = spy(case)
    shown = pixels_shown(case.mask, case.network)
    assert entered.shape == (IMAGES, 6, *SIZE)
    assert torch.equal(entered[:, :3], case.x_t * shown)
    assert torch.equal(entered[:, 3:4], shown.float())


def test_coordinates_run_from_edge_to_edge():
    for y, x in spy(Case("patch"))[:, 4:]:
        torch.testing.assert_close(y, ((torch.arange(16.0) + 0.5) / 8 - 1)[:, None].expand(SIZE))
        torch.testing.assert_close(x, ((torch.arange(24.0) + 0.5) / 12 - 1).expand(SIZE))


def test_pixels_of_a_patch_mask_may_come_in_any_order():
    case = Case("patch")
    out = case()
    case.mask = Mask(case.mask.keep.flip(1))
    assert torch.equal(case(), out)


# --- crops -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def crops() -> Case:
    case = Case("crop", classes=CLASSES)
    case.mask = rectangles(case.network.grid, CROP, CORNERS)
    return case


def windows() -> list[tuple[slice, slice]]:
    """The pixels of `crops`, image by image."""
    return [(slice(PATCH * y, PATCH * y + 8), slice(PATCH * x, PATCH * x + 12)) for y, x in CORNERS]


def test_a_crop_runs_on_nothing_but_the_crop(crops):
    entered, whole = spy(crops), spy(Case())[0]
    assert entered.shape == (IMAGES, 6, 8, 12)
    for i, (y, x) in enumerate(windows()):
        assert torch.equal(entered[i, :3], crops.x_t[i, :, y, x])
        assert torch.equal(entered[i, 3:], whole[3:, y, x])  # all visible, at its place in the image


def test_a_crop_is_answered_as_a_small_image_and_put_back(crops):
    out, entered = crops(), spy(crops)
    condition = crops.network._condition(crops.x_t, crops.t, crops.label)
    for i, (y, x) in enumerate(windows()):
        alone = crops.network._network(entered[i : i + 1], condition[i : i + 1])[0]
        torch.testing.assert_close(out[i, :, y, x], alone, rtol=0, atol=1e-5)


def test_the_same_pixels_elsewhere_are_another_question(crops):
    crops.mask = rectangles(crops.network.grid, CROP, ((0, 0), (2, 3)) * 2)
    crops.x_t, crops.t, crops.label = crops.x_t[:1, :, :8, :12].repeat(IMAGES, 1, 2, 2), crops.t[:1].expand(4), None
    out = crops()
    assert (out[0, :, :8, :12] - out[1, :, 8:, 12:]).abs().max() > 1e-3
    torch.testing.assert_close(out[0], out[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS[1:3], ids=str)
def test_a_crop_of_everything_is_the_whole_image(settings):
    case = Case(**settings)
    whole = case()
    case.mask = rectangles(case.network.grid, case.network.grid, ((0, 0),) * IMAGES)
    assert torch.equal(case(), whole)


def test_the_smallest_crop_is_a_patch():
    case = Case()
    case.mask = rectangles(case.network.grid, (1, 1), CORNERS)
    tokens = patchify(case(), PATCH)
    assert torch.equal(tokens.any(dim=2).nonzero()[:, 1], case.mask.keep.flatten())


def test_a_crop_costs_its_share_and_a_patch_mask_the_whole():
    def flops(mask: Mask | None) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(x_t, t, mask=mask)
        return counter.get_flop_counts()["Global"][torch.ops.aten.convolution]

    network, x_t, t = awake(image_size=(32, 32)), torch.randn(IMAGES, 3, 32, 32), torch.zeros(IMAGES)
    whole = flops(None)
    assert flops(rectangles(network.grid, (4, 4), CORNERS)) == pytest.approx(whole / 4, rel=0.02)
    assert flops(rectangles(network.grid, (2, 8), CORNERS[:1] * IMAGES)) == pytest.approx(whole / 4, rel=0.02)
    assert flops(mask_of("patch", network.grid)) == whole


# --- per-sample gradients (the rules of differentially private training) ---------------------------------------------


def owners(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]


def test_layers_are_plain_and_called_once_with_batches(case):
    calls: Counter[nn.Module] = Counter()

    def check(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        (given,) = arguments
        assert given.shape[0] == IMAGES
        assert given.ndim <= 3 or not isinstance(module, nn.Linear)

    for module in owners(case.network):
        assert isinstance(module, (nn.Linear, nn.Embedding, nn.GroupNorm, nn.Conv2d))
        module.register_forward_pre_hook(check)
    case()
    assert calls == Counter(owners(case.network))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention has no batching rule on CPU
@pytest.mark.parametrize("kind", ["none", "patch", "crop"])
def test_per_sample_gradients_are_those_of_one_image_at_a_time(kind):
    case = Case(kind, classes=CLASSES, levels=(1, 2))
    state = dict(case.network.named_parameters())

    def loss(state: dict[str, Tensor], *row: Tensor | None) -> Tensor:
        x_0, t, keep, label = (None if value is None else value[None] for value in row)
        mask = None if keep is None else Mask(keep)
        out = functional_call(case.network, state, (x_0, t), {"mask": mask, "label": label})
        return (out**2).mean()

    batch = (case.x_t, case.t, None if case.mask is None else case.mask.keep, case.label)
    rows = tuple(None if value is None else 0 for value in batch)
    together = vmap(grad(loss), in_dims=(None, *rows))(state, *batch)
    for i in range(IMAGES):
        alone = torch.autograd.grad(
            loss(state, *(None if value is None else value[i] for value in batch)), list(state.values())
        )
        for name, one in zip(state, alone, strict=True):
            torch.testing.assert_close(together[name][i], one, rtol=0, atol=1e-5)
            assert one.any() or name == "label.weight", name


# --- architecture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attention_levels", "attending"), [(0, 1), (1, 6), (3, 16)])
def test_the_lowest_levels_and_the_middle_attend(attention_levels, attending):
    network = fresh(depth=2, attention_levels=attention_levels)
    blocks = [module for module in network.modules() if isinstance(module, SelfAttention)]
    assert len(blocks) == attending
    lengths: list[int] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda module, arguments: lengths.append(arguments[0][0, 0].numel()))
    network(torch.randn(1, 3, *SIZE), torch.zeros(1))
    assert set(lengths) == {16 * 24 // 4**i for i in range(3)[3 - max(1, attention_levels) :]}


def test_a_level_has_as_many_blocks_as_asked_and_one_more_on_the_way_up():
    network = fresh(depth=2, levels=(1, 2, 3))
    assert [type(block) for block in network.blocks_in] == [
        UNetBlock,
        UNetBlock,
        Downsample,
        UNetBlock,
        UNetBlock,
        Downsample,
        UNetBlock,
        UNetBlock,
    ]
    assert [type(block) for block in network.blocks_out] == [
        *[UNetBlock] * 3,
        Upsample,
        *[UNetBlock] * 3,
        Upsample,
        *[UNetBlock] * 3,
    ]
    assert [block.conv2.out_channels for block in network.blocks_out if isinstance(block, UNetBlock)] == [
        *[48] * 3,
        *[32] * 3,
        *[16] * 3,
    ]


def test_what_leaves_the_way_down_joins_the_way_up_in_reverse():
    case, left, joined = Case(), [], []
    for block in [case.network.conv_in, *case.network.blocks_in]:
        block.register_forward_hook(lambda module, arguments, out: left.append(out))
    for block in case.network.blocks_out:
        if isinstance(block, UNetBlock):
            block.register_forward_pre_hook(lambda module, arguments: joined.append(arguments[0]))
    case()
    assert len(left) == 6
    assert all(torch.equal(x[:, -y.shape[1] :], y) for x, y in zip(joined, reversed(left), strict=True))


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 16), (48, 12), (20, 5), (18, 3), (7, 1), (2, 1)])
def test_groups_divide_the_channels_and_hold_at_least_four(channels, groups):
    assert group_norm(channels).num_groups == groups
    assert group_norm(channels)(torch.randn(2, channels, 2, 2)).shape == (2, channels, 2, 2)


@pytest.mark.parametrize(("name", "millions"), [("S", 7.0), ("B", 27.7), ("L", 82.1)])
def test_sizes_have_known_numbers_of_parameters(name, millions):
    with torch.device("meta"):
        network = UNet(image_size=(64, 64), channels=3, patch_size=4, **SIZES[name])
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1) == millions


def test_tensors_with_a_role_are_what_the_role_says():
    network = fresh(channels=1, classes=CLASSES, levels=(2, 1))
    state, roles = network.state_dict(), {role: name for name, role in UNet.layout.items()}
    assert state[roles["labels"]].shape == (CLASSES + 1, 64)
    assert state[roles["conv_in"]].shape == (16, 1 + 3, 3, 3)
    assert state[roles["conv_out"]].shape == (1, 32, 3, 3)
    assert state[roles["conv_bias"]].shape == (1,)


@pytest.mark.parametrize("changed", [{"channels": 1}, {"classes": 1}, {"classes": 0}, {"image_size": (8, 8)}], ids=str)
def test_nothing_without_a_role_depends_on_the_data(changed):
    there, here = (
        {name: weight.shape for name, weight in fresh(**given).state_dict().items()}
        for given in ({"classes": CLASSES}, {"classes": CLASSES} | changed)
    )
    different = {name for name in there.keys() | here.keys() if there.get(name) != here.get(name)}
    assert different <= UNet.layout.keys()


def test_it_says_what_it_is():
    network = fresh(classes=CLASSES)
    assert (network.grid, network.num_patches, network.patch_size) == ((4, 6), 24, PATCH)
    assert (network.channels, network.classes, network.routes) == (3, CLASSES, False)


# --- construction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "name", "sentence"),
    [
        ({"heads": 3}, "heads", "a divisor of the width, 16"),
        ({"patch_size": 5}, "patch_size", "a divisor of the image size, 16 x 24"),
        ({"patch_size": 2}, "patch_size", "a multiple of 4, .* 3 levels .* at most 2 levels"),
        ({"patch_size": 1, "levels": (1, 1)}, "patch_size", "a multiple of 2, .* at most 1 levels"),
        ({"image_size": (12, 24), "patch_size": 12, "levels": (1,) * 4}, "patch_size", "at most 3 levels"),
        ({"levels": ()}, "levels", r"got \[\], wanted at least one"),
        ({"levels": (1, 0)}, "levels", r"got \[1, 0\]"),
        ({"attention_levels": 4}, "attention_levels", "wanted 0 to 3"),
        ({"attention_levels": -1}, "attention_levels", "wanted 0 to 3"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_by_name(wrong, name, sentence):
    with pytest.raises(ArgumentError, match=sentence) as error:
        fresh(**wrong)
    assert error.value.name == name


def test_it_cannot_route():
    case = Case("patch")
    with pytest.raises(ArgumentError, match=r"mask: .* unet cannot"):
        case.network(case.x_t, case.t, mask=case.mask._replace(routed=True))


def test_a_label_without_classes_is_refused():
    case = Case()
    with pytest.raises(ArgumentError, match="label: this network has no classes"):
        case.network(case.x_t, case.t, label=torch.zeros(IMAGES, dtype=torch.int64))


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "patch", "crop"])
def test_it_learns_eight_pictures_by_heart(kind):
    """Black and white noise: whoever knows no more than one pixel's noisy value is off by 0.64 at this noise level."""
    torch.manual_seed(0)
    network = UNet(image_size=(8, 8), channels=1, patch_size=2, width=16, depth=1, heads=2, levels=(1, 2))
    x_0, t, draws = torch.rand(8, 1, 8, 8).round() * 2 - 1, torch.full((8,), 600), torch.Generator().manual_seed(0)
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=3e-3), []
    for _ in range(160):
        corners = torch.randint(2, (8, 2)).tolist()
        masks = {"crop": rectangles(network.grid, (3, 3), corners), "patch": masking("patch", network.grid, 0.5)}
        mask = masks["patch"].draw(8, draws) if kind == "patch" else masks.get(kind)
        x_t = math.cos(0.3 * math.pi) * x_0 + math.sin(0.3 * math.pi) * torch.randn_like(x_0)
        error = (network(x_t, t, mask=mask) - x_0)[pixels_shown(mask, network, 8)]
        optimizer.zero_grad()
        (error**2).mean().backward()
        optimizer.step()
        losses.append(float((error.detach() ** 2).mean()))
    assert losses[0] == pytest.approx(1)
    assert sum(losses[-20:]) / 20 < 0.5
