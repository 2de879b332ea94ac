"""The paper's model: layout, initialisation, forward pass against plain arithmetic, tokenizer."""

import math

import pytest
import torch
from torch import Tensor

from synthclip.models import open_clip
from synthclip.models.build import LeanCLIP, PaperTokenizer, build_model
from synthclip.models.weights import from_official, to_official
from synthclip.recipe.training import ModelConfig

pytestmark = pytest.mark.slow

State = dict[str, Tensor]
PAPER = ModelConfig(name="synthclip-vitb16")


def _layer_norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _attention(
    x: Tensor, heads: int, qkv: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor], *, causal: bool
) -> Tensor:
    """One head at a time, softmax by its definition."""
    length, width = x.shape
    q, k, v = (x @ qkv[0].T + qkv[1]).split(width, dim=-1)
    size = width // heads
    gathered = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size)
        if causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        gathered.append(weights / weights.sum(-1, keepdim=True) @ v[:, part])
    return torch.cat(gathered, dim=-1) @ out[0].T + out[1]


def _image_features(state: State, image: Tensor) -> Tensor:
    """One image [3, 224, 224] through the official image tower, written out."""
    patches = torch.stack(
        [image[:, r : r + 16, c : c + 16].flatten() for r in range(0, 224, 16) for c in range(0, 224, 16)]
    )
    x = patches @ state["visual.patch_embed.proj.weight"].flatten(1).T + state["visual.patch_embed.proj.bias"]
    x = torch.cat([state["visual.cls_token"][0], x]) + state["visual.pos_embed"][0]
    for block in range(12):
        name = f"visual.blocks.{block}"
        x = x + _attention(
            _layer_norm(x, state, f"{name}.norm1", 1e-6),
            12,
            (state[f"{name}.attn.qkv.weight"], state[f"{name}.attn.qkv.bias"]),
            (state[f"{name}.attn.proj.weight"], state[f"{name}.attn.proj.bias"]),
            causal=False,
        )
        hidden = _layer_norm(x, state, f"{name}.norm2", 1e-6) @ state[f"{name}.mlp.fc1.weight"].T
        hidden = hidden + state[f"{name}.mlp.fc1.bias"]
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + hidden @ state[f"{name}.mlp.fc2.weight"].T + state[f"{name}.mlp.fc2.bias"]
    return _layer_norm(x, state, "visual.norm", 1e-6)[0] @ state["image_projection"]


def _text_features(state: State, ids: Tensor) -> Tensor:
    """One text's ids [77] through the official text tower, written out."""
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    for block in range(12):
        name = f"transformer.resblocks.{block}"
        x = x + _attention(
            _layer_norm(x, state, f"{name}.ln_1", 1e-5),
            8,
            (state[f"{name}.attn.in_proj_weight"], state[f"{name}.attn.in_proj_bias"]),
            (state[f"{name}.attn.out_proj.weight"], state[f"{name}.attn.out_proj.bias"]),
            causal=True,
        )
        hidden = _layer_norm(x, state, f"{name}.ln_2", 1e-5) @ state[f"{name}.mlp.c_fc.weight"].T
        hidden = hidden + state[f"{name}.mlp.c_fc.bias"]
        hidden = hidden / (1 + torch.exp(-1.702 * hidden))
        x = x + hidden @ state[f"{name}.mlp.c_proj.weight"].T + state[f"{name}.mlp.c_proj.bias"]
    return _layer_norm(x, state, "ln_final", 1e-5)[int(ids.argmax())] @ state["text_projection"]


@pytest.fixture(scope="module")
def model(official_state: State) -> LeanCLIP:
    built = build_model(PAPER)
    built.load_state_dict(from_official(official_state))
    built.eval()
    return built


