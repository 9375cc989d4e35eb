"""What a model is: everything needed to rebuild a denoiser around its weights. No torch."""

from __future__ import annotations

from maskdm.config.model_config import ModelConfig
from maskdm.config.process_config import ProcessConfig
from maskdm.config.section import Section


class ModelSpec(Section):
    """The settings of a model and the images it is for; it travels in the weights file.

    Attributes:
        model: the network.
        process: the process, and what the network predicts.
        image_size: (height, width) in pixels.
        channels: of an image, 1 to 4.
        class_names: in the order of their labels; empty for an unconditional model.
    """

    model: ModelConfig
    process: ProcessConfig
    image_size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...] = ()
