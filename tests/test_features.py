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
from PIL import Image
from torch import nn
from torch.nn import functional as F

from maskdm.cli.main import main
from maskdm.errors import InputError
from maskdm.evaluation import encoder, features, inception
from maskdm.evaluation.features import cached, in_colour, pick, pixels
from maskdm.evaluation.metrics import bootstrap, gaussian, kernel_distance, manifolds, nearest_cosine
from maskdm.evaluation.pretrained import PUBLISHED
from maskdm.evaluation.scores import Reference, evaluate, read_statistics, remark

CPU = torch.device("cpu")


def nothing() -> tuple[np.ndarray, None]:
    raise AssertionError("no reference is needed")


def pictures(count: int, side: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
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
    ("real", "made", "precision", "recall", "coverage"),
    [
        ((0, 10), (0, 10), 1.0, 1.0, 1.0),
        ((0, 10), (0,), 1.0, 0.5, 0.5),  # half of it is never made
        ((0,), (0, 10), 0.5, 1.0, 1.0),  # half of what is made is nothing real
        ((0,), (10,), 0.0, 0.0, 0.0),
    ],
)
def test_clouds_that_overlap(real, made, precision, recall, coverage):
    found = manifolds(clouds(*real), clouds(*made) + 1e-3)
    assert found.precision == pytest.approx(precision, abs=0.05)
    assert found.recall == pytest.approx(recall, abs=0.05)
    assert found.coverage == pytest.approx(coverage, abs=0.05)


def test_density_of_equal_clouds_is_about_one():
    rng = np.random.default_rng(3)
    assert manifolds(rng.normal(size=(800, 4)), rng.normal(size=(800, 4))).density == pytest.approx(1, abs=0.15)


def test_copies_are_at_no_distance_and_opposites_at_two():
    known = np.array([[1.0, 0.0], [0.0, 3.0]])
    assert nearest_cosine([[5.0, 0.0], [0.0, 1.0]], known) == pytest.approx([0, 0])
    assert nearest_cosine([[-1.0, -1.0]], known) == pytest.approx([1 + 2**-0.5])


def test_the_interval_holds_the_distance_and_narrows():
    rng = np.random.default_rng(4)
    reference = gaussian(rng.normal(size=(2000, 3)))
    wide, narrow = (bootstrap(rng.normal(0.3, 1, size=(n, 3)), reference, 100) for n in (100, 2000))
    assert wide[0] < wide[1]
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 2
    assert narrow[0] < 0.27 < narrow[1]  # 3 times 0.3 squared


# --- Inception -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    network = inception.Inception()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # what it sees next, so that random layers do not let every picture fade
    with torch.no_grad():
        network.train()(torch.from_numpy(pictures(4, side=64)).permute(0, 3, 1, 2).float())
    torch.save(network.state_dict(), path)
    return path


def test_inception_has_the_shape_of_the_published_file(weights):
    state = torch.load(weights, weights_only=True)
    # The published file has 95,628,359 bytes, a little of which are names.
    assert 0.997 * 95_628_359 < sum(t.numel() * t.element_size() for t in state.values()) < 95_628_359
    assert state["fc.weight"].shape == (1008, 2048)
    assert state["Mixed_6b.branch7x7_2.conv.weight"].shape == (128, 128, 1, 7)


def test_pictures_become_2048_numbers_each_on_its_own(weights):
    found = pick("inception", device=CPU, cache_dir=Path(), reference=nothing, weights=weights)
    images = pictures(3, side=40)
    vectors = found(images)
    assert vectors.shape == (3, 2048)
    assert np.allclose(found(images[1:2]), vectors[1:2], atol=1e-5)
    assert found.distance != "FID"  # of these weights it is none
    assert found.name == f"inception {hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}"


def test_resizing_is_that_of_tensorflow_1():
    x = torch.arange(4.0).view(1, 1, 2, 2)  # [[0, 1], [2, 3]]
    # Pixel i is at i * 2 / 4: 0, 0.5, 1, 1.5, and beyond the last one it stays.
    row = [0.0, 0.5, 1.0, 1.0]
    assert inception.resized(x, 4)[0, 0].tolist() == [[a + 2 * b for a in row] for b in row]
    assert inception.resized(x, 2) is x


