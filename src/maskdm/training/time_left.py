"""How long a run will take, said as soon as its first steps have shown their pace.

The stages to come are estimated by their arithmetic against that of the current one, so that masked steps count as what
they are. `maskdm plan` measures every stage instead.
"""

from __future__ import annotations

import time
from statistics import mean

from maskdm.models.flops import training_flops
from maskdm.runtime.console import duration
from maskdm.training import stages
from maskdm.training.monitor import Training
from maskdm.training.progress import Progress
from maskdm.training.stage_specs import stage_spec

FIRST_STEPS = 3
"""After so many steps, not counting the first, which sets everything up, there is an estimate."""
REVISED_AFTER = 60.0
"""Seconds after which it is looked at again."""
WORTH_SAYING = 60.0
"""Seconds: of shorter runs nothing is said."""


class TimeLeft:
    """Says once, and a second time if it was far off, how long the run has to go.

    Args:
        training: the run, whose console is told.
        progress: where its stage begins or goes on.
    """

    def __init__(self, training: Training, progress: Progress) -> None:
        self.training, self.progress = training, progress
        self._steps = 0
        self._since = 0.0
        self._said: float | None = None
        self._over = False

    def step_done(self) -> None:
        """To be called after every step of the stage."""
        if self._over:
            return
        self._steps += 1
        if self._steps == 1:
            self._since = self._now()
        elif self._steps == 1 + FIRST_STEPS:
            self._say(self._estimate())
        elif self._said is not None and time.perf_counter() - self._since > REVISED_AFTER:
            estimate = self._estimate()
            if not 0.75 < estimate / self._said < 1.33:
                self._say(estimate)
            self._over = True

    def _now(self) -> float:
        self.training.runtime.synchronize()
        return time.perf_counter()

    def _say(self, seconds: float) -> None:
        again, self._said = self._said is not None, seconds
        if seconds < WORTH_SAYING:
            self._over = True
        elif again:
            self.training.console.say(f"  about {duration(seconds)} to go, by the pace of the last minute")
        else:
            self.training.console.say(
                f"  about {duration(seconds)} to go on this machine, by the pace of the first steps; Ctrl-C is safe, "
                "the same command resumes; maskdm plan measures every stage"
            )

    def _estimate(self) -> float:
        """Seconds of training that are left of this stage and of those to come."""
        training, number = self.training, self.progress.stage
        seconds_per_step = (self._now() - self._since) / (self._steps - 1)
        left = 0.0
        for i, stage in enumerate(training.config.stages):
            if i < number:
                continue
            if stage.minutes is not None:
                left += 60 * stage.minutes - (self.progress.stage_seconds if i == number else 0.0)
                continue
            steps = stages.total_steps(stage) or 0
            if i == number:
                left += (steps - self.progress.stage_step) * seconds_per_step
            else:
                here = self._work(number)  # 0 for a network of operations that are not counted
                left += steps * seconds_per_step * (self._work(i) / here if here else 1.0)
        return max(left, 0.0)

    def _work(self, stage: int) -> float:
        """Arithmetic of a step of a stage."""
        phases = self.training.masks[stage].phases
        spec = stage_spec(self.training.spec, self.training.config.stages[stage])
        flops = mean(training_flops(spec, groups) for groups in phases)
        return flops * self.training.config.stages[stage].batch_size
