"""Audits from the command to the page: what is refused, what is kept, what is concluded."""

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import train, write_photos
from PIL import Image

from maskdm.audit import copies as generation
from maskdm.audit import scoring as measure
from maskdm.audit import statistics
from maskdm.audit.attacks import PRIMARY, primary
from maskdm.audit.conclusion import EXIT, FEWEST, detected, verdict
from maskdm.audit.paired import compare, read_audit
from maskdm.audit.scoring import Control, Scored, blind, tensor
from maskdm.audit.subgroups import by_class, by_group, least_like_others, most_exposed, set_level
from maskdm.audit.subject import Pictures, Subject
from maskdm.audit.target import Gaussian, Memoriser
from maskdm.cli.main import main
from maskdm.config.schema import ModelConfig, ModelSpec, ProcessConfig
from maskdm.errors import InputError
from maskdm.reports import audit_charts as charts
from maskdm.training.runs import read_config

SPLIT = ("data.heldout=0.35", "data.calibration=0.35")
QUICK = ("--profile", "quick", "--batch-size", "32")


def many(folder: Path) -> Path:
    """48 pictures, so that every role has some."""
    write_photos(folder)
    rng = np.random.default_rng(5)
    for i in range(18):
        Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(folder / "cat" / f"more-{i}.png")
    return folder


@pytest.fixture(scope="module")
def audited(tmp_path_factory) -> Path:
    """A run of a small model on 48 pictures, audited. Look, but do not touch."""
    folder = tmp_path_factory.mktemp("audited")
    run = train(many(folder / "photos"), folder / "runs", *SPLIT)
    assert main(["audit", str(run), *QUICK, "--num", "6"]) == EXIT["INCONCLUSIVE"]
    return run


def audit(*words: object) -> int:
    return main(["audit", *(str(word) for word in words)])


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_record(audited):
    record = json.loads((audited / "audit" / "audit.json").read_text())
    assert record["schema"] == "maskdm-audit/1"
    assert record["statistic"] == "maskdm-audit-v1"
    assert record["command"].startswith("maskdm audit ")
    assert record["verdict"]["name"] == "INCONCLUSIVE"
    assert record["subject"]["split"] == "certified"
    head = json.loads((audited / "manifest.head.json").read_text())
    assert record["subject"]["manifest_sha256"] == head["records_sha256"]
    assert record["pictures"]["heldout"] == head["counts"]["heldout"]
    assert [control["name"] for control in record["controls"]] == [
        "blind",
        "untrained network",
        "memoriser",
        "calibration against held-out",
    ]
    assert record["attacks"][0]["name"] == "primary"
    assert all(attack["at_fpr"]["0.001"] is None for attack in record["attacks"])
    assert {share["n"] for share in record["generation"]} == {6}


def test_pages_name_no_picture_and_show_none(audited):
    folder = audited / "audit"
    for name in ("report.html", "report.md", "audit.json"):
        text = (folder / name).read_text()
        assert ".png" not in text
        assert "photos/" not in text.replace("runs/00000-photos", "")
    html = (folder / "report.html").read_text()
    assert html.index("INCONCLUSIVE") < html.index("Attacks")
    assert "What this audit cannot show" in html
    assert "n/a: needs 1,000 at 1 % and 10,000 at 0.1 % held-out pictures, has" in html
    assert "<img" not in html
    assert (folder / "roc.svg").read_text().startswith("<svg xmlns=")


def test_what_says_who_was_in_the_set_is_private(audited):
    for name in ("scores.npz", "audit.json"):
        assert stat.S_IMODE((audited / "audit" / name).stat().st_mode) == 0o600
    with np.load(audited / "audit" / "scores.npz") as arrays:
        assert len(arrays["member_ids"]) == len(arrays["primary/members"])
        assert len(arrays["heldout_ids"]) == len(arrays["sima 0.17/raw_heldout"])