def test_the_traps_of_an_fid_change_it(weights):
    """Another filter, rounding, compression: each gives other features, which is why none is done in passing."""
    found = pick("inception", device=CPU, cache_dir=Path(), reference=nothing, weights=weights)
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
    assert torch.equal(in_colour(x[:, :1]), x[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(in_colour(torch.cat([x, x], dim=1)), torch.cat([x, x], dim=1)[:, :3])


def test_weights_are_refused_unless_they_are_the_right_ones(tmp_path, monkeypatch):
    (tmp_path / "source.pth").write_bytes(b"not the network")
    digest = hashlib.sha256(b"not the network").hexdigest()
    source = (tmp_path / "source.pth").as_uri()
    assert features.download(source, digest, tmp_path / "kept", print).read_bytes() == b"not the network"
    with pytest.raises(InputError, match="has sha256"):
        features.download(source, inception.SHA256, tmp_path / "kept", print)
    with pytest.raises(InputError, match="cannot be downloaded"):
        features.download((tmp_path / "gone.pth").as_uri(), digest, tmp_path / "kept", print)
    with pytest.raises(InputError, match="cannot be read"):
        pick("inception", device=CPU, cache_dir=tmp_path, reference=nothing, weights=tmp_path / "source.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="no Inception network"):
        pick("inception", device=CPU, cache_dir=tmp_path, reference=nothing, weights=tmp_path / "other.pth")


# --- other features --------------------------------------------------------------------------------------------------


def test_pixels_are_averaged_down_where_they_are_many():
    x = torch.full((2, 3, 64, 64), 255.0)
    assert pixels(x).shape == (2, 3 * 16 * 16)
    assert torch.equal(pixels(x), torch.ones(2, 768))
    assert pixels(x[:, :, :8, :8]).shape == (2, 192)


class Halves(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3)) / 2


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
    found = pick(name, device=CPU, cache_dir=tmp_path, reference=nothing, weights=tmp_path / "w")
    images = pictures(5, side=28)
    ours = found(images)
    assert ours.shape == (5, 16)
    # What the network itself says of pictures that need no resizing.
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
    assert pick(name, device=CPU, cache_dir=tmp_path, reference=nothing, weights=tmp_path / "other").name != found.name
    with pytest.raises(InputError, match="is no folder that save_pretrained"):
        pick(name, device=CPU, cache_dir=tmp_path, reference=nothing, weights=tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers; pip install 'maskdm\[features\]'"):
        pick(name, device=CPU, cache_dir=tmp_path, reference=nothing)


def test_another_network_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**small)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="--features clip: ") as caught:
        pick("clip", device=CPU, cache_dir=tmp_path, reference=nothing, weights=tmp_path)
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
    found = pick(str(path), device=CPU, cache_dir=tmp_path, reference=nothing)
    images = pictures(5)
    assert np.allclose(found(images), images.mean(axis=(1, 2)) / 2, atol=1e-3)


def test_an_encoder_is_the_same_for_the_same_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "STEPS", 3)
    images = pictures(20)
    told: list[str] = []

    def made(data: np.ndarray, folder: str):
        reference = lambda: (data, None)  # noqa: E731
        return pick("encoder", device=CPU, cache_dir=tmp_path / folder, reference=reference, say=told.append)

    first, again, elsewhere = made(images, "a"), made(images, "a"), made(images, "b")
    assert len(told) == 2  # trained once in each folder
    assert first.name == again.name == elsewhere.name
    assert np.array_equal(first(images), again(images))
    assert np.array_equal(first(images), elsewhere(images))
    assert made(pictures(20, seed=1), "a").name != first.name


