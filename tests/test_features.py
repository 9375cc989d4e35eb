"""Features: Inception's graph and its traps, files, the encoder; and the scores that are taken in them."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import train
from PIL import Image, ImageFilter
from torch import nn
from torch.nn import functional as F

from maskdm.cli.main import main
from maskdm.data.labelled import LabelledImages
from maskdm.errors import ArgumentError, InputError
from maskdm.evaluation import encoder, features, inception
from maskdm.evaluation.distances import squared_distances
from maskdm.evaluation.evaluate import load_reference, read_statistics, reference_features
from maskdm.evaluation.features import Features, cached_features, download, get_features, pixel_vectors, to_rgb
from maskdm.evaluation.metrics import (
    bootstrap_interval,
    frechet_distance,
    gaussian,
    kernel_distance,
    manifolds,
    nearest_cosine,
)
from maskdm.evaluation.pretrained import PUBLISHED
from maskdm.evaluation.scores import Reference, evaluate_images, format_scores, sample_size_note
from maskdm.runtime.console import Console

CPU = torch.device("cpu")


def nothing() -> LabelledImages:
    raise AssertionError("no reference is needed")


def get(name: str, cache_dir: Path = Path(), weights: Path | None = None, **more: object) -> Features:
    return get_features(
        name, device=CPU, cache_dir=cache_dir, features_weights=weights, **{"reference": nothing} | more
    )


def images_of(count: int, side: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, side, side, channels), dtype=np.uint8)


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(200, 300), (20, 300), (6, 40)])
def test_kid_of_one_source_is_zero_within_its_error(n, m):
    rng = np.random.default_rng(0)
    found = [kernel_distance(rng.normal(size=(n, 16)), rng.normal(size=(m, 16))) for _ in range(300)]
    values, errors = np.array(found).T
    assert abs(values.mean()) < 4 * values.std() / 300**0.5
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.3)


def test_the_error_of_a_kid_is_that_of_other_pictures():
    """Two sources that differ."""
    rng = np.random.default_rng(1)
    found = [kernel_distance(rng.normal(0.3, 1, (150, 16)), rng.normal(size=(200, 16))) for _ in range(300)]
    values, errors = np.array(found).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.25)
    assert values.mean() > 3 * values.std()


def test_kid_of_the_whole_sets_is_the_unbiased_sum():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 3)), rng.normal(1, 2, size=(7, 3))
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(7) for j in range(7)]
    within = sum(kernel(s[i], s[j]) for s in (x, y) for i, j in pairs if i != j) / 42
    between = sum(kernel(x[i], y[j]) for i, j in pairs) / 49
    assert kernel_distance(x, y)[0] == pytest.approx(within - 2 * between)


def test_kid_grows_with_the_shift():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(500, 8))
    values = [kernel_distance(x, rng.normal(shift, 1, size=(500, 8)))[0] for shift in (0.0, 0.5, 1.0)]
    assert values == sorted(values)


def clouds(*centres: float, count: int = 200) -> np.ndarray:
    rng = np.random.default_rng(len(centres))
    return np.concatenate([rng.normal(centre, 0.1, size=(count, 2)) for centre in centres])


@pytest.mark.parametrize(
    ("real", "generated", "precision", "recall", "coverage"),
    [
        ((0, 10), (0, 10), 1.0, 1.0, 1.0),
        ((0, 10), (0,), 1.0, 0.5, 0.5),  # half of it is never generated
        ((0,), (0, 10), 0.5, 1.0, 1.0),  # half of what is generated is nothing real
        ((0,), (10,), 0.0, 0.0, 0.0),
    ],
)
def test_clouds_that_overlap(real, generated, precision, recall, coverage):
    found = manifolds(clouds(*real), clouds(*generated) + 1e-3)
    assert found.precision == pytest.approx(precision, abs=0.05)
    assert found.recall == pytest.approx(recall, abs=0.05)
    assert found.coverage == pytest.approx(coverage, abs=0.05)


def test_density_of_equal_clouds_is_about_one():
    rng = np.random.default_rng(3)
    assert manifolds(rng.normal(size=(800, 4)), rng.normal(size=(800, 4))).density == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("copies", [1, 2, 7])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_set_overlaps_itself_whatever_copies_are_in_it(copies, noise):
    """In any order, and where rounding in float32 leaves equal images vectors that differ a little."""
    rng = np.random.default_rng(0)
    real = np.tile(rng.normal(3, 1, size=(60, 40)), (copies, 1))
    found = manifolds(real, real[rng.permutation(len(real))] * (1 + noise * rng.normal(size=real.shape)))
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    # Balls reach the fifth other image: six of single ones, the third pair of pairs, seven copies of one.
    assert found.density == pytest.approx({1: 6, 2: 6, 7: 7}[copies] / 5, abs=0.01 if copies != 2 else 0.21)


def test_the_border_belongs_to_a_ball_and_nothing_beyond_it():
    line = np.arange(7.0)[:, None]
    for k, border in ((5, -5.0), (2, 8.0)):  # as far from the last as its k-th neighbour is
        assert manifolds(line, np.full((6, 1), border), k).precision == 1
        assert manifolds(line, np.full((6, 1), border * 1.001), k).precision == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_vectors_are_at_no_distance_and_near_ones_at_theirs(dtype):
    generator = torch.Generator().manual_seed(0)
    known = (1000 + torch.randn(50, 30, generator=generator, dtype=torch.float64)).to(dtype)
    queries = known.clone()
    queries[:, 0] += 0.01
    assert torch.equal(squared_distances(known, known).diagonal(), torch.zeros(50, dtype=dtype))
    exact = ((queries[:, 0] - known[:, 0]) ** 2).double()
    near = squared_distances(queries, known).diagonal().double()
    torch.testing.assert_close(near, exact, rtol=1e-5, atol=0)
    far = squared_distances(queries.double(), known.double())
    torch.testing.assert_close(far, torch.cdist(queries.double(), known.double()) ** 2, rtol=1e-6, atol=1e-5)


def test_copies_are_at_no_distance_and_opposites_at_two():
    known = np.array([[1.0, 0.0], [0.0, 3.0]])
    assert nearest_cosine([[5.0, 0.0], [0.0, 1.0]], known) == pytest.approx([0, 0])
    assert nearest_cosine([[-1.0, -1.0]], known) == pytest.approx([1 + 2**-0.5])


def test_the_interval_holds_the_distance_and_narrows():
    rng = np.random.default_rng(4)
    reference = gaussian(rng.normal(size=(2000, 3)))
    wide, narrow = (bootstrap_interval(rng.normal(0.3, 1, size=(n, 3)), reference, 100) for n in (100, 2000))
    assert wide[0] < wide[1]
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 2
    assert narrow[0] < 0.27 < narrow[1]  # 3 times 0.3 squared


# --- Inception -------------------------------------------------------------------------------------------------------


def random_state() -> dict[str, torch.Tensor]:
    """Weights that anybody can draw again, numpy's legacy generator being frozen; no image fades on its way."""
    rng = np.random.RandomState(0)
    with torch.device("meta"):
        network = inception.Inception()
    state = {}
    for name, like in sorted(network.state_dict().items()):
        shape = tuple(like.shape)
        if name.endswith(("running_var", "bn.weight")):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            value = rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        else:
            value = rng.standard_normal(shape) * 0.1
        state[name] = torch.from_numpy(np.asarray(value)).to(like.dtype)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_state(), path)
    return path


