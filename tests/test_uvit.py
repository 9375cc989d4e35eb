"""What the method asks of every backbone: shapes, gradients, silence about hidden patches, per-sample gradients."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from maskdm.config.model_config import UViTConfig
from maskdm.config.process_config import DDPMConfig
from maskdm.diffusion.denoiser import Denoiser
from maskdm.diffusion.loss import denoising_loss
from maskdm.diffusion.masks import Mask, MaskKind, masking
from maskdm.diffusion.patches import Grid, gather, patchify, scatter, unpatchify
from maskdm.diffusion.prediction import EPS
from maskdm.diffusion.schedules import cosine
from maskdm.errors import ArgumentError, InputError
from maskdm.models import build, layers, weights
from maskdm.models.layers import Attention, resize_positions
from maskdm.models.spec import ModelSpec
from maskdm.models.uvit import UViT

PATCH, CLASSES, IMAGES = 4, 3, 4
SIZES = [(1, (16, 16)), (2, (8, 24)), (3, (24, 8)), (4, (16, 24))]
DETAILS = [(0, False, False, 0), (0, True, True, 2), (CLASSES, True, False, 0), (CLASSES, False, True, 1)]
KINDS: list[MaskKind] = ["none", "patch", "block", "crop", "route"]


def spec_of(
    channels: int, size: tuple[int, int], classes: int, time_mlp: bool, qkv_bias: bool, mixer_depth: int = 0
) -> ModelSpec:
    model = UViTConfig(
        patch_size=PATCH,
        width=24,
        depth=5,
        heads=3,
        mlp_ratio=2.0,
        time_mlp=time_mlp,
        qkv_bias=qkv_bias,
        mixer_depth=mixer_depth,
    )
    names = tuple("abcdef"[:classes])
    return ModelSpec(model=model, process=DDPMConfig(), image_size=size, channels=channels, class_names=names)


SPECS = [spec_of(*size, *details) for size, details in itertools.product(SIZES, DETAILS)]


FULL = SPECS[-2]  # 4 channels, not square, classes, time MLP
MIXED = SPECS[-1]  # the same, with a block that mixes all patches first


def name_of(spec: ModelSpec) -> str:
    features = {name: getattr(spec.model, name) for name in ("time_mlp", "qkv_bias", "mixer_depth")}
    features["classes"] = spec.class_names
    size = "x".join(map(str, (spec.channels, *spec.image_size)))
    return "-".join(["uvit", size, *(feature for feature, there in features.items() if there)])


class Case:
    """A fresh network and a batch to ask it."""

    def __init__(self, spec: ModelSpec, kind: MaskKind = "none") -> None:
        torch.manual_seed(0)
        self.spec, self.network = spec, build.backbone(spec)
        for weight in self.network.parameters():
            if weight.ndim == 2:
                weight.data.mul_(4)  # fresh weights make nearly even attention, and hide errors
        self.masking = masking(kind, self.network.grid, 0.0 if kind == "none" else 0.5, block=2)
        self.mask = self.masking.draw(IMAGES, torch.Generator().manual_seed(1))
        self.x_t = torch.randn(IMAGES, spec.channels, *spec.image_size)
        self.t = torch.tensor([0, 10, 500, 999])
        classes = len(spec.class_names)
        self.label = torch.arange(IMAGES) % (classes + 1) if classes else None  # the last is "no class"

    def __call__(self) -> Tensor:
        return self.network(self.x_t, self.t, mask=self.mask, label=self.label)

    @property
    def visible(self) -> Tensor | None:
        return None if self.mask is None else self.mask.visible


def pixels(case: Case, patches: Tensor) -> Tensor:
    """True in every pixel of these patches, (B, K): the shape of the images."""
    chosen = torch.zeros(IMAGES, case.masking.num_patches).scatter(1, patches, 1.0)
    return unpatchify(chosen[..., None].expand_as(patchify(case.x_t, PATCH)), case.network.grid, case.spec.channels) > 0


@pytest.fixture(params=SPECS, ids=name_of)
def spec(request) -> ModelSpec:
    return request.param


@pytest.fixture(params=KINDS)
def case(spec, request) -> Case:
    return Case(spec, request.param)


# --- contract --------------------------------------------------------------------------------------------------------


def test_the_output_is_an_image_that_is_zero_where_hidden(case):
    out = case()
    assert out.shape == case.x_t.shape
    assert out.dtype == torch.float32
    tokens = patchify(out, PATCH)
    shown = gather(tokens, case.visible)
    assert (shown != 0).all()
    assert torch.equal(tokens, scatter(shown, case.visible, case.masking.num_patches))


def test_every_parameter_has_a_finite_gradient(case):
    (case() ** 2).mean().backward()
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
    assert half.isfinite().all()
    assert (half - full).norm() < 0.03 * full.norm()
    half.float().square().mean().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in case.network.parameters())


def test_a_weights_file_gives_the_same_network_back(spec, tmp_path: Path):
    case = Case(spec)
    file = tmp_path / "weights.safetensors"
    weights.write_weights(file, weights.Weights(spec, {}, case.network.state_dict()))
    torch.manual_seed(1)  # nothing may be left to the fresh weights
    loaded: Denoiser = weights.load(file)
    assert torch.equal(loaded.backbone(case.x_t, case.t, label=case.label), case())
    assert (loaded.channels, loaded.image_size, loaded.class_names) == (
        spec.channels,
        spec.image_size,
        spec.class_names,
    )


@pytest.mark.parametrize("change", [{"head.bias": None}, {"stray": torch.zeros(1)}], ids=["missing", "stray"])
def test_a_weights_file_with_other_tensors_is_refused(change, tmp_path: Path):
    file = tmp_path / "weights.safetensors"
    tensors = {name: value for name, value in (Case(FULL).network.state_dict() | change).items() if value is not None}
    weights.write_weights(file, weights.Weights(FULL, {}, tensors))
    with pytest.raises(InputError, match=next(iter(change))) as error:
        weights.load(file)
    assert "\n" not in str(error.value)


def test_a_network_is_what_its_settings_say(spec):
    network = build.backbone(spec)
    assert network.grid == (spec.image_size[0] // PATCH, spec.image_size[1] // PATCH)
    assert (network.time is not None) == spec.model.time_mlp
    assert (network.label is not None) == bool(spec.class_names)
    blocks = [module for module in network.modules() if isinstance(module, Attention)]
    assert len(blocks) == spec.model.depth + spec.model.mixer_depth
    assert all((block.qkv.bias is not None) == spec.model.qkv_bias for block in blocks)


def test_an_image_is_answered_alone(case):
    together = case()
    for i in range(IMAGES):
        one = slice(i, i + 1)
        mask = None if case.mask is None else case.mask.rows(one)
        alone = case.network(
            case.x_t[one], case.t[one], mask=mask, label=None if case.label is None else case.label[one]
        )
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-5)


def test_no_label_is_the_label_of_no_class():
    case = Case(FULL)
    nothing = torch.full((IMAGES,), CLASSES)
    assert torch.equal(case.network(case.x_t, case.t), case.network(case.x_t, case.t, label=nothing))


def test_the_answer_depends_on_time_and_label():
    case = Case(FULL)
    for t, label in [(case.t.flip(0), case.label), (case.t, (case.label + 1) % (CLASSES + 1))]:
        out = case.network(case.x_t, t, label=label)
        assert ((out - case()).abs().amax(dim=(1, 2, 3)) > 1e-4).all()


# --- hidden patches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "patch", "block", "crop"])
def test_hidden_patches_never_enter_the_first_layer(kind):
    case, entered = Case(FULL, kind), []
    case.network.embed.register_forward_pre_hook(lambda module, arguments: entered.append(arguments[0]))
    case()
    assert len(entered) == 1
    assert torch.equal(entered[0], gather(patchify(case.x_t, PATCH), case.visible))
    assert entered[0].shape[1] == case.masking.num_visible


@pytest.fixture
def attended(monkeypatch) -> list[int]:
    """How many tokens every block has attended to, in order."""
    lengths: list[int] = []
    attend = layers.attend

    def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.shape == k.shape == v.shape
        lengths.append(q.shape[-2])
        return attend(q, k, v)

    monkeypatch.setattr(layers, "attend", counted)
    return lengths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 9, 64, 65, 1280, 1281])
def test_attention_is_that_of_torch_whatever_its_length(length, dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours, theirs = layers.attend(q, k, v), nn.functional.scaled_dot_product_attention(q, k, v)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert ours.dtype == dtype
    assert torch.allclose(ours, theirs, atol=tolerance)
    gradients = [torch.autograd.grad(out.float().square().sum(), (q, k, v)) for out in (ours, theirs)]
    assert all(torch.allclose(a, b, atol=10 * tolerance) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_attention_of_few_tokens_in_bf16_is_as_exact_as_that_of_torch(spread):
    """Against float64; scores that were rounded to bf16 had 2 to 6 times the error."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 64, 32, generator=generator).bfloat16() for _ in range(3))
    rows = [(q * spread).requires_grad_(), (k * spread).requires_grad_(), v.requires_grad_()]
    exact_rows = [row.detach().double().requires_grad_() for row in rows]
    fused = nn.functional.scaled_dot_product_attention

    def with_gradients(attention: Callable[..., Tensor], rows: list[Tensor]) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=rows[0].dtype == torch.bfloat16):
            out = attention(*rows)
        return [out.double(), *(g.double() for g in torch.autograd.grad(out.double().square().sum(), rows))]

    exact = with_gradients(fused, exact_rows)
    ours, theirs = (with_gradients(attention, rows) for attention in (layers.attend, fused))
    for a, b, truth in zip(ours, theirs, exact, strict=True):
        assert (a - truth).norm() < 1.3 * (b - truth).norm()


