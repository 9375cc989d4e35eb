"""Our training step against the authors' one, alternating in one process.

    python benchmarks/versus.py --other PATH [--hidden 0 0.9] [--batch-size 32] [--rounds 7] [--output versus.json]

PATH is a checkout of github.com/jiachenlei/maskdm, which needs einops. Its own model, diffusion, loss and order of work
are run as its train_step.py and main.py have them: fp32 on a CPU, autocast to fp16 on a GPU; loss read at every step,
AdamW with its defaults, an average of the weights at every step, no clipping (configs/base.yml). Ours is the step of
`maskdm train` with its defaults, clipping included. Not counted on either side: reading pictures, and for theirs also
drawing masks. What its code imports and this step does not use (torchvision, PyWavelets) is replaced by empty modules
where it is missing, and what it uses of timm (a patch embedding, an MLP) by the same few lines.

Size S at 64 px: width 512, 13 blocks, 8 heads, patches of 4, blocks of 1. Medians over the rounds; each round is one
step of each.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import sys
import time
import types
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from maskdm.config.resolve import resolve
from maskdm.profiling.bench import matrix_peak
from maskdm.runtime.distributed import Runtime
from maskdm.training.prepare import synthetic_task
from maskdm.training.step_profiler import StepProfiler

WIDTH, DEPTH, HEADS, PATCH, SIDE = 512, 13, 8, 4, 64
Step = Callable[[], float]


def ours(hidden: float, batch: int, words: list[str]) -> tuple[Step, Runtime]:
    """One step of `maskdm train`: seconds."""
    mask = f"{{kind: patch, ratio: {hidden}}}" if hidden else "{kind: none, ratio: 0}"
    settings = (
        f"data.image_size={SIDE}",
        f"model.width={WIDTH}",
        f"model.depth={DEPTH}",
        f"model.heads={HEADS}",
        f"model.patch_size={PATCH}",
        "process.schedule=cosine",
        "process.prediction=eps",
        f"stages.0.mask={mask}",
        f"stages.0.batch_size={batch}",
        *words,
    )
    task = synthetic_task(resolve(overrides=settings))
    return StepProfiler(task).step, task.runtime


def theirs(path: Path, hidden: float, batch: int, device: torch.device) -> Step:
    """One step of the authors' code: seconds."""
    models, diffusion = imported(path)
    network = models.MaskedUViT(
        img_size=SIDE, patch_size=PATCH, encoder_embed_dim=WIDTH, encoder_depth=DEPTH, encoder_heads=HEADS
    )
    model = diffusion.GaussianDiffusion(network, image_size=SIDE, sampling_timesteps=500, loss_type="l2").to(device)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, betas=(0.99, 0.99), weight_decay=0.03)
    half = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    images = torch.rand(batch, 3, SIDE, SIDE, device=device)
    patches = (SIDE // PATCH) ** 2
    mask = torch.zeros(batch, 1 + patches, dtype=torch.bool)  # True where hidden; the time token first
    for row in mask:
        row[1 + torch.randperm(patches)[: int(hidden * patches)]] = True
    mask = mask.to(device)

    def step() -> float:
        since = time.perf_counter()
        with torch.autocast(device.type, torch.float16) if half else nullcontext():
            loss = model([images, mask])["loss"]
        total = loss.item()
        if torch.isnan(loss).sum() != 0:
            raise RuntimeError(f"their loss is {total}")
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 1 - 0.999)
            for mean, now in zip(average.buffers(), model.buffers(), strict=True):
                mean.copy_(now)
        if half:
            torch.cuda.synchronize(device)
        return time.perf_counter() - since

    return step


def imported(path: Path) -> tuple[Any, Any]:
    """Their modules `models` and `gaussian_ddpm`."""
    if not (path / "gaussian_ddpm.py").is_file():
        raise SystemExit(f"--other: {path} is no checkout of the authors' repository; it has no gaussian_ddpm.py")
    stand_in("torchvision", transforms=types.ModuleType("torchvision.transforms"))
    stand_in("pywt")
    stand_in("timm.models.layers", trunc_normal_=nn.init.trunc_normal_)
    stand_in("timm.models.vision_transformer", Mlp=Mlp, PatchEmbed=PatchEmbed)
    sys.path.insert(0, str(path.resolve()))
    return importlib.import_module("models"), importlib.import_module("gaussian_ddpm")


def stand_in(name: str, **members: object) -> None:
    """A module of this name, where there is none."""
    try:
        importlib.import_module(name)
        return
    except (ImportError, RuntimeError):  # torchvision beside a torch it was not built for
        pass
    for depth in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:depth])
        sys.modules.setdefault(part, types.ModuleType(part))
    vars(sys.modules[name]).update(members)


class Mlp(nn.Module):
    """timm's."""

    def __init__(self, in_features: int, hidden_features: int, act_layer: type[nn.Module]) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class PatchEmbed(nn.Module):
    """timm's."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size, self.num_patches = (patch_size, patch_size), (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out.flatten(2).transpose(1, 2)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True, metavar="PATH")
    parser.add_argument("--hidden", type=float, nargs="+", default=[0.0, 0.9])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings of ours")
    a = parser.parse_intermixed_args()
    rows = []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("hidden  theirs s/step  ours s/step  times as fast  (least and most of the rounds)")
    for hidden in a.hidden:
        mine, runtime = ours(hidden, a.batch_size, a.words)
        other = theirs(a.other, hidden, a.batch_size, runtime.device)
        for step in (other, mine, other, mine):
            step()
        rounds = [(other(), mine()) for _ in range(a.rounds)]
        ratios = [o / m for o, m in rounds]
        found = {
            "hidden": hidden,
            "theirs": median(o for o, _ in rounds),
            "ours": median(m for _, m in rounds),
            "ratio": median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
        rows.append(found)
        print(
            f"{hidden:6.0%}  {found['theirs']:13.3f}  {found['ours']:11.3f}  {found['ratio']:13.2f}  "
            f"({found['least']:.2f} to {found['most']:.2f})",
            flush=True,
        )
    peaks = {name: matrix_peak(Runtime(runtime.device, name)) / 1e9 for name in ("no", runtime.precision)}
    print("matrix product: " + ", ".join(f"{name.replace('no', 'fp32')} {v:,.0f} GFLOP/s" for name, v in peaks.items()))
    if a.output:
        a.output.write_text(json.dumps({"rows": rows, "matrix_gflops": peaks}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
