"""The verdict of an audit, and what groups of images mean for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audit_cases import FAILED, PASSED, flat, scored, subject

from maskdm.auditing import statistics
from maskdm.auditing.controls import blind_control, null_control
from maskdm.auditing.copies import measure_copies
from maskdm.auditing.scoring import ScoredAttack
from maskdm.auditing.subgroups import auc_of_groups, auc_of_outliers, set_level_p
from maskdm.auditing.verdict import MIN_IMAGES, audit_verdict, leakage_detected
from maskdm.reports import audit_page


def test_leakage():
    found = audit_verdict(scored(0.8), [PASSED])
    assert (found.name, found.exit_code) == ("LEAKAGE DETECTED", 3)
    assert "% false positives" in found.summary
    assert "Anyone holding the weights can do at least this" in found.summary


def test_few_images_at_a_low_threshold_are_leakage_too():
    """A twentieth of the members stands out wholly; the average hides them."""
    quiet = scored(0.0, 4000)
    m = quiet.members.copy()
    m[:200] += 6
    loud = ScoredAttack("primary", (m, quiet.heldout), m, quiet.heldout, quiet.calibration)
    assert statistics.auc(m, quiet.heldout).value < 0.54
    assert leakage_detected(loud)


def test_nothing_found_says_what_would_have_been():
    found = audit_verdict(scored(0.0, 2000), [PASSED])
    assert (found.name, found.exit_code) == ("NO LEAKAGE DETECTED BY THESE ATTACKS", 0)
    assert found.detectable == pytest.approx(0.53, abs=0.005)
    assert f"would have found an AUC of {found.detectable:.3f}" in found.summary
    assert "This is not a guarantee" in found.summary


def test_too_few_images_conclude_nothing_whatever_they_show():
    for shift in (0, 5):
        found = audit_verdict(scored(shift, 40), [PASSED])
        assert (found.name, found.exit_code) == ("INCONCLUSIVE", 4)
        assert "40 members and 40 held-out images are too few: with at least" in found.summary
    assert audit_verdict(scored(0, MIN_IMAGES), [PASSED]).name == "INCONCLUSIVE"


def test_the_quick_profile_never_clears_a_model():
    assert audit_verdict(scored(0.0, 2000), [PASSED], may_clear=False).name == "INCONCLUSIVE"
    assert audit_verdict(scored(0.8, 2000), [PASSED], may_clear=False).name == "LEAKAGE DETECTED"


def test_a_failed_control_leaves_no_headline():
    found = audit_verdict(scored(3.0), [PASSED, FAILED])
    assert (found.name, found.exit_code, found.auc) == ("INVALID", 5, None)
    assert "Members and held-out images differ without any model: blind AUC 0.62" in found.summary


@pytest.mark.parametrize(("tolerated", "code"), [(None, 3), (0.6, 3), (0.95, 0)])
def test_leakage_up_to_an_auc_may_be_tolerated(tolerated, code):
    assert audit_verdict(scored(0.8), [PASSED]).exit_code_above(tolerated) == code
    assert audit_verdict(scored(0.8), [FAILED]).exit_code_above(tolerated) == 5


def test_no_promising_words():
    words = " ".join(
        audit_verdict(scored(shift, n), [c]).summary for shift in (0, 1) for n in (50, 2000) for c in (PASSED, FAILED)
    )
    assert not {"private", "safe", "anonymous", "compliant", "secure"} & set(words.lower().split())


def test_false_alarms_are_as_rare_as_they_say():
    """400 re-splits of images that nobody was trained on: 1 % nominal, and three standard errors."""
    pool = np.random.default_rng(0).standard_t(4, 3000)
    alarms = 0
    for seed in range(400):
        order = np.random.default_rng(seed).permutation(3000)
        m, h, c = pool[order[:1000]], pool[order[1000:2000]], pool[order[2000:]]
        alarms += leakage_detected(ScoredAttack("primary", (m, h), m, h, c))
    assert alarms / 400 <= 0.01 + 3 * (0.01 * 0.99 / 400) ** 0.5


# --- groups ----------------------------------------------------------------------------------------------------------


def test_images_of_groups_are_not_counted_as_independent():
    """Sixty images of one person stand out: no finding about the others."""
    quiet = scored(0.0, 2000)
    m = quiet.members.copy()
    m[:60] += 6
    names = ["one"] * 60 + [f"p{i}" for i in range(1940)]
    groups = (names, [f"h{i}" for i in range(2000)], [f"c{i}" for i in range(2000)])
    assert leakage_detected(ScoredAttack("primary", (m, quiet.heldout), m, quiet.heldout, quiet.calibration))
    assert not leakage_detected(
        ScoredAttack("primary", (m, quiet.heldout), m, quiet.heldout, quiet.calibration, groups)
    )


def test_groups_count_for_less_than_their_images():
    """Images in fours that are all alike: as many as there are groups, in every number."""
    one = scored(0.0, 500)
    m, h, c = (np.repeat(x, 4) for x in (one.members, one.heldout, one.calibration))
    groups = tuple([f"{role}{i // 4}" for i in range(2000)] for role in "mhc")
    found, independent = ScoredAttack("primary", (m, h), m, h, c, groups), ScoredAttack("primary", (m, h), m, h, c)
    fours = audit_verdict(found, [PASSED])
    assert fours.detectable == pytest.approx(audit_verdict(one, [PASSED]).detectable, abs=2e-3)
    assert fours.detectable > audit_verdict(independent, [PASSED]).detectable + 0.02
    narrow, wide = independent.operating_point(0.01), found.operating_point(0.01)
    assert narrow is not None
    assert wide is not None
    assert wide.effective_n[0] == pytest.approx(500, abs=30)
    assert wide.tpr_interval()[1] > narrow.tpr_interval()[1]
    few = tuple([f"{role}{i // 100}" for i in range(2000)] for role in "mhc")
    said = audit_verdict(ScoredAttack("primary", (m, h), m, h, c, few), [FAILED])
    assert said.name == "INCONCLUSIVE"  # neither a finding nor a failed control means anything
    assert "of 20 groups, which say as much as 20.0 of equal size" in said.summary


def test_one_large_group_is_not_made_good_by_many_small_ones():
    """The owner of a photo library and 39 others: at one half, whatever is found."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=40).repeat([800, *[10] * 39])
    m = own + rng.normal(size=len(own)) + 2
    one = scored(0.0, 1190)
    groups = (
        ["owner"] * 800 + [f"m{i // 10}" for i in range(390)],
        [f"h{i}" for i in range(1190)],
        [f"c{i}" for i in range(1190)],
    )
    said = audit_verdict(ScoredAttack("primary", (m, one.heldout), m, one.heldout, one.calibration, groups), [PASSED])
    assert said.name == "INCONCLUSIVE"
    assert "of 40 groups, which say as much as 2.2 of equal size" in said.summary