def test_training_pictures_only_on_request(audited, tmp_path):
    words = (*QUICK, "--num", "4", "--include-training-images", "--output", tmp_path / "out")
    assert audit(audited, *words) == EXIT["INCONCLUSIVE"]
    report = tmp_path / "out" / "report.html"
    page = report.read_text()
    assert page.count("generated, nearest member, nearest held-out picture") == 4
    assert page.count('alt="a training picture"') == 10  # all of them
    assert stat.S_IMODE(report.stat().st_mode) == 0o600


def test_the_same_again(audited, tmp_path):
    assert audit(audited, *QUICK, "--num", "6", "--output", tmp_path) == EXIT["INCONCLUSIVE"]
    first, again = (json.loads((f / "audit.json").read_text()) for f in (audited / "audit", tmp_path))
    assert first["attacks"] == again["attacks"]
    assert first["generation"] == again["generation"]
    assert first["controls"] == again["controls"]


ENCODER = """
import numpy as np

def halves(images):
    return images.reshape(len(images), -1)[:, ::2] / np.float64(255)
"""


def test_the_full_profile_and_an_encoder_of_ones_own(audited, tmp_path, monkeypatch, capsys):
    (tmp_path / "features_of_mine.py").write_text(ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    words = ("--profile", "full", "--num", "5", "--encoder", "features_of_mine:halves", "--output", tmp_path / "out")
    assert audit(audited, *words) == EXIT["INCONCLUSIVE"]
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    names = [attack["name"] for attack in record["attacks"]]
    assert {"gradient", "masked 0.17", "secmi 0.32", "pian 0.32", "sima 0.17, no class"} <= set(names)
    assert all(
        0 <= attack["auc"] <= 1 and attack["low"] <= attack["auc"] <= attack["high"] for attack in record["attacks"]
    )
    assert any("features_of_mine:halves" in share["name"] for share in record["generation"])
    assert record["pictures"]["generated"] == 5


def test_pictures_that_were_made_before(audited, tmp_path):
    assert main(["sample", str(audited), "--num", "9", "--steps", "2", "--output", str(tmp_path / "made")]) == 0
    words = ("--generated", tmp_path / "made", "--output", tmp_path / "out")
    assert audit(audited, *QUICK, *words) == EXIT["INCONCLUSIVE"]
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert record["pictures"]["generated"] == 9  # without the grid of all of them


def test_a_backbone_of_ones_own(own_run, tmp_path, capsys):
    for seed, name in enumerate(("theirs", "others")):
        images = np.random.default_rng(seed).integers(256, size=(40, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images)
    words = (*QUICK, "--members", tmp_path / "theirs.npz", "--nonmembers", tmp_path / "others.npz")
    assert audit(own_run, *words) == 2
    assert "its backbone is ownnet:Net, got none" in capsys.readouterr().err
    assert audit(own_run, *words, "--backbone", "ownnet:Net", "--output", tmp_path / "out") in (4, 5)
    assert (tmp_path / "out" / "report.html").is_file()


# --- which weights, which pictures -----------------------------------------------------------------------------------


def test_a_stage_by_itself(audited, tmp_path, capsys):
    for stage in ("pretrain", "0"):
        assert audit(audited, *QUICK, "--stage", stage, "--weights", "raw", "--output", tmp_path / stage) == 4
    records = [json.loads((tmp_path / stage / "audit.json").read_text()) for stage in ("pretrain", "0")]
    assert {record["subject"]["weights"] for record in records} == {"pretrain-raw.safetensors"}
    assert records[0]["subject"]["facts"]["stage"] == "pretrain"
    assert audit(audited, "--stage", "7") == 2
    assert "--stage: got '7', wanted one of 0 (pretrain), 1 (finetune)" in capsys.readouterr().err


def test_an_estimate_writes_nothing(audited, tmp_path, capsys):
    assert audit(audited, *QUICK, "--estimate", "--output", tmp_path / "out") == 0
    assert "calls of the network, about" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_budget_that_is_too_small(audited, capsys):
    assert audit(audited, "--budget-minutes", "1e-6") == 2
    assert "--budget-minutes: got 1e-06, but 100 pictures of each role take about" in capsys.readouterr().err


def test_one_flipped_byte_of_a_picture_stops_it(audited, tmp_path, capsys):
    copy = shutil.copytree(audited.parent.parent, tmp_path / "copy")
    run = copy / "runs" / audited.name
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(audited.parent.parent), str(copy)))
    assert read_config(run).data.path == str(copy / "photos")
    assert audit(run, *QUICK) == 4
    path = sorted((copy / "photos").rglob("*.png"))[3]
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert audit(run, *QUICK) == 2
    assert "the pictures are not those this run began with: " in capsys.readouterr().err