@pytest.mark.slow
def test_an_encoder_tells_classes_apart(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    images = rng.integers(0, 60, size=(200, 16, 16, 1)).astype(np.uint8)
    images[labels == 1, 4:12, 4:12] += 150
    for given in (labels, None):
        network, _ = encoder.trained(lambda given=given: (images, given), tmp_path, device=CPU, say=print)
        x = network(torch.from_numpy(images).permute(0, 3, 1, 2).float()).numpy()
        centres = [x[labels == k].mean(axis=0) for k in (0, 1)]
        nearer = np.linalg.norm(x - centres[0], axis=1) > np.linalg.norm(x - centres[1], axis=1)
        assert (nearer == labels).mean() > 0.95


def test_features_are_kept_by_the_contents_of_both(tmp_path):
    calls: list[int] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return pixels(x)

    made = features.Features("counted", "distance", counted, CPU)
    images = pictures(5)
    a, b = (cached(made, images, tmp_path, lambda n: None) for _ in range(2))
    assert np.array_equal(a, b)
    assert calls == [5]
    cached(made, images[::-1], tmp_path, lambda n: None)
    cached(features.Features("another", "distance", counted, CPU), images, tmp_path, lambda n: None)
    assert calls == [5, 5, 5]
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    assert np.array_equal(cached(made, images, tmp_path, lambda n: None), a)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fid", "got 'fid', wanted pixels, inception, dinov2, clip, encoder"),
        ("gone.pt", "no such file"),
        ("gone.pt2", "no such file"),
    ],
)
def test_unknown_features(name, words, tmp_path):
    with pytest.raises(InputError, match=words) as caught:
        pick(name, device=CPU, cache_dir=tmp_path, reference=nothing)
    assert "\n" not in str(caught.value)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_of_copies_and_of_noise(tmp_path):
    real, known, made = (pictures(60, seed=seed) // 2 for seed in (0, 1, 2))
    found = pick("pixels", device=CPU, cache_dir=tmp_path, reference=nothing)
    reference = Reference(real, known=known)
    names, rows = {}, {}
    for which, images in {"like them": made, "copies": known, "bright": 255 - made}.items():
        scores = evaluate(images, reference, found, cache_dir=tmp_path, resamples=20)
        rows[which] = [score.value for score in scores]
        names = {score.name: i for i, score in enumerate(scores)}
        assert all(score.n == 60 for score in scores)
        assert scores[0].low is not None
        assert scores[0].low < scores[0].value < scores[0].high
    near = names["cosine distance to the nearest training picture, generated"]
    assert rows["copies"][near] == pytest.approx(0, abs=1e-9)
    assert rows["like them"][near] == pytest.approx(rows["like them"][near + 1], rel=0.05)
    assert rows["bright"][0] > 10 * rows["like them"][0]
    assert rows["bright"][names["precision"]] == 0


def test_statistics_alone_give_the_distance_alone(tmp_path):
    found = pick("pixels", device=CPU, cache_dir=tmp_path, reference=nothing)
    real, made = pictures(50), pictures(50, seed=1)
    mu, sigma = gaussian(found(real))
    np.savez(tmp_path / "s.npz", mu=mu, sigma=sigma)
    statistics = read_statistics(tmp_path / "s.npz")
    (score,) = evaluate(made, Reference(None, statistics), found, cache_dir=tmp_path)
    assert score.value == pytest.approx(evaluate(made, Reference(real), found, cache_dir=tmp_path)[0].value)
    np.savez(tmp_path / "images.npz", images=real)
    assert read_statistics(tmp_path / "images.npz") is None
    np.savez(tmp_path / "bad.npz", mu=mu, sigma=sigma[1:])
    with pytest.raises(InputError, match="wanted"):
        read_statistics(tmp_path / "bad.npz")


def test_few_pictures_are_remarked_on():
    assert "so few raise a Frechet distance" in remark(1000, 200)
    assert "precision" not in remark(1000, 200)
    assert remark(4, 200).endswith("precision and recall need more than 5")
    assert remark(50_000, 50_000) == "50,000 generated pictures against 50,000"


def test_a_run_is_compared_with_its_held_out_pictures(photos, tmp_path, capsys):
    run = train(photos, tmp_path / "runs", "data.heldout=0.4")
    output = tmp_path / "scores.json"
    words = ["--num", "12", "--steps", "2", "--output", str(output)]
    assert main(["eval", str(run), *words]) == 0
    said = capsys.readouterr().out
    assert "Frechet distance on pixels, generated" in said
    assert "Frechet distance on pixels, training pictures" in said
    found = json.loads(output.read_text())
    assert {score["n"] for score in found["scores"]} >= {12}
    (kept,) = (run / "eval").glob("ema-weights-in-pixels-12-pictures-against-held-out-pictures.json")
    command = json.loads(kept.read_text())["command"]
    assert command == shlex.join(["maskdm", "eval", str(run), *words])
    assert main(shlex.split(command)[1:]) == 0  # makes the same numbers again
    assert json.loads(output.read_text()) == found
    assert found["command"] == command


def test_pictures_are_compared_with_a_folder(photos, photos_run, tmp_path, capsys):
    assert main(["sample", str(photos_run), "--num", "10", "--steps", "2", "--output", str(tmp_path / "made")]) == 0
    assert main(["eval", str(tmp_path / "made"), "--reference", str(photos)]) == 0
    assert "10 generated pictures against 30" in capsys.readouterr().out  # without the grid of all of them


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "{photos}"], "--reference: missing"),
        (["eval", "{run}", "--features", "fid"], "--features: got 'fid'"),
        (["eval", "{run}", "--bootstrap", "-1"], "--bootstrap: got -1"),
        (["eval", "{run}", "--weights", "x.pth"], "--weights: given with the features pixels"),
        (["eval", "{run}", "--num", "0"], "num: got 0"),
        (["eval", "gone", "--reference", "{photos}"], "does not exist"),
    ],
)
def test_refusals(words, message, photos, photos_run, capsys):
    assert main([word.format(photos=photos, run=photos_run) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_inception_answers_like_the_reference_implementation(weights):
    """torch-fidelity's, which reproduces the TensorFlow graph; it needs torchvision."""
    reference = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", exc_type=ImportError)
    images = pictures(3, side=64)
    ours = pick("inception", device=CPU, cache_dir=Path(), reference=nothing, weights=weights)(images)
    network = reference.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
    ).eval()
    with torch.no_grad():
        theirs = network(torch.from_numpy(images).permute(0, 3, 1, 2))[0].numpy()
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()
