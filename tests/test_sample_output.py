"""What `maskdm sample` leaves: whole files as they are made, no mixtures, and words that say what is what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maskdm
from maskdm.cli.main import main
from maskdm.commands import sample as command
from maskdm.data.write import CAPTION, grid_columns, save_grid
from maskdm.errors import InputError, Interrupted

FEW = {"steps": 2, "batch_size": 4}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """Ctrl-C in the round after these."""
    make_round, made = command.make_round, []

    def interrupted(*arguments):
        if len(made) == rounds:
            raise KeyboardInterrupt
        made.append(arguments)
        return make_round(*arguments)

    monkeypatch.setattr(command, "make_round", interrupted)


# --- interrupted, and on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["dpm++", "ancestral"])
def test_an_interrupted_folder_is_gone_on_with_and_ends_the_same(sampler, photos_run, tmp_path, monkeypatch):
    more = {"sampler": sampler, **FEW}
    whole = maskdm.sample(photos_run, 10, output=tmp_path / "whole", **more)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Interrupted, match="8 of 10 images are in"):
            maskdm.sample(photos_run, 10, output=tmp_path / "cut", **more)
    assert len(list((tmp_path / "cut").glob("seed-*.png"))) == 8
    (tmp_path / "cut" / "seed-000002.png").unlink()  # as if the first batch had been cut within
    made = []
    with monkeypatch.context() as patch:
        patch.setattr(command, "make_round", lambda *a, make=command.make_round: made.append(a[2]) or make(*a))
        again = maskdm.sample(photos_run, 10, output=tmp_path / "cut", **more)
    assert made == [range(0, 4), range(8, 10)]  # and not the second batch
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert (again - whole).abs().max() <= 0.5 / 255 + 1e-6


def test_an_interrupted_archive_is_gone_on_with(photos_run, tmp_path, monkeypatch):
    maskdm.sample(photos_run, 6, output=tmp_path / "whole.npz", **FEW)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted, match="4 of 6 images are in"):
            maskdm.sample(photos_run, 6, output=tmp_path / "cut.npz", **FEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.npz.partial", "whole.npz"]
    maskdm.sample(photos_run, 6, output=tmp_path / "cut.npz", **FEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.npz", "whole.npz"]
    with np.load(tmp_path / "cut.npz") as cut, np.load(tmp_path / "whole.npz") as whole:
        assert cut["images"].shape == (6, 16, 16, 3)
        assert (cut["images"] == whole["images"]).all()


def test_ctrl_c_at_the_command_says_how_to_go_on(photos_run, tmp_path, monkeypatch, capsys):
    interrupt_after(monkeypatch, 1)
    words = ["--num", "6", "--steps", "2", "--batch-size", "4", "-o", str(tmp_path / "cut")]
    assert main(["sample", str(photos_run), *words]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"maskdm: interrupted: 4 of 6 images are in {tmp_path / 'cut'}; to resume, run the same command again"
    )


@pytest.mark.parametrize("output", ["again", "again.npz"])
def test_the_same_command_makes_nothing_twice(output, photos_run, tmp_path, monkeypatch, capsys):
    first = maskdm.sample(photos_run, 5, output=tmp_path / output, **FEW)
    interrupt_after(monkeypatch, 0)
    second = maskdm.sample(photos_run, 5, output=tmp_path / output, **FEW)
    assert "5 of 5 images are there already" in capsys.readouterr().err
    assert (first - second).abs().max() <= 0.5 / 255 + 1e-6


def test_no_more_than_a_batch_is_kept_where_nothing_is_returned(photos_run, tmp_path, monkeypatch):
    sizes = []
    make_round = command.make_round
    monkeypatch.setattr(command, "make_round", lambda *a: sizes.append(len(a[2])) or make_round(*a))
    nothing = maskdm.sample(photos_run, 10, output=tmp_path / "a.npz", return_images=False, **FEW)
    assert nothing.shape == (0, 3, 16, 16)
    assert sizes == [4, 4, 2]


def test_more_images_of_the_same_kind_join_those_that_are_there(photos_run, tmp_path):
    out = tmp_path / "out"
    maskdm.sample(photos_run, 4, output=out, **FEW)
    maskdm.sample(photos_run, 8, output=out, **FEW)
    maskdm.sample(photos_run, seeds=[20], output=out, **FEW)
    assert len(json.loads((out / "samples.json").read_text())["images"]) == len(list(out.glob("seed-*.png"))) == 9


def test_the_record_names_no_image_that_was_never_made(photos_run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            maskdm.sample(photos_run, 12, output=out, **FEW)
    maskdm.sample(photos_run, seeds=[20], output=out, **FEW)
    recorded = json.loads((out / "samples.json").read_text(encoding="utf-8"))["images"]
    assert set(recorded) == {path.name for path in out.glob("seed-*.png")}
    assert len(recorded) == 5


def test_no_seed_is_left_out_without_a_word(photos_run):
    with pytest.raises(InputError) as caught:
        maskdm.sample(photos_run, 8, seeds=range(16))
    assert (caught.value.name, caught.value.got) == ("num", 8)
    assert "at least 16" in caught.value.wanted


# --- nothing is mixed ------------------------------------------------------------------------------------------------


def refused(run: Path, out: Path, problem: str, **more: object) -> None:
    before = files(out)
    with pytest.raises(InputError) as caught:
        maskdm.sample(run, 2, output=out, **(FEW | more))
    assert caught.value.name == "output"
    assert problem in caught.value.problem
    assert files(out) == before


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"steps": 3}, "steps was 2, now it is 3"),
        ({"sampler": "heun"}, "sampler was 'dpm++', now it is 'heun'"),
        ({"shift": 2.0}, "shift was 1, now it is 2"),
        ({"weights": "pretrain"}, "samples of another model"),
        ({"labels": ["dog"]}, "samples of other classes (seed-000000.png)"),
        ({"guidance": 2.0}, "guidance was 1, now it is 2"),
        ({"seeds": [0], "labels": ["cat", "dog"]}, "the image of seed 0 under another name"),
    ],
)
def test_other_samples_are_refused_or_replaced(more, problem, photos_run, tmp_path):
    out = tmp_path / "out"
    maskdm.sample(photos_run, 3, output=out, **FEW)
    (out / "notes.txt").write_text("mine")
    refused(photos_run, out, problem, **more)
    maskdm.sample(photos_run, 2, output=out, overwrite=True, **(FEW | more))
    assert (out / "notes.txt").read_text() == "mine"
    assert len(list(out.glob("seed-*.png"))) == 2  # the third has gone
    assert len(json.loads((out / "samples.json").read_text())["images"]) == 2


def test_images_of_others_are_never_touched(photos_run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    Image.new("RGB", (4, 4)).save(out / "holiday.png")
    refused(photos_run, out, "1 image of another origin")
    maskdm.sample(photos_run, 2, output=out, overwrite=True, **FEW)
    maskdm.sample(photos_run, 2, output=out, overwrite=True, **(FEW | {"steps": 3}))
    with Image.open(out / "holiday.png") as kept:
        assert kept.size == (4, 4)
    Image.new("RGB", (4, 4)).save(out / "seed-000001.png")  # not recorded any more once the record is gone
    (out / "samples.json").write_text("{}")
    refused(photos_run, out, "is not a record of samples", overwrite=True)


def test_samples_from_before_there_was_a_record(photos_run, tmp_path):
    out = tmp_path / "out"
    maskdm.sample(photos_run, 3, output=out, **FEW)
    (out / "samples.json").unlink()
    refused(photos_run, out, "samples of which no settings are recorded")
    maskdm.sample(photos_run, 2, output=out, overwrite=True, **FEW)
    assert len(list(out.glob("seed-*.png"))) == 2


def test_a_grid_that_was_there_before_is_not_replaced(photos_run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    Image.new("RGB", (4, 4)).save(out / "grid.png")
    refused(photos_run, out, "grid.png was not made by maskdm sample", overwrite=True)


def test_a_file_that_is_there_is_not_replaced_without_being_asked(photos_run, tmp_path):
    data = tmp_path / "photos.npz"
    np.savez(data, images=np.zeros((2, 16, 16, 3), np.uint8))
    refused_bytes = data.read_bytes()
    with pytest.raises(InputError) as caught:
        maskdm.sample(photos_run, 2, output=data, **FEW)
    assert "is there already" in caught.value.problem
    assert data.read_bytes() == refused_bytes
    maskdm.sample(photos_run, 2, output=data, overwrite=True, **FEW)
    with pytest.raises(InputError):
        maskdm.sample(photos_run, 2, output=data, **(FEW | {"steps": 3}))


# --- which class is which --------------------------------------------------------------------------------------------


def test_files_say_of_which_class_they_are(photos_run, tmp_path):
    maskdm.sample(photos_run, 4, output=tmp_path, **FEW)
    record = json.loads((tmp_path / "samples.json").read_text())
    assert [sample["class_name"] for sample in record["images"].values()] == ["cat", "dog", "cat", "dog"]
    assert record["images"]["seed-000003.png"] == {"seed": 3, "repeat": 0, "class_name": "dog"}
    assert record["settings"]["steps"] == 2
    maskdm.sample(photos_run, 1, labels=["none"], output=tmp_path / "none", **FEW)
    assert json.loads((tmp_path / "none" / "samples.json").read_text())["images"]["seed-000000.png"]["class_name"] == ""


@pytest.mark.parametrize(
    ("captions", "columns"),
    [
        (["cat", "dog"] * 4, 2),
        (["cat", "dog"] * 32, 8),
        ([str(i % 10) for i in range(64)], 10),
        ([str(i) for i in range(64)], 8),
        (["cat"] * 9, 3),
        ([""] * 10, 4),
        (["a", "b", "b", "a"], 2),
        (["a"], 1),
    ],
)
def test_classes_in_turn_have_columns(captions, columns):
    assert grid_columns(captions) == columns


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("captions", "strips"), [(["cat", "dog"] * 3, 1), (["cat", "dog", "dog", "cat"], 2)])
def test_a_grid_says_which_class_is_which(captions, strips, channels, tmp_path):
    images = np.full((len(captions), 30, 30, channels), 255, np.uint8)
    save_grid(images, tmp_path / "grid.png", min_width=30, captions=captions)
    save_grid(images, tmp_path / "plain.png", min_width=30, captions=[""] * len(captions))
    with Image.open(tmp_path / "grid.png") as opened, Image.open(tmp_path / "plain.png") as plain:
        assert opened.mode == plain.mode
        grid = np.array(opened.convert("L"))
    assert grid.shape == (31 * (len(captions) // 2) + 1 + strips * CAPTION, 63)
    dark = grid < 128
    first, second = dark[:CAPTION, :31], dark[:CAPTION, 31:62]
    assert first.any()
    assert second.any()
    assert (first != second).any()
    assert dark[CAPTION:].any() == (strips > 1)


def test_names_that_have_no_room_or_no_letters_in_the_font(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    save_grid(images, tmp_path / "grid.png", min_width=8, captions=["a" * 500, "猫", "caf\udce9", "\n\t"])
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (19, 19 + 2 * CAPTION)


def test_the_grids_of_training_say_it_too(photos_run):
    grids = sorted((photos_run / "samples").glob("*.png"))
    assert grids
    for path in grids:
        with Image.open(path) as opened:
            grid = np.array(opened.convert("L"))
        assert (grid[:CAPTION] < 128).any()
        assert (grid[:CAPTION] > 250).mean() > 0.5


def test_a_grid_is_bounded(photos_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("maskdm.commands.sample_output.MOST_OF_GRID", 4)
    maskdm.sample(photos_run, 6, output=tmp_path, **FEW)
    assert "6 images in" in (said := capsys.readouterr().err)
    assert "the first 4 side by side" in said