def test_one_flipped_byte_of_the_cache_stops_it(audited, tmp_path, capsys, monkeypatch):
    cache = tmp_path / "cache"
    run = train(many(tmp_path / "photos"), tmp_path / "runs", *SPLIT, f"data.cache_dir={cache}")
    (path,) = cache.glob("*/images.npy")
    content = bytearray(path.read_bytes())
    for i in range(200, len(content), 768):  # one pixel of every picture
        content[i] ^= 1
    path.write_bytes(content)
    assert audit(run, *QUICK) == 2
    assert "a decoded picture is not the one that the manifest names" in capsys.readouterr().err


def test_weights_of_another_run(audited, photos_run, tmp_path, capsys):
    copy = shutil.copytree(audited, tmp_path / audited.name)
    shutil.copy(photos_run / "weights" / "ema.safetensors", copy / "weights" / "ema.safetensors")
    assert audit(copy, *QUICK) == 2
    assert "was not trained by the manifest of" in capsys.readouterr().err


def test_no_membership_without_held_out_pictures(digits_npz, tmp_path, capsys):
    run = train(digits_npz, tmp_path, "data.heldout=0", "data.calibration=0")
    assert audit(run, *QUICK) == 2
    assert (
        "has 0 pictures of the role heldout, wanted at least 10; without them membership cannot be told"
        in capsys.readouterr().err
    )


def test_folders_in_place_of_a_manifest(audited, photos, tmp_path, capsys):
    others = write_photos(tmp_path / "others")
    for path in others.rglob("*.png"):
        Image.eval(Image.open(path), lambda value: value ^ 3).save(path)
    words = ("--members", photos, "--nonmembers", others, "--output", tmp_path / "out")
    weights = audited / "weights" / "ema.safetensors"
    assert audit(weights, *QUICK, *words) in (4, 5)
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert record["subject"]["split"] == "not certified"
    assert "split not certified by the trainer" in capsys.readouterr().out
    assert audit(weights, *QUICK, "--members", photos, "--nonmembers", photos) == 2
    assert "30 of its pictures are in --members too" in capsys.readouterr().err


