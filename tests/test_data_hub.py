"""Data sets in the formats of the Hugging Face hub, from local copies: no network is asked."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from maskdm.data.image_set import load_images
from maskdm.data.sources import open_source, settled_path
from maskdm.errors import InputError

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("default")  # its own


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def table(count: int = 9, *, labelled: bool = True):
    features = {"picture": datasets.Image()} | ({"kind": datasets.ClassLabel(names=["owl", "cat"])} if labelled else {})
    columns = {"picture": [{"bytes": png(20 * i), "path": None} for i in range(count)]}
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
    pictures = load_images(source, cache_dir=tmp_path / "cache", say=print)
    assert pictures.images.shape == (9, 4, 4, 3)
    assert pictures.images[np.arange(9)][:, 0, 0, 0].tolist() == [20 * i for i in range(9)]
    assert pictures.labels is not None
    assert pictures.labels.tolist() == [i % 2 for i in range(9)]
    assert len(open_source(f"hf:{parquet}:test").items) == 8


def test_saved_to_disk_with_and_without_splits(tmp_path):
    table(labelled=False).save_to_disk(tmp_path / "flat")
    source = open_source(f"hf:{tmp_path / 'flat'}")
    assert (len(source.items), source.class_names) == (9, ())
    datasets.DatasetDict(train=table(), test=table(4)).save_to_disk(tmp_path / "split")
    assert len(open_source(f"hf:{tmp_path / 'split'}:test").items) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:no-such/data-set", "cannot be loaded"),
        ("hf:{parquet}:nowhere", "cannot be loaded"),
        ("hf:{words}", "has no column of images but ['text']"),
    ],
)
def test_what_cannot_be_had_is_one_line(parquet, tmp_path, name, words):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "words")
    with pytest.raises(InputError) as caught:
        open_source(name.format(parquet=parquet, words=tmp_path / "words"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        open_source("hf:some/set")


def test_names_of_the_hub_are_no_paths():
    assert settled_path("hf:org/set:train") == "hf:org/set:train"
