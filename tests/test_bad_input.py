"""Whatever a person gets wrong: exit code 2, one line that says what and how else, and nothing left behind."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskdm.cli.main import main
from maskdm.config.resolve import resolve
from maskdm.errors import InputError
from maskdm.runtime.distributed import Runtime
from maskdm.training import trackers
from maskdm.training.start import check_batches

OFFICIAL = Path(__file__).parent / "data" / "official_uncond_linear.pt"

# What is typed (its places filled in), and words that the complaint must hold.
Table = dict[str, tuple[str, list[str]]]

# Stage 0 with no mask, so that others can be set; with ratios by noise; and a backbone that has no middle.
PLAIN = "stages.0.mask.kind=none stages.0.mask.ratio=0"
BY_NOISE = "stages.0.mask.ratio=0 stages.0.mask.by_noise=[0.9,0.75,0.5,0]"
UNET = "model.backbone=unet model.levels=[1,1]"

# Added to a training command that would have worked.
TRAIN: Table = {
    "ratio of 1": ("stages.0.mask.ratio=1.0", ["stages.0.mask.ratio", "got 1", "less than 1"]),
    "negative ratio": ("stages.0.mask.ratio=-0.5", ["stages.0.mask.ratio", "got -0.5"]),
    "ratio without kind": (
        "stages.1.mask.ratio=0.5",
        ["stages.1.mask.ratio", "got 0.5", "kind none"],
    ),
    "block beyond the grid": ("stages.0.mask.block=5", ["stages.0.mask.block", "got 5", "4 x 4", "1 to 4"]),
    "kind of mask": ("stages.0.mask.kind=blocks", ["stages.0.mask.kind", "'blocks'", "none|patch|block|crop|route"]),
    "ratios by noise beside a ratio": (
        "'stages.0.mask={{ratio: 0.75, by_noise: [0.9, 0]}}'",
        ["stages.0.mask.ratio", "got 0.75", "mask.by_noise"],
    ),
    "ratios by noise of nothing": (f"stages.0.mask.kind=none {BY_NOISE}", ["stages.0.mask.kind", "none", "patch"]),
    "ratios by noise out of range": ("stages.0.mask.by_noise=[1.0,0]", ["stages.0.mask.by_noise", "1", "less than 1"]),
    "a batch too small for its masks": (
        f"stages.0.batch_size=2 {BY_NOISE}",
        ["stages.0.batch_size", "got 2", "4 masks", "more images"],
    ),
    "a share too small for a batch": (
        f"{PLAIN} stages.0.mask.mixture='[{{{{kind: patch, share: 100}}}}, {{{{kind: crop}}}}]'",
        ["stages.0.batch_size", "got 8", "2 masks"],
    ),
    "schedule of one ratio": (
        "stages.0.mask.schedule=linear",
        ["stages.0.mask.ratio", "'auto'", "[first, last]", "linear"],
    ),
    "schedule of three ratios": (
        "stages.0.mask.schedule=cosine stages.0.mask.ratio=[0.9,0.5,0]",
        ["stages.0.mask.ratio", "[0.9, 0.5, 0]", "[first, last]", "cosine"],
    ),
    "a list of one ratio": ("stages.0.mask.ratio=[0.5]", ["stages.0.mask.ratio", "[0.5]", "[number, ...]"]),
    "a ratio out of range in a list": ("stages.0.mask.ratio=[0.5,1.5]", ["stages.0.mask.ratio", "1.5", "less than 1"]),
    "mixture beside a mask": (
        "'stages.0.mask={{kind: patch, mixture: [{{kind: crop}}]}}'",
        ["stages.0.mask.kind", "got 'patch'", "mask.mixture"],
    ),
    "mixture of no kind": (
        f"{PLAIN} stages.0.mask.mixture='[{{{{kind: patsch}}}}]'",
        ["stages.0.mask.mixture.0.kind", "'patsch'", "none|patch|block|crop|route"],
    ),
    "mixture without a kind": (
        f"{PLAIN} stages.0.mask.mixture='[{{{{ratio: 0.5}}}}]'",
        ["stages.0.mask.mixture.0.kind: missing"],
    ),
    "mixture with a typo": (
        f"{PLAIN} stages.0.mask.mixture='[{{{{kind: crop, rato: 0.5}}}}]'",
        ["stages.0.mask.mixture.0.rato", "did you mean stages.0.mask.mixture.0.ratio?"],
    ),
    "mixture of numbers": (f"{PLAIN} stages.0.mask.mixture=[3]", ["stages.0.mask.mixture", "got 3", "kind, ratio"]),
    "one value of a mixture": (f"{PLAIN} stages.0.mask.mixture.0.ratio=0.5", ["stages.0.mask.mixture", "as a list"]),
    "mixture with a block beyond the grid": (
        f"{PLAIN} stages.0.mask.mixture='[{{{{kind: block, ratio: 0.5, block: 5}}}}]'",
        ["stages.0.mask.mixture.0.block", "got 5", "4 x 4"],
    ),
    "route around no middle": (
        f"{UNET} stages.0.mask.kind=route",
        ["stages.0.mask.kind", "route", "unet", "patch, block or crop"],
    ),
    "route around one block": ("stages.0.mask.kind=route model.depth=1", ["model.depth", "got 1", "3"]),
    "route around two blocks": (
        "stages.0.mask.kind=route model.backbone=jit model.depth=2",
        ["model.depth", "got 2", "3"],
    ),
    "patch size": ("model.patch_size=3", ["model.patch_size", "got 3", "8 x 8"]),
    "patch size and image size": ("--image-size 10 model.patch_size=4", ["model.patch_size", "10 x 10"]),
    "heads": ("model.heads=3", ["model.heads", "got 3", "16"]),
    "heads that cannot turn": ("model.backbone=jit model.heads=8", ["model.heads", "got 8", "multiple of 4"]),
    "levels beyond the patch": (f"{UNET} model.levels=[1,1,1]", ["model.patch_size", "got 2", "multiple of 4"]),
    "no levels": (f"{UNET} model.levels=[]", ["model.levels"]),
    "wavelets beyond the patch": ("model.haar_levels=2", ["model.haar_levels", "got 2"]),
    "setting of another backbone": (
        "model.backbone=jit model.qkv_bias=true",
        ["model.qkv_bias", "got true", "uvit", "jit"],
    ),
    "levels of another backbone": ("model.levels=[1,2]", ["model.levels", "[1, 2]", "unet", "uvit"]),
    "option of our backbone": ("model.options.blocks=3", ["model.options", "{{'blocks': 3}}", "module:Class", "uvit"]),
    "option of no kind": ("model.options.blocks=[3]", ["model.options", "{{'blocks': [3]}}", "module:Class"]),
    "size": ("model.size=M", ["model.size", "'M'", "S|B|L"]),
    "no backbone": ("model.backbone=vit", ["model.backbone", "'vit'", "uvit, jit, unet", "module:Class"]),
    "backbone of no module": ("model.backbone=nowhere:Net", ["model.backbone", "nowhere:Net", "No module named"]),
    "backbone that its module lacks": ("model.backbone=json:Net", ["model.backbone", "json:Net", "no attribute"]),
    "backbone that is no network": (
        "model.backbone=json:JSONDecoder",
        ["model.backbone", "'json:JSONDecoder'", "a class of torch modules"],
    ),
    "backbone that is no class": (
        "model.backbone=torch.nn:functional",
        ["model.backbone", "'torch.nn:functional'", "a class of torch modules"],
    ),
    "backbone for something else": (
        "model.backbone=torch.nn:Linear model.width=null model.depth=null model.heads=null",
        ["model.backbone", "Linear", "image_size, channels, patch_size"],
    ),
    "backbone that is a draft": ("model.backbone=broken:Net", ["model.backbone", "broken:Net", "broken.py, line 1"]),
    "noise of noise alone": (
        "process.zero_terminal=true process.prediction=eps",
        ["process.prediction", "got 'eps'", "x0, v, velocity or F"],
    ),
    "v where noise explodes": ("process.kind=ve process.prediction=v", ["process.prediction", "got 'v'", "wanted F"]),
    "loss that explodes": (
        "process.kind=edm process.prediction=F process.loss=v",
        ["process.loss", "got 'v'", "wanted F"],
    ),
    "shift of edm": ("process.kind=edm process.shift=3", ["process.shift", "got 3", "ddpm, vp or flow", "edm"]),
    "timesteps of flow": ("process.kind=flow process.timesteps=10", ["process.timesteps", "got 10", "ddpm", "flow"]),
    "distribution of ddpm": (
        "process.time_distribution=normal",
        ["process.time_distribution", "got 'normal'", "vp, ve, edm or flow", "ddpm"],
    ),
    "an old name": ("process.time_law=normal", ["process.time_law", "process.time_distribution"]),
    "mean without its distribution": (
        "process.kind=ve process.time_mean=0",
        ["process.time_mean", "got 0", "process.time_distribution", "ve"],
    ),
    "no noise at all": (
        "process.kind=edm process.prediction=F process.sigma_min=90",
        ["process.sigma_min", "got 90", "80"],
    ),
    "weight of a loss": ("process.weight=p2 process.loss=eps", ["process.loss", "got 'eps'", "same", "p2"]),
    "prediction": ("process.prediction=score", ["process.prediction", "'score'", "eps|x0|v|velocity|F"]),
    "few levels of the linear schedule": (
        "process.schedule=linear process.timesteps=20 eval.sample_steps=5",
        ["process.timesteps", "got 20", "at least 21"],
    ),
    "even depth": ("model.depth=4", ["model.depth", "got 4", "odd", "try 5"]),
    "wrong type": ("model.width=wide", ["model.width", "'wide'", "wanted int"]),
    "unknown setting": ("model.widht=32", ["model.widht", "did you mean model.width?"]),
    "unknown section": ("modle.width=32", ["modle.width", "did you mean model.width?"]),
    "setting of no section": ("learning_rate=1", ["learning_rate", "unknown setting", "--settings"]),
    "no setting": ("photos", ["'photos'", "key.sub=value"]),
    "a value forgotten": ("model.width", ["'model.width'", "key.sub=value"]),
    "stage that is not there": ("stages.2.lr=1e-4", ["stages.2", "0 (pretrain), 1 (finetune)"]),
    "two lengths": ("'stages=[{{name: a, steps: 1, images: 8}}]'", ["stages.0", "steps and images"]),
    "no stages": ("stages=[]", ["stages"]),
    "batch of none": ("stages.0.batch_size=0", ["stages.0.batch_size", "got 0"]),
    "micro-batch of none": ("stages.0.micro_batch=0", ["stages.0.micro_batch", "got 0", "greater than 0"]),
    "steps of none": ("stages.0.steps=0", ["stages.0.steps", "got 0"]),
    "rate of none": ("stages.0.lr=0", ["stages.0.lr", "got 0"]),
    "everything held out": ("data.heldout=0.6 data.calibration=0.4", ["data.heldout", "0.6", "0.4", "less than 1"]),
    "size in words": ("--image-size 8x8", ["data.image_size", "'8x8'", "auto"]),
    "size of none": ("--image-size 0", ["data.image_size", "got 0"]),
    "too many channels": ("data.channels=5", ["data.channels", "got 5"]),
    "no colour": ("data.background=blurple", ["data.background", "'blurple'", "#808080"]),
    "no salt": ("data.salt=missing", ["salt", "'missing'", "machine, public"]),
    "no group": ("data.group_by=(", ["data.group_by", "'('"]),
    "one group": ("data.group_by=folder", ["data.heldout", "of one group", "group_by"]),
    "nothing held out by": ("data.heldout_by=^test/", ["data.heldout_by", "matches 0 of"]),
    "cache below a file": ("data.cache_dir=file/cache", ["file/cache: cannot hold", "data.cache_dir"]),
    "precision": ("--mixed-precision fp8", ["train.mixed_precision", "'fp8'", "bf16"]),
    "negative seed": ("--seed -1", ["train.seed", "got -1"]),
    "seed in words": ("--seed one", ["train.seed", "'one'"]),
    "device of another machine": ("train.device=cuda:99", ["train.device", "'cuda:99'", "try auto"]),
    "no device": ("train.device=banana", ["train.device", "'banana'", "try auto"]),
    "device without kernels": ("train.device=xla", ["train.device", "'xla'", "try auto"]),
    "device without numbers": ("train.device=meta", ["train.device", "'meta'", "try auto"]),
    "more sampling steps than levels": ("eval.sample_steps=2000", ["eval.sample_steps", "2000"]),
    "fewer levels than sampling steps": ("process.timesteps=10 eval.sample_steps=50", ["eval.sample_steps", "50"]),
    "recipe": ("--recipe digit", ["--recipe", "'digit'", "did you mean digits?"]),
    "no config": ("--config missing.yaml", ["--config", "missing.yaml", "No such file"]),
    "folder as config": ("--config few", ["--config", "few", "directory"]),
    "images as config": ("--config {digits}", ["--config", "cannot read"]),
    "broken config": ("--config broken.yaml", ["--config", "broken.yaml", "is not YAML"]),
    "list as config": ("--config list.yaml", ["--config", "list.yaml", "list"]),
    "typo in config": ("--config typo.yaml", ["model.widht", "typo.yaml", "did you mean model.width?"]),
    "name too long": (f"--name {'x' * 300}", ["--name"]),
    "unknown option": ("--batch-size 8", ["unknown option '--batch-size'", "stages.0.batch_size=", "--help"]),
    "a folder by itself": ("few", ["by itself", "--data"]),
    "mixers beyond reason": ("model.mixer_depth=9999999999999", ["model.mixer_depth", "1024"]),
    "a shift beyond reason": ("process.shift=1e308", ["process.shift", "1e+308", "10000"]),
    "a width beyond reason": ("model.width=99999999", ["model.width", "65536"]),
    "unknown option with =": ("--lr=1", ["unknown option '--lr=1'", "--help"]),
    "unknown letter": ("-x", ["unknown option '-x'", "--help"]),
    "letters run together": ("-nx", ["-n", "--help"]),
    "option without its value": ("--recipe", ["--recipe", "expected one argument"]),
    "weights that are garbage": ("stages.0.init_from=garbage.safetensors", ["garbage.safetensors", "not a readable"]),
    "weights that are empty": ("stages.0.init_from=empty.safetensors", ["empty.safetensors", "not a readable"]),
    "weights cut off": ("stages.0.init_from=truncated.safetensors", ["truncated.safetensors", "not a readable"]),
    "weights of the official code, cut off": ("stages.0.init_from=truncated.pt", ["truncated.pt", "not a readable"]),
    "weights of the official code": (
        "stages.0.init_from=official.pt",
        ["official.pt", "width is 48 there and 16 here", "depth is 5 there and 3 here"],
    ),
    "weights of nothing": ("stages.0.init_from=missing", ["missing", "no such run or file"]),
    "weights of no run": ("stages.0.init_from=few", ["few", "run folder"]),
    "weights of a later stage": ("stages.1.init_from=missing", ["missing", "no such run or file"]),
    "weights of another width": (
        "stages.0.init_from={run} model.classes=none model.width=32 model.depth=5",
        ["width is 16 there and 32 here", "depth is 3 there and 5 here"],
    ),
    "weights of another backbone": (
        "stages.0.init_from={run} model.backbone=jit",
        ["backbone is uvit there and jit here"],
    ),
    "nothing to resume": ("--resume latest", ["--resume", "no run in out", "'latest'"]),
    "resume of nothing": ("--resume missing", ["--resume", "missing", "no run"]),
    "resume of no run": ("--resume few", ["--resume", "few", "no run"]),
    "resume of weights": ("--resume {run}/weights/ema.safetensors", ["--resume", "ema.safetensors", "no run"]),
    "resume of nothing, dry": ("--resume missing --dry-run", ["--resume", "missing", "no run"]),
}

# Commands as they are typed.
OTHERS: Table = {
    "unknown command": ("trian", ["'trian'", "train", "maskdm --help"]),
    "unknown option before": ("--bogus train", ["--help"]),
    "train on nothing": ("train", ["--data", "missing"]),
    "train on an empty name": ("train --data ''", ["--data", "missing"]),
    "no such folder": ("train --data missing", ["missing: does not exist"]),
    "folder without images": ("train --data texts", ["texts: holds no image", "png"]),
    "empty folder": ("train --data empty", ["empty: holds no image"]),
    "three images": ("train --data few", ["few: holds 3 images", "at least 8"]),
    "one image": ("train --data few/00.png", ["00.png", "folder of images, a .zip, a .tar, an .npz"]),
    "text as data": ("train --data words.txt", ["words.txt", "folder of images, a .zip, a .tar, an .npz"]),
    "archive cut off": ("train --data truncated.npz", ["truncated.npz", "cannot be read"]),
    "archive of numbers": ("train --data floats.npz", ["floats.npz", "uint8"]),
    "archive of something else": ("train --data other.npz", ["other.npz", "'images'"]),
    "zip of texts": ("train --data texts.zip", ["texts.zip: holds no image"]),
    "no zip": ("train --data garbage.zip", ["garbage.zip", "zip"]),
    "damaged image": ("train --data damaged data.on_bad_image=fail", ["damaged/03.png: cannot be read", "skip"]),
    "output is a file": ("train --data {digits} --output-dir file", ["--output-dir", "file is a file"]),
    "output below a file": ("train --data {digits} --output-dir file/a/b", ["--output-dir", "file is a file"]),
    "output below /proc": ("train --data {digits} --output-dir /proc/runs --recipe digits", ["--output-dir", "/proc"]),
    "resume of nothing alone": (
        "train --resume latest --output-dir empty",
        ["--resume", "no run in empty", "'latest'"],
    ),
    "resume with other settings": (
        "train --resume {run} --data {digits} model.depth=5",
        ["other settings", " -> ", "init_from"],
    ),
    "sample from nothing": ("sample", ["RUN|FILE"]),
    "sample from a missing run": ("sample missing", ["missing", "no such run or file"]),
    "sample from no run": ("sample few", ["few", "run folder"]),
    "sample from the folder of runs": ("sample {runs}", ["runs", "run folder"]),
    "sample from garbage": ("sample garbage.safetensors", ["garbage.safetensors", "not a readable"]),
    "sample from an empty file": ("sample empty.safetensors", ["empty.safetensors", "not a readable"]),
    "sample from half a file": ("sample truncated.safetensors", ["truncated.safetensors", "not a readable"]),
    "sample from other tensors": ("sample optimizer.safetensors", ["optimizer.safetensors", "no maskdm model"]),
    "sample from a pickle": ("sample official.pt", ["official.pt", "maskdm import official"]),
    "unknown sampler": ("sample {run} --sampler dpm", ["--sampler", "'dpm'", "ddim, ancestral, euler, heun, dpm++"]),
    "eta of heun": ("sample {run} --sampler heun --eta 0.5", ["--eta", "got 0.5", "heun", "ddim, ancestral, dpm++"]),
    "s_churn of dpm++": ("sample {run} --s-churn 10", ["--s-churn", "got 10", "dpm++", "euler, heun"]),
    "ancestral without noise": ("sample {run} --sampler ancestral --eta 0", ["--eta", "got 0", "ancestral"]),
    "sde without noise": ("sample {run} --sampler dpm++sde --eta 0", ["--eta", "got 0", "dpm++sde"]),
    "less than no s_churn": ("sample {run} --sampler heun --s-churn=-1", ["--s-churn", "got -1", "0 or more"]),
    "endless s_churn": ("sample {run} --sampler heun --s-churn inf", ["--s-churn", "got inf", "0 or more"]),
    "unknown spacing": ("sample {run} --spacing cosine", ["--spacing", "'cosine'", "uniform, karras, logsnr"]),
    "shift of nothing": ("sample {run} --shift 0", ["--shift", "got 0", "more than 0"]),
    "shift that is no number": ("sample {run} --shift nan", ["--shift", "got nan"]),
    "guidance without classes": ("sample {run} --guidance 2", ["--guidance", "got 2", "no classes"]),
    "interval in words": (
        "sample {photos_run} --guidance 2 --guidance-interval low,high",
        ["--guidance-interval", "'low,high'", "0.1,0.8"],
    ),
    "interval with one end": (
        "sample {photos_run} --guidance 2 --guidance-interval 0.5",
        ["--guidance-interval", "'0.5'"],
    ),
    "interval falling": (
        "sample {photos_run} --guidance 2 --guidance-interval 0.8,0.1",
        ["--guidance-interval", "[0.8, 0.1]", "low < high"],
    ),
    "interval beyond noise": (
        "sample {photos_run} --guidance 2 --guidance-interval 0,2",
        ["--guidance-interval", "[0, 2]"],
    ),
    "interval that is no number": (
        "sample {photos_run} --guidance 2 --guidance-interval 0,nan",
        ["--guidance-interval", "nan"],
    ),
    "interval without guidance": (
        "sample {photos_run} --guidance-interval 0.1,0.8",
        ["--guidance-interval", "without guidance"],
    ),
    "guide without guidance": ("sample {run} --guide pretrain", ["--guide", "without guidance"]),
    "guide that is not there": (
        "sample {run} --guidance 2 --guide warmup",
        ["--guide", "'warmup'", "finetune-raw, pretrain-ema", "run"],
    ),
    "guide of other images": (
        "sample {run} --guidance 2 --guide {photos_run}",
        ["--guide", "3 x 16 x 16", "1 x 8 x 8"],
    ),
    "strength without an image": ("sample {run} --strength 0.5", ["--strength", "init"]),
    "strength of nothing": ("sample {run} --init few/00.png --strength 0", ["--strength", "got 0", "more than 0"]),
    "strength beyond noise": ("sample {run} --init few/00.png --strength 1.5", ["--strength", "got 1.5", "at most 1"]),
    "strength that is no number": ("sample {run} --init few/00.png --strength nan", ["--strength", "got nan"]),
    "strength below the steps": (
        "sample {run} --init few/00.png --strength 0.001 --steps 2",
        ["--strength", "got 0.001"],
    ),
    "init that is missing": ("sample {run} --init missing.png", ["missing.png", "No such file"]),
    "init that is a folder": ("sample {run} --init few", ["few", "directory"]),
    "init that is no image": ("sample {run} --init words.txt", ["words.txt", "cannot be read"]),
    "init that is cut off": ("sample {run} --init damaged/03.png", ["damaged/03.png", "cannot be read"]),
    "a mask of nothing": ("sample {run} --inpaint few/00.png", ["--inpaint", "init"]),
    "a mask nowhere": ("sample {run} --init few/00.png --inpaint black.png", ["--inpaint", "black.png", "white"]),
    "a mask that is no image": ("sample {run} --init few/00.png --inpaint words.txt", ["words.txt", "cannot be read"]),
    "resampling without a mask": ("sample {run} --init few/00.png --resample 5", ["--resample", "inpaint"]),
    "resampling of none": (
        "sample {run} --init few/00.png --inpaint white.png --resample 0",
        ["--resample", "got 0", "at least 1"],
    ),
    "interpolation with noise": (
        "sample {run} --interpolate few/00.png few/01.png --sampler ancestral",
        ["--sampler", "fresh noise", "ddim, euler, heun or dpm++"],
    ),
    "interpolation with a little noise": (
        "sample {run} --interpolate few/00.png few/01.png --eta 0.1",
        ["--sampler", "fresh noise", "eta"],
    ),
    "interpolation to nowhere": ("sample {run} --interpolate few/00.png missing.png", ["missing.png", "No such file"]),
    "interpolation with one end": ("sample {run} --interpolate few/00.png", ["--interpolate", "expected 2 arguments"]),
    "interpolation of one image": (
        "sample {run} --interpolate few/00.png few/01.png --num 1",
        ["--num", "got 1", "at least 2"],
    ),
    "interpolation and an image": (
        "sample {run} --interpolate few/00.png few/01.png --init few/02.png",
        ["--interpolate", "init"],
    ),
    "class of another backbone": (
        "sample {run} --backbone torch.nn:Linear",
        ["--backbone", "uvit", "torch.nn.modules.linear:Linear"],
    ),
    "class without a module": ("sample {run} --backbone uvit", ["--backbone", "'uvit'", "module:Class"]),
    "class of no module": ("sample {run} --backbone nowhere:Net", ["--backbone", "nowhere:Net", "No module named"]),
    "class of no network": (
        "sample {run} --backbone json:JSONDecoder",
        ["--backbone", "'json:JSONDecoder'", "a class of torch modules"],
    ),
    "guidance that is no number": ("sample {photos_run} --guidance nan", ["--guidance", "got nan"]),
    "endless guidance": ("sample {photos_run} --guidance inf", ["--guidance", "got inf"]),
    "labels without classes": ("sample {run} --labels cat", ["--labels", "'cat'", "no classes"]),
    "unknown label": ("sample {photos_run} --labels cat,bird", ["--labels", "'bird'", "cat, dog", "0 to 1"]),
    "label out of range": ("sample {photos_run} --labels 2", ["--labels", "'2'", "0 to 1"]),
    "label of nothing": ("sample {photos_run} --labels cat,", ["--labels", "got ''"]),
    "seeds in words": ("sample {run} --seeds many", ["--seeds", "'many'", "0-63"]),
    "seeds falling": ("sample {run} --seeds 9-1", ["--seeds", "'9-1'", "rising"]),
    "seeds half open": ("sample {run} --seeds 0-", ["--seeds", "'0-'"]),
    "seeds below zero": ("sample {run} --seeds=-3", ["--seeds", "'-3'"]),
    "seeds with a gap": ("sample {run} --seeds 1,,2", ["--seeds", "'1,,2'"]),
    "seeds by points": ("sample {run} --seeds 0..9", ["--seeds", "'0..9'"]),
    "no seeds at all": ("sample {run} --seeds ''", ["--seeds", "got ''"]),
    "no steps": ("sample {run} --steps 0", ["--steps", "got 0", "wanted 1 to"]),
    "too many steps": ("sample {run} --steps 1001", ["--steps", "got 1001", "wanted 1 to"]),
    "half a step": ("sample {run} --steps 0.5", ["--steps", "'0.5'"]),
    "no images": ("sample {run} --num 0", ["--num", "got 0", "at least 1"]),
    "more images than anyone wants": ("sample {run} --num 99999999999999999999", ["--num", "at most 1,000,000"]),
    "more images at once than anyone wants": ("sample {run} --batch-size 9999999", ["--batch-size", "at most 65,536"]),
    "fewer than no images": ("sample {run} --num -4", ["--num", "got -4"]),
    "batches of none": ("sample {run} --batch-size 0", ["--batch-size", "got 0"]),
    "too much noise": ("sample {run} --eta 1.5", ["--eta", "got 1.5"]),
    "noise that is no number": ("sample {run} --eta nan", ["--eta", "got nan"]),
    "weights of another kind": ("sample {run} --weights best", ["weights", "'best'", "ema, finetune-ema", "raw"]),
    "sample on no device": ("sample {run} --device banana", ["--device", "'banana'", "auto"]),
    "sample without numbers": ("sample {run} --device meta", ["--device", "'meta'", "auto"]),
    "sample with an unknown option": ("sample {run} --number 4", ["'--number'", "sample --help"]),
    "samples in a file": ("sample {run} --steps 1 --num 1 -o file", ["file", "--output"]),
    "samples below a file": ("sample {run} --steps 1 --num 1 -o file/made", ["file", "--output"]),
    "archive below a file": ("sample {run} --steps 1 --num 1 -o file/made.npz", ["file", "--output"]),
    "samples below /proc": ("sample {run} --steps 1 --num 1 -o /proc/made", ["/proc/made"]),
    "archive below /proc": ("sample {run} --steps 1 --num 1 -o /proc/made.npz", ["/proc/made.npz"]),
    "info about nothing": ("info", ["RUN|FILE"]),
    "info about a missing run": ("info missing", ["missing", "no such run or file"]),
    "info about no run": ("info few", ["few", "run folder"]),
    "info about garbage": ("info garbage.safetensors", ["garbage.safetensors", "not a readable"]),
    "info about an empty file": ("info empty.safetensors", ["empty.safetensors", "not a readable"]),
    "info about half a file": ("info truncated.safetensors", ["truncated.safetensors", "not a readable"]),
    "info about a pickle": ("info official.pt", ["official.pt", "maskdm import official"]),
    "report of a missing run": ("report missing", ["RUN", "'missing'", "folder of a run"]),
    "report of no run": ("report few", ["RUN", "'few'", "folder of a run"]),
    "report of a file": ("report {run}/weights/ema.safetensors", ["RUN", "ema.safetensors", "folder of a run"]),
    "import from elsewhere": ("import diffusers official.pt -o a.safetensors", ["'diffusers'", "official"]),
    "import to nowhere": ("import official official.pt", ["--output"]),
    "import to a pickle": ("import official official.pt -o new.pt --heads 4", ["new.pt", ".safetensors"]),
    "import to below a file": ("import official official.pt -o file/a.safetensors --heads 4", ["file", "--output"]),
    "import to below /proc": ("import official official.pt -o /proc/a.safetensors --heads 4", ["/proc"]),
    "import of nothing": ("import official missing.pt -o a.safetensors", ["missing.pt", "no such file"]),
    "import of a folder": ("import official few -o a.safetensors", ["few", "not a readable"]),
    "import of text": ("import official words.txt -o a.safetensors", ["words.txt", "not a readable"]),
    "import of garbage": ("import official garbage.safetensors -o a.safetensors", ["garbage.safetensors"]),
    "import of an empty file": ("import official empty.safetensors -o a.safetensors", ["empty.safetensors"]),
    "import of half a file": ("import official truncated.pt -o a.safetensors", ["truncated.pt", "not a readable"]),
    "import of our own": ("import official {run}/weights/ema.safetensors -o a.safetensors", ["ema.safetensors"]),
    "import with heads that do not fit": ("import official official.pt -o a.safetensors --heads 5", ["--heads", "48"]),
    "import with no heads": ("import official official.pt -o a.safetensors --heads 0", ["--heads", "0"]),
    "import with fewer than no heads": ("import official official.pt -o a.safetensors --heads -4", ["--heads", "-4"]),
    "demo in a file": ("demo --output-dir file", ["file", "--output"]),
}

Run = Callable[..., str]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that is below a folder: the bytes of its files, None for folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def places(tmp_path, digits_npz, photos, digits_run, photos_run, monkeypatch) -> dict[str, str]:
    """A working folder full of things that are not what they should be; and the names of good ones."""
    work = tmp_path / "work"
    for name in ("empty", "few", "texts", "damaged"):
        (work / name).mkdir(parents=True)
    monkeypatch.chdir(work)
    images = sorted((photos / "cat").iterdir())
    for image in images[:3]:
        shutil.copy(image, work / "few")
    for image in images:
        shutil.copy(image, work / "damaged")
    good = (digits_run / "weights" / "ema.safetensors").read_bytes()
    contents = {
        "texts/notes.txt": b"no image",
        "file": b"a file",
        "words.txt": b"some words",
        "damaged/03.png": images[3].read_bytes()[:-40],
        "garbage.safetensors": bytes(range(256)) * 8,
        "garbage.zip": bytes(range(256)) * 8,
        "empty.safetensors": b"",
        "truncated.safetensors": good[: len(good) // 2],
        "optimizer.safetensors": (digits_run / "checkpoints" / "latest" / "optimizer.safetensors").read_bytes(),
        "official.pt": OFFICIAL.read_bytes(),
        "truncated.pt": OFFICIAL.read_bytes()[: OFFICIAL.stat().st_size // 2],
        "truncated.npz": digits_npz.read_bytes()[: digits_npz.stat().st_size // 2],
        "broken.yaml": b"model: {width: 16",
        "list.yaml": b"- model\n- data\n",
        "typo.yaml": b"model: {widht: 16}\n",
        "broken.py": b"class Net(",
    }
    for name, content in contents.items():
        (work / name).write_bytes(content)
    np.savez(work / "floats.npz", images=np.zeros((20, 8, 8)))
    np.savez(work / "other.npz", x=np.zeros(3))
    for name, colour in (("black.png", 0), ("white.png", 255)):
        Image.new("L", (20, 20), colour).save(work / name)
    with zipfile.ZipFile(work / "texts.zip", "w") as archive:
        archive.writestr("notes.txt", "no image")
    good_places = {
        "digits": digits_npz,
        "digits_of_run": digits_run.parent.parent / "digits.npz",
        "run": digits_run,
        "runs": digits_run.parent,
        "photos_run": photos_run,
    }
    return {name: str(path) for name, path in good_places.items()}


@pytest.fixture
def refused(places, tmp_path, capsys) -> Run:
    """Runs a command that must fail as bad input does, without a trace; gives back its one line."""

    def run(arguments: list[str], *, code: int = 2) -> str:
        watched = [tmp_path, Path(places["runs"]).parent, Path(places["photos_run"]).parent.parent]
        before = [snapshot(folder) for folder in watched]
        assert main(arguments) == code
        out, err = capsys.readouterr()
        assert not out
        assert "Traceback" not in err
        lines = [line.rpartition("\r")[2] for line in err.splitlines() if line.strip()]  # bars end in \r
        (line,) = (line for line in lines if line.startswith("maskdm: error: "))
        assert line == lines[-1]
        assert len(line) < 700, "nobody reads that"
        assert not re.search(r"wanted \w+ should|validation error|\[type=", line), "not our words"
        assert [snapshot(folder) for folder in watched] == before, "something was left behind"
        return line

    return run


@pytest.mark.parametrize("case", TRAIN)
def test_a_wrong_word_in_a_training_command(case, refused, places, tiny):
    typed, words = TRAIN[case]
    settings = [word for word in tiny if not word.startswith("train.mixed_precision")]
    more = [word.format(**places) for word in shlex.split(typed)]
    line = refused(["train", "--data", places["digits"], "--output-dir", "out", *settings, *more])
    for word in words:
        assert word.format(**places) in line


@pytest.mark.parametrize("case", OTHERS)
def test_a_wrong_command(case, refused, places):
    typed, words = OTHERS[case]
    line = refused([word.format(**places) for word in shlex.split(typed)])
    for word in words:
        assert word.format(**places) in line


def test_the_training_command_would_have_worked(places, tiny, tmp_path, capsys):
    assert main(["train", "--data", places["digits"], "--output-dir", "out", *tiny, "-n"]) == 0
    assert "error" not in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_backbone_of_ones_own_is_given_to_whoever_loads_its_weights(refused, own_run):
    line = refused(["sample", str(own_run), "--num", "1"])
    assert "--backbone: " in line
    assert "ownnet:Net, got null" in line
    line = refused(["sample", str(own_run), "--num", "1", "--backbone", "torch.nn:Linear"])
    assert "--backbone: " in line
    assert "ownnet:Net, got 'torch.nn.modules.linear:Linear'" in line


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "two"}, ["WORLD_SIZE, RANK, LOCAL_RANK", "'two, None, None'", "numbers", "torchrun"]),
        ({"WORLD_SIZE": "2", "RANK": ""}, ["WORLD_SIZE, RANK, LOCAL_RANK", "'2, , None'", "numbers"]),
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE", "got 2", "MASTER_ADDR", "torchrun"]),
    ],
    ids=str,
)
def test_a_launcher_that_says_half(environment, words, refused, places, tiny, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = refused(["train", "--data", places["digits"], "--output-dir", "out", *tiny])
    for word in words:
        assert word in line


def test_a_batch_that_the_processes_cannot_share():
    config = resolve(overrides=["stages.0.batch_size=12", "stages.1.batch_size=8"])
    check_batches(config, Runtime(torch.device("cpu"), "no", 0, 4))
    with pytest.raises(InputError) as caught:
        check_batches(config, Runtime(torch.device("cpu"), "no", 0, 3))
    assert (caught.value.name, caught.value.got) == ("stages.1.batch_size", 8)


@pytest.mark.parametrize("service", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed(service, refused, places, tiny, monkeypatch):
    real = importlib.import_module

    def missing(name: str, *more: str) -> object:
        if name.partition(".")[0] == service:
            raise ImportError(f"No module named {name!r}")
        return real(name, *more)

    monkeypatch.setattr(trackers.importlib, "import_module", missing)
    words = ["train", "--data", places["digits"], "--output-dir", "out", *tiny, f"log.track=[{service}]"]
    line = refused(words)
    assert f"log.track: is not installed, got '{service}'; pip install {service}" in line


def test_resuming_with_other_settings_names_what_differs(refused, places, tiny):
    words = ["train", "--data", places["digits_of_run"], "--output-dir", places["runs"], *tiny, "model.classes=none"]
    line = refused([*words, "--resume", places["run"], "stages.0.lr=0.25"])
    assert "(stages.0.lr 0.0002 -> 0.25)" in line
    line = refused([*words, "--resume", "latest", "model.depth=5"])
    assert "(model.depth 3 -> 5)" in line


def test_checkpoints_of_another_version(digits_run, tmp_path, capsys):
    run = tmp_path / "00000-digits"
    shutil.copytree(digits_run, run, symlinks=True)
    metrics = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(metrics[:-1]))
    states = [run / "checkpoints" / name / "state.json" for name in ("step-0000004", "step-0000007")]
    for text in ("{}", "[]", '{"progress": {"stages": 1}, "scaler": {}}'):
        for state in states:
            state.write_text(text)
        assert main(["train", "--resume", str(run)]) == 2
        line = capsys.readouterr().err.splitlines()[-1].rpartition("\r")[2]
        assert line.startswith("maskdm: error: ")
        assert str(states[-1].parent) in line


@pytest.mark.parametrize("output", ["file", "file/made", "file/made.npz"])
def test_where_samples_go_is_looked_at_before_they_are_made(output, refused, places, monkeypatch):
    calls: list[object] = []
    monkeypatch.setattr("maskdm.commands.sample.make_round", lambda *arguments, **_: calls.append(arguments))
    refused(["sample", places["run"], "--steps", "1", "--num", "1", "--output", output])
    assert not calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "a\nb"],
        ["train", "--config", "a\nb"],
        ["train", "--resume", "a\nb"],
        ["train", "a\nb=3"],
        ["train", "--a\nb"],
        ["sample", "a\nb"],
        ["info", "a\nb"],
        ["report", "a\nb"],
        ["import", "official", "a\nb", "-o", "c.safetensors"],
        ["import", "official", "official.pt", "-o", "a\nb"],
        ["a\nb"],
    ],
    ids=" ".join,
)
def test_names_with_line_breaks_still_give_one_line(arguments, refused):
    refused(arguments)