def test_a_given_split_is_not_certified(tmp_path):
    run = train(many(tmp_path / "photos"), tmp_path / "runs", "data.heldout_by=[159]\\.png$", "data.calibration=0.5")
    assert audit(run, *QUICK) in (4, 5)
    record = json.loads((run / "audit" / "audit.json").read_text())
    assert record["subject"]["split"] == "not certified"
    assert any("data.heldout_by" in remark for remark in record["remarks"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--members", "x"], "--nonmembers: missing"),
        (["{run}", "--budget-minutes", "0"], "--budget-minutes: got 0"),
        (["{run}", "--fail-above-auc", "0.4"], "--fail-above-auc: got 0.4, wanted 0.5 to 1"),
        (["{run}", "--encoder", "nothing"], "--encoder: got 'nothing', wanted module:callable"),
        (["{run}", "--encoder", "json:nothing"], "--encoder: json:nothing cannot be imported"),
        (["{run}", "{run}"], "audit: got 2 runs, wanted one"),
        (["{run}/weights/ema.safetensors"], "belongs to a run; audit it by --weights or --stage: maskdm audit"),
        (["{run}/samples"], "is no run; give a run's folder, or --members"),
        (["{run}/weights/ema.safetensors", "--stage", "0"], "is no run, and has no stages"),
        (["compare", "{run}"], "audit compare: got 1 audits, wanted two"),
        (["compare", "{run}", "gone"], "gone holds no audit; run maskdm audit first"),
    ],
)
def test_refusals(words, message, audited, capsys):
    assert audit(*(word.format(run=audited) for word in words)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert message in said


# --- the verdict -----------------------------------------------------------------------------------------------------


def scored(shift: float, n: int = 1000, seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    m, h, c = rng.normal(shift, 1, n), rng.normal(0, 1, n), rng.normal(0, 1, n)
    return Scored("primary", (m, h), m, h, c)


PASSED = Control("blind", 0.5, 0.45, 0.55, True, "no difference")
FAILED = Control("blind", 0.62, 0.58, 0.66, False, "no difference")


def test_leakage():
    found = verdict(scored(0.8), [PASSED])
    assert (found.name, found.exit_code) == ("LEAKAGE DETECTED", 3)
    assert "% false positives" in found.words
    assert "Anyone holding the weights can do at least this" in found.words


def test_few_pictures_at_a_low_threshold_are_leakage_too():
    """A twentieth of the members stands out wholly; the average hides them."""
    quiet = scored(0.0, 4000)
    m = quiet.members.copy()
    m[:200] += 6
    loud = Scored("primary", (m, quiet.heldout), m, quiet.heldout, quiet.calibration)
    assert statistics.auc(m, quiet.heldout).value < 0.54
    assert detected(loud)


def test_nothing_found_says_what_would_have_been():
    found = verdict(scored(0.0, 2000), [PASSED])
    assert (found.name, found.exit_code) == ("NO LEAKAGE DETECTED BY THESE ATTACKS", 0)
    assert "would have found an AUC of 0.53" in found.words
    assert "This is not a guarantee" in found.words


def test_too_few_pictures_conclude_nothing_whatever_they_show():
    for shift in (0, 5):
        found = verdict(scored(shift, 40), [PASSED])
        assert (found.name, found.exit_code) == ("INCONCLUSIVE", 4)
        assert "40 members and 40 held-out pictures are too few: with at least" in found.words
    assert verdict(scored(0, FEWEST), [PASSED]).name == "INCONCLUSIVE"


def test_the_quick_profile_never_clears_a_model():
    assert verdict(scored(0.0, 2000), [PASSED], smoke=True).name == "INCONCLUSIVE"
    assert verdict(scored(0.8, 2000), [PASSED], smoke=True).name == "LEAKAGE DETECTED"


def test_a_failed_control_leaves_no_headline():
    found = verdict(scored(3.0), [PASSED, FAILED])
    assert (found.name, found.exit_code, found.auc) == ("INVALID", 5, None)
    assert "Members and held-out pictures differ without any model: blind AUC 0.62" in found.words


def test_no_promising_words():
    words = " ".join(
        verdict(scored(shift, n), [c]).words for shift in (0, 1) for n in (50, 2000) for c in (PASSED, FAILED)
    )
    assert not {"private", "safe", "anonymous", "compliant", "secure"} & set(words.lower().split())


def test_false_alarms_are_as_rare_as_they_say():
    """400 re-splits of pictures that nobody was trained on: 1 % nominal, and three standard errors."""
    pool = np.random.default_rng(0).standard_t(4, 3000)
    alarms = 0
    for seed in range(400):
        order = np.random.default_rng(seed).permutation(3000)
        m, h, c = pool[order[:1000]], pool[order[1000:2000]], pool[order[2000:]]
        alarms += detected(Scored("primary", (m, h), m, h, c))
    assert alarms / 400 <= 0.01 + 3 * (0.01 * 0.99 / 400) ** 0.5


# --- controls --------------------------------------------------------------------------------------------------------


def flat(count: int, seed: int, contrast: float = 1.0) -> Pictures:
    x = torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))
    smooth = torch.tanh(contrast * torch.nn.functional.avg_pool2d(x, 3, 1)).permute(0, 2, 3, 1)
    images = ((smooth + 1) * 127.5).round().to(torch.uint8).numpy()
    return Pictures(images, tuple(f"{seed}-{i}" for i in range(count)))


