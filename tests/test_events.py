"""Lines of metrics.jsonl: what is written is what is read, by one schema; other versions' lines are told from it."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from maskdm.training.events import (
    AnyEvent,
    EndEvent,
    HeldoutEvent,
    NoiseRange,
    ScoreEvent,
    StageEndEvent,
    StageEvent,
    StoppedEvent,
    TrainEvent,
    parse_event,
)

AT = {"stage": "pretrain", "step": 20, "images": 160}
BY_NOISE = (
    NoiseRange(low=0.02, high=0.26, n=90, error_ema=0.01, error_raw=0.02, error_linear=0.005),
    NoiseRange(low=0.74, high=0.98, n=90, error_ema=0.15, error_raw=0.16, error_linear=0.2),
)
EVENTS: list[AnyEvent] = [
    StageEvent(
        **AT,
        index=0,
        mask="patch: 4 of 16",
        mask_ratio=0.75,
        patches=16,
        batch_size=8,
        target_steps=None,
        started_from="fresh weights",
    ),
    TrainEvent(**AT, loss=0.1, grad_norm=0.5, lr=2e-4, images_per_second=812.3, seconds=1.5),
    HeldoutEvent(**AT, error_ema=0.08, error_raw=0.09, n=180, seconds=1.5, by_noise=BY_NOISE),
    ScoreEvent(
        **AT,
        title="FID",
        features="inception",
        frechet_distance=3.0,
        kid=0.01,
        kid_error=0.001,
        reference=180,
        n=500,
        seconds=1.5,
    ),
    StageEndEvent(**AT, seconds=1.5),
    EndEvent(**AT, seconds=1.5),
    StoppedEvent(**AT, reason="interrupted"),
]


def line(**values: object) -> str:
    return json.dumps(values)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event)
def test_what_is_written_is_read(event):
    assert parse_event(event.line()) == event
    assert json.loads(event.line())["event"] == event.event


def test_every_kind_has_a_name_of_its_own():
    assert len({event.event for event in EVENTS}) == len(EVENTS)


@pytest.mark.parametrize("reason", ["ü\n\u2028", '"', "\x00"])
def test_an_event_is_one_line(reason):
    event = StoppedEvent(**AT, reason=reason)
    assert event.line().splitlines() == [event.line()]
    assert parse_event(event.line()) == event


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_broke_is_on_record(loss):
    event = TrainEvent(**AT, loss=loss, grad_norm=0.0, lr=1e-4, images_per_second=1.0, seconds=1.0)
    found = parse_event(event.line())
    assert isinstance(found, TrainEvent)
    assert found.loss == loss or (math.isnan(found.loss) and math.isnan(loss))


def test_kinds_of_a_later_version_are_passed_over():
    assert parse_event(line(event="weather", **AT, degrees=21)) is None


def test_what_a_later_version_adds_to_a_kind_is_passed_over():
    event = EVENTS[-1]
    assert parse_event(json.dumps(json.loads(event.line()) | {"mood": "good"})) == event


def test_a_held_out_error_from_before_noise_levels_were_told_apart_is_read():
    old = {"event": "heldout", **AT, "error_ema": 0.08, "error_raw": 0.09, "n": 180, "seconds": 1.5, "error_mean": 0.3}
    found = parse_event(json.dumps(old))
    assert isinstance(found, HeldoutEvent)
    assert found.by_noise == ()
    assert found.numbers().keys() == {f"heldout/{key}" for key in ("error_ema", "error_raw", "seconds", "error_mean")}


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.02, 0.26, ("0.02 to 0.26", "fine detail")),
        (0.26, 0.5, ("0.26 to 0.50", "texture")),
        (0.5, 0.74, ("0.50 to 0.74", "shapes")),
        (0.74, 0.98, ("0.74 to 0.98", "layout")),
        (0.9, 1.2, ("0.90 to 1.20", "layout")),
    ],
)
def test_ranges_of_noise_level_have_names(low, high, words):
    found = NoiseRange(low=low, high=high, n=1, error_ema=0.1, error_raw=0.1, error_linear=0.1)
    assert (found.levels, found.hidden) == words


@pytest.mark.parametrize(
    "old",
    [
        {"event": "heldout", **AT, "loss_ema": 0.1, "loss_raw": 0.1, "n": 8, "seconds": 1.0},
        {**json.loads(EVENTS[0].line()), "hidden": 0.75, "mask_ratio": None},
    ],
    ids=["loss_ema", "hidden"],
)
def test_keys_of_an_earlier_version_are_not_taken_for_today_s(old):
    with pytest.raises(ValidationError):
        parse_event(json.dumps({key: value for key, value in old.items() if value is not None}))


@pytest.mark.parametrize("damaged", ["", "{", "null", "[]", "{}", '{"event": "en', line(event="end"), "\x00\x00"])
def test_damage_is_told_from_another_version(damaged):
    with pytest.raises(ValidationError):
        parse_event(damaged)


def test_trackers_are_told_what_was_measured():
    assert EVENTS[2].numbers() == {
        "heldout/error_ema": 0.08,
        "heldout/error_raw": 0.09,
        "heldout/seconds": 1.5,
        "heldout/error_ema/noise_0.02-0.26": 0.01,
        "heldout/error_raw/noise_0.02-0.26": 0.02,
        "heldout/error_ema/noise_0.74-0.98": 0.15,
        "heldout/error_raw/noise_0.74-0.98": 0.16,
    }
    assert EVENTS[-1].numbers() == {}


def test_an_event_does_not_change():
    with pytest.raises(ValidationError):
        EVENTS[-1].step = 3