@pytest.mark.parametrize("spec", SPECS[:4], ids=name_of)
def test_every_block_attends_once_and_only_to_visible_tokens(spec, attended):
    case = Case(spec, "patch")
    case()
    extras = case.network.extras
    mixers = [extras + case.masking.num_patches] * spec.model.mixer_depth
    assert attended == mixers + [extras + case.masking.num_visible] * spec.model.depth


@pytest.mark.parametrize("spec", [FULL, MIXED], ids=name_of)
def test_a_patch_keeps_its_position_in_whatever_order_patches_come(spec):
    case = Case(spec)
    dense = case()
    case.mask = Mask(torch.stack([torch.randperm(case.masking.num_patches) for _ in range(IMAGES)]))
    torch.testing.assert_close(case(), dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", [FULL, MIXED], ids=name_of)
def test_only_a_mixer_reads_hidden_pixels(spec):
    case = Case(spec, "patch")
    before = case()
    hidden = ~pixels(case, case.visible)
    case.x_t = torch.where(hidden, 100.0, case.x_t)
    assert torch.equal(case(), before) == (not spec.model.mixer_depth)


def test_a_rectangle_is_its_patches_in_raster_order():
    case = Case(FULL, "crop")
    assert case.visible.ndim == 3
    flat = case.network(case.x_t, case.t, mask=Mask(case.visible.flatten(1)), label=case.label)
    assert torch.equal(case(), flat)


# --- patches that go around the middle -------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [3, 5, 13])
def test_only_the_middle_blocks_leave_patches_out(depth, attended):
    case = Case(FULL.model_copy(update={"model": FULL.model.model_copy(update={"depth": depth})}), "route")
    case()
    ends = [case.network.extras + case.masking.num_patches] * case.network.outer
    inner = [case.network.extras + case.masking.num_visible] * (depth - 2 * case.network.outer)
    assert attended == ends + inner + ends
    assert case.network.outer == {3: 1, 5: 1, 13: 2}[depth]


@pytest.mark.parametrize("spec", [FULL, MIXED], ids=name_of)
def test_where_all_go_through_nothing_is_different(spec):
    case = Case(spec)
    dense = case()
    case.mask = Mask(torch.stack([torch.randperm(case.masking.num_patches) for _ in range(IMAGES)]), routed=True)
    torch.testing.assert_close(case(), dense, rtol=0, atol=1e-5)


def test_patches_that_go_around_are_still_asked_for_and_make_a_difference():
    case = Case(FULL, "route")
    out, kept = case(), pixels(case, case.mask.keep)
    assert (out != 0).all()
    assert not torch.allclose(out, case.network(case.x_t, case.t, label=case.label), atol=1e-3)
    case.x_t = torch.where(kept, case.x_t, case.x_t + 1)
    assert ((case() - out).abs()[kept] > 1e-6).any()  # the first blocks read them


def test_one_block_has_no_middle():
    network = UViT(image_size=(8, 8), channels=1, patch_size=4, width=8, depth=1, heads=1)
    with pytest.raises(ArgumentError, match="depth: got 1, wanted 3 or more"):
        network(torch.zeros(2, 1, 8, 8), torch.zeros(2), mask=Mask(torch.zeros(2, 1, dtype=torch.int64), routed=True))


# --- architecture ----------------------------------------------------------------------------------------------------


def test_attention_is_the_formula():
    torch.manual_seed(0)
    attention, x = Attention(6, 2, qkv_bias=True), torch.randn(2, 5, 6)
    q, k, v = (x @ w.T + b for w, b in zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True))
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        scores = q[..., h] @ k[..., h].transpose(1, 2) / 3**0.5
        heads.append(scores.softmax(dim=-1) @ v[..., h])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, dim=-1)))


