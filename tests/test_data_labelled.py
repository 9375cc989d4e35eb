"""Images with what is known of each: rows stay together, and drawing them is the same for a seed."""

from __future__ import annotations

import numpy as np
import pytest

from maskdm.data.labelled import LabelledImages


def labelled(ids: tuple[str, ...] = tuple("abacdb"), **more: object) -> LabelledImages:
    """Six images of one pixel, each of its row's value."""
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    known = {"labels": np.arange(6) * 10, "groups": tuple(f"group {row}" for row in range(6))} | more
    return LabelledImages(images, ids, **known)


def rows(found: LabelledImages) -> list[int]:
    """Which rows of `labelled` these are; checks that everything came along."""
    values = found.images[:, 0, 0, 0].tolist()
    assert found.labels is not None
    assert found.labels.tolist() == [10 * value for value in values]
    assert found.groups == tuple(f"group {value}" for value in values)
    assert found.ids == tuple("abacdb"[value] for value in values)
    return values


def test_rows_stay_together():
    assert len(labelled()) == 6
    assert rows(labelled().take(np.array([4, 1, 1]))) == [4, 1, 1]
    assert rows(labelled().take(np.array([], np.int64))) == []


def test_what_is_not_known_stays_unknown():
    found = labelled((), labels=None, groups=None).take(np.array([2, 0]))
    assert (found.ids, found.labels, found.groups) == ((), None, None)
    assert found.unique() is found


def test_a_subset_is_drawn_by_its_seed_and_keeps_the_order():
    every = [rows(labelled().subset(3, seed)) for seed in range(40)]
    assert all(found == sorted(set(found)) and len(found) == 3 for found in every)
    assert every == [rows(labelled().subset(3, seed)) for seed in range(40)]
    assert {row for found in every for row in found} == set(range(6))
    whole = labelled()
    assert whole.subset(6, 0) is whole


def test_shuffling_is_drawn_by_its_seed():
    orders = {tuple(rows(labelled().shuffled(seed))) for seed in range(20)}
    assert len(orders) > 10
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert rows(labelled().shuffled(3)) == rows(labelled().shuffled(3))


def test_of_equal_ids_the_first_stays():
    assert rows(labelled().unique()) == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("known", "problem"),
    [({"labels": np.arange(5)}, "5 labels"), ({"groups": ("a",)}, "1 groups"), ({"ids": tuple("abc")}, "3 ids")],
)
def test_everything_is_known_of_every_image(known, problem):
    with pytest.raises(ValueError, match=f"{problem} for 6 images"):
        labelled(**known)
