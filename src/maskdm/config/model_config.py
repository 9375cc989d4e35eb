"""Settings of the network: a class of options for each backbone."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from maskdm.config.section import Layers, Number, Section, Side, Variants, Whole
from maskdm.errors import ArgumentError

OWN = "module:Class"
"""Name of the variant for backbones of the user's own."""
OWN_NAME = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class ModelBase(Section):
    """What is set of every model: which network it has, and how images come to it."""

    backbone: str
    """uvit (a vision transformer with long skips, the paper's), jit (a modern pixel transformer), unet (convolutions),
    or a class of your own as module:Class, see docs/backbones.md."""
    patch_size: Side = 4
    """Side of a patch in pixels; must divide the image. For a unet, of the patches that masks count."""
    haar_levels: Annotated[Whole, Field(ge=0, le=8)] = 0
    """Levels of Haar wavelets in front of the network: each halves the sides and takes the channels fourfold."""
    classes: Literal["auto", "none"] = "auto"
    """auto: class-conditional where the data has classes (sub-folders, dataset.json, labels). none: never."""


class NetworkConfig(ModelBase):
    """The same, and the size of the network."""

    width: Side | None = None
    """Width of a token, or channels of the unet's first level. null: that of model.size."""
    depth: Annotated[Whole, Field(gt=0, le=1024)] | None = None
    """Blocks in all (uvit: odd), or of each level of the unet. null: that of model.size."""
    heads: Side | None = None
    """Attention heads; must divide the width. null: that of model.size."""

    def arguments(self) -> dict[str, object]:
        """What the network's constructor is given beside the sizes of the images; only what is set."""
        return {key: value for key, value in self._network().items() if value is not None}

    def architecture(self) -> dict[str, object]:
        """What must be the same in two models for one to start from the weights of the other."""
        return {"backbone": self.backbone, **self._network(), "haar_levels": self.haar_levels}

    def _network(self) -> dict[str, object]:
        """All that is not in `ModelBase`."""
        return {key: getattr(self, key) for key in type(self).model_fields if key not in ModelBase.model_fields}


class SizedConfig(NetworkConfig):
    """Options of networks that come in named sizes."""

    size: Literal["S", "B", "L"] = "S"
    """Width, depth and heads where they are not given: small, base or large of the backbone."""

    def _network(self) -> dict[str, object]:
        """The size only stands for width, depth and heads."""
        return {key: value for key, value in super()._network().items() if key != "size"}


class TransformerConfig(SizedConfig):
    """Options of networks of tokens."""

    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    """Inner width of a block's MLP over the width of a token."""
    mixer_depth: Layers = 0
    """Light blocks that see every patch before masked ones are dropped (MicroDiT); masked is then not unseen."""
    pixel_head: Literal["none", "conv"] = "none"
    """What makes pixels of tokens. none: a linear layer for each patch by itself. conv: convolutions over features of
    every pixel and the noisy image, which lets patches be large (docs/backbones.md)."""
    pixel_features: Side = 32
    """Channels of the pixel head."""
    pixel_layers: Annotated[Whole, Field(ge=2, le=64)] = 3
    """Convolutions of the pixel head."""


class UViTConfig(TransformerConfig):
    """U-ViT, see `maskdm.models.uvit`."""

    backbone: Literal["uvit"] = "uvit"
    qkv_bias: bool = False
    """Bias in the linear layers of queries, keys and values."""
    time_mlp: bool = False
    """Two linear layers between the sinusoids of the time and its token."""


class JiTConfig(TransformerConfig):
    """JiT, see `maskdm.models.jit`."""

    backbone: Literal["jit"] = "jit"
    bottleneck: Side = 128
    """Width between the two linear layers that embed a patch."""
    class_tokens: Layers = 8
    """Tokens that carry the class, beside the modulation."""


class UNetConfig(SizedConfig):
    """The U-Net, see `maskdm.models.unet`."""

    backbone: Literal["unet"] = "unet"
    levels: Annotated[tuple[Annotated[Whole, Field(gt=0, le=1024)], ...], Field(max_length=16)] = (1, 2, 2)
    """Channels of each level over the width; every level but the last halves the image."""
    attention_levels: Layers = 1
    """How many of the lowest levels have attention."""


class OwnBackboneConfig(NetworkConfig):
    """A backbone of the user's own, see docs/backbones.md."""

    backbone: Annotated[str, Field(pattern=OWN_NAME)]
    options: dict[str, Number | bool | str] = Field(default={})
    """Further arguments of its constructor."""

    def arguments(self) -> dict[str, object]:
        """See `NetworkConfig`; the options by their names."""
        return {key: value for key, value in super().arguments().items() if key != "options"} | self.options


MODELS: dict[str, type[NetworkConfig]] = {
    "uvit": UViTConfig,
    "jit": JiTConfig,
    "unet": UNetConfig,
    OWN: OwnBackboneConfig,
}
"""Backbone -> the class of its settings."""


def model_class(backbone: object) -> type[NetworkConfig]:
    """The class of the settings of a backbone such as `uvit` or `mynet:MyNet`.

    Raises:
        ArgumentError: it is neither one of ours nor a module and a class.
    """
    if isinstance(backbone, str) and re.match(OWN_NAME, backbone):
        return OwnBackboneConfig
    if isinstance(backbone, str) and backbone in MODELS:
        return MODELS[backbone]
    raise ArgumentError("backbone", got=backbone, wanted="uvit, jit, unet, or a class of your own as module:Class")


def _tag(model: object) -> str:
    """The variant of a tree, or of settings that are made already; what is none goes to that with a pattern."""
    backbone = model.get("backbone", "uvit") if isinstance(model, dict) else getattr(model, "backbone", OWN)
    return backbone if isinstance(backbone, str) and backbone in MODELS else OWN


ModelConfig: TypeAlias = Annotated[
    Annotated[UViTConfig, Tag("uvit")]
    | Annotated[JiTConfig, Tag("jit")]
    | Annotated[UNetConfig, Tag("unet")]
    | Annotated[OwnBackboneConfig, Tag(OWN)],
    Discriminator(_tag),
]
"""Settings of a model of any backbone."""

MODEL_VARIANTS = Variants("backbone", NetworkConfig, MODELS, model_class)