def test_the_last_block_out_is_joined_with_the_first_block_in():
    case, left, joined = Case(FULL), [], []
    for block in case.network.blocks_in:
        block.register_forward_hook(lambda module, arguments, out: left.append(out))
    for block in case.network.blocks_out:
        block.register_forward_pre_hook(lambda module, arguments: joined.append(arguments[1]))
    case()
    assert len(left) == 2
    assert all(a is b for a, b in zip(joined, reversed(left), strict=True))


# --- per-sample gradients (the rules of differentially private training) ---------------------------------------------


def owners(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]


def test_parameters_live_in_plain_layers_only(spec):
    for module in owners(build.backbone(spec)):
        assert isinstance(module, (nn.Linear, nn.Embedding, nn.LayerNorm, nn.Conv2d))


def test_layers_are_called_and_get_batches_of_at_most_three_dimensions(case):
    calls: Counter[nn.Module] = Counter()

    def check(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        (given,) = arguments
        assert given.ndim <= 3
        assert given.shape[0] == IMAGES
        if isinstance(module, nn.Embedding):
            assert given.is_contiguous()  # ghost clipping takes a view of the ids

    for module in owners(case.network):
        module.register_forward_pre_hook(check)
    case()
    assert calls == Counter(owners(case.network))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention has no batching rule on CPU
@pytest.mark.parametrize("kind", ["none", "patch", "route"])
@pytest.mark.parametrize("spec", SPECS[2:4], ids=name_of)
def test_per_sample_gradients_are_those_of_one_image_at_a_time(spec, kind):
    case = Case(spec, kind)
    state = dict(case.network.named_parameters())
    eps = torch.randn_like(case.x_t)

    def loss(state: dict[str, Tensor], *row: Tensor | None) -> Tensor:
        x_0, t, eps, keep, label = (None if value is None else value[None] for value in row)
        mask = None if keep is None else Mask(keep, case.mask.routed)

        def backbone(x_t: Tensor, t: Tensor, **condition: Mask | Tensor | None) -> Tensor:
            return functional_call(case.network, state, (x_t, t), condition)

        denoiser = Denoiser(backbone, cosine(), EPS, spec.channels, spec.image_size, PATCH)
        return denoising_loss(denoiser, x_0, t, eps, mask=mask, label=label).squeeze()

    batch = (case.x_t, case.t, eps, None if case.mask is None else case.mask.keep, case.label)
    rows = tuple(None if value is None else 0 for value in batch)
    together = vmap(grad(loss), in_dims=(None, *rows))(state, *batch)
    for i in range(IMAGES):
        alone = torch.autograd.grad(
            loss(state, *(None if value is None else value[i] for value in batch)), list(state.values())
        )
        for name, one in zip(state, alone, strict=True):
            torch.testing.assert_close(together[name][i], one, rtol=0, atol=1e-5)
            assert one.any() or name == "label.weight", name


# --- other image sizes -----------------------------------------------------------------------------------------------


def rows_of(grid: Grid, extras: int = 2, width: int = 5) -> Tensor:
    return torch.randn(extras + grid[0] * grid[1], width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 1)])
