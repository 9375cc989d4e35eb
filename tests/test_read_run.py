"""The reader of a run: whole, unfinished, damaged, and of another version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskdm.errors import InputError
from maskdm.models.weights import load
from maskdm.training.events import EndEvent, HeldoutEvent, StageEndEvent, StageEvent, StoppedEvent, TrainEvent
from maskdm.training.read_run import (
    History,
    is_finished,
    is_run,
    list_runs,
    read_config,
    read_history,
    read_run,
)


def stage(index: int, step: int, name: str) -> StageEvent:
    return StageEvent(
        stage=name,
        step=step,
        images=8 * step,
        index=index,
        mask="none",
        mask_ratio=0.0,
        patches=16,
        batch_size=8,
        target_steps=20,
        started_from="fresh weights",
    )


def train(step: int, name: str = "a", loss: float = 0.1) -> TrainEvent:
    return TrainEvent(
        stage=name, step=step, images=8 * step, loss=loss, grad_norm=1.0, lr=1e-4, images_per_second=8.0, seconds=step
    )


def heldout(step: int, name: str = "a", error: float = 0.1) -> HeldoutEvent:
    return HeldoutEvent(stage=name, step=step, images=8 * step, error_ema=error, error_raw=0.2, n=8, seconds=step)


def end(step: int) -> EndEvent:
    return EndEvent(stage="b", step=step, images=8 * step, seconds=step)


WHOLE = [
    stage(0, 0, "a"),
    heldout(0),
    train(10),
    train(20),
    heldout(20),
    StageEndEvent(stage="a", step=20, images=160, seconds=20),
    stage(1, 20, "b"),
    heldout(20, "b", 0.09),
    train(30, "b"),
    heldout(30, "b", 0.05),
    StageEndEvent(stage="b", step=30, images=240, seconds=10),
    end(30),
]


def history(events) -> History:
    found = History()
    for event in events:
        found.add(event)
    return found


def write(folder: Path, *lines: object) -> Path:
    text = "".join(line if isinstance(line, str) else line.line() + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


# --- history ---------------------------------------------------------------------------------------------------------


def test_a_whole_history(tmp_path):
    found = read_history(write(tmp_path, *WHOLE))
    assert found == history(WHOLE)
    assert found.finished
    assert is_finished(tmp_path)
    assert (found.step, found.images, found.seconds) == (30, 240, 30)
    assert found.heldout_error == 0.05
    assert [e.stage for e in found.stages] == ["a", "b"]
    assert [found.stage_at(step).stage for step in (0, 10, 20, 21)] == ["a", "a", "a", "b"]
    assert [found.images_at(step) for step in (0, 5, 25)] == [0, 40, 200]
    assert [found.seconds_at(step) for step in (5, 10, 30)] == [0, 10, 30]


def test_the_end_of_a_stage_and_the_beginning_of_the_next_are_both_kept():
    assert [(e.stage, e.step) for e in history(WHOLE).heldout] == [("a", 0), ("a", 20), ("b", 20), ("b", 30)]


@pytest.mark.parametrize("killed", range(1, len(WHOLE)))
@pytest.mark.parametrize("resumed", [0, 1, 3, 7])
def test_what_a_resumed_run_did_again_counts_once(killed, resumed):
    """Killed after some events, and resumed from before an earlier one without the later lines being cut off."""
    again = history([*WHOLE[:killed], *WHOLE[min(killed, resumed) :]])
    assert again == history(WHOLE)


def test_nothing_was_written(tmp_path):
    found = read_history(tmp_path)
    assert found == History()
    assert (found.step, found.images, found.seconds, found.heldout_error, found.stage_at(3)) == (0, 0, 0.0, None, None)
    assert not found.finished


def test_a_stopped_run_is_not_finished(tmp_path):
    stopped = StoppedEvent(stage="a", step=20, images=160, reason="interrupted")
    found = read_history(write(tmp_path, *WHOLE[:4], stopped))
    assert not found.finished
    assert found.last == stopped


@pytest.mark.parametrize("junk", ["\n", "\0\0\0\n", "\ufffd\n", '{"event": "en\n', "[]\n"])
def test_a_damaged_line_does_not_hide_the_rest(tmp_path, junk):
    found = read_history(write(tmp_path, WHOLE[0], junk, *WHOLE[1:]))
    assert found.finished
    assert found.train == history(WHOLE).train
    assert found.skipped == (junk != "\n")


def test_a_line_being_written_is_no_fault(tmp_path):
    found = read_history(write(tmp_path, *WHOLE[:4], '{"event": "tra'))
    assert (found.step, found.skipped) == (20, 0)


def test_a_last_line_without_its_break_counts_if_it_is_whole(tmp_path):
    assert read_history(write(tmp_path, *WHOLE[:-1], WHOLE[-1].line())).finished


def test_bytes_that_are_no_text(tmp_path):
    write(tmp_path, *WHOLE)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    assert read_history(tmp_path).skipped == 1


def test_kinds_of_a_later_version_are_no_damage(tmp_path):
    found = read_history(write(tmp_path, '{"event": "weather", "degrees": 21}\n', *WHOLE))
    assert found == history(WHOLE)


def test_lines_of_an_earlier_version_are_told(tmp_path):
    old = json.dumps({"event": "heldout", "stage": "a", "step": 0, "images": 0, "loss_ema": 0.1, "loss_raw": 0.1})
    found = read_run(write(tmp_path, *WHOLE[:1], f"{old}\n"))
    assert found.history.heldout == []
    (remark,) = found.remarks
    assert "1 damaged line left out" in remark
    assert "error_ema" in remark


# --- the folder ------------------------------------------------------------------------------------------------------


def test_everything_of_a_finished_run(photos_run):
    found = read_run(photos_run)
    assert found.remarks == []
    assert found.name == photos_run.name
    assert found.history.finished
    assert found.settings["model"]["width"] == read_config(photos_run).model.width == 16
    assert found.env["world_size"] == 1
    assert found.counts["member"] + found.counts["heldout"] + found.counts["calibration"] == 30
    assert found.progress.step == found.history.step == 44
    assert found.progress.stage_done
    assert {"ema", "raw", "pretrain-ema", "finetune-raw"} <= set(found.weights)
    assert all(load(photos_run, weights=which) for which in found.weights)
    assert [grid.path.name for grid in found.grids] == sorted(path.name for path in photos_run.glob("samples/*.png"))
    assert found.grids[-1].step == 44


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    found = read_run(tmp_path)
    assert found.history == History()
    assert (found.progress, found.weights, found.grids, found.counts, found.remarks) == (None, [], [], {}, [])


def test_what_cannot_be_read_is_told_and_left_out(tmp_path):
    write(tmp_path, *WHOLE)
    (tmp_path / "config.yaml").write_text("a: [")
    (tmp_path / "env.json").write_text("[]")
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "broken.json").write_text('{"title": "t", "rows": [{"value": 1}]}')
    (tmp_path / "eval" / "whole.json").write_text('{"title": "t", "rows": [{"name": "fid", "value": 1}]}')
    (tmp_path / "checkpoints" / "step-0000003").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-0000003" / "state.json").write_text("{")
    found = read_run(tmp_path)
    assert found.history.finished
    assert [table.rows[0].value for table in found.eval_tables] == [1]
    assert (found.settings, found.env, found.progress) == ({}, {}, None)
    for name in ("config.yaml", "env.json", "broken.json", "step-0000003"):
        assert sum(name in remark for remark in found.remarks) == 1


def test_names_of_images_are_not_read(tmp_path):
    write(tmp_path, *WHOLE)
    counts = {"member": 3, "heldout": 1, "grandmother.jpg": 1, "calibration": "many"}
    (tmp_path / "manifest.head.json").write_text(json.dumps({"counts": counts, "names": ["aunt.jpg"]}))
    assert read_run(tmp_path).counts == {"member": 3, "heldout": 1}


def test_grids_come_in_the_order_of_their_steps(tmp_path):
    write(tmp_path, *WHOLE)
    (tmp_path / "samples").mkdir()
    for name in ("step-20.png", "step-0000003.png", "final.png", "notes.png", "step-x.png"):
        (tmp_path / "samples" / name).touch()
    assert [grid.step for grid in read_run(tmp_path).grids] == [3, 20, None]


def test_what_is_no_run(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        assert not is_run(folder)
        assert list_runs(folder) == []
        with pytest.raises(InputError) as caught:
            read_run(folder)
        assert (caught.value.name, caught.value.got) == ("run", str(folder))
        with pytest.raises(InputError):
            read_config(folder)
