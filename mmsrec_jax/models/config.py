"""Frozen, hashable descriptions of a multimodal language model."""

import dataclasses

from mmsrec_jax.runtime.errors import UserError

REMAT_POLICIES = ("none", "full", "dots")
ROPE_KINDS = ("1d", "mrope", "mrope_interleaved")

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "quick_gelu")  # as Hugging Face calls them


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's rope for contexts longer than those of its first training.

    Frequencies with fewer than `low_freq_factor` turns in `original_length` tokens are divided by
    `factor`, those with more than `high_freq_factor` stay, and between the two it is in proportion.
    Source: the `llama3` rope of Llama's published code; the Llama 3 paper names only the base.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Decoder of the Llama / Qwen family: RMSNorm, grouped-query attention, SwiGLU."""

    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    # "1d"; "mrope": frequencies in chunks for time, row, column; "mrope_interleaved": in turns
    rope_kind: str = "mrope"
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    mrope_section: tuple[int, ...] = ()  # frequencies per axis, sums to head_dim // 2
    qkv_bias: bool = True
    qk_norm: bool = False
    norm_eps: float = 1e-6
    tied: bool = False  # the head is the embedding

    def __post_init__(self) -> None:
        if self.head_dim < 2 or self.head_dim % 2:
            raise UserError(
                f"text: hidden={self.hidden} over heads={self.heads} gives heads of size "
                f"{self.head_dim}; rope needs an even one"
            )
        if self.heads % self.kv_heads:
            raise UserError(
                f"text: heads={self.heads} is not a multiple of kv_heads={self.kv_heads}"
            )
        if self.rope_kind not in ROPE_KINDS:
            raise UserError(f"text: rope_kind={self.rope_kind!r} is none of {ROPE_KINDS}")
        if self.rope_kind != "1d" and (
            len(self.mrope_section) != 3 or sum(self.mrope_section) * 2 != self.head_dim
        ):
            raise UserError(
                f"text: mrope_section={self.mrope_section} must be three numbers that sum to "
                f"head_dim/2={self.head_dim // 2}"
            )


class _Tower:
    """What follows from the fields of every vision config."""

    image_mean: tuple[float, ...]
    hidden: int
    heads: int

    @property
    def channels(self) -> int:
        return len(self.image_mean)

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclasses.dataclass(frozen=True)
class VisionConfig(_Tower):
    """Vision tower of a Qwen-VL with its patch merger (which maps to the decoder's width).

    The defaults are Qwen2.5-VL's.
    """

    depth: int
    hidden: int
    heads: int
    intermediate: int
    fullatt_block_indexes: tuple[int, ...] = ()
    patch_size: int = 14  # pixels
    merge: int = 2  # patches per side that become one image slot
    temporal_patch_size: int = 2  # frames per patch; an image is repeated to fill them
    # pixels per side of an attention window outside of fullatt_block_indexes; None: no windows
    window_size: int | None = 112
    norm: str = "rms"  # or "layer"
    activation: str = "silu"
    gated: bool = True  # the MLP
    patch_bias: bool = False
    position_grid: int = 0  # side of the square of learned positions; 0: rope alone
    deepstack_indexes: tuple[int, ...] = ()  # layers whose outputs go to the first decoder layers
    norm_eps: float = 1e-6
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # CLIP, of pixels in [0, 1]
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if self.hidden < self.heads or self.hidden % self.heads or self.head_dim % 4:
            raise UserError(
                f"vision: hidden={self.hidden} over heads={self.heads} must give a head size "
                "divisible by 4"
            )
        if self.activation not in ACTIVATIONS:
            raise UserError(f"vision: activation={self.activation!r} is none of {ACTIVATIONS}")
        taps = self.deepstack_indexes
        if list(taps) != sorted(set(taps)) or any(not 0 <= i < self.depth for i in taps):
            raise UserError(
                f"vision: deepstack_indexes={taps} must be ascending layers below {self.depth}"
            )


VIT_KINDS = ("clip", "siglip", "dinov2", "internvl")


@dataclasses.dataclass(frozen=True)
class VitConfig(_Tower):
    """A plain ViT over images of one size, with the projector of LLaVA or InternVL.

    kind: one of VIT_KINDS; they differ in a few parameters, which the properties name.
    grid: patch rows and columns of every image.
    position_grid: side of the square of learned positions.
    checkpoint_depth: layers of the published tower; those after the last feature layer are unused.
    feature_layers: what the projector reads, concatenated: the outputs of these layers, from 1.
    keep_first: whether the first token (the class token, where there is one) is a slot too.
    merge: patches per side that become one image slot.
    """

    kind: str
    hidden: int
    heads: int
    intermediate: int
    patch_size: int
    grid: tuple[int, int]
    position_grid: int
    activation: str
    norm_eps: float
    checkpoint_depth: int
    feature_layers: tuple[int, ...]
    keep_first: bool = False
    merge: int = 1
    qkv_bias: bool = True
    projector_bias: bool = True
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if self.kind not in VIT_KINDS:
            raise UserError(f"vision: kind={self.kind!r} is none of {VIT_KINDS}")
        if self.hidden < self.heads or self.hidden % self.heads:
            raise UserError(f"vision: hidden={self.hidden} is not a multiple of heads={self.heads}")
        if self.merge > 1 and (self.keep_first or any(n % self.merge for n in self.grid)):
            raise UserError(
                f"vision: {self.grid[0]} x {self.grid[1]} patches do not divide into blocks of "
                f"{self.merge} x {self.merge}, without the class token"
            )
        if not self.interpolates and self.grid != (self.position_grid,) * 2:
            raise UserError(
                f"vision: images of {self.grid[0]} x {self.grid[1]} patches, but the positions of "
                f"this tower are for {self.position_grid} x {self.position_grid}"
            )

    @property
    def depth(self) -> int:
        """Layers that the features depend on."""
        return max(self.feature_layers)

    @property
    def class_token(self) -> bool:
        return self.kind != "siglip"

    @property
    def patch_bias(self) -> bool:
        return self.kind != "clip"

    @property
    def pre_norm(self) -> bool:
        return self.kind == "clip"

    @property
    def layer_scale(self) -> bool:
        return self.interpolates

    @property
    def interpolates(self) -> bool:
        """Whether positions are resampled to grids other than their own."""
        return self.kind in ("dinov2", "internvl")

    @property
    def temporal_patch_size(self) -> None:
        """The kernel of its patches has no frames."""
        return None

    @property
    def slots(self) -> int:
        """Image slots of one image."""
        patches = self.grid[0] * self.grid[1]
        return (patches + self.class_token - (not self.keep_first)) // self.merge**2


@dataclasses.dataclass(frozen=True)
class MLLMConfig:
    """A decoder, optionally with a vision tower whose features fill the image slots.

    image_token_id: stands in every image slot; None without a tower.
    """

    text: DecoderConfig
    vision: VisionConfig | VitConfig | None
    image_token_id: int | None
    vision_start_token_id: int | None
    vision_end_token_id: int | None
    remat: str = "none"  # what layers keep for the backward pass: all, nothing, or matmul outputs
    family: str = "qwen2_5_vl"  # `model_type` of its config.json: one of `families.FAMILIES`

    def __post_init__(self) -> None:
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"remat={self.remat!r} is none of {REMAT_POLICIES}")