@torch.no_grad()
def test_forward_is_the_official_arithmetic(model: LeanCLIP, official_state: State) -> None:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    ids = PaperTokenizer()(["a photo of a dog", "word " * 90])
    state = {name: value.double() for name, value in official_state.items()}
    by_hand = torch.stack([_image_features(state, image.double()) for image in images])
    torch.testing.assert_close(model.encode_image(images).double(), by_hand, rtol=1e-4, atol=1e-5)
    by_hand = torch.stack([_text_features(state, row) for row in ids])
    torch.testing.assert_close(model.encode_text(ids).double(), by_hand, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_batch_cut_after_its_longest_text_has_the_same_features(model: LeanCLIP) -> None:
    ids = PaperTokenizer()(["a dog", "two red umbrellas on a rainy street"])
    longest = int((ids != 0).sum(1).max())
    torch.testing.assert_close(
        model.encode_text(ids[:, :longest]), model.encode_text(ids), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_forward_has_open_clips_interface(model: LeanCLIP) -> None:
    images, texts, scale = model(torch.zeros(1, 3, 224, 224), PaperTokenizer()(["a dog"]))
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(1))
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(1))
    torch.testing.assert_close(scale, torch.tensor(3.2).exp())


def test_state_dict_has_the_official_layout() -> None:
    shapes = {
        name: tuple(value.shape) for name, value in to_official(build_model(PAPER).state_dict()).items()
    }
    in_block = [
        f"{module}.{kind}"
        for module in ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    ] + ["attn.in_proj_weight", "attn.in_proj_bias"]
    text = {f"transformer.resblocks.{block}.{name}" for block in range(12) for name in in_block}
    top = {"token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias"}
    top |= {"image_projection", "text_projection", "logit_scale"}
    assert {name for name in shapes if not name.startswith("visual.")} == text | top
    assert shapes["image_projection"] == (768, 512)
    assert shapes["text_projection"] == (512, 512)
    assert shapes["positional_embedding"] == (77, 512)
    assert shapes["token_embedding.weight"] == (49408, 512)
    assert shapes["logit_scale"] == ()
    assert shapes["visual.pos_embed"] == (1, 197, 768)
    assert shapes["visual.blocks.11.attn.qkv.weight"] == (2304, 768)
    assert not any(name.startswith("visual.head") for name in shapes)


def test_initialisation_is_the_papers() -> None:
    torch.manual_seed(0)
    state = to_official(build_model(PAPER).state_dict())
    block = "transformer.resblocks.5"
    wanted = {
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        f"{block}.attn.in_proj_weight": 512**-0.5,
        f"{block}.attn.out_proj.weight": 512**-0.5 * 24**-0.5,
        f"{block}.mlp.c_fc.weight": 1024**-0.5,
        f"{block}.mlp.c_proj.weight": 512**-0.5 * 24**-0.5,
        "image_projection": 768**-0.5,
        "text_projection": 512**-0.5,
    }
    for name, std in wanted.items():
        assert state[name].std().item() == pytest.approx(std, rel=0.02), name
        assert abs(state[name].mean().item()) < std / 10, name
    assert state["logit_scale"].item() == pytest.approx(math.log(1 / 0.07))


def test_names_translate_to_open_clip_and_back(official_state: State) -> None:
    back = to_official(from_official(official_state))
    assert back.keys() == official_state.keys()
    assert all(torch.equal(back[name], official_state[name]) for name in back)


def test_tokenizer_cuts_without_restoring_the_end_token() -> None:
    ours, theirs = PaperTokenizer(), open_clip.SimpleTokenizer()
    texts = ["A Photo of  a dog", "", "naïve café ☕", "it's 3 o'clock"]
    assert torch.equal(ours(texts), theirs(texts))
    assert ours(texts[0]).shape == (1, 77)
    assert torch.equal(ours("word " * 75), theirs("word " * 75))
    cut = ours("word " * 76)[0]
    assert cut[0] == ours.sot_token_id
    assert ours.eot_token_id not in cut
    assert theirs("word " * 76)[0, -1] == ours.eot_token_id