def test_inception_answers_like_the_reference_implementation(weights):
    """torch-fidelity 0.4.0, which reproduces the TensorFlow graph, gave these features with these weights.

    Its FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]) needs torchvision around it, so that what it gave
    for `images` is kept in a file.
    """
    n, y, x, c = np.indices((3, 64, 48, 3))
    images = ((x * y // (n + 1) + 3 * x + 5 * y * (c + 1)) % 256).astype(np.uint8)
    theirs = np.load(Path(__file__).parent / "data" / "inception_features.npz")["features"]
    ours = get("inception", weights=weights)(images)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_inception_has_the_shape_of_the_published_file(weights):
    state = torch.load(weights, weights_only=True)
    # The published file has 95,628,359 bytes, a little of which are names.
    assert 0.997 * 95_628_359 < sum(t.numel() * t.element_size() for t in state.values()) < 95_628_359
    assert state["fc.weight"].shape == (1008, 2048)
    assert state["Mixed_6b.branch7x7_2.conv.weight"].shape == (128, 128, 1, 7)


def test_images_become_2048_numbers_each_on_its_own(weights):
    found = get("inception", weights=weights)
    images = images_of(3, side=40)
    vectors = found(images)
    assert vectors.shape == (3, 2048)
    assert np.allclose(found(images[1:2]), vectors[1:2], atol=1e-5)
    assert found.distance != "FID"  # of these weights it is none
    assert found.name == f"inception {hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}"


def test_resizing_is_that_of_tensorflow_1():
    x = torch.arange(4.0).view(1, 1, 2, 2)  # [[0, 1], [2, 3]]
    # Pixel i is at i * 2 / 4: 0, 0.5, 1, 1.5, and beyond the last one it stays.
    row = [0.0, 0.5, 1.0, 1.0]
    assert inception.resize_tf1(x, 4)[0, 0].tolist() == [[a + 2 * b for a in row] for b in row]
    assert inception.resize_tf1(x, 2) is x


def test_the_traps_of_an_fid_change_it(weights):
    """Another filter, rounding, compression: each gives other features, which is why none is done in passing."""
    found = get("inception", weights=weights)
    image = (128 + 100 * np.sin(np.arange(64 * 64 * 3) / 7)).reshape(1, 64, 64, 3)
    exact = image.clip(0, 255).astype(np.uint8)
    base = found(exact)

    def away(other: np.ndarray) -> float:
        return float(np.linalg.norm(found(other) - base) / np.linalg.norm(base))

    buffer = io.BytesIO()
    Image.fromarray(exact[0]).save(buffer, "JPEG", quality=75)
    assert away(np.asarray(Image.open(buffer))[None]) > 1e-3
    small = F.interpolate(torch.from_numpy(exact).permute(0, 3, 1, 2).float(), size=(299, 299), mode="bilinear")
    assert away(small.round().byte().permute(0, 2, 3, 1).numpy()) > 1e-4
    assert away(exact) < 1e-6


def test_gray_and_alpha():
    x = torch.arange(8.0).view(1, 2, 2, 2)
    assert torch.equal(to_rgb(x[:, :1]), x[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(to_rgb(torch.cat([x, x], dim=1)), torch.cat([x, x], dim=1)[:, :3])


def test_a_download_is_kept_only_if_it_is_the_right_file(tmp_path):
    (tmp_path / "source.pth").write_bytes(b"not the network")
    digest, kept = hashlib.sha256(b"not the network").hexdigest(), tmp_path / "kept"
    source = (tmp_path / "source.pth").as_uri()
    with pytest.raises(ArgumentError) as caught:
        download(source, inception.SHA256, kept, print)
    assert (caught.value.name, list(kept.iterdir())) == ("features", [])
    said: list[str] = []
    assert download(source, digest, kept, said.append).read_bytes() == b"not the network"
    assert download(source, digest, kept, said.append) == kept / "source.pth"
    assert said == [f"downloading {source}"]  # once
    with pytest.raises(ArgumentError) as caught:  # what lies there is another
        download(source, inception.SHA256, kept, print)
    assert (caught.value.got, caught.value.wanted) == (digest, inception.SHA256)
    with pytest.raises(ArgumentError, match="cannot be downloaded"):
        download((tmp_path / "gone.pth").as_uri(), digest, kept, print)
    assert [path.name for path in kept.iterdir()] == ["source.pth"]


@pytest.mark.parametrize(
    ("file", "problem"),
    [("damaged.pth", "cannot be read"), ("other.pth", "no Inception network"), ("gone.pth", "no such file")],
)
def test_weights_of_another_network_are_refused(file, problem, tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"not the network")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ArgumentError, match=problem) as caught:
        get("inception", weights=tmp_path / file)
    assert caught.value.name == "features_weights"


# --- other features --------------------------------------------------------------------------------------------------


def test_pixels_are_averaged_down_where_they_are_many():
    x = torch.full((2, 3, 64, 64), 255.0)
    assert pixel_vectors(x).shape == (2, 3 * 16 * 16)
    assert torch.equal(pixel_vectors(x), torch.ones(2, 768))
    assert pixel_vectors(x[:, :, :8, :8]).shape == (2, 192)


class Halves(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3)) / 2


class Constants(nn.Module):
    """With a weight, a buffer, a tensor that is neither, and one that it makes on the device where it was exported."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.ones(3))
        self.plain = torch.ones(3)

    def forward(self, x):
        return x.mean(dim=(2, 3)) * self.weight + self.shift + self.plain + torch.zeros(3, device="cpu")


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_networks_of_transformers(name, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    if name == "dinov2":
        network = transformers.Dinov2Model(transformers.Dinov2Config(**small))
    else:
        settings = transformers.CLIPVisionConfig(**small, intermediate_size=32, projection_dim=16)
        network = transformers.CLIPVisionModelWithProjection(settings)
    network.save_pretrained(tmp_path / "w")
    found = get(name, weights=tmp_path / "w")
    images = images_of(5, side=28)
    ours = found(images)
    assert ours.shape == (5, 16)
    # What the network itself says of images that need no resizing.
    which = PUBLISHED[name]
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(which.mean).view(3, 1, 1)) / torch.tensor(
        which.std
    ).view(3, 1, 1)
    with torch.no_grad():
        theirs = getattr(network.eval()(x), which.output)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
    assert found.name.startswith(f"{name} ")
    torch.nn.init.normal_(next(network.parameters()))
    network.save_pretrained(tmp_path / "other")
    assert get(name, weights=tmp_path / "other").name != found.name
    with pytest.raises(ArgumentError, match="is not a folder that save_pretrained") as caught:
        get(name, weights=tmp_path)
    assert caught.value.name == "features_weights"
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ArgumentError) as caught:
        get(name)
    assert (caught.value.name, caught.value.remedy) == ("features", "pip install 'maskdm[features]'")


def test_another_network_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**small)).save_pretrained(tmp_path)
    with pytest.raises(ArgumentError) as caught:
        get("clip", weights=tmp_path)
    assert caught.value.name == "features_weights"
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["pt", "pt2"])
def test_any_file_of_torch(kind, tmp_path):
    path = tmp_path / f"halves.{kind}"
    if kind == "pt":
        torch.jit.save(torch.jit.trace(Halves(), torch.zeros(2, 3, 8, 8)), str(path))
    else:
        batch = torch.export.Dim("batch", min=1, max=64)
        made = torch.export.export(Halves(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
        torch.export.save(made, path)
    found = get(str(path))
    images = images_of(5)
    assert np.allclose(found(images), images.mean(axis=(1, 2)) / 2, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_of_torch_is_moved_to_the_device_with_all_that_is_in_it(tmp_path):
    """As on a GPU: tensors of two devices would be refused."""
    meta, x = torch.device("meta"), torch.zeros(2, 3, 8, 8)
    torch.export.save(torch.export.export(Constants(), (x,)), tmp_path / "c.pt2")
    torch.jit.save(torch.jit.trace(nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()), x), str(tmp_path / "w.pt"))
    for name in ("c.pt2", "w.pt"):
        out = features.read_network(tmp_path / name, meta)(x.to(meta))
        assert (out.device, out.shape) == (meta, (2, 3))


def test_networks_of_ours_compute_on_the_device_alone():
    meta = torch.device("meta")
    x = torch.zeros(4, 3, 32, 48, device=meta)
    with torch.no_grad():
        assert inception.Inception().eval().to(meta)(x).shape == (4, 2048)
        assert encoder.Encoder(3, 0, (32, 48)).to(meta)(x).shape == (4, 128)
        assert encoder.augment(x, torch.Generator()).device == meta


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_that_fails_is_said_in_one_line(tmp_path):
    path = tmp_path / "narrow.pt"
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 2, 8), torch.zeros(2, 3, 8, 8)), str(path))
    with pytest.raises(ArgumentError) as caught:
        get(str(path))(images_of(5, side=4))
    assert caught.value.name == "features"
    assert "narrow.pt fails on images of shape (5, 3, 4, 4)" in caught.value.problem


FUNCTIONS = """
import numpy as np

def means(images):
    assert images.dtype == np.uint8
    return images.mean(axis=(1, 2))

def wrong(images):
    return images

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    """The name of a module that can be imported."""
    (tmp_path / "ownfeatures.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    return "ownfeatures"


def test_a_function_of_ones_own(own, tmp_path):
    found, images = get(f"{own}:means"), images_of(70)
    assert np.allclose(found(images), images.mean(axis=(1, 2)))
    assert found.name == "ownfeatures:means"
    cached_features(found, images, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # it may be another function tomorrow
    with pytest.raises(InputError) as caught:
        get(f"{own}:wrong")(images)
    assert (caught.value.name, caught.value.got) == ("ownfeatures:wrong", (64, 8, 8, 3))


@pytest.mark.parametrize("name", ["gone:means", "ownfeatures:gone", "ownfeatures:number"])
def test_functions_that_are_none(name, own):
    with pytest.raises(ArgumentError) as caught:
        get(name)
    assert (caught.value.name, caught.value.got) == ("features", name)


class Listener(Console):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def short(monkeypatch) -> None:
    """Five steps train an encoder."""
    monkeypatch.setattr(encoder, "LEAST_STEPS", 5)
    monkeypatch.setattr(encoder, "PASSES", 1)


def trained(folder: Path, images: np.ndarray, console: Console | None = None) -> Features:
    return get("encoder", folder, reference=lambda: LabelledImages(images), console=console)


def test_an_encoder_is_kept_and_named_by_its_weights(tmp_path, short):
    images, console = images_of(20), Listener()
    first, again, elsewhere = (trained(tmp_path / folder, images, console) for folder in ("a", "a", "b"))
    assert len(console.said) == 2  # trained once in each folder
    assert console.said[0].startswith("training an encoder on 20 images: 5 steps, about ")
    assert first.name == again.name == elsewhere.name == f"encoder {first.sha256[:8]}"
    assert first.distance == f"Frechet distance on {first.name}"
    assert np.array_equal(first(images), again(images))
    assert np.array_equal(first(images), elsewhere(images))
    other = trained(tmp_path / "a", images_of(20, seed=1))
    assert other.sha256 != first.sha256
    assert other.trained_on != first.trained_on


def test_two_trainings_on_the_same_images_are_two_encoders(tmp_path, short, monkeypatch):
    """As on two machines, whose rounding differs: neither name, nor kept features, nor distances are taken as equal."""
    images = images_of(20)
    here = trained(tmp_path / "here", images)
    monkeypatch.setattr(encoder, "RATE", 1.001 * encoder.RATE)
    there = trained(tmp_path / "there", images)
    assert here.trained_on == there.trained_on
    assert here.sha256 != there.sha256
    assert here.name != there.name
    assert here.distance != there.distance
    kept = [cached_features(each, images, tmp_path / "features") for each in (here, there)]
    assert not np.array_equal(*kept)


def test_a_damaged_encoder_is_trained_again(tmp_path, short):
    images = images_of(20)
    first = trained(tmp_path, images)
    (path,) = (tmp_path / "encoders").iterdir()
    content = bytearray(path.read_bytes())
    content[-40] ^= 64  # a bit of a weight
    path.write_bytes(content)
    assert trained(tmp_path, images).sha256 == first.sha256


def test_an_interrupted_encoder_goes_on_where_it_was(tmp_path, short, monkeypatch):
    images = images_of(20)
    whole = trained(tmp_path / "whole", images)
    steps: list[int] = []
    step = encoder._step

    def interrupted(*given: object) -> None:
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(given[4])
        step(*given)

    monkeypatch.setattr(encoder, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", images)
    (partial,) = (tmp_path / "cut" / "encoders").iterdir()
    assert partial.name.endswith(".partial.safetensors")
    monkeypatch.setattr(encoder, "_step", lambda *given: (steps.append(given[4]), step(*given)))
    again = trained(tmp_path / "cut", images)
    assert steps == [0, 1, 2, 3, 4]
    assert again.sha256 == whole.sha256  # bit for bit
    assert not partial.exists()


def test_encoders_grow_with_the_set_and_not_with_the_side():
    assert [encoder.num_steps(n) for n in (10, 413, 1000, 100_000)] == [100, 193, 468, 600]
    for side in (8, 16, 24, 32, 64, 100, 512):
        seen: list[tuple[int, ...]] = []
        network = encoder.Encoder(1, 0, (side, side))
        network.layers[0].register_forward_hook(lambda layer, given, out, seen=seen: seen.append(tuple(out.shape)))
        assert network(torch.zeros(2, 1, side, side)).shape == (2, 128)
        assert 8 <= seen[0][-1] <= encoder.MAP + 1


@pytest.mark.slow
def test_an_encoder_tells_classes_apart(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    images = rng.integers(0, 60, size=(200, 16, 16, 1)).astype(np.uint8)
    images[labels == 1, 4:12, 4:12] += 150
    for given in (labels, None):
        reference = LabelledImages(images, labels=given)
        network = encoder.train_encoder(reference, tmp_path, device=CPU, console=Console(quiet=True)).network
        x = network(torch.from_numpy(images).permute(0, 3, 1, 2).float()).numpy()
        centres = [x[labels == k].mean(axis=0) for k in (0, 1)]
        nearer = np.linalg.norm(x - centres[0], axis=1) > np.linalg.norm(x - centres[1], axis=1)
        assert (nearer == labels).mean() > 0.95


@pytest.mark.slow
def test_distances_in_an_encoder_grow_with_noise_and_blur(tmp_path):
    """Drawings of discs and bars at 64 px: half of them teach it, the others are damaged more and more."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    images = np.full((360, 64, 64, 3), 255, np.uint8)
    for image in images:
        for _ in range(3):
            (cy, cx), r = rng.integers(8, 56, 2), rng.integers(4, 16)
            near = (
                (y - cy) ** 2 + (x - cx) ** 2 < r * r if rng.random() < 0.5 else (abs(y - cy) < r) & (abs(x - cx) < 4)
            )
            image[near] = rng.integers(0, 256, 3)
    found = trained(tmp_path, images[:120])
    reference, others = gaussian(found(images[120:240])), images[240:]

    def distance(changed: np.ndarray) -> float:
        return frechet_distance(*gaussian(found(changed)), *reference)

    def noisy(deviation: float) -> np.ndarray:
        return (others + rng.normal(0, deviation, others.shape)).clip(0, 255).round().astype(np.uint8)

    def blurred(radius: float) -> np.ndarray:
        return np.stack([np.asarray(Image.fromarray(each).filter(ImageFilter.GaussianBlur(radius))) for each in others])

    for damaged in ([noisy(20), noisy(40), noisy(80)], [blurred(1), blurred(2), blurred(4)]):
        distances = [distance(each) for each in damaged]
        assert distances == sorted(distances)
        assert distances[-1] > 1.1 * distance(others)


def test_features_are_kept_by_the_contents_of_both(tmp_path):
    calls: list[int] = []

    def counted(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return images.reshape(len(images), -1)

    ours, done = Features("counted", "distance", counted), []
    images = images_of(5)
    a, b = (cached_features(ours, images, tmp_path, done.append) for _ in range(2))
    assert np.array_equal(a, b)
    assert (calls, done) == ([5], [5, 5])
    cached_features(ours, images[::-1], tmp_path)
    cached_features(Features("another", "distance", counted), images, tmp_path)
    assert calls == [5, 5, 5]
    assert all(file.suffix == ".npy" and not file.name.startswith(".") for file in tmp_path.iterdir())
    for file in tmp_path.iterdir():
        content = bytearray(file.read_bytes())
        content[-50] ^= 1  # a bit of a number
        file.write_bytes(content)
    assert np.array_equal(cached_features(ours, images, tmp_path), a)
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    assert np.array_equal(cached_features(ours, images, tmp_path), a)


@pytest.mark.parametrize("name", ["fid", "gone.pt", "gone.pt2"])
def test_unknown_features(name):
    with pytest.raises(ArgumentError) as caught:
        get(name)
    assert caught.value.name == "features"
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_images_have_no_features():
    with pytest.raises(InputError) as caught:
        get("pixels")(images_of(0))
    assert (caught.value.name, caught.value.got) == ("pixels", 0)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_of_copies_and_of_noise(tmp_path):
    real, train, like = (images_of(60, seed=seed) // 2 for seed in (0, 1, 2))
    reference = Reference(LabelledImages(real), train=LabelledImages(train))
    names, rows = {}, {}
    for which, images in {"like them": like, "copies": train, "bright": 255 - like}.items():
        scores = evaluate_images(images, reference, get("pixels"), cache_dir=tmp_path, resamples=20)
        rows[which] = [score.value for score in scores]
        names = {score.name: i for i, score in enumerate(scores)}
        assert all(score.n == 60 for score in scores)
        assert scores[0].low is not None
        assert scores[0].low < scores[0].value < scores[0].high
    near = names["cosine distance to the nearest training image, generated"]
    assert rows["copies"][near] == pytest.approx(0, abs=1e-9)
    assert rows["like them"][near] == pytest.approx(rows["like them"][near + 1], rel=0.05)
    assert rows["bright"][0] > 10 * rows["like them"][0]
    assert rows["bright"][names["precision"]] == 0


def test_statistics_alone_give_the_distance_alone(tmp_path):
    found = get("pixels")
    real, generated = images_of(50), images_of(50, seed=1)
    mu, sigma = gaussian(found(real))
    np.savez(tmp_path / "s.npz", mu=mu, sigma=sigma)
    reference = load_reference(str(tmp_path / "s.npz"), Console(quiet=True))
    assert (reference.shape, reference.images) == (None, 0)
    (score,) = evaluate_images(generated, reference, found, cache_dir=tmp_path)
    against = Reference(LabelledImages(real))
    assert score.value == pytest.approx(evaluate_images(generated, against, found, cache_dir=tmp_path)[0].value)
    with pytest.raises(InputError) as caught:  # an encoder would have nothing to be trained on
        reference_features("encoder", reference, device=CPU)
    assert (caught.value.name, caught.value.got) == ("features", "encoder")
    other = Reference(None, (mu[1:], sigma[1:, 1:]))
    with pytest.raises(ArgumentError) as caught:
        evaluate_images(generated, other, found, cache_dir=tmp_path)
    assert caught.value.name == "reference"


def test_files_that_hold_no_statistics(tmp_path):
    np.savez(tmp_path / "images.npz", images=images_of(9))
    assert read_statistics(tmp_path / "images.npz") == (None, True)
    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.zeros((2, 3)))
    (tmp_path / "damaged.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "nan.npz", mu=np.array([np.nan]), sigma=np.ones((1, 1)))
    np.savez(tmp_path / "words.npz", mu=np.array(["a"]), sigma=np.ones((1, 1)))
    np.savez(tmp_path / "whole.npz", mu=np.zeros(300), sigma=np.ones((300, 300)))
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "flipped.npz").write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])
    for name in ("bad", "damaged", "gone", "nan", "words", "cut", "flipped"):
        with pytest.raises(InputError) as caught:
            read_statistics(tmp_path / f"{name}.npz")
        assert caught.value.name == "reference"


def test_few_images_are_remarked_on_with_every_score_that_they_concern(tmp_path):
    images = [images_of(30, seed=seed) for seed in range(3)]
    reference = Reference(LabelledImages(images[0]), train=LabelledImages(images[1]))
    scores = evaluate_images(images[2], reference, get("pixels"), cache_dir=tmp_path)
    assert len(scores) == 9
    assert all(score.note for score in scores)
    assert all(score.note in line for score, line in zip(scores, format_scores(scores), strict=True))
    many = np.tile(images[0], (70, 1, 1, 1))
    enough = evaluate_images(many, Reference(LabelledImages(many)), get("pixels"), cache_dir=tmp_path)
    assert not any(score.note for score in enough)


def test_few_images_are_remarked_on_in_all():
    assert "raise a Frechet distance and make precision, recall" in sample_size_note(1000, 200)
    assert "need more" not in sample_size_note(1000, 200)
    assert sample_size_note(4, 200).endswith("precision and recall need more than 5")
    assert sample_size_note(50_000, 50_000) == "50,000 generated images against 50,000"


def test_a_run_is_compared_with_its_held_out_images(photos, tmp_path, capsys):
    run = train(photos, tmp_path / "runs", "data.heldout=0.4")
    output = tmp_path / "scores.json"
    words = ["--num", "12", "--steps", "2", "--output", str(output)]
    assert main(["eval", str(run), *words]) == 0
    said = capsys.readouterr().out
    assert "Frechet distance on pixels, generated" in said
    assert "Frechet distance on pixels, training images" in said
    found = json.loads(output.read_text())
    assert {score["n"] for score in found["scores"]} >= {12}
    (kept,) = (run / "eval").glob("ema-weights-in-pixels-12-images-against-held-out-images.json")
    command = json.loads(kept.read_text())["command"]
    assert command == shlex.join(["maskdm", "eval", str(run), *words])
    assert main(shlex.split(command)[1:]) == 0  # gives the same numbers again
    assert json.loads(output.read_text()) == found
    assert found["command"] == command


def test_images_are_compared_with_a_folder(photos, photos_run, tmp_path, capsys):
    assert (
        main(["sample", str(photos_run), "--num", "10", "--steps", "2", "--output", str(tmp_path / "generated")]) == 0
    )
    assert main(["eval", str(tmp_path / "generated"), "--reference", str(photos)]) == 0
    assert "10 generated images against 30" in capsys.readouterr().out  # without the grid of all of them


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{photos}"], "--reference: missing"),
        (["{run}", "--features", "fid"], "--features: got 'fid'"),
        (["{run}", "--features", "gone:f"], "--features: "),
        (["{run}", "--bootstrap", "-1"], "--bootstrap: got -1"),
        (["{run}", "--features-weights", "x.pth"], "--features-weights: given with the features pixels"),
        (["{run}", "--num", "0"], "--num: got 0"),
        (["{run}", "--num", "1"], "--num: got 1"),
        (["gone", "--reference", "{photos}"], "does not exist"),
    ],
)
def test_refusals(words, message, photos, photos_run, capsys):
    assert main(["eval", *(word.format(photos=photos, run=photos_run) for word in words)]) == 2
    assert message in capsys.readouterr().err
