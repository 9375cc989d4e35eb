"""Caching: the right rows in order, bad pictures left out and named, every refusal in one line."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskdm.data.image_set import ImageSet, load_images
from maskdm.data.sources import open_source
from maskdm.errors import InputError


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """An `InputError` on one line that holds all of `words`."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def picture(seed: int, shape: tuple[int, ...] = (6, 8, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of 8 x 6 in two classes."""
    for number in range(12):
        path = tmp_path / "data" / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(number)))
    return tmp_path / "data"


def load(path: Path, said: list[str] | None = None, **settings: Any) -> ImageSet:
    settings.setdefault("cache_dir", path.parent / "cache")
    return load_images(open_source(path), say=[].append if said is None else said.append, **settings)


def numbers(images: ImageSet) -> list[int]:
    return [int(Path(name).stem) for name in images.names]


# --- what comes out --------------------------------------------------------------------------------------------------


def test_rows_names_labels_and_hashes(folder: Path) -> None:
    images = load(folder)
    assert images.images.shape == (12, 6, 8, 3)
    assert isinstance(images.images, np.memmap)
    assert not images.images.flags.writeable
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    assert images.class_names == ("cat", "dog")
    assert list(images.names) == sorted(images.names)
    for row, (name, number) in enumerate(zip(images.names, numbers(images), strict=True)):
        assert np.array_equal(images.images[row], picture(number))
        assert name.startswith(images.class_names[images.labels[row]])
        assert images.sha256[row] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert images.sha256_px[row] == hashlib.sha256(picture(number).tobytes()).hexdigest()
    assert set(images.source_sizes) == {(8, 6)}
    assert images.bad == ()


def test_arrays(tmp_path: Path) -> None:
    pixels = picture(0, (9, 4, 5))
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(9) % 2)
    images = load(tmp_path / "a.npz")
    assert np.array_equal(images.images[..., 0], pixels)
    assert images.sha256[3] == images.sha256_px[3] == hashlib.sha256(pixels[3].tobytes()).hexdigest()


def test_same_bytes_of_another_shape_are_another_entry(tmp_path: Path) -> None:
    pixels = picture(0, (9, 4, 6))
    for name, shape in (("a.npz", (9, 4, 6)), ("b.npz", (9, 6, 4))):
        np.savez(tmp_path / name, images=pixels.reshape(shape))
    assert not np.array_equal(
        load(tmp_path / "a.npz", image_size=5).images, load(tmp_path / "b.npz", image_size=5).images
    )


@pytest.mark.parametrize(("setting", "shape"), [("auto", (6, 8)), (16, (16, 16)), ((5, 7), (5, 7)), ([5, 7], (5, 7))])
def test_image_size(setting: Any, shape: tuple[int, int], folder: Path) -> None:
    assert load(folder, image_size=setting).images.shape == (12, *shape, 3)


def test_image_size_auto_without_a_shared_or_small_size(folder: Path) -> None:
    (folder / "dog/00.png").write_bytes(png(picture(0, (8, 6, 3))))
    assert load(folder).images.shape == (12, 64, 64, 3)
    for path in folder.glob("*/*.png"):
        path.write_bytes(png(picture(int(path.stem), (2, 129, 3))))
    assert load(folder).images.shape == (12, 64, 64, 3)


def test_channels_auto(folder: Path) -> None:
    assert load(folder).transform.channels == 3
    for path in folder.glob("*/*.png"):
        path.write_bytes(png(picture(int(path.stem), (6, 8))))
    assert load(folder).transform.channels == 1
    assert load(folder, channels=4).images.shape[-1] == 4


def test_background(folder: Path) -> None:
    (folder / "dog/00.png").write_bytes(png(np.zeros((6, 8, 4), np.uint8)))
    images = load(folder, background="#010203")
    assert (images.images[images.names.index("dog/00.png")] == (1, 2, 3)).all()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"image_size": 0}, "data.image_size"),
        ({"image_size": True}, "data.image_size"),
        ({"image_size": (3, -1)}, "data.image_size"),
        ({"image_size": "big"}, "data.image_size"),
        ({"channels": 5}, "data.channels"),
        ({"background": "no colour"}, "data.background"),
        ({"background": "#01020304"}, "data.background"),
        ({"background": 7}, "data.background"),
        ({"on_bad_image": "ignore"}, "data.on_bad_image"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], word: str, folder: Path) -> None:
    with refused(word, "wanted", "write one of these"):
        load(folder, **settings)