def test_positions_for_the_same_grid_are_the_same(grid):
    torch.testing.assert_close(resize_positions(rows_of(grid), grid, grid), rows_of(grid), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (8, 8)), ((4, 6), (3, 2)), ((2, 5), (7, 3))])
@pytest.mark.parametrize("extras", [1, 2])
def test_resizing_keeps_extra_rows_and_constants(old, new, extras):
    rows = rows_of(old, extras)
    rows[extras:, 0] = 0.7
    resized = resize_positions(rows, old, new)
    assert resized.shape == (extras + new[0] * new[1], 5)
    assert torch.equal(resized[:extras], rows[:extras])
    torch.testing.assert_close(resized[extras:, 0], torch.full((new[0] * new[1],), 0.7))


def test_resizing_keeps_rows_apart_from_columns():
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    resized = resize_positions(torch.stack([y, x], dim=2).reshape(24, 2), (4, 6), (8, 6)).reshape(8, 6, 2)
    inner = resized[3:5, 2:4]  # away from the edges, where bicubic interpolation of a ramp is the ramp
    torch.testing.assert_close(inner[..., 0], torch.tensor([[1.25, 1.25], [1.75, 1.75]]))
    torch.testing.assert_close(inner[..., 1], torch.tensor([[2.0, 3.0], [2.0, 3.0]]))


