"""The report of finished, unfinished, empty, damaged and hostile run folders; and the charts and words in it."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskdm.errors import InputError
from maskdm.reports import formatting as wording
from maskdm.reports.charts import MAX_POINTS, Boundary, Point, Series, line_chart, thin
from maskdm.reports.markup import Html, tag
from maskdm.reports.run_page import write_report

CONFIG = """\
data: {path: pictures, image_size: [32, 32]}
model: {backbone: jit, size: S, patch_size: 4, width: 384, depth: 12, heads: 6, mixer_depth: 2, options: {}}
process: {kind: flow, schedule: cosine, timesteps: 1000, prediction: x0, loss: velocity, shift: 2.0, sigma_min: null}
stages:
  - {name: pretrain, steps: 2000, betas: [0.9, 0.95], mask: {by_noise: [0.9, 0], mixture: []}}
  - {name: finetune, steps: 2000, mask: null}
"""
STAGES = [
    ("pretrain", 128, 0.45, "45.0% hidden on average: 50% of a batch patch: 26 of 256; 50% of a batch none: all"),
    ("finetune", 64, 0.0, "none: all 256 patches visible"),
]
Events = list[dict[str, object]]


def training(steps: int = 4000) -> Events:
    """The events of two stages of 2,000 steps each, cut off after `steps`."""
    events: Events = []
    images = 0
    for index, (stage, batch, hidden, mask) in enumerate(STAGES):
        first, last = 2000 * index, min(2000 * (index + 1), steps)
        plan = {"mask": mask, "hidden": hidden, "patches": 256, "batch_size": batch, "target_steps": 2000}
        at: dict[str, object] = {"stage": stage, "step": first, "images": images}
        events.append({"event": "stage", "index": index, "started_from": "fresh weights", **plan, **at})
        for step in range(first + 20, last + 1, 20):
            images += 20 * batch
            at = {"stage": stage, "step": step, "images": images, "seconds": step * 130.2 / 4000}
            loss = 0.1 + 1 / step
            events.append(
                {"event": "train", "loss": loss, "grad_norm": 0.5, "lr": 2e-4, "images_per_second": 812.3, **at}
            )
            if step % 500 == 0:
                events.append({"event": "heldout", "loss_ema": 0.083, "loss_raw": 0.09, "n": 180, **at})
        if last == first + 2000:
            events.append({"event": "stage_end", **at})
    if steps == 4000:
        events.append({"event": "end", **at})
    return events


def write_run(run: Path, events: Events, grids: int = 0) -> Path:
    (run / "samples").mkdir(parents=True)
    (run / "eval").mkdir()
    (run / "config.yaml").write_text(CONFIG)
    (run / "env.json").write_text(json.dumps({"maskdm": "0.1.0", "device": "cpu", "git_commit": None}))
    counts = {"member": 1437, "heldout": 180, "calibration": 90, "excluded": 3}
    (run / "manifest.head.json").write_text(json.dumps({"counts": counts, "fingerprint": "f00d", "transform": "crop"}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for i in range(1, grids + 1):
        Image.new("L", (20, 10), 10 * i).save(run / "samples" / f"step-{i * 200:07d}.png")
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "digits", training(), grids=20)
    Image.new("L", (20, 10), 255).save(run / "samples" / "final.png")
    rows = [{"name": "samples", "value": 2.41823, "error": 0.0213, "n": 1437}, {"name": "lost", "value": None}]
    table = {"title": "Fréchet distance", "command": "maskdm eval x", "note": "Lower is better.", "rows": rows}
    (run / "eval" / "frechet.json").write_text(json.dumps(table))
    return run


def report(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def words(page: str) -> str:
    """The text of a page as a reader has it, style sheet left out. Fails on tags that do not match."""
    pieces: list[str] = []
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
            if name not in ("meta", "link", "img"):
                opened.append(name)

        def handle_endtag(self, name: str) -> None:
            assert opened.pop() == name

        def handle_data(self, data: str) -> None:
            if opened and opened[-1] != "style":
                pieces.append(data)

    Reader().feed(page)
    assert not opened
    return re.sub(r"\s+", " ", " ".join(pieces))


def test_a_finished_run_says_so_first_and_shows_everything(run: Path) -> None:
    page = report(run)
    text = words(page)
    lead = "Finished: 2 stages, 4,000 steps, 384,000 images in 2 min 10 s on cpu; held-out error 0.083."
    assert lead in text
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Scores", "Curves", "Samples over time", "Stages", "Model", "Data", "Settings", "Environment"
    ]  # fmt: skip
    assert "Fréchet distance" in text
    assert "2.418 ± 0.0213 1,437" in text
    assert "maskdm eval x" in text
    assert page.count("<svg") == 7  # error and loss twice, for wide and narrow screens
    assert page.count("<img") == 1 + 8
    assert "Latest samples, after 384,000 images, finetune." in text
    assert "25,600 images, pretrain" in text  # the first grid: step 200, 128 a step
    assert "all 45.0% 2,000 256,000 128 fresh weights" in text
    assert "all 256 patches visible 0.0% 2,000 128,000 64 fresh weights" in text
    assert "network jit, patches of 4 px, width 384, depth 12, heads 6, mixer depth 2" in text
    assert "process flow, shifted by 2" in text
    assert "objective predicts x0, loss on velocity" in text
    assert "trained on 1,437" in text
    assert "stages" in text
    assert "[0].betas [0.9, 0.95]" in text
    assert "[0].mask.by_noise [0.9, 0]" in text
    assert "[1].mask null" in text


def test_error_and_loss_have_axes_of_their_own(run: Path) -> None:
    page = report(run)
    charts = {words(chart).split(" ")[0]: chart for chart in re.findall(r"<svg.*?</svg>", page)}
    assert charts.keys() == {"Held-out", "Training", "Learning", "Speed", "Gradient"}
    heldout, loss = charts["Held-out"], charts["Training"]
    assert "Held-out error squared error of the image, log scale" in words(heldout)
    assert "averaged weights 0.083" in words(heldout)
    assert "raw weights 0.09" in words(heldout)
    assert "Training loss loss, log scale · last 0.1" in words(loss)
    assert "series-1" in heldout
    assert "series-1" not in loss  # one line, and nothing of another unit beside it
    assert "held-out loss" not in words(page).lower()
    assert words(page).count("one unit for all processes and predictions") == 1


def test_a_run_that_asked_nothing_of_held_out_pictures_does_not_speak_of_them(tmp_path: Path) -> None:
    events = [event for event in training() if event["event"] != "heldout"]
    text = words(report(write_run(tmp_path / "run", events)))
    assert "Training loss" in text
    assert "eld-out error" not in text


def test_the_parts_of_a_mask_have_lines_of_their_own(run: Path) -> None:
    lines = ["45.0% hidden on average", "50% of a batch patch: 26 of 256", "50% of a batch none: all"]
    assert f"<td>{''.join(f'<div>{line}</div>' for line in lines)}</td>" in report(run)


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        ("process: {kind: ddpm, schedule: linear, timesteps: 1000, prediction: eps}", ["ddpm, linear schedule, 1000"]),
        ("process: {kind: ddpm, schedule: cosine, zero_terminal: true}", ["cosine schedule, noise alone at the end"]),
        ("process: {kind: vp, schedule: sigmoid, prediction: v, weight: p2}", ["vp, sigmoid", "predicts v, weight p2"]),
        ("process: {kind: edm, sigma_min: 0.01, time_mean: -1}", ["process edm, sigma min 0.01, mean -1"]),
        ("process: {kind: ve, schedule: cosine, time_law: normal, shift: much}", ["ve, shifted by much, normal law"]),
        ("process: {kind: flow, loss: same, prediction: velocity}", ["process flow objective predicts velocity"]),
        ("model: {backbone: unet, patch_size: 4, levels: [1, 2, 4], width: 64}", ["4 px, width 64, levels 1 2 4"]),
        ("model: {backbone: uvit, qkv_bias: true, haar_levels: 1}", ["network uvit, qkv bias, haar levels 1"]),
        ("model: {backbone: 'mynet:Net', width: null, options: {blocks: 3}}", ["network mynet:Net, blocks 3"]),
        ("model: 3\nprocess: [flow]", ["Nothing is known of the model."]),
        ("{}", ["Nothing is known of the model."]),
    ],
)
def test_a_model_in_a_few_words(config: str, lines: list[str], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", training(100))
    (run / "config.yaml").write_text(config)
    for line in lines:
        assert line in words(report(run))


def test_an_unfinished_run_says_where_it_is(tmp_path: Path) -> None:
    text = words(report(write_run(tmp_path / "run", training(3000))))
    assert "Unfinished in stage 2 of 2, finetune: 3,000 steps, 320,000 images" in text
    assert "1,000 of 2,000" in text
    assert "No samples yet." in text
    assert "None by maskdm eval" in text


def test_a_stopped_run_says_why(tmp_path: Path) -> None:
    events = [*training(3000), {"event": "stopped", "step": 3000, "reason": "interrupted"}]
    assert "Stopped (interrupted) in stage 2 of 2, finetune:" in words(report(write_run(tmp_path / "run", events)))


def test_a_run_with_only_its_settings_has_no_empty_boxes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    page = report(tmp_path)
    assert "Not started: no step has been logged yet." in words(page)
    assert not re.search(r"<(section|div|figure|table|tbody|ul|p)[^>]*></", page)
    assert "<svg" not in page
    assert "<img" not in page


def test_a_truncated_last_line_is_tolerated_and_damage_before_it_is_told(run: Path) -> None:
    whole = report(run)
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text()
    metrics.write_text(lines + '{"event":"tra')
    assert report(run) == whole
    metrics.write_text(f'{{"event":"tra\n{{"event":"from a later version"}}\n{lines}')
    assert "metrics.jsonl: 1 damaged line left out." in words(report(run))


def test_unreadable_files_are_named_and_the_rest_is_shown(run: Path) -> None:
    (run / "config.yaml").write_text("stages: [")
    (run / "env.json").write_text("[]")
    (run / "eval" / "broken.json").write_text('{"title": "t", "rows": [{"value": 1}]}')
    (run / "samples" / "final.png").write_bytes((run / "samples" / "final.png").read_bytes()[:50])
    text = words(report(run))
    for name in ("config.yaml", "env.json", "broken.json", "final.png"):
        assert f"{name}: left out" in text
    assert "rows.0.name: Field required" in text
    assert "Finished: 2 stages" in text


def test_what_a_resumed_run_did_again_counts_once(tmp_path: Path) -> None:
    events = training()
    crashed = training(3000)
    continued = [e for e in events if int(str(e["step"])) > 2500]  # from the checkpoint at step 2,500
    resumed = write_run(tmp_path / "a" / "run", [*crashed, *continued])
    assert report(resumed) == report(write_run(tmp_path / "b" / "run", events))


def test_losses_that_are_not_finite_do_not_break_the_curves(tmp_path: Path) -> None:
    events = training(1000)
    first = [e for e in events if e["event"] == "train"][:4]
    for event, loss in zip(first, [math.nan, math.inf, None, 0.0], strict=True):
        event["loss"] = loss
    page = report(write_run(tmp_path / "run", events))
    assert "damaged" not in page
    assert not re.search(r'="[^"]*\b(nan|inf)\b', page)


def test_everything_from_files_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    events = training()
    for event in events:
        if event["event"] == "stage":
            event |= {"mask": evil, "started_from": evil}
        if "stage" in event:
            event["stage"] = evil
    run = write_run(tmp_path / "<b>run", events, grids=2)
    (run / "config.yaml").write_text(f'data: {{"{evil}": "{evil}", path: https://example.org/x.png}}\n"{evil}": 1\n')
    (run / "env.json").write_text(json.dumps({evil: evil}))
    score = {"title": evil, "command": evil, "note": evil, "rows": [{"name": evil, "value": 1}]}
    (run / "eval" / "a.json").write_text(json.dumps(score))
    page = report(run)
    assert "<script" not in page
    assert "<b>run" not in page
    assert evil in words(page)


def test_nothing_is_loaded_and_no_picture_is_named(run: Path) -> None:
    (run / "manifest.jsonl").write_text('{"path": "grandmother-at-the-sea.jpg"}\n')
    head = {"counts": {"member": 5, "grandfather.jpg": 1, "heldout": "uncle.jpg"}, "names": ["aunt.jpg"]}
    (run / "manifest.head.json").write_text(json.dumps(head))
    page = report(run)
    assert ".jpg" not in page
    assert not re.search(r"https?://|@import|url\(|<script|<link (?!rel=\"icon\" href=\"data:,\")", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="(.*?)"', page))
    assert "default-src &#x27;none&#x27;" in page


def test_the_same_files_give_the_same_bytes_and_nothing_else_is_left(run: Path) -> None:
    before = {path.name for path in run.iterdir()}
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert {path.name for path in run.iterdir()} - before == {"report.html"}


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match="run folder: got") as raised:
            write_report(folder)
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=30), st.booleans())
def test_any_points_give_a_drawing_of_finite_places_or_none(points: list[tuple[float, float]], log_y: bool) -> None:
    series = [Series("a", [Point(*p) for p in points])]
    chart = line_chart("t", series, x_label="x", y_label="y", log_y=log_y, boundaries=[Boundary(0, "s")])
    if any(abs(x) < 1e30 and (1e-30 if log_y else -1e30) < y < 1e30 for x, y in points):
        assert chart is not None
        assert not re.search(r'(x|y|d|x1|y1|cx|cy)="[^"]*(nan|inf)', chart)
    elif not any(math.isfinite(x) and math.isfinite(y) for x, y in points):
        assert chart is None


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=3000))
def test_thinning_keeps_ends_peaks_and_order(values: list[float]) -> None:
    points = [Point(i, y) for i, y in enumerate(values)]
    kept = list(thin(points))
    assert len(kept) <= MAX_POINTS
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert min(p.y for p in kept) == min(values)
    assert max(p.y for p in kept) == max(values)


def test_axes_have_round_ticks_and_names() -> None:
    line = Series("loss", [Point(x * 1e4, 10 / (1 + x)) for x in range(36)])
    linear = words(line_chart("Loss", [line], x_label="images", y_label="loss", width=800) or "")
    assert "Loss loss · last 0.278" in linear
    assert "0 50 k 100 k 150 k" in linear
    log = words(line_chart("Loss", [line], x_label="images", y_label="loss", log_y=True) or "")
    assert "loss, log scale" in log
    assert " 1 " in log
    assert " 10 " in log


def test_numbers_read_well() -> None:
    assert [wording.count(n) for n in (0, 1234, 999_999, 2_100_000, 1.314e9)] == [
        "0", "1,234", "999,999", "2.1 M", "1.31 B"
    ]  # fmt: skip
    assert [wording.value(x) for x in (0, 0.083, 2.41823, 1234.5, 2e-4, 2.5e-7, -3e-5, math.nan)] == [
        "0", "0.083", "2.418", "1,234", "2e-4", "2.5e-7", "-3e-5", "nan"
    ]  # fmt: skip
    assert [wording.compact(x) for x in (500, 12_500, 1.2e6)] == ["500", "12.5 k", "1.2 M"]
    assert [wording.duration(s) for s in (9.42, 59.99, 130.2, 3600, 11_100, 187_200)] == [
        "9.42 s", "1 min", "2 min 10 s", "1 h", "3 h 5 min", "2 d 4 h"
    ]  # fmt: skip


def test_only_markup_is_not_escaped() -> None:
    assert tag("p", "<", tag("b", "&"), title='"') == '<p title="&quot;">&lt;<b>&amp;</b></p>'
    assert tag("p", Html("<hr>")) == "<p><hr></p>"


def test_scores_along_the_way_are_drawn(run):
    lines = (run / "metrics.jsonl").read_text()
    for images, distance in [(1000, 3.0), (2000, 2.0)]:
        event = {"event": "score", "stage": "finetune", "step": images, "images": images, "n": 500}
        lines += json.dumps({**event, "title": "FID", "frechet_distance": distance}) + "\n"
    (run / "metrics.jsonl").write_text(lines)
    page = report(run)
    assert "Distance to held-out pictures" in page
    assert "FID, 500 pictures" in page