def subject(contrast: float) -> Subject:
    spec = ModelSpec(model=ModelConfig(), process=ProcessConfig(), image_size=(8, 8), channels=3)
    return Subject(Path(), "", spec, {}, flat(400, 1, contrast), flat(400, 2), flat(400, 3), certified=True)


def test_blind_passes_one_pool_and_fails_another_contrast():
    assert blind(subject(1.0)).passed
    shifted = blind(subject(0.9))
    assert not shifted.passed
    assert shifted.value > 0.6


def test_near_duplicates_on_one_side_are_no_difference():
    """Groups of ten that look alike: who they are tells the sides apart, what they are of does not."""
    passed = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        roles = []
        for number in range(3):
            one = flat(40, 10 * seed + number)
            images = np.repeat(one.images, 10, axis=0)
            noisy = np.clip(images + rng.integers(-3, 4, images.shape), 0, 255).astype(np.uint8)
            groups = tuple(f"{number}-{i // 10}" for i in range(400))
            roles.append(Pictures(noisy, tuple(f"{number}-{i}" for i in range(400)), groups=groups))
        passed.append(blind(replace(subject(1.0), members=roles[0], heldout=roles[1], calibration=roles[2])).passed)
    assert sum(passed) >= 9


def test_no_attack_is_load_bearing(monkeypatch):
    """A model that knows the members a little is caught without any one of the five."""
    few = subject(1.0)
    known, nobody = Memoriser(tensor(few.members.images)), tensor(few.calibration.images)
    null = Gaussian(nobody.mean(0), nobody.var(0))

    class Dose:
        device = torch.device("cpu")

        def level(self, sigma):
            return sigma

        def eps(self, x, sigma, label=None):
            return 0.2 * known.eps(x, sigma) + 0.8 * null.eps(x, sigma)

    for left_out in (None, *PRIMARY):
        monkeypatch.setattr(measure, "PRIMARY", tuple(name for name in PRIMARY if name != left_out))
        found = measure.score(Dose(), primary(1), few, batch_size=200)[0]
        assert verdict(found, [PASSED]).name == "LEAKAGE DETECTED", left_out


def test_pictures_of_groups_are_not_counted_as_independent():
    """Sixty pictures of one person stand out: no finding about the others."""
    quiet = scored(0.0, 2000)
    m = quiet.members.copy()
    m[:60] += 6
    names = ["one"] * 60 + [f"p{i}" for i in range(1940)]
    groups = (names, [f"h{i}" for i in range(2000)], [f"c{i}" for i in range(2000)])
    assert detected(Scored("primary", (m, quiet.heldout), m, quiet.heldout, quiet.calibration))
    assert not detected(Scored("primary", (m, quiet.heldout), m, quiet.heldout, quiet.calibration, groups))


def test_groups_count_for_less_than_their_pictures():
    """Pictures in fours that are all alike: as many as there are groups, in every number."""
    one = scored(0.0, 500)
    m, h, c = (np.repeat(x, 4) for x in (one.members, one.heldout, one.calibration))
    groups = tuple([f"{role}{i // 4}" for i in range(2000)] for role in "mhc")
    found, independent = Scored("primary", (m, h), m, h, c, groups), Scored("primary", (m, h), m, h, c)
    fours = verdict(found, [PASSED])
    assert fours.detectable == pytest.approx(verdict(one, [PASSED]).detectable, abs=2e-3)
    assert fours.detectable > verdict(independent, [PASSED]).detectable + 0.02
    narrow, wide = independent.operating(0.01), found.operating(0.01)
    assert narrow is not None
    assert wide is not None
    assert wide.worth[0] == pytest.approx(500, abs=30)
    assert wide.tpr_interval()[1] > narrow.tpr_interval()[1]
    few = tuple([f"{role}{i // 100}" for i in range(2000)] for role in "mhc")
    said = verdict(Scored("primary", (m, h), m, h, c, few), [FAILED])
    assert said.name == "INCONCLUSIVE"  # neither a finding nor a failed control means anything
    assert "of 20 groups, which tell as much as 20.0 of equal size" in said.words


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
    said = verdict(Scored("primary", (m, one.heldout), m, one.heldout, one.calibration, groups), [PASSED])
    assert said.name == "INCONCLUSIVE"
    assert "of 40 groups, which tell as much as 2.2 of equal size" in said.words