# --- construction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "got", "wanted"),
    [
        ("heads", 5, "a divisor of the width, 24"),
        ("depth", 4, "an odd number (as many blocks in as out, and one between)"),
        ("patch_size", 5, "a divisor of the image size, 16 x 24"),
        ("patch_size", 3, "a divisor of the image size, 16 x 24"),  # divides the width only
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(name, got, wanted):
    sizes = {"patch_size": 4, "width": 24, "depth": 5, "heads": 3, name: got}
    with pytest.raises(ArgumentError) as error:
        UViT(image_size=(16, 24), channels=3, **sizes)
    assert (error.value.name, error.value.got, error.value.wanted) == (name, got, wanted)


def test_one_block_is_a_network():
    network = UViT(image_size=(8, 8), channels=1, patch_size=4, width=8, depth=1, heads=1)
    assert network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("width", "heads", "side", "millions"),
    [(512, 8, 64, 44.3), (512, 8, 256, 46.3), (768, 12, 256, 102.4)],
    ids=["S-64px", "S-256px", "B-256px"],
)
def test_the_networks_of_the_paper_have_its_number_of_parameters(width, heads, side, millions):
    with torch.device("meta"):
        network = UViT(image_size=(side, side), channels=3, patch_size=4, width=width, depth=13, heads=heads)
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1) == millions


def test_fresh_weights_are_small_and_biases_zero():
    torch.manual_seed(0)
    network = build.backbone(spec_of(3, (16, 16), CLASSES, True, True, 1))
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
        if isinstance(module, nn.Linear):
            assert not module.bias.any()


# --- patches ---------------------------------------------------------------------------------------------------------


def test_patches_are_in_raster_order_and_their_values_by_row_column_channel():
    y, x, c = torch.meshgrid(torch.arange(4), torch.arange(6), torch.arange(3), indexing="ij")
    image = (100 * y + 10 * x + c).permute(2, 0, 1)[None]
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 12)
    assert patches[0, 4].tolist() == [220, 221, 222, 230, 231, 232, 320, 321, 322, 330, 331, 332]
    assert torch.equal(unpatchify(patches, (2, 3), 3), image)
