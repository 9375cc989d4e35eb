"""Pages of finished, unfinished, empty, damaged and hostile runs, and of comparisons; and the charts on them."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jinja2
import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskdm.config.summary import summarize_model, summarize_objective, summarize_process
from maskdm.config.yaml_files import parse_yaml
from maskdm.errors import InputError
from maskdm.experiments.comparison import Arm, Budget, Comparison
from maskdm.experiments.conclusion import conclude
from maskdm.experiments.outcome import ComparisonSetup, Evaluation, Outcome
from maskdm.reports.charts import (
    MAX_DOTS,
    MAX_POINTS,
    Boundary,
    Point,
    Series,
    line_chart,
    roc_chart,
    score_histogram,
    thin,
)
from maskdm.reports.comparison_page import write_comparison_page
from maskdm.reports.drawing import standalone
from maskdm.reports.formatting import format_compact, format_count, format_duration, format_plural, format_value
from maskdm.reports.html import PageImage, render_page
from maskdm.reports.run_page import MAX_GRIDS, write_run_page

CONFIG = """\
data: {path: photos, image_size: [32, 32]}
model: {backbone: jit, size: S, patch_size: 4, width: 384, depth: 12, heads: 6, mixer_depth: 2, options: {}}
process: {kind: flow, prediction: x0, loss: velocity, shift: 2.0}
stages:
  - {name: pretrain, steps: 2000, betas: [0.9, 0.95], mask: {by_noise: [0.9, 0], mixture: []}}
  - {name: finetune, steps: 2000, mask: null}