@pytest.mark.parametrize("few", [1, 2, 4])
def test_few_groups_break_nothing(few, tmp_path):
    roles = [replace(flat(60, seed), groups=tuple(f"{seed}-{i % few}" for i in range(60))) for seed in (1, 2, 3)]
    found = replace(subject(1.0), members=roles[0], heldout=roles[1], calibration=roles[2])
    one = scored(0.0, 60)
    groups = measure.groups_of(found)
    primary = Scored("primary", one.raw, one.members, one.heldout, one.calibration, groups)
    assert verdict(primary, [blind(found), measure.null(primary)]).name == "INCONCLUSIVE"
    assert "svg" in str(charts.roc_chart(primary))
    assert by_group(primary, found) is least_like_others(primary, found) is set_level(primary) is None
    assert len(generation.copies(flat(20, 5).images, roles[0], roles[1])) == (2 if few == 1 else 3)


def test_exact_duplicates_are_groups():
    """Every picture five times: together in a fold, and counted once."""
    roles = []
    for seed in (1, 2, 3):
        one = flat(80, seed)
        roles.append(one.take(np.arange(80).repeat(5)))
    found = replace(subject(1.0), members=roles[0], heldout=roles[1], calibration=roles[2])
    groups = measure.groups_of(found)
    assert groups is not None
    assert statistics.effective(groups[0]) == 80
    assert blind(found).passed
    assert measure.groups_of(subject(1.0)) is None


def test_classes_and_groups_by_themselves():
    spec = ModelSpec(
        model=ModelConfig(), process=ProcessConfig(), image_size=(8, 8), channels=3, class_names=("a", "b", "c")
    )
    labels = np.arange(400) % 40  # of a and b ten each, of the others none that is known
    labels = np.where(labels < 20, 0, np.where(labels < 38, 1, 2))
    groups = tuple(f"g{i // 4}" for i in range(400))
    roles = [replace(flat(400, seed), labels=labels, groups=groups) for seed in (1, 2, 3)]
    found = Subject(Path(), "", spec, {}, *roles, certified=True)
    one = scored(0.0, 400)
    shifted = Scored("primary", one.raw, one.members + (labels == 1), one.heldout, one.calibration)
    classes = dict(by_class(shifted, found))
    assert set(classes) == {"a", "b"}  # of c there are too few
    assert classes["b"].value > 0.65
    assert classes["a"].interval(0.999)[0] < 0.5
    grouped = by_group(Scored("primary", one.raw, one.members + 0.5, one.heldout, one.calibration), found)
    assert grouped is not None
    assert grouped.members == 100
    assert grouped.value > statistics.auc(one.members + 0.5, one.heldout).value + 0.1  # four pictures tell more


def test_the_pictures_that_are_least_like_others():
    """Every fourth picture has a square that no other has, and leaks; the others do not."""
    rng = np.random.default_rng(0)
    odd = np.arange(400) % 4 == 0
    roles = [flat(400, seed) for seed in (1, 2, 3)]
    for role in roles[:2]:
        role.images[odd, 1:5, 1:5] = rng.integers(0, 256, (100, 4, 4, role.images.shape[-1]))
    spec = ModelSpec(model=ModelConfig(), process=ProcessConfig(), image_size=(8, 8), channels=3)
    found = Subject(Path(), "", spec, {}, *roles, certified=True)
    one = scored(0.0, 400)
    leaky = Scored("primary", one.raw, one.members + 2 * odd, one.heldout, one.calibration)
    apart = least_like_others(leaky, found)
    assert apart is not None
    assert 90 <= apart.members <= 110
    assert apart.value > 0.85 > 0.7 > leaky.auc.value
    assert least_like_others(scored(0.0, 20), found.sized(20, 20, 20, 0)) is None


