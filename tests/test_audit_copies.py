"""Copies among generated images: found where they are, at their rate, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from audit_cases import flat

from maskdm.auditing import copies
from maskdm.auditing.copies import all_pixels, measure_copies, member_preference
from maskdm.data.labelled import LabelledImages


def test_copies_are_found_at_their_rate():
    members, heldout, fresh = flat(300, 1), flat(300, 2), flat(200, 4)
    noise = np.random.default_rng(0).integers(-2, 3, size=(20, *members.images.shape[1:]))
    copied = np.clip(members.images[:20].astype(int) + noise, 0, 255).astype(np.uint8)
    generated = np.concatenate([fresh.images[:180], copied])
    preferred, ratio, tiles = measure_copies(generated, members, heldout)
    assert ratio.value == pytest.approx(0.1, abs=0.01)
    assert ratio.low < 0.1 < ratio.high
    assert ratio.baseline == 0
    assert tiles.value == pytest.approx(0.1, abs=0.01)
    assert preferred.value > 0.52


def test_copies_are_looked_for_in_a_few_floats_at_a_time(monkeypatch):
    """Of 10,000 images at 256 px in RGB all of them as floats would be 8 GB."""
    monkeypatch.setattr(copies, "CHUNK", 32)
    whole, seen = copies._floats, []

    def floats(numbers):
        seen.append(len(numbers))
        return whole(numbers)

    monkeypatch.setattr(copies, "_floats", floats)
    found = measure_copies(flat(90, 3).images, flat(70, 1), flat(50, 2))
    assert max(seen) == 32
    monkeypatch.setattr(copies, "CHUNK", 1000)
    whole_found = measure_copies(flat(90, 3).images, flat(70, 1), flat(50, 2))
    assert [share.value for share in found] == [share.value for share in whole_found]


def test_held_out_images_as_a_generator_prefer_nobody():
    preferred, ratio, tiles = measure_copies(flat(300, 5).images, flat(300, 1), flat(300, 2))
    assert preferred.low < 0.5 < preferred.high
    assert (ratio.value, tiles.value) == (0, pytest.approx(0, abs=0.03))
    assert "none in 300: less than 0.0099 of images (95 %)" in ratio.note


def test_a_memorized_set_is_preferred_and_its_interval_counts_neighbors():
    members, heldout = flat(300, 1), flat(300, 2)
    generated = np.repeat(members.images[:5], 100, axis=0)  # five images, a hundred times each
    p, low, _ = member_preference(*(all_pixels(x) for x in (generated, members.images, heldout.images)))
    assert p == 1
    assert low < 0.6  # five neighbors are no proof of much


def test_near_duplicates_hide_no_copy_and_make_none():
    """Every member and held-out image in three near copies: a copy is one whose next kind is far."""
    rng = np.random.default_rng(0)

    def threes(seed: int) -> LabelledImages:
        images = np.repeat(flat(100, seed).images, 3, axis=0)
        noisy = np.clip(images + rng.integers(-3, 4, images.shape), 0, 255).astype(np.uint8)
        return LabelledImages(
            noisy, tuple(f"{seed}-{i}" for i in range(300)), groups=tuple(f"{i // 3}" for i in range(300))
        )

    members, heldout = threes(1), threes(2)
    generated = np.concatenate([members.images[:30], flat(270, 5).images])
    preferred, ratio, _ = measure_copies(generated, members, heldout)
    assert ratio.value == pytest.approx(0.1, abs=0.01)
    fewer = heldout.take(np.arange(30))  # ten kinds of thing against a hundred
    assert measure_copies(flat(300, 6).images, members, fewer)[0].value == pytest.approx(0.5, abs=0.2)
    assert preferred.baseline is not None
    assert preferred.baseline_low is not None
    assert preferred.baseline_high is not None
    assert preferred.baseline_low < 0.5 < preferred.baseline_high
    assert preferred.baseline > 0.3  # no half of the held-out images finds its near copies in the other
