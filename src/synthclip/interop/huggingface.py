"""Models in transformers' terms: `CLIPModel`, or `VisionTextDualEncoderModel` for the paper's network."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthclip.errors import SynthClipError, needs_extra
from synthclip.models.build import is_paper_model
from synthclip.models.load import Encoders, OpenedModel

if TYPE_CHECKING:
    from torch import Tensor

_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.in_proj_": "self_attn",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TIMM_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.qkv.": "attention",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Module names in a block, ours to transformers'; a name with a separator at its end holds queries, keys and
values in one matrix, which transformers splits."""

_SHAPE_FIELDS = {
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
_ARGMAX_POOLING = 2
"""The `eos_token_id` with which transformers reads the text feature at the largest id, as open_clip does."""


def write_huggingface(opened: OpenedModel, folder: Path) -> Encoders:
    """A folder for `AutoModel.from_pretrained` and `AutoProcessor.from_pretrained`.

    Raises SynthClipError with the reason where transformers has no equal architecture.
    """
    with needs_extra("interop", "export to hf"):
        from synthclip.models import transformers

    config, state = opened.config, opened.model.state_dict()
    if is_paper_model(config):
        model = _dual_encoder(config)
        vision = dict(_timm_vision(state))
        processor = transformers.VisionTextDualEncoderProcessor
    else:
        _refuse_without_equal(config)
        model = _clip(config)
        vision = dict(_clip_vision(state))
        processor = transformers.CLIPProcessor
    model.load_state_dict({**vision, **dict(_text(state)), "logit_scale": state["logit_scale"].reshape(())})
    model.save_pretrained(folder)
    processor(_image_processor(opened), _tokenizer(opened)).save_pretrained(folder)

    back = transformers.AutoModel.from_pretrained(folder).eval()
    return Encoders(
        lambda pixels: back.get_image_features(pixels).pooler_output,
        lambda ids: back.get_text_features(ids).pooler_output,
    )


def _refuse_without_equal(config: Mapping[str, Any]) -> None:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    reason = None
    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"}
    other = sorted(key for key in config.keys() - known if config[key] is not None)
    if other:
        reason = f"it sets {other[0]!r}"
    elif config["vision_cfg"].get("timm_model_name"):
        reason = f"its image tower is timm's {config['vision_cfg']['timm_model_name']}"
    elif not isinstance(config["vision_cfg"].get("layers", 12), int):
        reason = "its image tower is a ResNet"
    else:
        for section, cls in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
            ours, plain = cls(**config[section]), cls()
            for field in fields(cls):
                differs = getattr(ours, field.name) != getattr(plain, field.name)
                if differs and field.name not in _SHAPE_FIELDS[section]:
                    reason = f"its {section} sets {field.name!r}"
    if reason is not None:
        raise SynthClipError(
            f"transformers has no equal of this model: {reason}; export it as open_clip or onnx instead"
        )


def _text_config(config: Mapping[str, Any]) -> Any:
    import transformers
    from open_clip.model import CLIPTextCfg

    text = CLIPTextCfg(**config["text_cfg"])
    return transformers.CLIPTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        intermediate_size=int(text.width * text.mlp_ratio),
        projection_dim=config["embed_dim"],
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        max_position_embeddings=text.context_length,
        hidden_act="quick_gelu" if config.get("quick_gelu") else "gelu",
        bos_token_id=text.vocab_size - 2,
        eos_token_id=_ARGMAX_POOLING,
    )


def _clip(config: Mapping[str, Any]) -> Any:
    import transformers
    from open_clip.model import CLIPVisionCfg

    vision = CLIPVisionCfg(**config["vision_cfg"])
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            projection_dim=config["embed_dim"],
            text_config=_text_config(config).to_dict(),
            vision_config=transformers.CLIPVisionConfig(
                hidden_size=vision.width,
                intermediate_size=int(vision.width * vision.mlp_ratio),
                projection_dim=config["embed_dim"],
                num_hidden_layers=vision.layers,
                num_attention_heads=vision.width // vision.head_width,
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                hidden_act="quick_gelu" if config.get("quick_gelu") else "gelu",
            ).to_dict(),
        )
    )


def _dual_encoder(config: Mapping[str, Any]) -> Any:
    """timm's ViT (patch bias, no LayerNorm before its blocks) is transformers' ViT, not its CLIP tower."""
    import transformers

    vision = transformers.ViTConfig(image_size=224, patch_size=16, layer_norm_eps=1e-6, pooler_act="linear")
    return transformers.VisionTextDualEncoderModel(
        transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            vision, _text_config(config), projection_dim=config["embed_dim"]
        )
    )