@pytest.mark.parametrize("few", [1, 2, 4])
def test_few_groups_break_nothing(few, tmp_path):
    roles = [replace(flat(60, seed), groups=tuple(f"{seed}-{i % few}" for i in range(60))) for seed in (1, 2, 3)]
    found = replace(subject(1.0), members=roles[0], heldout=roles[1], calibration=roles[2])
    one = scored(0.0, 60)
    groups = found.groups
    primary = ScoredAttack("primary", one.raw, one.members, one.heldout, one.calibration, groups)
    assert audit_verdict(primary, [blind_control(found), null_control(primary)]).name == "INCONCLUSIVE"
    assert audit_page.primary_roc(primary) is not None
    assert auc_of_groups(primary, found) is auc_of_outliers(primary, found) is set_level_p(primary) is None
    assert len(measure_copies(flat(20, 5).images, roles[0], roles[1])) == (2 if few == 1 else 3)


def test_exact_duplicates_are_groups():
    """Every image five times: together in a fold, and counted once."""
    roles = []
    for seed in (1, 2, 3):
        one = flat(80, seed)
        roles.append(one.take(np.arange(80).repeat(5)))
    found = replace(subject(1.0), members=roles[0], heldout=roles[1], calibration=roles[2])
    groups = found.groups
    assert groups is not None
    assert statistics.effective_clusters(groups[0]) == 80
    assert blind_control(found).passed
    assert subject(1.0).groups is None