def test_the_members_that_stand_out_most():
    one = scored(0.0, 100)
    members = np.arange(100.0)
    rows, shares = most_exposed(Scored("primary", one.raw, members, np.arange(0.5, 100.5), one.calibration), 3)
    assert rows.tolist() == [99, 98, 97]
    assert shares.tolist() == pytest.approx([0.01, 0.02, 0.03])


# --- generated pictures ----------------------------------------------------------------------------------------------


def test_copies_are_found_at_their_rate():
    members, heldout, fresh = flat(300, 1), flat(300, 2), flat(200, 4)
    noise = np.random.default_rng(0).integers(-2, 3, size=(20, *members.images.shape[1:]))
    copied = np.clip(members.images[:20].astype(int) + noise, 0, 255).astype(np.uint8)
    made = np.concatenate([fresh.images[:180], copied])
    preferred, ratio, tiles = generation.copies(made, members, heldout)
    assert ratio.value == pytest.approx(0.1, abs=0.01)
    assert ratio.low < 0.1 < ratio.high
    assert ratio.baseline == 0
    assert tiles.value == pytest.approx(0.1, abs=0.01)
    assert preferred.value > 0.52


def test_copies_are_looked_for_in_a_few_floats_at_a_time(monkeypatch):
    """Of 10,000 pictures at 256 px in RGB all of them as floats would be 8 GB."""
    monkeypatch.setattr(generation, "CHUNK", 32)
    whole, seen = generation._floats, []

    def floats(numbers):
        seen.append(len(numbers))
        return whole(numbers)

    monkeypatch.setattr(generation, "_floats", floats)
    found = generation.copies(flat(90, 3).images, flat(70, 1), flat(50, 2))
    assert max(seen) == 32
    monkeypatch.setattr(generation, "CHUNK", 1000)
    whole_found = generation.copies(flat(90, 3).images, flat(70, 1), flat(50, 2))
    assert [share.value for share in found] == [share.value for share in whole_found]


def test_held_out_pictures_as_a_generator_prefer_nobody():
    preferred, ratio, tiles = generation.copies(flat(300, 5).images, flat(300, 1), flat(300, 2))
    assert preferred.low < 0.5 < preferred.high
    assert (ratio.value, tiles.value) == (0, pytest.approx(0, abs=0.03))
    assert "none in 300: less than 0.0099 of pictures (95 %)" in ratio.note


def test_a_memorised_set_is_preferred_and_its_interval_counts_neighbours():
    members, heldout = flat(300, 1), flat(300, 2)
    made = np.repeat(members.images[:5], 100, axis=0)  # five pictures, a hundred times each
    p, low, _ = generation.preference(*(generation.pixels(x) for x in (made, members.images, heldout.images)))
    assert p == 1
    assert low < 0.6  # five neighbours are no proof of much


def test_near_duplicates_hide_no_copy_and_make_none():
    """Every member and held-out picture in three near copies: a copy is one whose next kind is far."""
    rng = np.random.default_rng(0)

    def threes(seed: int) -> Pictures:
        images = np.repeat(flat(100, seed).images, 3, axis=0)
        noisy = np.clip(images + rng.integers(-3, 4, images.shape), 0, 255).astype(np.uint8)
        return Pictures(noisy, tuple(f"{seed}-{i}" for i in range(300)), groups=tuple(f"{i // 3}" for i in range(300)))

    members, heldout = threes(1), threes(2)
    made = np.concatenate([members.images[:30], flat(270, 5).images])
    preferred, ratio, _ = generation.copies(made, members, heldout)
    assert ratio.value == pytest.approx(0.1, abs=0.01)
    fewer = heldout.take(np.arange(30))  # ten kinds of thing against a hundred
    assert generation.copies(flat(300, 6).images, members, fewer)[0].value == pytest.approx(0.5, abs=0.2)
    assert preferred.baseline is not None
    assert preferred.baseline_low is not None
    assert preferred.baseline_high is not None
    assert preferred.baseline_low < 0.5 < preferred.baseline_high
    assert preferred.baseline > 0.3  # no half of the held-out pictures finds its near copies in the other