def test_progress_counts_every_picture(folder: Path) -> None:
    seen: dict[str, list[int]] = {}

    class Bar:
        def __init__(self, description: str, total: int) -> None:
            self.counts = seen.setdefault(description, [total, 0])

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, n: int, /) -> None:
            self.counts[1] += n

    load(folder, progress=Bar)
    assert seen == {"reading": [12, 12], "decoding": [12, 12]}


# --- bad pictures ----------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def test_bad_pictures_are_left_out_and_named(folder: Path) -> None:
    (folder / "cat/01.png").write_bytes(b"no picture")  # found by the first pass
    truncate(folder / "dog/04.png")  # found by the second
    for _ in range(2):  # decoded, then from the cache
        said: list[str] = []
        images = load(folder, said)
        assert numbers(images) == [3, 5, 7, 9, 11, 0, 2, 6, 8, 10]
        assert all(np.array_equal(images.images[row], picture(n)) for row, n in enumerate(numbers(images)))
        assert [name for name, _ in images.bad] == ["cat/01.png", "dog/04.png"]
        assert images.bad_sha256[0] == hashlib.sha256(b"no picture").hexdigest()
        assert len(images.labels) == len(images.sha256_px) == len(images.source_sizes) == 10
        (line,) = said
        assert "left out 2 pictures" in line
        assert "'cat/01.png' (not a picture" in line
        assert "'dog/04.png'" in line


def test_at_most_ten_are_named(folder: Path) -> None:
    for number in range(13):
        (folder / "cat" / f"bad\n{number:02d}.png").write_bytes(b"no picture")
    said: list[str] = []
    load(folder, said)
    assert said[0].count("bad") == 10
    assert said[0].endswith("and 3 more")
    assert "\n" not in said[0]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_bad_pictures_can_be_refused(cached: bool, early: bool, folder: Path) -> None:
    if early:
        (folder / "cat/05.png").write_bytes(b"no picture")
    else:
        truncate(folder / "cat/05.png")
    truncate(folder / "dog/06.png")
    if cached:
        load(folder)
    with refused("'cat/05.png'", "cannot be read", "data.on_bad_image to skip"):
        load(folder, on_bad_image="fail")
    assert not list(folder.parent.glob("cache/*.tmp-*"))


@pytest.mark.parametrize("early", [False, True])
def test_all_bad(early: bool, folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        if early:
            path.write_bytes(b"no picture")
        else:
            truncate(path)
    with refused("none of the 12 pictures", "'cat/01.png'", "repair"):
        load(folder)


@pytest.mark.parametrize("bad", [0, 2])
def test_too_few(bad: int, folder: Path) -> None:
    for number in range(5 if bad == 0 else 3):
        (folder / f"{'cat' if number % 2 else 'dog'}/{number:02d}.png").unlink()
    for number in range(10, 10 + bad):
        truncate(folder / f"{'cat' if number % 2 else 'dog'}/{number:02d}.png")
    with refused("found 7 pictures", str(folder), "at least 8 are needed", "add more"):
        load(folder)


def test_a_file_that_cannot_be_read_is_a_bad_picture(folder: Path) -> None:
    (folder / "cat/99.png").symlink_to("nowhere.png")
    images = load(folder)
    assert images.bad == (("cat/99.png", "No such file or directory"),)
    assert images.bad_sha256 == ("",)


def test_a_picture_that_changes_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "maskdm.data.image_set.find_or_build",
        lambda folder_, key, transform, count, decode_all, say: [
            (folder / "dog/00.png").write_bytes(png(picture(99))),
            list(decode_all()),
        ],
    )
    with refused("'dog/00.png'", "changed while it was being read", "start again"):
        load(folder)
