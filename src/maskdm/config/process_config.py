"""Settings of the process: a class of options for each kind, and what the network predicts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from maskdm.config.section import Scale, Section, Variants, Whole
from maskdm.errors import ArgumentError

TimeMean = Annotated[float, Field(ge=-20, le=20)]
PredictionName = Literal["eps", "x0", "v", "velocity", "F"]


class ProcessBase(Section):
    """What is set of every process: its kind, what the network predicts, and how its errors count."""

    kind: str
    """ddpm (noise in timesteps), vp (the same in continuous time), ve (NCSN), edm, or flow (rectified flow)."""
    prediction: PredictionName = "x0"
    """What the network's output means: the noise, the image, v = alpha eps - sigma x0, velocity = eps - x0, EDM's F."""
    loss: Literal["same", PredictionName] = "same"
    """The quantity whose squared error is the loss: same as the prediction, or another (velocity with x0 is JiT's)."""
    weight: Literal["uniform", "min-snr", "edm", "p2"] = "uniform"
    """Weight of noise levels in the loss: min-snr on the image's error, p2 on the noise's, edm uniform on F's."""
    sigma_data: Scale = 0.5
    """Standard deviation of the pixels, for EDM's F and for the scale of the input in ve and edm."""

    @model_validator(mode="after")
    def _one_quantity(self) -> Self:
        if self.weight != "uniform" and self.loss != "same":
            raise ArgumentError(
                "loss", got=self.loss, wanted=f"same with weight {self.weight}, which defines its own quantity"
            )
        return self


class ScheduledConfig(ProcessBase):
    """Options of variance-preserving processes."""

    schedule: Literal["linear", "cosine", "sigmoid"] = "cosine"
    """Noise schedule."""


class ShiftedConfig(ProcessBase):
    """Options of processes that end in (almost) noise alone."""

    shift: Scale = 1.0
    """Factor of sigma / alpha throughout; more than 1 for large images (about side / 64)."""


class ContinuousConfig(ProcessBase):
    """Options of processes in continuous time."""

    usual_distribution: ClassVar[Literal["uniform", "normal"]]
    """What `auto` stands for."""

    time_distribution: Literal["auto", "uniform", "normal"] = "auto"
    """Distribution of t in training. normal: logit-normal for vp and flow, log-normal for ve and edm; uniform: in t, or
    in log t for ve and edm. auto: normal for edm and flow, uniform for vp and ve."""
    time_mean: TimeMean | None
    time_std: Scale | None

    @property
    def distribution(self) -> Literal["uniform", "normal"]:
        """Of t in training, with nothing left on auto."""
        return self.usual_distribution if self.time_distribution == "auto" else self.time_distribution

    @model_validator(mode="after")
    def _normal_has_a_mean(self) -> Self:
        for name in ("time_mean", "time_std"):
            value = getattr(self, name)
            if value is not None and self.distribution != "normal":
                auto = f" (auto is uniform for {self.kind})" if self.time_distribution == "auto" else ""
                raise ArgumentError(
                    name, got=value, wanted=f"null, or process.time_distribution normal, whose {name[5:]} it is{auto}"
                )
        return self


class LogitTimeConfig(ContinuousConfig):
    """Options of processes whose times lie between 0 and 1."""

    time_mean: TimeMean | None = None
    """Mean of logit(t) where its distribution is normal. null: 0."""
    time_std: Scale | None = None
    """Standard deviation of logit(t) where its distribution is normal. null: 1."""


class LogTimeConfig(ContinuousConfig):
    """Options of processes whose time is sigma."""

    time_mean: TimeMean | None = None
    """Mean of log(sigma) where its distribution is normal. null: -1.2."""
    time_std: Scale | None = None
    """Standard deviation of log(sigma) where its distribution is normal. null: 1.2."""


class DDPMConfig(ScheduledConfig, ShiftedConfig):
    """DDPM: noise in T timesteps."""

    kind: Literal["ddpm"] = "ddpm"
    timesteps: Annotated[Whole, Field(ge=2, le=100_000)] = 1000
    """Number of timesteps."""
    zero_terminal: bool = False
    """Stretch the schedule so that the last timestep is noise alone."""


class VPConfig(ScheduledConfig, ShiftedConfig, LogitTimeConfig):
    """The variance-preserving process in continuous time."""

    usual_distribution = "uniform"
    kind: Literal["vp"] = "vp"


class VEConfig(LogTimeConfig):
    """The variance-exploding process."""

    usual_distribution = "uniform"
    kind: Literal["ve"] = "ve"
    sigma_min: Scale = 0.01
    """Least noise."""
    sigma_max: Scale = 50.0
    """Most noise."""


class EDMConfig(LogTimeConfig):
    """EDM's process."""

    usual_distribution = "normal"
    kind: Literal["edm"] = "edm"
    sigma_min: Scale = 0.002
    """Least noise."""
    sigma_max: Scale = 80.0
    """Most noise."""


class FlowConfig(ShiftedConfig, LogitTimeConfig):
    """Rectified flow."""

    usual_distribution = "normal"
    kind: Literal["flow"] = "flow"


ProcessConfig: TypeAlias = Annotated[
    DDPMConfig | VPConfig | VEConfig | EDMConfig | FlowConfig, Field(discriminator="kind")
]
"""Settings of a process of any kind."""

PROCESSES: dict[str, type[ProcessBase]] = {
    "ddpm": DDPMConfig,
    "vp": VPConfig,
    "ve": VEConfig,
    "edm": EDMConfig,
    "flow": FlowConfig,
}
"""Kind of a process -> the class of its settings."""


def process_class(kind: object) -> type[ProcessBase]:
    """The class of the settings of a kind of process.

    Raises:
        ArgumentError: there is none of this name.
    """
    if isinstance(kind, str) and kind in PROCESSES:
        return PROCESSES[kind]
    raise ArgumentError("kind", got=kind, wanted="|".join(PROCESSES))


PROCESS_VARIANTS = Variants(
    "kind", ProcessBase, PROCESSES, process_class, reset=("time_distribution", "time_mean", "time_std")
)
