"""Data sets in the formats of the Hugging Face hub, from local copies: no network is asked."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from data_helpers import Listener, refused
from PIL import Image

from maskdm.data.image_set import load_images
from maskdm.data.sources import open_source, resolved_path

datasets = pytest.importorskip("datasets")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.filterwarnings("default")  # its own


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def table(count: int = 9, *, labelled: bool = True):
    features = {"photo": datasets.Image()} | ({"kind": datasets.ClassLabel(names=["owl", "cat"])} if labelled else {})
    columns = {"photo": [{"bytes": png(20 * i), "path": None} for i in range(count)]}
    if labelled:
        columns["kind"] = [i % 2 for i in range(count)]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture
def parquet(tmp_path):
    """As a data set lies on the hub: a folder of Parquet files."""
    folder = tmp_path / "birds"
    folder.mkdir()
    table().to_parquet(folder / "train-00000-of-00001.parquet")
    table(8, labelled=True).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def test_a_folder_as_on_the_hub(parquet, tmp_path):
    source = open_source(f"hf:{parquet}")
    assert source.class_names == ("owl", "cat")
    found = load_images(source, cache_dir=tmp_path / "cache", console=Listener())
    assert found.images.shape == (9, 4, 4, 3)
    assert found.images[np.arange(9)][:, 0, 0, 0].tolist() == [20 * i for i in range(9)]
    assert found.labels is not None
    assert found.labels.tolist() == [i % 2 for i in range(9)]
    assert len(open_source(f"hf:{parquet}:test").items) == 8


def test_saved_to_disk_with_and_without_splits(tmp_path):
    table(labelled=False).save_to_disk(tmp_path / "flat")
    source = open_source(f"hf:{tmp_path / 'flat'}")
    assert (len(source.items), source.class_names) == (9, ())
    datasets.DatasetDict(train=table(), test=table(4)).save_to_disk(tmp_path / "split")
    assert len(open_source(f"hf:{tmp_path / 'split'}:test").items) == 4


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("hf:no-such/data-set", "cannot be loaded ("),
        ("hf:{parquet}:nowhere", "cannot be loaded ("),
        ("hf:{words}", "has no column of images but ['text']"),
    ],
)
def test_what_cannot_be_had(parquet, tmp_path, name, problem):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "words")
    name = name.format(parquet=parquet, words=tmp_path / "words")
    with refused(name.removesuffix(":nowhere"), problem):
        open_source(name)


def saved(path, kinds, **columns) -> str:
    """A set of as many images as the columns have rows, as save_to_disk writes it."""
    count = len(next(iter(columns.values())))
    features = datasets.Features({"photo": datasets.Image(), "image": datasets.Image()} | kinds)
    images = [{"bytes": png(20 * i), "path": None} for i in range(count)]
    columns = {"photo": images[::-1], "image": images} | columns
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(path)
    return f"hf:{path}"


@pytest.mark.parametrize("kind", ["ClassLabel", "string"])
def test_images_without_a_class(tmp_path, kind):
    feature = datasets.ClassLabel(names=["owl"]) if kind == "ClassLabel" else datasets.Value("string")
    owl, none = (0, -1) if kind == "ClassLabel" else ("owl", None)
    many = saved(tmp_path / "many", {"label": feature}, label=[owl, none, owl, none])
    with refused(many, "2 of 4 images have no class in the column label", remedy="data.label_column to none"):
        open_source(many)
    assert open_source(many, label_column="none").class_names == ()
    few = open_source(saved(tmp_path / "few", {"label": feature}, label=[owl, none, owl]))
    assert [item.name for item in few.items] == ["0", "2"]
    assert few.left_out == (("1", "the row has no class"),)
    nowhere = open_source(saved(tmp_path / "nowhere", {"label": feature}, label=[none, none]))
    assert (len(nowhere.items), nowhere.class_names) == (2, ())
    assert nowhere.remarks == ("no classes: no row has one in the column label",)


@pytest.mark.parametrize(
    ("dtype", "values", "names", "labels"),
    [
        ("int64", [7, 3, 7], ("3", "7"), [1, 0, 1]),
        ("string", ["owl", "cat", "owl"], ("cat", "owl"), [1, 0, 1]),
        ("string", ["cafe\u0301", "caf\u00e9", "owl"], ("caf\u00e9", "owl"), [0, 0, 1]),
        ("bool", [True, False, True], ("0", "1"), [1, 0, 1]),
    ],
)
def test_columns_of_numbers_and_words_are_labels(tmp_path, dtype, values, names, labels):
    usual = saved(tmp_path / "usual", {"label": datasets.Value(dtype)}, label=values)
    source = open_source(usual)
    assert (source.class_names, [item.label for item in source.items]) == (names, labels)
    other = saved(tmp_path / "other", {"width": datasets.Value(dtype)}, width=values)
    assert open_source(other).class_names == ()  # who knows what it is
    assert open_source(other, label_column="width").class_names == names


def test_columns_are_chosen(tmp_path):
    name = saved(
        tmp_path / "set",
        {"label": datasets.Value("int64"), "size": datasets.Value("float32")},
        label=[1, 2],
        size=[0.0, 1.0],
    )
    source = open_source(name)
    assert source.read(source.items[0]) == png(0)  # image, which is not the first
    source = open_source(name, image_column="photo")
    assert source.read(source.items[0]) == png(20)
    with refused("data.image_column", got="picture", wanted="one of photo, image"):
        open_source(name, image_column="picture")
    with refused("data.label_column", got="size", wanted="auto, none or one of label"):
        open_source(name, label_column="size")
    with refused("data.label_column", got="label", wanted="only a data set hf:NAME has columns"):
        open_source(tmp_path, label_column="label")


def test_rows_without_an_image_are_left_out_and_said(tmp_path):
    rows = [{"bytes": png(20 * i), "path": None} for i in range(11)]
    rows[2] = None
    rows[5] = {"bytes": b"", "path": None}
    rows[7] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    features = datasets.Features({"image": datasets.Image()})
    (tmp_path / "set").mkdir()
    made = datasets.Dataset.from_dict({"image": rows}, features=features)
    pq.write_table(made.data.table, tmp_path / "set" / "train.parquet")  # `to_parquet` would look for the file
    console = Listener()
    found = load_images(open_source(f"hf:{tmp_path / 'set'}"), cache_dir=tmp_path / "cache", console=console)
    assert found.bad == (
        ("02", "the row has no image"),
        ("05", "the image of the row is empty"),
        ("07", "No such file or directory"),
    )
    assert found.images[np.arange(8)][:, 0, 0, 0].tolist() == [20 * i for i in range(11) if i not in (2, 5, 7)]
    assert "left out 3 images" in console.said[0]


def test_configurations_of_a_data_set(tmp_path):
    for config in ("small", "large"):
        (tmp_path / "set" / config).mkdir(parents=True)
        table(4 if config == "small" else 6).to_parquet(tmp_path / "set" / config / "test-00000-of-00001.parquet")
    front = "\n".join(
        f"- config_name: {c}\n  data_files:\n  - split: test\n    path: {c}/test-*" for c in ("small", "large")
    )
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{front}\n---\n", encoding="utf-8")
    assert len(open_source(f"hf:{tmp_path / 'set'}:small:test").items) == 4
    assert len(open_source(f"hf:{tmp_path / 'set'}:large:test").items) == 6
    with refused(f"hf:{tmp_path / 'set'}", "cannot be loaded (", remedy="hf:NAME:CONFIG:SPLIT"):
        open_source(f"hf:{tmp_path / 'set'}:test")
    with refused("hf:a:b:c:d", "cannot be understood", wanted="hf:NAME:CONFIG:SPLIT"):
        open_source("hf:a:b:c:d")


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused("hf:some/set", "the library datasets, which is missing", remedy="pip install datasets"):
        open_source("hf:some/set")


def test_names_of_the_hub_are_no_paths():
    assert resolved_path("hf:org/set:train") == "hf:org/set:train"


def test_a_folder_as_on_the_hub_is_found_from_everywhere(parquet, monkeypatch):
    monkeypatch.chdir(parquet.parent)
    assert resolved_path("hf:birds:test") == f"hf:{parquet}:test"
