"""Is the model the one that its names promise? Compared with torch and with Hugging Face."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from train.data import ArrayTokens, batch
from train.model import LayerNorm, RMSNorm, Shape, Transformer, cross_entropy, rotary_table
from train.optimizer import clip_gradients, gradients, make_optimizer

SHAPE = Shape(vocab_size=97, context_length=32, d_model=48, num_layers=3, num_heads=4, d_ff=80)


def tokens(rows: int = 2, length: int = 32) -> torch.Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(0))


def build(**changes: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(SHAPE._replace(**changes))


def test_parameters_have_the_names_of_cs336():
    layer = [
        "ln1.weight",
        *(f"attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "output_proj")),
        "ln2.weight",
        *(f"ffn.{name}.weight" for name in ("w1", "w2", "w3")),
    ]
    expected = ["token_embeddings.weight", "ln_final.weight", "lm_head.weight"]
    expected += [f"layers.{i}.{name}" for i in range(3) for name in layer]
    assert sorted(build().state_dict()) == sorted(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "learned"},
        {"position": "none"},
        {"ffn": "gelu"},
        {"norm": "layernorm"},
        {"tie_embeddings": True},
        {"position": "learned", "ffn": "gelu", "norm": "layernorm", "tie_embeddings": True},
    ],
)
def test_each_option_gives_causal_logits_and_gradients_everywhere(changes):
    model = build(**changes)
    x = tokens()
    logits = model(x)
    assert logits.shape == (2, 32, 97)
    later = x.clone()
    later[:, 20:] = (later[:, 20:] + 1) % 97
    torch.testing.assert_close(model(later)[:, :20], logits[:, :20])
    assert not torch.allclose(model(later)[:, 20:], logits[:, 20:])
    cross_entropy(logits, x).backward()
    for name, param in model.named_parameters():
        assert param.grad is not None and param.grad.abs().sum() > 0, name


def test_a_new_model_knows_nothing():
    loss = cross_entropy(build()(tokens(8)), tokens(8))
    assert abs(loss.item() - math.log(97)) < 0.7


def test_dropout_acts_in_training_only():
    model = build(dropout=0.5)
    assert not torch.equal(model(tokens()), model(tokens()))
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))


def test_cross_entropy_agrees_with_torchs():
    logits = torch.randn(3, 5, 97, generator=torch.Generator().manual_seed(1)) * 30
    logits.requires_grad_()
    targets = tokens(3, 5)
    own = cross_entropy(logits, targets)
    (own_grad,) = torch.autograd.grad(own, logits)
    reference = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    (grad,) = torch.autograd.grad(reference, logits)
    torch.testing.assert_close(own, reference)
    torch.testing.assert_close(own_grad, grad, atol=1e-7, rtol=1e-5)
    assert cross_entropy(torch.full((1, 97), 1e9), torch.tensor([3])).item() < 5.0


def test_norms_agree_with_torchs():
    x = torch.randn(4, 6, 48, generator=torch.Generator().manual_seed(2))
    for own, reference in (
        (RMSNorm(48), nn.RMSNorm(48, eps=1e-5)),
        (LayerNorm(48), nn.LayerNorm(48, eps=1e-5, bias=False)),
    ):
        with torch.no_grad():
            own.weight.copy_(torch.linspace(0.5, 2, 48))
            reference.weight.copy_(own.weight)
        torch.testing.assert_close(own(x), reference(x))


def test_the_derivative_of_the_norm_is_that_of_its_formula():
    norm = RMSNorm(6).double()
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    torch.autograd.gradcheck(norm, (x.requires_grad_(),))
    reference = nn.RMSNorm(6, eps=1e-5).double()
    grads = [torch.autograd.grad((one(x) ** 3).sum(), (x, one.weight)) for one in (norm, reference)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_norm_is_exact_where_squares_overflow_and_refuses_a_second_derivative():
    x = 400 * torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        RMSNorm(6).half()(x.half()).float(), RMSNorm(6)(x), rtol=2e-3, atol=2e-3
    )
    assert RMSNorm(6).to("meta")(torch.empty(3, 6, device="meta")).shape == (3, 6)
    vector = torch.randn(6, requires_grad=True)
    (grad,) = torch.autograd.grad(RMSNorm(6)(vector).square().sum(), vector, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_norm_gives_what_the_products_after_it_take():
    norm = RMSNorm(6)
    assert norm(torch.ones(1, 6)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.ones(1, 6)).dtype == torch.bfloat16


def test_attention_agrees_with_torchs():
    """Without positions, an attention is torch's scaled_dot_product_attention of its q, k, v."""
    attention = build(position="none").layers[0].attn
    x = torch.randn(2, 32, 48, generator=torch.Generator().manual_seed(3))
    q, k, v = (
        layer(x).view(2, 32, 4, 12).transpose(1, 2)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    reference = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    reference = attention.output_proj(reference.transpose(1, 2).reshape(2, 32, 48))
    torch.testing.assert_close(attention(x.flatten(0, 1), 32, None), reference.flatten(0, 1))


def attention_by_formula(
    attention: nn.Module, x: torch.Tensor, rotations: torch.Tensor | None
) -> torch.Tensor:
    """The same as autograd derives it: nothing in place, nothing written out."""
    q, k, v = (
        layer(x).view(2, 32, 4, 12).transpose(1, 2)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if rotations is not None:
        cos, sin = rotations.real[:32].to(x.dtype), rotations.imag[:32].to(x.dtype)
        q, k = (
            torch.stack(
                (
                    y[..., 0::2] * cos - y[..., 1::2] * sin,
                    y[..., 0::2] * sin + y[..., 1::2] * cos,
                ),
                dim=-1,
            ).flatten(-2)
            for y in (q, k)
        )
    scores = q @ k.transpose(-2, -1) / math.sqrt(12)
    future = torch.ones(32, 32, dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1).flatten(0, 1)
    weights = nn.functional.dropout(torch.ones_like(weights), attention.dropout) * weights
    y = (weights.view(2, 4, 32, 32) @ v).transpose(1, 2).reshape(2, 32, 48)
    return attention.output_proj(y)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("position", ["rope", "none"])
def test_the_derivative_of_the_attention_is_that_of_its_formula(position, dropout):
    attention = build(dropout=dropout).layers[0].attn
    rotations = rotary_table(40, 12) if position == "rope" else None
    x = torch.randn(2, 32, 48, generator=torch.Generator().manual_seed(6), requires_grad=True)
    inputs = (x, *attention.parameters())
    results = []
    for function in (
        lambda: attention(x.flatten(0, 1), 32, rotations).view(2, 32, 48),
        lambda: attention_by_formula(attention, x, rotations),
    ):
        torch.manual_seed(7)
        y = function()
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_model_of_bf16_weights_has_the_gradients_of_fp32():
    model = build()
    half = copy.deepcopy(model).bfloat16()
    half.rotations = model.rotations
    for one in (model, half):
        cross_entropy(one(tokens()), tokens()).backward()
    for (name, param), other in zip(model.named_parameters(), half.parameters(), strict=True):
        assert other.grad.dtype == torch.bfloat16
        error = (other.grad - param.grad).norm() / param.grad.norm()
        assert error < 0.05, f"{name}: {error}"


def llama(model: Transformer) -> nn.Module:
    """Hugging Face's Llama with the same weights; it turns half-split pairs."""
    transformers = pytest.importorskip("transformers")
    shape = model.shape
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.d_model,
            intermediate_size=shape.d_ff,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            max_position_embeddings=shape.context_length,
            rms_norm_eps=1e-5,
            attn_implementation="eager",
        )
    )
    width = shape.d_model // shape.num_heads

    def half_split(weight: torch.Tensor) -> torch.Tensor:
        pairs = weight.view(shape.num_heads, width // 2, 2, shape.d_model)
        return pairs.transpose(1, 2).reshape(shape.d_model, shape.d_model)

    own = model.state_dict()
    renamed = {
        "model.embed_tokens.weight": own["token_embeddings.weight"],
        "model.norm.weight": own["ln_final.weight"],
        "lm_head.weight": own["lm_head.weight"],
    }
    for i in range(shape.num_layers):
        a, b = f"layers.{i}", f"model.layers.{i}"
        renamed |= {
            f"{b}.self_attn.q_proj.weight": half_split(own[f"{a}.attn.q_proj.weight"]),
            f"{b}.self_attn.k_proj.weight": half_split(own[f"{a}.attn.k_proj.weight"]),
            f"{b}.self_attn.v_proj.weight": own[f"{a}.attn.v_proj.weight"],
            f"{b}.self_attn.o_proj.weight": own[f"{a}.attn.output_proj.weight"],
            f"{b}.mlp.gate_proj.weight": own[f"{a}.ffn.w1.weight"],
            f"{b}.mlp.down_proj.weight": own[f"{a}.ffn.w2.weight"],
            f"{b}.mlp.up_proj.weight": own[f"{a}.ffn.w3.weight"],
            f"{b}.input_layernorm.weight": own[f"{a}.ln1.weight"],
            f"{b}.post_attention_layernorm.weight": own[f"{a}.ln2.weight"],
        }
    theirs.load_state_dict(renamed)
    return theirs


def gradient_norm(model: nn.Module) -> float:
    return (
        torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
    )


def test_logits_and_gradients_are_those_of_hugging_faces_llama():
    model = build()
    theirs = llama(model)
    x = tokens(4)
    logits, reference = model(x), theirs(x).logits
    assert (logits - reference).abs().max() < 2e-5 * reference.abs().max()
    cross_entropy(logits[:, :-1], x[:, 1:]).backward()
    nn.functional.cross_entropy(reference[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    assert gradient_norm(model) == pytest.approx(gradient_norm(theirs), rel=1e-4)
    ours = model.get_parameter("layers.1.attn.v_proj.weight").grad
    other = theirs.get_parameter("model.layers.1.self_attn.v_proj.weight").grad
    torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-6)


def test_without_the_permutation_the_llama_differs():
    """The negative control: the comparison above can fail."""
    model = build()
    theirs = llama(model)
    q = model.state_dict()["layers.0.attn.q_proj.weight"]
    theirs.get_parameter("model.layers.0.self_attn.q_proj.weight").data.copy_(q)
    assert (model(tokens()) - theirs(tokens()).logits).abs().max() > 1e-3


def test_630_bytes_are_learned_by_heart():
    text = (b"A run is a folder that survives anything; everything else is a reader of it. " * 9)[
        :630
    ]
    data = ArrayTokens(np.frombuffer(text, np.uint8))
    torch.manual_seed(0)
    model = Transformer(Shape(256, 32, 128, 4, 4, 352))
    optimizer = make_optimizer(model, learning_rate=1e-3, weight_decay=0.1)
    for step in range(60):
        inputs, targets = batch(data, seed=0, step=step, batch_size=8, context_length=32)
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(gradients(optimizer), 1.0)
        optimizer.step()
    assert loss.item() < 0.22
