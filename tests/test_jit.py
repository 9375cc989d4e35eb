"""JiT: what every backbone promises, its three ways to do less, and its positions."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from maskdm.diffusion.masks import Mask, masking
from maskdm.diffusion.patches import gather, patchify, scatter
from maskdm.errors import ArgumentError
from maskdm.models.jit import SIZES, JiT, JiTBlock, RotaryAttention, SwiGLU, plane_waves, rotate

CLASSES, IMAGES = 3, 4
SMALL = {"width": 24, "depth": 6, "heads": 3, "mlp_ratio": 2.0, "bottleneck": 10, "class_tokens": 2}
CASES = [
    {"image_size": (8, 8), "channels": 3, "patch_size": 2, "classes": CLASSES},
    {"image_size": (8, 24), "channels": 1, "patch_size": 4, "classes": 0},
    {"image_size": (24, 8), "channels": 3, "patch_size": 4, "classes": CLASSES},
    {"image_size": (6, 4), "channels": 1, "patch_size": 1, "classes": CLASSES, "class_tokens": 0},
    {"image_size": (16, 24), "channels": 12, "patch_size": 8, "classes": 0},
]
FULL = CASES[2]
WAYS = ["everything", "masked", "crop", "mixer", "routed"]


class Case:
    """A network that is past its silent beginning, and a batch to ask it."""

    def __init__(self, sizes: dict, way: str = "everything", **more) -> None:
        torch.manual_seed(0)
        self.network = wake(JiT(**(SMALL | {"mixer_depth": 2 if way == "mixer" else 0} | sizes | more)))
        self.patch_size = self.network.patch_size
        H, W = sizes["image_size"]
        kind = {"everything": "none", "crop": "crop"}.get(way, "patch")
        kind = "route" if way == "routed" else kind
        self.masking = masking(kind, self.network.grid, 0.0 if kind == "none" else 0.5)
        self.mask = self.masking.draw(IMAGES, torch.Generator().manual_seed(1))
        self.x_t = torch.randn(IMAGES, sizes["channels"], H, W)
        self.t = torch.tensor([0, 10, 500, 999])
        self.label = torch.arange(IMAGES) % (CLASSES + 1) if self.network.classes else None  # the last is "no class"

    def __call__(self, **other) -> Tensor:
        asked = {"x_t": self.x_t, "t": self.t, "mask": self.mask, "label": self.label} | other
        return self.network(asked.pop("x_t"), asked.pop("t"), **asked)

    @property
    def hidden(self) -> Tensor:
        """1 for every pixel outside the drawn patches, (B, 1, H, W)."""
        shown = torch.zeros(IMAGES, self.network.num_patches).scatter(1, self.mask.keep.flatten(1), 1.0)
        rows, columns = self.network.grid
        p = self.patch_size
        return 1 - shown.view(IMAGES, 1, rows, columns).repeat_interleave(p, 2).repeat_interleave(p, 3)

    def lengths(self) -> list[int]:
        """How many tokens every block is given, mixer blocks first."""
        seen: list[int] = []
        hooks = [
            block.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[1]))
            for block in self.network.modules()
            if isinstance(block, JiTBlock)
        ]
        self()
        for hook in hooks:
            hook.remove()
        return seen


def wake(network: JiT) -> JiT:
    """Fresh gates and heads are zero, fresh attention nearly even: both would hide errors."""
    for weight in network.parameters():
        if not weight.any():
            weight.data.normal_(std=0.2)
        elif weight.ndim == 1:
            weight.data.mul_(1 + 0.3 * torch.randn_like(weight))
    for name in ("label", "class_token"):
        if getattr(network, name) is not None:
            getattr(network, name).weight.data.mul_(20)
    return network


def named(sizes: dict) -> str:
    H, W = sizes["image_size"]
    return f"{sizes['channels']}x{H}x{W}-{sizes['patch_size']}px-{sizes['classes']}-{sizes.get('class_tokens', 2)}"


@pytest.fixture(params=CASES, ids=named)
def sizes(request) -> dict:
    return request.param


@pytest.fixture(params=WAYS)
def case(sizes, request) -> Case:
    return Case(sizes, request.param)


# --- contract --------------------------------------------------------------------------------------------------------


def test_the_output_is_an_image_that_is_zero_where_hidden(case):
    out = case()
    assert out.shape == case.x_t.shape
    assert out.dtype == torch.float32
    visible = None if case.mask is None else case.mask.visible
    tokens = patchify(out, case.patch_size)
    shown = gather(tokens, visible)
    assert (shown != 0).all()
    assert torch.equal(tokens, scatter(shown, visible, case.network.num_patches))


def test_every_parameter_has_a_finite_gradient(case):
    case().square().mean().backward()
    for name, weight in case.network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name
    if case.network.label is not None:
        assert case.network.label.weight.grad.any(dim=1).all()  # every class, and none


def test_it_runs_in_bfloat16(case):
    full = case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = case()
    assert half.dtype == torch.bfloat16
    assert (half - full).norm() < 0.03 * full.norm()
    half.float().square().mean().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in case.network.parameters())


def test_an_image_is_answered_alone(case):
    together = case()
    for i in range(IMAGES):
        rows = {key: getattr(case, key) for key in ("x_t", "t", "label")}
        one = {key: value[i : i + 1] for key, value in rows.items() if value is not None}
        alone = case(**one, mask=None if case.mask is None else case.mask.rows(slice(i, i + 1)))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-4)


def test_all_patches_in_order_is_everything(sizes):
    case = Case(sizes)
    every = torch.arange(case.network.num_patches).repeat(IMAGES, 1)
    torch.testing.assert_close(case(mask=Mask(every)), case(), rtol=0, atol=1e-4)
    torch.testing.assert_close(case(mask=Mask(every.view(IMAGES, *case.network.grid))), case(), rtol=0, atol=1e-4)
    torch.testing.assert_close(case(mask=Mask(every, routed=True)), case(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("routed", [False, True])
def test_a_rectangle_is_its_patches_in_a_row(sizes, routed):
    case = Case(sizes, "crop")
    rectangle = case.mask.keep
    assert rectangle.ndim == 3
    assert torch.equal(case(mask=Mask(rectangle, routed)), case(mask=Mask(rectangle.flatten(1), routed)))


def test_whole_numbers_of_time_are_times():
    case = Case(FULL)
    assert torch.equal(case(t=case.t.float()), case())


def test_the_answer_depends_on_time_and_label():
    case = Case(FULL)
    for other in ({"t": case.t.flip(0)}, {"t": case.t + 1.5}, {"label": (case.label + 1) % (CLASSES + 1)}):
        assert ((case(**other) - case()).abs().amax(dim=(1, 2, 3)) > 1e-4).all()


@pytest.mark.parametrize("class_tokens", [0, 2])
def test_no_label_is_the_label_of_no_class(class_tokens):
    case = Case(FULL, class_tokens=class_tokens)
    assert torch.equal(case(label=None), case(label=torch.full((IMAGES,), CLASSES)))
    assert not torch.equal(case(label=None), case())


def test_a_fresh_network_answers_zero_and_passes_tokens_on():
    network = JiT(**SMALL, **FULL)
    out: list[tuple[Tensor, Tensor]] = []
    network.blocks[0].register_forward_hook(lambda module, arguments, result: out.append((arguments[0], result)))
    assert not network(torch.randn(2, 3, 24, 8), torch.tensor([1, 2])).any()
    assert torch.equal(*out[0])


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_few_blocks_are_a_network(depth):
    case = Case(FULL, depth=depth)
    assert case().isfinite().all()
    assert case(mask=Mask(torch.tensor([[5]] * IMAGES))).isfinite().all()


# --- hidden patches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["masked", "crop"])
@pytest.mark.parametrize("content", [0.0, 1e30, math.nan, math.inf])
def test_hidden_pixels_change_no_bit_of_output_or_gradient(sizes, way, content):
    answers = []
    for fill in (None, content):
        case = Case(sizes, way)
        if fill is not None:
            case.x_t = torch.where(case.hidden > 0, fill, case.x_t)
        case.x_t.requires_grad_()
        out = case()
        (out - 1).square().sum().backward()
        answers.append([out, case.x_t.grad, *(weight.grad for weight in case.network.parameters())])
    assert case.hidden.any()
    assert answers[0][0].any()
    assert answers[0][0].isfinite().all()
    for before, after in zip(*answers, strict=True):
        assert torch.equal(before, after)


def test_hidden_patches_never_enter_the_first_layer(sizes):
    case, entered = Case(sizes, "masked"), []
    case.network.embed.register_forward_pre_hook(lambda module, arguments: entered.append(arguments[0]))
    case()
    assert len(entered) == 1
    assert torch.equal(entered[0], gather(patchify(case.x_t, case.patch_size), case.mask.keep))


def test_blocks_see_visible_tokens_and_class_tokens_from_a_third_on():
    case = Case(FULL, "masked")
    K = case.masking.num_visible
    assert case.masking.ratio > 0
    assert case.lengths() == [K, K, *[K + 2] * 4]


@pytest.mark.parametrize("content", [0.0, math.inf])
def test_only_visible_patches_are_answered_by_a_mixer_that_sees_all(sizes, content):
    case = Case(sizes, "mixer")
    before = case()
    after = case(x_t=torch.where(case.hidden > 0, content, case.x_t))
    assert not before[case.hidden.expand_as(before) > 0].any()
    if content:
        assert after.isnan().any()
    else:
        assert ((before - after).abs().amax(dim=(1, 2, 3)) > 1e-4).all()


def test_a_mixer_comes_before_the_drop():
    case = Case(FULL, "mixer")
    N, K = case.network.num_patches, case.masking.num_visible
    assert case.lengths() == [N, N, K, K, *[K + 2] * 4]


def test_mixer_blocks_are_light():
    network = Case(FULL, "mixer").network
    sizes = [block.mlp.down.in_features for block in (*network.mixer, *network.blocks)]
    assert sizes == [24 * 2 // 3] * 2 + [24 * 4 // 3] * 6


# --- routing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "first", "last"), [(3, 1, 2), (4, 1, 3), (6, 1, 5), (11, 1, 10), (12, 2, 10), (24, 2, 22)]
)
def test_only_routed_tokens_pass_the_middle_blocks(depth, first, last):
    case = Case(FULL, "routed", depth=depth)
    tokens = [case.masking.num_visible if first <= i < last else case.network.num_patches for i in range(depth)]
    assert case.lengths() == [n + (2 if i >= depth // 3 else 0) for i, n in enumerate(tokens)]
    assert case.network.middle == range(first, last)


def test_the_other_tokens_re_enter_as_they_left():
    case = Case(FULL, "routed", depth=6)
    given: dict[int, Tensor] = {}
    left: dict[int, Tensor] = {}
    for i, block in enumerate(case.network.blocks):

        def keep(module: nn.Module, arguments: tuple[Tensor, ...], out: Tensor, i: int = i) -> None:
            given[i], left[i] = arguments[0], out

        block.register_forward_hook(keep)
    case()
    before, routed, after = left[0], left[4][:, 2:], given[5][:, 2:]
    assert torch.equal(after, before.scatter(1, case.mask.keep[..., None].expand_as(routed), routed))
    assert torch.equal(given[5][:, :2], left[4][:, :2])
    waiting = torch.ones(IMAGES, case.network.num_patches).scatter(1, case.mask.keep, 0.0) > 0
    assert torch.equal(after[waiting], before[waiting])
    assert not (after == before)[~waiting].all(dim=-1).any()


def test_what_waits_matters_to_every_patch(sizes):
    case = Case(sizes, "routed")
    changed = case(x_t=case.x_t + case.hidden)
    differ = patchify((changed - case()).abs(), case.patch_size).amax(dim=2)
    assert (differ > 1e-5).all()


@pytest.mark.parametrize("depth", [1, 2])
def test_too_few_blocks_cannot_route(depth):
    case = Case(FULL, "routed", depth=depth)
    with pytest.raises(ArgumentError, match=r"wanted 3 or more .*; try 3") as error:
        case()
    assert (error.value.name, error.value.got) == ("depth", depth)


# --- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("way", ["masked", "mixer"])
def test_a_patch_keeps_its_position_in_whatever_order_patches_come(way, routed):
    case = Case(FULL, way)
    asked = case.mask.keep
    shuffled = asked[:, torch.randperm(asked.shape[1])]
    assert not torch.equal(shuffled, asked)
    torch.testing.assert_close(case(mask=Mask(shuffled, routed)), case(mask=Mask(asked, routed)), rtol=0, atol=1e-4)


def test_positions_matter():
    case = Case(FULL)
    tokens = patchify(case.x_t, 4)
    one = torch.tensor([[3]] * IMAGES)
    same = tokens[:, 3:4].expand_as(tokens)
    image = same.reshape(IMAGES, 6, 2, 4, 4, 3).permute(0, 5, 1, 3, 2, 4).reshape(case.x_t.shape)
    out = patchify(case(x_t=image), 4)
    assert ((out[:, :, None] - out[:, None]).abs().amax(dim=-1) > 1e-4)[:, ~torch.eye(12, dtype=torch.bool)].all()
    alone = [patchify(case(x_t=image, mask=Mask(one + i)), 4)[:, 3 + i] for i in (0, 1, 2)]  # by the added ones only
    assert all((a - b).abs().max() > 1e-4 for a, b in itertools.combinations(alone, 2))


@pytest.mark.parametrize("buffer", ["position", "rotation"])
def test_both_kinds_of_position_matter(buffer):
    case = Case(FULL)
    before = case()
    getattr(case.network, buffer).copy_(getattr(case.network, buffer).flip(-1))
    assert ((case() - before).abs().amax(dim=(1, 2, 3)) > 1e-4).all()


def test_every_patch_has_a_place_of_its_own():
    place = torch.cat(plane_waves((5, 7), 16), dim=1)
    assert place.shape == (35, 16)
    assert place.abs().max() <= 1
    assert torch.cdist(place, place)[~torch.eye(35, dtype=torch.bool)].min() > 0.1


def test_waves_run_along_rows_and_then_along_columns():
    cos, sin = plane_waves((3, 4), 8)
    y, x = (axis.flatten().float() for axis in torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij"))
    angles = torch.stack([y, y / 100, x, x / 100], dim=1)
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())


def test_rotated_products_depend_on_the_offset_alone():
    columns = 6
    rotation = tuple(wave[None, :, None] for wave in plane_waves((5, columns), 8))
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 30, 1, 8)
    products = (rotate(q, rotation)[0, :, 0] @ rotate(k, rotation)[0, :, 0].T).view(5, columns, 5, columns)
    torch.testing.assert_close(products[:-1, :-1, :-1, :-1], products[1:, 1:, 1:, 1:], rtol=0, atol=1e-5)
    from_corner = products[0, 0].flatten()  # one product for every offset
    assert (from_corner[:, None] - from_corner).abs()[~torch.eye(30, dtype=torch.bool)].min() > 1e-6
    torch.testing.assert_close(rotate(q, rotation).norm(dim=-1), q.norm(dim=-1))


def test_class_tokens_are_not_rotated():
    network = Case(FULL).network
    every, kept = torch.arange(network.num_patches).repeat(IMAGES, 1), torch.tensor([[1, 5]] * IMAGES)
    for index in (None, every, kept):
        cos, sin = network._rotation(index, 2)
        assert (cos[:, :2] == 1).all()
        assert not sin[:, :2].any()
        for table, whole in zip((cos, sin), network._rotation(None), strict=True):
            wanted = whole if index is None else whole[0][index]
            assert torch.equal(table[:, 2:], wanted)


# --- architecture ----------------------------------------------------------------------------------------------------


def test_attention_is_the_formula():
    torch.manual_seed(0)
    attention, x = RotaryAttention(8, 2), torch.randn(2, 6, 8)
    for norm in (attention.query_norm, attention.key_norm):
        norm.weight.data.normal_()
    cos, sin = plane_waves((2, 3), 4)
    turn = torch.complex(cos, sin)
    q, k, v = (x @ w.T + b for w, b in zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True))

    def turned(x: Tensor, norm: nn.RMSNorm) -> Tensor:
        x = x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        x = torch.complex(x[..., :2], x[..., 2:]) * turn
        return torch.cat([x.real, x.imag], dim=-1)

    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        scores = turned(q[..., h], attention.query_norm) @ turned(k[..., h], attention.key_norm).transpose(1, 2) / 2
        heads.append(scores.softmax(dim=-1) @ v[..., h])
    rotation = (cos[None, :, None], sin[None, :, None])
    torch.testing.assert_close(attention(x, rotation), attention.proj(torch.cat(heads, dim=-1)))


def normed(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def test_a_block_is_the_formula():
    torch.manual_seed(0)
    block, x, condition = JiTBlock(8, 2, 4.0), torch.randn(3, 6, 8), torch.randn(3, 8)
    rotation = tuple(wave[None, :, None] for wave in plane_waves((2, 3), 4))
    m = (condition @ block.modulation.weight.T + block.modulation.bias).view(3, 6, 1, 8).unbind(1)
    middle = x + m[2] * block.attention(normed(x) * (1 + m[1]) + m[0], rotation)
    wanted = middle + m[5] * block.mlp(normed(middle) * (1 + m[4]) + m[3])
    torch.testing.assert_close(block(x, condition, rotation), wanted)


def test_time_and_label_steer_and_the_head_follows_the_last_block():
    case, passed = Case(FULL), []
    network = case.network
    for block in network.blocks:
        block.register_forward_hook(lambda module, arguments, out: passed.append((*arguments[:2], out)))
    out = case()
    label = network.label.weight[case.label]
    angles = case.t[:, None] * 10_000 ** (-torch.arange(128) / 128)
    condition = network.time(torch.cat([angles.cos(), angles.sin()], dim=1)) + label
    condition = condition * condition.sigmoid()
    for _, given, _ in passed:
        torch.testing.assert_close(given, condition, rtol=1e-4, atol=1e-4)
    entered = passed[2][0][:, :2]  # the third of six blocks is the first to see class tokens
    assert torch.equal(entered, label[:, None] + network.class_token.weight)
    shift, scale = network.modulation(condition)[:, None].chunk(2, dim=-1)
    tokens = network.head(normed(passed[-1][2][:, 2:]) * (1 + scale) + shift)
    torch.testing.assert_close(patchify(out, 4), tokens, rtol=1e-4, atol=1e-4)


def test_an_mlp_has_the_weights_of_a_plain_one():
    mlp = SwiGLU(384, 4.0)
    assert mlp.down.in_features == 1024
    assert mlp.up.weight.numel() + mlp.down.weight.numel() == 2 * 4 * 384**2
    x = torch.randn(1, 2, 384)
    gate, value = mlp.up(x)[..., :1024], mlp.up(x)[..., 1024:]
    torch.testing.assert_close(mlp(x), mlp.down(gate * gate.sigmoid() * value))


@pytest.mark.parametrize(("name", "millions"), [("S", 33), ("B", 131), ("L", 459)])
def test_sizes_by_name(name, millions):
    with torch.device("meta"):
        network = JiT(image_size=(256, 256), channels=3, patch_size=16, classes=1000, class_tokens=32, **SIZES[name])
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.6)


def test_the_state_is_its_parameters_and_their_roles_have_their_shapes(sizes):
    case = Case(sizes)
    network, state = case.network, case.network.state_dict()
    assert state.keys() == dict(network.named_parameters()).keys()
    patch_dim = sizes["patch_size"] ** 2 * sizes["channels"]
    shapes = {
        "patch_in": (10, patch_dim),
        "patch_out": (patch_dim, 24),
        "patch_bias": (patch_dim,),
        "labels": (CLASSES + 1, 24),
    }
    found = {role: tuple(state[name].shape) for name, role in JiT.layout.items() if name in state}
    assert found == {role: shape for role, shape in shapes.items() if role != "labels" or sizes["classes"]}
    assert JiT.routes


def test_a_state_gives_the_same_network_back(sizes):
    case = Case(sizes)
    torch.manual_seed(1)  # nothing may be left to the fresh weights
    other = JiT(**(SMALL | sizes))
    other.load_state_dict(case.network.state_dict(), strict=True)
    assert torch.equal(other(case.x_t, case.t, label=case.label), case())


def test_a_state_fits_images_of_another_size():
    small, large = (JiT(**(SMALL | FULL | {"image_size": size})) for size in ((8, 16), (16, 24)))
    large.load_state_dict(small.state_dict(), strict=True)


# --- per-sample gradients (the rules of differentially private training) ---------------------------------------------


def owners(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]


def test_layers_are_plain_and_called_once_with_batches_of_at_most_three_dimensions(case):
    calls: Counter[nn.Module] = Counter()

    def check(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        (given,) = arguments
        assert given.ndim <= 3
        assert given.shape[0] == IMAGES
        if isinstance(module, nn.Embedding):
            assert given.is_contiguous()  # ghost clipping takes a view of the ids

    for module in owners(case.network):
        assert isinstance(module, (nn.Linear, nn.Embedding, nn.RMSNorm))
        module.register_forward_pre_hook(check)
    case()
    assert calls == Counter(owners(case.network))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention has no batching rule on CPU
@pytest.mark.parametrize("way", ["everything", "masked", "mixer", "routed"])
def test_per_sample_gradients_are_those_of_one_image_at_a_time(way):
    case = Case(FULL, way, depth=3)
    state = dict(case.network.named_parameters())

    def loss(state: dict[str, Tensor], *row: Tensor | None) -> Tensor:
        x_t, t, keep, label = (None if value is None else value[None] for value in row)
        mask = None if keep is None else Mask(keep, case.mask.routed)
        condition = {"mask": mask, "label": label}
        return functional_call(case.network, state, (x_t, t), condition).square().mean()

    batch = (case.x_t, case.t, None if case.mask is None else case.mask.keep, case.label)
    rows = tuple(None if value is None else 0 for value in batch)
    together = vmap(grad(loss), in_dims=(None, *rows))(state, *batch)
    for i in range(IMAGES):
        alone = torch.autograd.grad(
            loss(state, *(None if value is None else value[i] for value in batch)), list(state.values())
        )
        for name, one in zip(state, alone, strict=True):
            torch.testing.assert_close(together[name][i], one, rtol=1e-4, atol=1e-4)
            assert one.any(), name


# --- learning and refusals -------------------------------------------------------------------------------------------


def test_it_learns_a_few_images_by_heart():
    torch.manual_seed(0)
    network = JiT(image_size=(8, 8), channels=1, patch_size=4, width=64, depth=3, heads=2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    images = (torch.rand(8, 1, 8, 8) * 2 - 1).repeat(4, 1, 1, 1)

    def error() -> Tensor:
        t = torch.rand(len(images)) * 1000
        angle = (t * math.pi / 2000)[:, None, None, None]
        x_t = angle.cos() * images + angle.sin() * torch.randn_like(images)
        return (network(x_t, t) - images).square().mean()

    for _ in range(300):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    with torch.no_grad():
        end = sum(float(error()) for _ in range(8)) / 8
    # A pixel's variance is v = 1/3; the best guess by the pixel alone has an error of v / (1 + sqrt(v)).
    alone = (1 / 3) / (1 + math.sqrt(1 / 3))
    assert end < 0.65 * alone


@pytest.mark.parametrize(
    ("wrong", "name", "remedy"),
    [
        ({"heads": 5}, "heads", "try 6"),
        ({"heads": 4}, "heads", "try 3"),
        ({"heads": 24}, "heads", "try 6"),
        ({"heads": 1, "width": 10}, "heads", "make the width a multiple of 4"),
        ({"patch_size": 5}, "patch_size", "change it, or the image size"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused_by_name(wrong, name, remedy):
    with pytest.raises(ArgumentError) as error:
        JiT(**(SMALL | FULL | wrong))
    assert (error.value.name, error.value.got, error.value.remedy) == (name, wrong[name], remedy)


def test_a_label_needs_classes():
    with pytest.raises(ArgumentError) as error:
        Case(CASES[1])(label=torch.zeros(IMAGES, dtype=torch.int64))
    assert error.value.name == "label"