"""
STAGES = [
    ("pretrain", 128, 0.45, "45.0% masked on average: 50% of a batch patch: 26 of 256; 50% of a batch none: all"),
    ("finetune", 64, 0.0, "none: all 256 patches visible"),
]
EVIL = "<script>alert(1)</script>"
Events = list[dict[str, object]]


# --- runs, and pages as structure ------------------------------------------------------------------------------------


def training(steps: int = 4000) -> Events:
    """The events of two stages of 2,000 steps each, cut off after `steps`."""
    events: Events = []
    images = 0
    for index, (stage, batch, ratio, mask) in enumerate(STAGES):
        first, last = 2000 * index, min(2000 * (index + 1), steps)
        about = {"mask": mask, "mask_ratio": ratio, "patches": 256, "batch_size": batch, "target_steps": 2000}
        at: dict[str, object] = {"stage": stage, "step": first, "images": images}
        events.append({"event": "stage", "index": index, "started_from": "fresh weights", **about, **at})
        for step in range(first + 20, last + 1, 20):
            images += 20 * batch
            at = {"stage": stage, "step": step, "images": images, "seconds": step * 130.2 / 4000}
            numbers = {"loss": 0.1 + 1 / step, "grad_norm": 0.5, "lr": 2e-4, "images_per_second": 812.3}
            events.append({"event": "train", **numbers, **at})
            if step % 500 == 0:
                events.append({"event": "heldout", "error_ema": 0.083, "error_raw": 0.09, "n": 180, **at})
        if last == first + 2000:
            events.append({"event": "stage_end", **at})
    if steps == 4000:
        events.append({"event": "end", **at})
    return events


def write_run(run: Path, events: Events, grids: int = 0) -> Path:
    (run / "samples").mkdir(parents=True)
    (run / "eval").mkdir()
    (run / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (run / "env.json").write_text(json.dumps({"maskdm": "0.1.0", "device": "cpu", "git_commit": None}))
    counts = {"member": 1437, "heldout": 180, "calibration": 90, "excluded": 3}
    (run / "manifest.head.json").write_text(json.dumps({"counts": counts, "fingerprint": "f00d", "transform": "crop"}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
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


@dataclass
class Node:
    """An element of a page."""

    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    def all(self, name: str, class_: str = "") -> list[Node]:
        """Elements within it, in order."""
        return [n for n in self if n.name == name and class_ in [*(n.attributes.get("class") or "").split(), ""]]

    def __iter__(self) -> Iterator[Node]:
        for child in self.children:
            if isinstance(child, Node):
                yield child
                yield from child

    @property
    def text(self) -> str:
        """As a reader has it: no style sheet, and single spaces."""
        parts = (c if isinstance(c, str) else c.text for c in self.children) if self.name != "style" else ()
        return re.sub(r"\s+", " ", " ".join(parts)).strip()

    def section(self, title: str) -> Node:
        """The section or folded part under a heading."""
        return next(n for n in self if n.name in ("section", "details") and n.all("h2")[0].text == title)

    def rows(self) -> list[list[str]]:
        """Cells of all tables in it."""
        return [[cell.text for cell in row if cell.name in ("th", "td")] for row in self.all("tr")]

    def charts(self) -> dict[str, Node]:
        """Figures that hold a drawing, by their titles."""
        return {figure.all("b")[0].text: figure for figure in self.all("figure") if figure.all("svg")}


def parse(text: str) -> Node:
    """A page. Fails on tags that do not match."""
    open_nodes = [Node("page")]

    class Reader(HTMLParser):
        def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
            node = Node(name, dict(attributes))
            open_nodes[-1].children.append(node)
            if name not in ("meta", "link", "img"):
                open_nodes.append(node)

        def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
            open_nodes[-1].children.append(Node(name, dict(attributes)))

        def handle_endtag(self, name: str) -> None:
            assert open_nodes.pop().name == name

        def handle_data(self, data: str) -> None:
            open_nodes[-1].children.append(data)

    Reader().feed(text)
    assert len(open_nodes) == 1
    return open_nodes[0]


def report(run: Path) -> Node:
    return parse(write_run_page(run).read_text(encoding="utf-8"))


def lead(page: Node) -> Node:
    return page.all("p", "lead")[0]


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_finished_run_shows_everything(run):
    page = report(run)
    assert lead(page).attributes["class"] == "lead good"
    assert lead(page).text.startswith("Finished:")
    for value in ("2 stages", "4,000 steps", "384,000 images", "2 min 10 s", "cpu", "0.083"):
        assert value in lead(page).text
    assert [each.text for each in page.all("h2")] == [
        "Scores", "Curves", "Samples over time", "Stages", "Model", "Data", "Settings", "Environment"
    ]  # fmt: skip
    scores = page.section("Scores")
    assert scores.all("h3")[0].text == "Fréchet distance"
    assert scores.rows() == [
        ["score", "value", "standard error", "n"], ["samples", "2.418", "± 0.0213", "1,437"], ["lost", "–", "", ""]
    ]  # fmt: skip
    assert scores.all("code")[0].text == "maskdm eval x"
    assert len(page.all("img")) == 1 + MAX_GRIDS
    captions = [figure.text for figure in page.section("Samples over time").all("figure")]
    assert captions[0] == "25,600 images, pretrain"  # the first grid: step 200, 128 a step
    assert captions[-1] == "384,000 images, finetune"
    assert page.section("Stages").rows()[1:] == [
        [
            "pretrain", "45.0% masked on average 50% of a batch patch: 26 of 256 50% of a batch none: all", "45.0%",
            "2,000", "256,000", "128", "fresh weights", "1 min 5 s",
        ],
        ["finetune", STAGES[1][3], "0.0%", "2,000", "128,000", "64", "fresh weights", "1 min 5 s"],
    ]  # fmt: skip
    assert [row[0] for row in page.section("Model").rows()] == ["network", "process", "objective"]
    assert ["trained on", "1,437"] in page.section("Data").rows()
    assert ["0.betas", "[0.9, 0.95]"] in page.section("Settings").rows()
    assert ["0.mask.by_noise", "[0.9, 0]"] in page.section("Settings").rows()
    assert ["1.mask", "null"] in page.section("Settings").rows()
    assert ["git commit", "null"] in page.section("Environment").rows()


def test_error_and_loss_have_axes_of_their_own(run):
    charts = report(run).charts()
    assert list(charts) == ["Held-out error", "Training loss", "Gradient norm", "Learning rate", "Throughput"]
    names = [name.text for name in charts["Held-out error"].all("li")]
    assert names == ["averaged weights 0.083", "raw weights 0.09"]
    assert not charts["Training loss"].all("li")
    for chart in charts.values():
        assert [text.text for text in chart.all("text")][-2:] == ["pretrain", "finetune"]  # where stages begin


def test_the_groups_of_a_mask_have_lines_of_their_own(run):
    lines = [each.text for each in report(run).section("Stages").all("td")[0].all("div")]
    assert lines == ["45.0% masked on average", "50% of a batch patch: 26 of 256", "50% of a batch none: all"]


def test_the_error_by_noise_level_has_a_line_for_each_range_over_that_of_the_best_blur(tmp_path):
    events = training()
    for number, event in enumerate(e for e in events if e["event"] == "heldout"):
        event["by_noise"] = [
            {"low": low, "high": low + 0.24, "n": 45, "error_ema": share / (1 + number), "error_raw": 0.5,
             "error_linear": linear}
            for low, share, linear in [(0.02, 0.08, 0.01), (0.26, 0.4, 0.1), (0.5, 0.8, 0.2), (0.74, 1.6, 0.0)]
        ]  # fmt: skip
    page = report(write_run(tmp_path / "run", events))
    chart = page.charts()["Held-out error by noise level"]
    assert list(page.charts())[:2] == ["Held-out error", "Held-out error by noise level"]
    names = [name.text for name in chart.all("li")]
    assert names == ["fine detail (0.02 to 0.26) 1", "texture (0.26 to 0.50) 0.5", "shapes (0.50 to 0.74) 0.5"]
    dots = [dot.all("title")[0].text for dot in chart.all("circle")]
    assert len(dots) == 3 * 8
    assert dots[0] == "fine detail (0.02 to 0.26): 8 at 64,000 images seen"
    section = page.section("Curves")
    assert "best blur" in section.text
    assert section.rows()[1] == ["0.02 to 0.26", "fine detail", "0.01", "0.5", "0.01", "1", "3%"]
    assert section.rows()[-1] == ["0.74 to 0.98", "layout", "0.2", "0.5", "0", "–", "56%"]


def test_before_training_the_error_by_noise_level_is_drawn_until_there_is_another(tmp_path):
    part = {"low": 0.02, "high": 0.26, "n": 9, "error_ema": 0.6, "error_raw": 0.6, "error_linear": 0.01}
    heldout = {"event": "heldout", "error_ema": 0.6, "error_raw": 0.6, "n": 9, "by_noise": [part], "seconds": 0.0}
    first, second = training()[0], {"stage": "pretrain", "step": 0, "images": 0}
    events = [first, heldout | second]
    for images, shown in ((0, ["60 at 0"]), (20, ["60 at 20"])):
        if images:
            events.append(heldout | {"stage": "pretrain", "step": 1, "images": images})
        page = report(write_run(tmp_path / str(images), events))
        dots = page.charts()["Held-out error by noise level"].all("circle")
        said = [f"fine detail (0.02 to 0.26): {each} images seen" for each in shown]
        assert [dot.all("title")[0].text for dot in dots] == said


def test_errors_by_noise_level_of_an_earlier_version_are_not_missed(run):
    page = report(run)
    assert "eld-out error" in page.text
    assert "noise level" not in page.text


def test_a_line_to_read_values_against_is_within_the_chart():
    chart = line_chart("t", [Series("a", [Point(0, 5), Point(9, 3)])], x_label="x", y_label="y", log_y=True)
    beside = line_chart(
        "t", [Series("a", [Point(0, 5), Point(9, 3)])], x_label="x", y_label="y", log_y=True, reference=1.0
    )
    assert beside.svg.count("<path") > chart.svg.count("<path")
    assert "1" in [text.text for text in parse(beside.svg).all("text")]
    assert "1" not in [text.text for text in parse(chart.svg).all("text")]


def test_without_held_out_errors_nothing_is_said_of_them(tmp_path):
    events = [event for event in training() if event["event"] != "heldout"]
    page = report(write_run(tmp_path / "run", events))
    assert "Training loss" in page.charts()
    assert "eld-out error" not in page.text


def test_scores_during_training_are_drawn(run):
    for images, distance in [(1000, 3.0), (2000, 2.0)]:
        at = {"stage": "finetune", "step": 4000 + images, "images": 384_000 + images, "seconds": 200.0}
        score = {"title": "FID", "features": "inception", "frechet_distance": distance, "kid": 0.1, "kid_error": 0.01}
        event = {"event": "score", **at, **score, "reference": 180, "n": 500}
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")
    chart = report(run).charts()["Distance to held-out images"]
    assert "FID, 500 images" in chart.text
    assert len(chart.all("circle")) == 2
    assert chart.all("title")[0].text == "averaged weights: 3 at 385,000 images seen"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{kind: ddpm, schedule: linear, timesteps: 1000, prediction: eps}", ["ddpm", "linear", "1000", "eps"]),
        ("{kind: ddpm, schedule: cosine, zero_terminal: true}", ["cosine", "noise alone at the end"]),
        ("{kind: vp, schedule: sigmoid, prediction: v, weight: p2}", ["sigmoid", "predicts v", "weight p2"]),
        ("{kind: edm, sigma_min: 0.01, time_mean: -1}", ["edm", "sigma min 0.01", "mean -1"]),
        ("{kind: ve, time_distribution: normal}", ["ve", "normal distribution of t"]),
        ("{kind: flow, loss: same, prediction: velocity, shift: much}", ["predicts velocity", "shifted by much"]),
        ("{backbone: unet, patch_size: 4, levels: [1, 2, 4], width: 64}", ["4 px", "width 64", "levels 1 2 4"]),
        ("{backbone: uvit, qkv_bias: true, haar_levels: 1}", ["uvit", "qkv bias", "haar levels 1"]),
        ("{backbone: 'mynet:Net', width: null, options: {blocks: 3}}", ["mynet:Net", "blocks 3"]),
    ],
)
def test_a_model_in_a_few_words(config, words):
    part = parse_yaml(config, "test")
    summary = f"{summarize_model(part)}; {summarize_process(part)}; {summarize_objective(part)}"
    for word in words:
        assert word in summary


@pytest.mark.parametrize("config", ["model: 3\nprocess: [flow]", "{}"])
def test_a_model_of_which_nothing_is_known(config, tmp_path):
    (tmp_path / "config.yaml").write_text(config)
    assert not report(tmp_path).section("Model").rows()


def test_an_unfinished_run_says_where_it_is(tmp_path):
    page = report(write_run(tmp_path / "run", training(3000)))
    assert lead(page).attributes["class"] == "lead warn"
    for value in ("stage 2 of 2", "finetune", "3,000 steps", "320,000 images"):
        assert value in lead(page).text
    assert page.section("Stages").rows()[2][3] == "1,000 of 2,000"
    assert not page.section("Samples").all("img")
    assert not page.section("Scores").all("table")


def test_a_stopped_run_says_why(tmp_path):
    stopped = {"event": "stopped", "stage": "finetune", "step": 3000, "images": 320_000, "reason": "interrupted"}
    page = report(write_run(tmp_path / "run", [*training(3000), stopped]))
    assert lead(page).attributes["class"] == "lead bad"
    assert "interrupted" in lead(page).text
    assert "3,000 steps" in lead(page).text


def test_a_run_with_only_its_settings_has_no_empty_boxes(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    page = report(tmp_path)
    assert lead(page).attributes["class"] == "lead warn"
    assert lead(page).text.startswith("Not started:")
    assert not [n for n in page if n.name in ("section", "div", "figure", "table", "tbody", "ul", "p") and not n.text]
    assert not page.all("svg") + page.all("img")


def test_a_truncated_last_line_is_tolerated_and_damage_before_it_is_told(run):
    whole = report(run)
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text()
    metrics.write_text(lines + '{"event":"tra')
    assert report(run) == whole
    metrics.write_text(f'{{"event":"tra\n{{"event":"from a later version"}}\n{lines}')
    assert "metrics.jsonl: 1 damaged line" in report(run).all("ul", "remarks")[0].text


def test_unreadable_files_are_named_and_the_rest_is_shown(run):
    (run / "config.yaml").write_text("stages: [")
    (run / "env.json").write_text("[]")
    (run / "eval" / "broken.json").write_text('{"title": "t", "rows": [{"value": 1}]}')
    (run / "samples" / "final.png").write_bytes((run / "samples" / "final.png").read_bytes()[:50])
    page = report(run)
    remarks = [each.text for each in page.all("ul", "remarks")[0].all("li")]
    assert {each.split(":")[0] for each in remarks} == {"config.yaml", "env.json", "broken.json", "final.png"}
    assert any("rows.0.name" in each for each in remarks)
    assert lead(page).text.startswith("Finished: 2 stages")


def test_what_a_resumed_run_did_again_counts_once(tmp_path):
    events = training()
    crashed = training(3000)
    resumed = [e for e in events if int(str(e["step"])) > 2500]  # from the checkpoint at step 2,500
    twice = write_run(tmp_path / "a" / "run", [*crashed, *resumed])
    assert report(twice) == report(write_run(tmp_path / "b" / "run", events))


def test_losses_that_are_not_finite_do_not_break_the_curves(tmp_path):
    events = training(1000)
    first = [e for e in events if e["event"] == "train"][:4]
    for event, loss in zip(first, [math.nan, math.inf, -math.inf, 0.0], strict=True):
        event["loss"] = loss
    page = report(write_run(tmp_path / "run", events))
    assert not page.all("ul", "remarks")
    assert "Training loss" in page.charts()
    numbers = [value for node in page for key, value in node.attributes.items() if key in ("d", "x", "y", "cx", "cy")]
    assert numbers
    assert not re.search(r"nan|inf", " ".join(map(str, numbers)))


def test_everything_from_files_is_escaped(tmp_path):
    events = training()
    for event in events:
        if event["event"] == "stage":
            event |= {"mask": EVIL, "started_from": EVIL}
        event["stage"] = EVIL
    run = write_run(tmp_path / '<b>run"', events, grids=2)
    (run / "config.yaml").write_text(f'data: {{"{EVIL}": "{EVIL}", path: https://example.org/x.png}}\n"{EVIL}": 1\n')
    (run / "env.json").write_text(json.dumps({EVIL: EVIL, "quoted": '" onload="alert(1)'}))
    score = {"title": EVIL, "command": EVIL, "note": EVIL, "rows": [{"name": EVIL, "value": 1}]}
    (run / "eval" / "a.json").write_text(json.dumps(score))
    page = report(run)
    assert not page.all("script")
    assert not [key for node in page for key in node.attributes if key.startswith("on")]
    assert page.all("h1")[0].text == '<b>run"'
    for title in ("Scores", "Samples over time", "Stages", "Settings", "Environment"):
        assert EVIL in page.section(title).text
    assert EVIL[:6] in page.charts()["Training loss"].text  # stages have their names above charts


def test_letters_that_no_font_has_and_what_looks_like_mathematics(tmp_path):
    events = training(1000)
    for event in events:
        event["stage"] = "预训 $x_{0}$ {y}"
    chart = report(write_run(tmp_path / "run", events)).charts()["Held-out error"]
    assert "预训 $x_{0}$ {y}" in [text.text for text in chart.all("text")]


def test_nothing_is_loaded_and_no_image_is_named(run):
    (run / "manifest.jsonl").write_text('{"path": "grandmother-at-the-sea.jpg"}\n')
    head = {"counts": {"member": 5, "grandfather.jpg": 1, "heldout": "uncle.jpg"}, "names": ["aunt.jpg"]}
    (run / "manifest.head.json").write_text(json.dumps(head))
    text = write_run_page(run).read_text(encoding="utf-8")
    page = parse(text)
    assert ".jpg" not in text
    assert not re.search(r"https?://|@import|url\(", text)
    assert {link.attributes["href"] for link in page.all("link")} == {"data:,"}
    assert all(str(image.attributes["src"]).startswith("data:image/png;base64,") for image in page.all("img"))
    policies = [m for m in page.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert [str(policy.attributes["content"]).split(";")[0] for policy in policies] == ["default-src 'none'"]


def test_the_same_files_give_the_same_bytes_and_nothing_else_is_left(run):
    before = {path.name for path in run.iterdir()}
    first = write_run_page(run).read_bytes()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.fonttype": "path"}):  # a user's own
        assert write_run_page(run).read_bytes() == first
    assert {path.name for path in run.iterdir()} - before == {"report.html"}
    assert len(first) < 60_000


def test_what_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError) as caught:
            write_run_page(folder)
        assert caught.value.name == "run"
        assert caught.value.got == str(folder)
    assert not list(tmp_path.iterdir())


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render_page("run.html", name="run")


def test_drawing_is_imported_where_a_page_is_written_and_pyplot_never(run):
    code = (
        "import sys; from pathlib import Path; from maskdm.reports.run_page import write_run_page\n"
        "early = sorted({'torch', 'jinja2', 'matplotlib'} & sys.modules.keys())\n"
        f"write_run_page(Path({str(run)!r}))\n"
        "print(early, 'matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[0] == "[] True False False"


@pytest.mark.parametrize(("width", "shown", "pixelated"), [(20, 840, True), (400, 800, True), (600, 856, False)])
def test_small_images_grow_by_a_whole_factor(width, shown, pixelated):
    image = PageImage(b"", width, width, "")
    assert (image.shown_width, image.pixelated) == (shown, pixelated)


# --- a comparison ----------------------------------------------------------------------------------------------------


def comparison(arms: int) -> Comparison:
    names = ["plain", *(f"arm{i}" for i in range(1, arms))]
    each = {name: Arm(stages=({"share": 1},)) for name in names}
    return Comparison(title=EVIL, budget=Budget(minutes=3), seeds=(0, 1), baseline="plain", arms=each)


def outcome(arm: str, seed: int, run: Path) -> Outcome:
    errors = tuple(Evaluation(i / 4, 0.5 / (i + 1 + seed)) for i in range(5))
    return Outcome(arm, seed, run, errors, images=1000, seconds=9.4, distances=(Evaluation(1, 3.0),), features="FID")


SETUP = ComparisonSetup({"plain": [EVIL]}, "digits.npz", "cpu", "0.1", "maskdm compare <x>")


def test_a_comparison_shows_conclusions_curves_and_samples(tmp_path):
    plan = comparison(4)
    outcomes = [
        outcome(arm, seed, write_run(tmp_path / f"{arm}-{seed}", [], 2)) for arm in plan.arms for seed in (0, 1)
    ]
    path = write_comparison_page(tmp_path, plan, outcomes, conclude(outcomes, "plain"), setup=SETUP)
    page = parse(path.read_text(encoding="utf-8"))
    assert not page.all("script")
    assert page.all("h1")[0].text == EVIL
    assert page.section("Conclusions").rows()[0] == ["plain", "the baseline"]
    assert page.section("Conclusions").rows()[-1][:1] == ["arm3"]
    # A line for every arm, three in a chart; distances at the end alone are no curve.
    assert list(page.charts()) == ["arm1 and arm2 against plain", "arm3 against plain"]
    assert [name.text for name in page.charts()["arm3 against plain"].all("li")] == ["plain 0.0917", "arm3 0.0917"]
    assert len(page.section("Runs").rows()) == 1 + 8
    assert len(page.all("img")) == 8
    assert page.section("What was compared").rows()[1] == ["plain", EVIL]


def test_a_comparison_that_has_just_begun(tmp_path):
    page = parse(write_comparison_page(tmp_path, comparison(2), [], [], setup=SETUP).read_text(encoding="utf-8"))
    assert "0 of 4 runs done" in page.text
    assert not page.section("Conclusions").rows() + page.section("Runs").rows()
    assert not page.all("svg")


# --- charts ----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=30), st.booleans())
def test_any_points_give_a_drawing_of_finite_places_or_none(points, log_y):
    series = [Series("a", [Point(*p) for p in points])]
    chart = line_chart("t", series, x_label="x", y_label="y", log_y=log_y, boundaries=[Boundary(0, "s")])
    if any(abs(x) < 1e30 and (1e-30 if log_y else -1e30) < y < 1e30 for x, y in points):
        assert chart is not None
        assert not re.search(r'(x|y|d|cx|cy)="[^"]*(nan|inf)', chart.svg)
    elif not any(math.isfinite(x) and math.isfinite(y) for x, y in points):
        assert chart is None


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=3000))
def test_thinning_keeps_ends_peaks_and_order(values):
    points = [Point(i, y) for i, y in enumerate(values)]
    kept = list(thin(points))
    assert len(kept) <= MAX_POINTS
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert min(p.y for p in kept) == min(values)
    assert max(p.y for p in kept) == max(values)


def labels(svg: str) -> list[str]:
    return [text.text for text in parse(svg).all("text")]


def test_axes_have_round_ticks():
    line = Series("loss", [Point(x * 1e4, 10 / (1 + x)) for x in range(36)])
    linear = line_chart("Loss", [line], x_label="images", y_label="loss")
    assert linear is not None
    assert linear.subtitle.endswith("last 0.278")
    assert labels(linear.svg) == ["0", "100 k", "200 k", "300 k", "images", "0", "5", "10"]
    log = line_chart("Loss", [line], x_label="images", y_label="loss", log_y=True)
    assert log is not None
    assert "log scale" in log.subtitle
    assert labels(log.svg)[5:] == ["0.3", "1", "3", "10"]


def test_names_of_narrow_stages_are_cut_or_left_out():
    line = Series("loss", [Point(x, 1) for x in range(101)])
    begun = [Boundary(0, "pretraining"), Boundary(20, "a" * 40), Boundary(98, "finetune"), Boundary(500, "later")]
    chart = line_chart("Loss", [line], x_label="images", y_label="loss", boundaries=begun)
    assert chart is not None
    names = [label for label in labels(chart.svg) if label[0].isalpha() and label != "images"]
    assert [name.rstrip("…") for name in names] == [name[: len(name) - 1] for name in names]
    assert len(names) == 2


def test_a_roc_shades_what_so_many_images_cannot_resolve():
    x = np.geomspace(1e-4, 1, 20)
    chart = roc_chart(x, x, x / 2, np.minimum(2 * x, 1), resolved=0.02)
    assert labels(chart.svg).count("0.01") == 2  # the same axes both ways
    assert "not resolved" in labels(chart.svg)
    assert "not resolved" not in labels(roc_chart(x, x, x, x, resolved=1e-5).svg)
    alone = ElementTree.fromstring(standalone(chart.svg))
    assert alone.tag == "{http://www.w3.org/2000/svg}svg"
    assert "--series-0:#" in alone[0].text


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_histogram_has_both_roles(scale):
    rng = np.random.default_rng(0)
    chart = score_histogram(scale * rng.normal(1, 1, 200), scale * rng.normal(0, 1, 100))
    assert chart.legend == ("members", "held out")
    assert "var(--series-0)" in chart.svg
    assert "var(--series-1)" in chart.svg


def test_numbers_read_well():
    assert [format_count(n) for n in (0, 1234, 999_999, 2_100_000, 1.314e9)] == [
        "0", "1,234", "999,999", "2.1 M", "1.31 B"
    ]  # fmt: skip
    assert [format_value(x) for x in (0, 0.083, 2.41823, 1234.5, 2e-4, 2.5e-7, -3e-5, math.nan)] == [
        "0", "0.083", "2.418", "1,234", "2e-4", "2.5e-7", "-3e-5", "nan"
    ]  # fmt: skip
    assert [format_compact(x) for x in (500, 12_500, 1.2e6, 3e20)] == ["500", "12.5 k", "1.2 M", "3e20"]
    assert [format_duration(s) for s in (9.42, 59.99, 130.2, 3600, 11_100, 187_200)] == [
        "9.42 s", "1 min", "2 min 10 s", "1 h", "3 h 5 min", "2 d 4 h"
    ]  # fmt: skip
    assert [format_plural(n, "step") for n in (1, 2, 4000)] == ["1 step", "2 steps", "4,000 steps"]


def test_lines_of_two_stages_are_not_joined(run):
    def chart(points):
        drawn = line_chart("t", [Series("a", points)], x_label="x", y_label="y")
        return parse(drawn.svg)

    apart = chart([Point(0, 1, 0), Point(1, 2, 0), Point(1, 5, 1), Point(2, 4, 1)])
    joined = chart([Point(0, 1), Point(1, 2), Point(1, 5), Point(2, 4)])
    assert len(apart.all("path")) == len(joined.all("path")) + 1
    many = [Point(i, 1 + i, 0) for i in range(2 * MAX_DOTS)]
    lonely = chart([*many, Point(2 * MAX_DOTS, 4, 1)])
    assert len(lonely.all("circle")) == 1  # where there is no line
    assert not chart(many).all("circle")


def test_a_run_that_has_learned_little_says_so_under_its_result(tmp_path):
    def lead_of(name: str, mean: float | None) -> Node:
        events = [event | {"error_mean": mean} if event["event"] == "heldout" else event for event in training()]
        return lead(report(write_run(tmp_path / name, events)))

    little = lead_of("little", 0.1)
    assert "83% of that of answering with the mean image" in little.text
    for name, mean in (("much", 0.4), ("older", None)):
        assert "mean image" not in lead_of(name, mean).text
    assert little.attributes != lead_of("again", 0.4).attributes or "good" not in str(little.attributes)
