"""Stages: where each starts, how long it is, how far it has come. Fine-tuning is one with nothing masked."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from maskdm.config.schema import Config
from maskdm.config.stage_config import StageConfig
from maskdm.errors import within
from maskdm.models import build, transfer
from maskdm.models.spec import ModelSpec
from maskdm.models.weights import Weights
from maskdm.runtime.distributed import Runtime
from maskdm.training.batches import seed_of
from maskdm.training.buffers import Buffers, buffers_aside
from maskdm.training.checkpoint import State
from maskdm.training.optim import make_optimizer
from maskdm.training.progress import Progress
from maskdm.training.stage_specs import same_network, stage_spec


def init_network(config: Config, spec: ModelSpec, runtime: Runtime) -> nn.Module:
    """The network before training, as `spec` says, the same on every rank; a function of the seed."""
    torch.manual_seed(seed_of(config.train.seed, "weights"))
    return build.backbone(spec).to(runtime.device)


def init_state(config: Config, spec: ModelSpec, runtime: Runtime, progress: Progress) -> State:
    """Everything that training changes, as before its first step, with the optimizer of the stage of `progress`.

    Args:
        config: the settings.
        spec: the model of that stage.
        runtime: the machine.
        progress: how far the run is.
    """
    network = init_network(config, spec, runtime)
    ema = copy.deepcopy(network).eval()  # it is never trained
    if config.train.checkpoint_activations:
        checkpoint_activations(network)
    network, ema = runtime.shard(network), runtime.shard(ema)
    return State(network, ema, make_optimizer(network, config.stages[progress.stage]), runtime.scaler(), progress)


def checkpoint_activations(network: nn.Module) -> None:
    """Activation checkpointing: blocks (the modules in lists) keep their inputs alone, and are computed again backward.

    Source: Chen et al. 2016, arXiv 1604.06174.
    """
    blocks = [block for blocks in network.modules() if isinstance(blocks, nn.ModuleList) for block in blocks]
    for block in blocks:
        # What is computed again draws the same dropout, by torch's own care, and counts once in running statistics.
        contexts = partial(_contexts, block) if len(Buffers(block)) else noop_context_fn
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Those of a block's forward pass, and of computing it again."""
    return nullcontext(), buffers_aside(block)


def init_stage(state: State, config: Config, spec: ModelSpec, runtime: Runtime) -> list[str]:
    """Puts `state` at the start of stage `state.progress.stage`; says in sentences where its weights are from.

    The network takes over the weights that the stage names, the average starts from the network, and optimizer, scale
    and schedule are new. Where the stage before had other images or patches, so are the networks.

    Args:
        state: as the stage before left it, or as `init_state` made it for the first one.
        config: the settings.
        spec: the run's model.
        runtime: the machine.

    Raises:
        InputError: weights that cannot be read, or that do not fit.
    """
    progress = state.progress
    stage = config.stages[progress.stage]
    own = stage_spec(spec, stage)
    before = stage_spec(spec, config.stages[progress.stage - 1]) if progress.stage else own
    said: list[str] = []
    if stage.init_from == "previous" and progress.stage > 0:
        source = state.ema if stage.weights == "ema" else state.model
        said.append(f"{stage.weights} weights of {config.stages[progress.stage - 1].name}")
        if same_network(before, own):
            state.model.load_state_dict(source.state_dict())
        else:
            tensors = {name: t.detach().cpu() for name, t in runtime.full_state_dict(source).items()}
            said += _hand_over(state, config, Weights(before, {}, tensors), own, runtime)
    else:
        if not same_network(before, own):
            _replace_networks(state, config, own, runtime)
        network = init_network(config, own, runtime)
        if stage.init_from in ("previous", "none"):
            said.append("fresh weights")
        else:
            with within(f"stages.{progress.stage}."):
                said = transfer.inherit(network, own, Path(stage.init_from), stage.weights)
            said.insert(0, f"{stage.weights} weights of {stage.init_from}")
        runtime.load_full_state_dict(state.model, network.state_dict())
    state.ema.load_state_dict(state.model.state_dict())
    state.optimizer = make_optimizer(state.model, stage)
    state.scaler = runtime.scaler()
    progress.stage_step, progress.stage_seconds, progress.stage_done = 0, 0.0, False
    return said


def _hand_over(state: State, config: Config, source: Weights, spec: ModelSpec, runtime: Runtime) -> list[str]:
    """Networks as `spec` says in place of those of the stage before, whose weights they take; what was done."""
    _replace_networks(state, config, spec, runtime)
    network = init_network(config, spec, runtime)
    fitted, said = transfer.fit(network, spec, source)
    runtime.load_full_state_dict(state.model, fitted)
    return said


def _replace_networks(state: State, config: Config, spec: ModelSpec, runtime: Runtime) -> None:
    """Networks as `spec` says, with fresh weights; the optimizer's moments, which are of no use any more, go first."""
    state.optimizer.state.clear()
    fresh = init_state(config, spec, runtime, state.progress)
    state.replace_networks(fresh.model, fresh.ema)


def total_steps(stage: StageConfig) -> int | None:
    """Length in steps, or None where a time limit ends the stage."""
    return stage.steps if stage.images is None else math.ceil(stage.images / stage.batch_size)


def fraction_done(stage: StageConfig, progress: Progress) -> float:
    """How much of the stage is done, 0 to 1; at 1 it is over."""
    if stage.minutes is not None:
        return min(progress.stage_seconds / (60 * stage.minutes), 1.0)
    total = total_steps(stage)
    return progress.stage_step / total if total else 1.0
