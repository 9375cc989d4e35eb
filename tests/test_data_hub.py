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


def test_images_without_a_class_are_refused(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=["owl"])})
    columns = {"image": [{"bytes": png(0), "path": None}] * 2, "kind": [0, -1]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "set")
    with refused(f"hf:{tmp_path / 'set'}", "some images have no class", remedy="another split than train"):
        open_source(f"hf:{tmp_path / 'set'}")


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused("hf:some/set", "the library datasets, which is missing", remedy="pip install datasets"):
        open_source("hf:some/set")


def test_names_of_the_hub_are_no_paths():
    assert resolved_path("hf:org/set:train") == "hf:org/set:train"
