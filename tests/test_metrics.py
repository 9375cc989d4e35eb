"""The Fréchet distance against closed forms, against brute force, and on the covariances that break naive code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.errors import MISSING, ArgumentError
from maskdm.evaluation.metrics import Float64, frechet_distance, gaussian, kernel_distance, manifolds, nearest_cosine

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 12)


def random_covariance(rng: np.random.Generator, size: int, rank: int | None = None) -> Float64:
    factor = rng.standard_normal((size, size if rank is None else rank))
    return factor @ factor.T + (0.1 * np.eye(size) if rank is None else 0)


def random_rotation(rng: np.random.Generator, size: int) -> Float64:
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def brute_force(mean_a: Float64, cov_a: Float64, mean_b: Float64, cov_b: Float64) -> float:
    """Straight from the formula: AB is similar to a PSD matrix, so tr((AB)^½) sums the roots of its eigenvalues."""
    eigenvalues = torch.linalg.eigvals(torch.from_numpy(cov_a) @ torch.from_numpy(cov_b))
    root_trace = float(eigenvalues.sqrt().real.sum())
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root_trace)


@given(st.tuples(*[st.floats(-10, 10)] * 2), st.tuples(*[st.floats(0.01, 10)] * 2))
def test_in_one_dimension_it_is_the_distance_of_means_and_deviations(
    means: tuple[float, float], deviations: tuple[float, float]
) -> None:
    (m1, m2), (s1, s2) = means, deviations
    assert frechet_distance([m1], [[s1**2]], [m2], [[s2**2]]) == pytest.approx(
        (m1 - m2) ** 2 + (s1 - s2) ** 2, abs=1e-10
    )


@given(SEEDS, SIZES)
def test_commuting_covariances_compare_their_deviations(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    rotation = random_rotation(rng, size)
    a, b = rng.uniform(0, 3, (2, size))
    cov_a, cov_b = ((rotation * d**2) @ rotation.T for d in (a, b))
    zero = np.zeros(size)
    assert frechet_distance(zero, cov_a, zero, cov_b) == pytest.approx(((a - b) ** 2).sum(), abs=1e-6)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_scaled_identities(size: int) -> None:
    zero, identity = np.zeros(size), np.eye(size)
    assert frechet_distance(zero, 4 * identity, zero, 9 * identity) == pytest.approx(size * (3 - 2) ** 2)


@given(SEEDS, SIZES)
def test_equal_gaussians_are_at_distance_zero(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    mean, cov = rng.standard_normal(size), random_covariance(rng, size)
    assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-9)


def test_equal_singular_gaussians_are_at_distance_zero() -> None:
    mean, cov = gaussian(np.random.default_rng(0).standard_normal((5, 40)))  # rank 4 of 40
    assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-9)


def test_singular_covariances_on_disjoint_axes_share_nothing() -> None:
    zero = np.zeros(3)
    assert frechet_distance(zero, np.diag([4.0, 0, 0]), zero, np.diag([0, 9.0, 0])) == pytest.approx(4 + 9)


def test_points_are_gaussians_without_spread() -> None:
    nothing = np.zeros((2, 2))
    assert frechet_distance([0, 0], nothing, [3, 4], nothing) == 25


@given(SEEDS, SIZES)
@settings(deadline=None)
def test_agrees_with_brute_force(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    gaussians = [(rng.standard_normal(size), random_covariance(rng, size)) for _ in range(2)]
    assert frechet_distance(*gaussians[0], *gaussians[1]) == pytest.approx(
        brute_force(*gaussians[0], *gaussians[1]), rel=1e-7, abs=1e-7
    )


@given(SEEDS, SIZES, st.data())
def test_symmetric_and_unchanged_by_rotation_at_any_rank(seed: int, size: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    ranks = data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))
    mean_a, mean_b = rng.standard_normal((2, size))
    cov_a, cov_b = (random_covariance(rng, size, rank) for rank in ranks)
    rotation = random_rotation(rng, size)

    distance = frechet_distance(mean_a, cov_a, mean_b, cov_b)
    assert distance >= 0
    assert frechet_distance(mean_b, cov_b, mean_a, cov_a) == pytest.approx(distance, rel=1e-9, abs=1e-9)
    rotated = [rotation @ mean_a, rotation @ cov_a @ rotation.T, rotation @ mean_b, rotation @ cov_b @ rotation.T]
    assert frechet_distance(*rotated) == pytest.approx(distance, rel=1e-6, abs=1e-6)


def test_gaussian_is_the_mean_and_the_unbiased_covariance() -> None:
    features = np.random.default_rng(1).standard_normal((7, 3)).astype(np.float32)
    mean, cov = gaussian(features)
    assert mean.dtype == cov.dtype == np.float64
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(cov, np.cov(features.astype(np.float64), rowvar=False))
    assert gaussian([[0.0], [2.0]])[1].tolist() == [[2.0]]  # one feature still has a (1, 1) covariance


ZERO, IDENTITY = np.zeros(2), np.eye(2)


@pytest.mark.parametrize(
    ("call", "name", "got"),
    [
        (lambda: gaussian(np.zeros((1, 4))), "features", (1, 4)),
        (lambda: gaussian([[0.0], [np.nan]]), "features", MISSING),
        (lambda: frechet_distance(IDENTITY, IDENTITY, ZERO, IDENTITY), "mean_a", (2, 2)),
        (lambda: frechet_distance(ZERO, IDENTITY, np.zeros(3), np.eye(3)), "mean_b", (3,)),
        (lambda: frechet_distance(ZERO, IDENTITY, ZERO, np.eye(3)), "cov_b", (3, 3)),
        (lambda: frechet_distance(ZERO, -IDENTITY, ZERO, IDENTITY), "cov_a", -1.0),
        (lambda: frechet_distance(ZERO, [[1, 1], [0, 1]], ZERO, IDENTITY), "cov_a", MISSING),
        (lambda: frechet_distance(ZERO, IDENTITY, ZERO, np.full((2, 2), np.inf)), "cov_b", MISSING),
        (lambda: kernel_distance(np.zeros((3, 2)), np.zeros((3, 4))), "b", 4),
        (lambda: kernel_distance(np.zeros((1, 2)), np.zeros((3, 2))), "a", (1, 2)),
        (lambda: manifolds(np.zeros((9, 2)), np.zeros((5, 2))), "generated", (5, 2)),
        (lambda: nearest_cosine(np.zeros((1, 2)), np.zeros((0, 2))), "train", (0, 2)),
    ],
)
def test_bad_input_names_the_argument(call: Callable[[], object], name: str, got: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        call()
    assert (caught.value.name, caught.value.got) == (name, got)
    assert caught.value.wanted or caught.value.problem