def _blocks(
    state: "Mapping[str, Tensor]", ours: str, theirs: str, names: Mapping[str, str]
) -> "Iterator[tuple[str, Tensor]]":
    """The weights of a tower's blocks; `ours` and `theirs` are the prefixes before a block's number."""
    for key, value in state.items():
        if not key.startswith(ours):
            continue
        block, _, rest = key.removeprefix(ours).partition(".")
        name = next(name for name in names if rest.startswith(name))
        kind = rest.removeprefix(name).removeprefix(".")
        target = f"{theirs}{block}.{names[name]}"
        if name.endswith((".", "_")):
            for part, split in zip("qkv", value.chunk(3), strict=True):
                yield f"{target}.{part}_proj.{kind}", split.clone()
        else:
            yield f"{target}.{kind}", value


def _text(state: "Mapping[str, Tensor]") -> "Iterator[tuple[str, Tensor]]":
    yield "text_model.embeddings.token_embedding.weight", state["token_embedding.weight"]
    yield "text_model.embeddings.position_embedding.weight", state["positional_embedding"]
    yield from _blocks(state, "transformer.resblocks.", "text_model.encoder.layers.", _CLIP_BLOCK)
    for kind in ("weight", "bias"):
        yield f"text_model.final_layer_norm.{kind}", state[f"ln_final.{kind}"]
    yield "text_projection.weight", state["text_projection"].T


def _clip_vision(state: "Mapping[str, Tensor]") -> "Iterator[tuple[str, Tensor]]":
    yield "vision_model.embeddings.class_embedding", state["visual.class_embedding"]
    yield "vision_model.embeddings.patch_embedding.weight", state["visual.conv1.weight"]
    yield "vision_model.embeddings.position_embedding.weight", state["visual.positional_embedding"]
    yield from _blocks(state, "visual.transformer.resblocks.", "vision_model.encoder.layers.", _CLIP_BLOCK)
    for kind in ("weight", "bias"):
        # The misspelling is transformers' own.
        yield f"vision_model.pre_layrnorm.{kind}", state[f"visual.ln_pre.{kind}"]
        yield f"vision_model.post_layernorm.{kind}", state[f"visual.ln_post.{kind}"]
    yield "visual_projection.weight", state["visual.proj"].T


def _timm_vision(state: "Mapping[str, Tensor]") -> "Iterator[tuple[str, Tensor]]":
    import torch

    yield "vision_model.embeddings.cls_token", state["visual.trunk.cls_token"]
    yield "vision_model.embeddings.position_embeddings", state["visual.trunk.pos_embed"]
    yield from _blocks(state, "visual.trunk.blocks.", "vision_model.layers.", _TIMM_BLOCK)
    for kind in ("weight", "bias"):
        yield (
            f"vision_model.embeddings.patch_embeddings.projection.{kind}",
            state[f"visual.trunk.patch_embed.proj.{kind}"],
        )
        yield f"vision_model.layernorm.{kind}", state[f"visual.trunk.norm.{kind}"]
    # The pooler is part of transformers' ViT; as the identity, with a linear activation, it passes on.
    width = len(state["visual.trunk.norm.weight"])
    yield "vision_model.pooler.dense.weight", torch.eye(width)
    yield "vision_model.pooler.dense.bias", torch.zeros(width)
    yield "visual_projection.weight", state["visual.head.proj.weight"]


def _image_processor(opened: OpenedModel) -> Any:
    import transformers
    from PIL.Image import Resampling

    preprocess, (height, width) = opened.preprocess, opened.image_size
    squash = preprocess["resize_mode"] == "squash"
    if not squash and (height != width or preprocess["resize_mode"] != "shortest"):
        raise SynthClipError(
            f"transformers has no equal of this preprocessing ({preprocess['resize_mode']}, "
            f"{height}x{width}); export it as open_clip or onnx instead"
        )
    return transformers.CLIPImageProcessor(
        size={"height": height, "width": width} if squash else {"shortest_edge": height},
        crop_size={"height": height, "width": width},
        do_center_crop=not squash,
        resample=Resampling[preprocess["interpolation"].upper()],
        image_mean=list(preprocess["mean"]),
        image_std=list(preprocess["std"]),
    )


def _tokenizer(opened: OpenedModel) -> Any:
    """CLIP's tokenizer from the byte-pair merges that open_clip carries."""
    import transformers

    ours = opened.tokenizer
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    return transformers.CLIPTokenizer(
        vocab={special.get(token, token): number for token, number in ours.encoder.items()},
        merges=list(ours.bpe_ranks),
        model_max_length=ours.context_length,
    )