# --- two audits ------------------------------------------------------------------------------------------------------


def kept(
    folder: Path,
    shift: float,
    error: float,
    seed: int = 0,
    *,
    n: int = 400,
    name: str = "LEAKAGE DETECTED",
    copies: int | None = None,
) -> Path:
    """An audit's files; with `copies` every picture is as many that are all alike."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pool, own = rng.normal(size=(2, n)), np.random.default_rng(seed + 1).normal(size=(2, n))
    members, heldout = (
        np.repeat(each, copies or 1) for each in (pool[0] + shift + 0.3 * own[0], pool[1] + 0.3 * own[1])
    )
    arrays = {"primary/members": members, "primary/heldout": heldout}
    for role in ("member", "heldout"):
        arrays[f"{role}_ids"] = np.array([f"{role}{i}" for i in range(len(members))])
        if copies is not None:
            arrays[f"{role}_groups"] = np.arange(len(members)) // copies
    np.savez(folder / "scores.npz", **arrays)
    page = {"schema": "maskdm-audit/1", "statistic": "v", "verdict": {"name": name}, "error": {"heldout": error}}
    (folder / "audit.json").write_text(json.dumps(page))
    return folder


@pytest.mark.parametrize(
    ("shifts", "errors", "words"),
    [
        ((1.0, 0.6), (0.05, 0.0505), "A leaks more than B at equal held-out error"),
        ((0.6, 1.0), (0.05, 0.0505), "B leaks more than A at equal held-out error"),
        ((1.0, 0.6), (0.05, 0.06), "A leaks more than B, but their held-out errors differ"),
        ((0.8, 0.8), (0.05, 0.05), "No difference that these pictures show"),
    ],
)
def test_pairs(shifts, errors, words, tmp_path, capsys):
    a, b = (kept(tmp_path / n, s, e, i) for i, (n, s, e) in enumerate(zip("ab", shifts, errors, strict=True)))
    assert audit("compare", a, b) == 0
    said = capsys.readouterr().out
    assert words in said
    assert "on the same 400 members and 400 held-out pictures" in said


def test_pairs_of_groups_count_as_groups(tmp_path):
    said = {}
    for copies in (None, 4):
        a, b = (
            kept(tmp_path / f"{n}{copies}", s, 0.05, i, copies=copies)
            for i, (n, s) in enumerate([("a", 0.8), ("b", 0.6)])
        )
        said[copies] = compare(read_audit(a), read_audit(b)).splitlines()[2]
    assert "1,600 members" in said[4]
    # Four hundred groups of four that are all alike tell what four hundred pictures do.
    assert said[4].partition("pictures: ")[2] == said[None].partition("pictures: ")[2]


def test_pairs_of_few_groups_are_not_compared(tmp_path):
    a, b = (read_audit(kept(tmp_path / n, 0.8, 0.05, i, n=20, copies=20)) for i, n in enumerate("ab"))
    with pytest.raises(InputError, match="of too few groups"):
        compare(a, b)


def test_pairs_that_cannot_be_compared(tmp_path):
    a = read_audit(kept(tmp_path / "a", 1, 0.05))
    for number, (changes, message) in enumerate(
        [({"n": 50}, "50 members and 50 held-out pictures are in both"), ({"name": "INVALID"}, "is INVALID")]
    ):
        b = read_audit(kept(tmp_path / f"b{number}", 1, 0.05, **changes))
        with pytest.raises(InputError, match=message):
            compare(a, b)
