"""Statistics of an audit against tables, closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.auditing import statistics as s

SCORES = st.lists(st.integers(0, 12).map(float), min_size=3, max_size=25)


@given(SCORES, SCORES)
def test_auc_is_the_share_of_pairs_in_order_ties_as_half(members, heldout):
    pairs = [(m > h) + 0.5 * (m == h) for m in members for h in heldout]
    assert s.auc(members, heldout).value == pytest.approx(np.mean(pairs))
    assert s.auc(heldout, members).value == pytest.approx(1 - np.mean(pairs))


def test_all_ties_tell_nothing():
    found = s.auc(np.zeros(50), np.zeros(70))
    assert found.value == 0.5
    assert found.interval()[0] < 0.5 < found.interval()[1]


def test_delong_agrees_with_the_bootstrap():
    rng = np.random.default_rng(0)
    m, h = rng.normal(0.5, 1, 300), rng.normal(0, 1, 200)
    drawn = [s.auc(rng.choice(m, 300), rng.choice(h, 200)).value for _ in range(1000)]
    assert s.auc(m, h).error == pytest.approx(np.std(drawn), rel=0.1)


def test_images_of_one_group_count_as_one():
    rng = np.random.default_rng(4)
    people = np.repeat(np.arange(60), 10)
    drawn = []
    for _ in range(400):  # people are drawn, and each brings ten images that are alike
        m, h = (rng.normal(0, 1, 60)[people] + 0.3 * rng.normal(size=600) for _ in range(2))
        drawn.append(s.auc(m, h).value)
    robust, naive = s.auc(m, h, (people, people)).error, s.auc(m, h).error
    assert robust == pytest.approx(np.std(drawn), rel=0.25)
    assert naive < 0.5 * robust
    alone = np.arange(600)
    assert s.auc(m, h, (alone, alone)).error == pytest.approx(naive, rel=1e-6)


def test_a_perfect_attack_has_an_error_all_the_same():
    found = s.auc(np.arange(50) + 100.0, np.arange(50.0))
    assert found.value == 1
    assert 0.9 < found.lower(0.995) < 1


def test_the_paired_error_is_that_of_the_difference():
    rng = np.random.default_rng(1)
    m, h = rng.normal(0.6, 1, 200), rng.normal(0, 1, 200)

    def both(m, h):
        return (m, h), (m + 0.3 * noise[0], h + 0.3 * noise[1])

    noise = rng.normal(size=(2, 200))
    value, error = s.auc_difference(*both(m, h))
    a, b = both(m, h)
    assert value == pytest.approx(s.auc(*a).value - s.auc(*b).value)
    drawn = []
    for _ in range(1000):
        i, j = rng.integers(200, size=(2, 200))
        drawn.append(s.auc_difference((a[0][i], a[1][j]), (b[0][i], b[1][j]))[0])
    assert error == pytest.approx(np.std(drawn), rel=0.15)
    assert error < 0.5 * math.hypot(s.auc(*a).error, s.auc(*b).error)
    assert s.auc_difference(a, a) == (0, 0)


@settings(deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=20, max_size=200),
    st.lists(st.floats(-5, 5), min_size=100, max_size=400),
    st.sampled_from([0.02, 0.05, 0.1]),
)
def test_false_positives_never_exceed_their_target(members, heldout, target):
    found = s.operating_point(members, heldout, target)
    if target * len(heldout) < 10:
        assert found is None
        return
    assert found is not None
    assert found.fpr <= target
    # And no lower threshold would do: with one more step down there would be too many, or a tie in the way.
    threshold = np.sort(heldout)[len(heldout) - math.floor(target * len(heldout)) - 1]
    assert found.hits == sum(m > threshold for m in members)


def test_a_tenth_of_a_percent_needs_ten_thousand():
    scores = np.arange(9_999.0)
    assert s.operating_point(scores, scores, 0.001) is None
    found = s.operating_point(np.arange(10_000.0), np.arange(10_000.0), 0.001)
    assert found is not None
    assert (found.false, found.hits) == (10, 10)


def test_the_effective_sample_size_of_clusters():
    rng = np.random.default_rng(0)
    x = rng.random(3000) < 0.2
    assert s.effective_n(x, None) == 3000
    assert s.effective_n(x, [str(i) for i in range(3000)]) == pytest.approx(3000, rel=0.01)
    assert s.effective_n(np.repeat(x[:300], 10), [i // 10 for i in range(3000)]) == pytest.approx(300, rel=0.02)
    assert s.effective_n(np.zeros(3000, bool), [i // 10 for i in range(3000)]) == 300
    assert s.effective_n(np.ones(20, bool), ["one"] * 20) == s.effective_n(np.arange(20) < 9, ["one"] * 20) == 1
    once = np.arange(3000) < 1
    assert s.effective_n(once, [i // 10 for i in range(3000)]) == 300  # found once, which tells nothing of its spread
    assert s.effective_clusters(["a"] * 80 + ["b"] * 10 + ["c"] * 10) == pytest.approx(1.515, abs=1e-3)
    assert s.share_interval(0.25, 20) == s.clopper_pearson(5, 20)
    low, high = s.share_interval(0.26, 20)
    assert (low, high) == (s.clopper_pearson(5, 20)[0], s.clopper_pearson(6, 20)[1])


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # R: binom.test(k, n)$conf.int
    [(0, 10, 0, 0.30850), (5, 10, 0.18709, 0.81291), (10, 10, 0.69150, 1), (20, 1000, 0.012261, 0.030714)],
)
def test_clopper_pearson(k, n, low, high):
    assert s.clopper_pearson(k, n) == pytest.approx((low, high), abs=2e-5)


@pytest.mark.parametrize("n", [500, 5000, 50_000])
def test_the_rule_of_three(n):
    assert s.upper_bound(0, n) == pytest.approx(3 / n, rel=0.01)


@pytest.mark.parametrize(("n", "wanted"), [(200, 0.572), (500, 0.545), (1000, 0.532), (2000, 0.523), (10_000, 0.510)])
def test_detectable_auc(n, wanted):
    assert s.detectable_auc(n, n, level=0.95) == pytest.approx(wanted, abs=6e-4)
    assert s.detectable_auc(n, n) > s.detectable_auc(n, n, level=0.95)
    assert s.detectable_auc(*[s.images_needed(wanted, level=0.95)] * 2, level=0.95) <= wanted


def test_epsilon_of_a_perfect_attack_is_what_its_images_allow():
    found = s.OperatingPoint(0.01, 1000, 1000, 0, 1000, (1000, 1000))
    assert found.epsilon() == pytest.approx(5.6, abs=0.05)
    assert s.OperatingPoint(0.01, 10, 1000, 10, 1000, (1000, 1000)).epsilon() == 0


def test_balanced_accuracy_is_of_images_that_did_not_choose_the_threshold():
    rng = np.random.default_rng(2)
    chance = [s.balanced_accuracy(*rng.normal(size=(2, 40))) for _ in range(200)]
    assert np.mean(chance) == pytest.approx(0.5, abs=0.01)
    assert s.balanced_accuracy(np.arange(50) + 100.0, np.arange(50.0)) >= 0.98


def test_welch():
    rng = np.random.default_rng(3)
    assert s.welch(rng.normal(0.3, 1, 500), rng.normal(0, 2, 400)) < 0.01
    assert s.welch(rng.normal(0, 1, 500), rng.normal(0.3, 2, 400)) > 0.9


def test_the_exact_curve():
    fpr, tpr = s.roc([3, 1, 2], [0, 2, 0])
    assert fpr == pytest.approx([0, 0, 1 / 3, 1 / 3, 1])
    assert tpr == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
