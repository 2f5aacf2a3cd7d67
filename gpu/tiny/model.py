"""A plain Llama, written for training: same names, shapes and arithmetic as transformers' LlamaForCausalLM.

Everything but attention works on a flat list of tokens, so one compiled graph serves batches of all lengths.

    python model.py   # writes config.json and generation_config.json
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 704,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 2048,
}
GENERATION = {"bos_token_id": 0, "do_sample": False, "eos_token_id": [2, 0], "pad_token_id": 0}

LAYERS = CONFIG["num_hidden_layers"]
HIDDEN = CONFIG["hidden_size"]
HEADS, KV_HEADS, HEAD_DIM = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]


class Llama(nn.Module):
    """Weights under the names of a Hugging Face checkpoint; `loss` is all that training asks of it."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        inner, kv = CONFIG["intermediate_size"], KV_HEADS * HEAD_DIM
        shapes = {"model.embed_tokens.weight": (CONFIG["vocab_size"], HIDDEN), "model.norm.weight": (HIDDEN,)}
        for i in range(LAYERS):
            layer = f"model.layers.{i}."
            shapes |= {
                layer + "input_layernorm.weight": (HIDDEN,),
                layer + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
                layer + "self_attn.k_proj.weight": (kv, HIDDEN),
                layer + "self_attn.v_proj.weight": (kv, HIDDEN),
                layer + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
                layer + "post_attention_layernorm.weight": (HIDDEN,),
                layer + "mlp.gate_proj.weight": (inner, HIDDEN),
                layer + "mlp.up_proj.weight": (inner, HIDDEN),
                layer + "mlp.down_proj.weight": (HIDDEN, inner),
            }
        self.weights = nn.ParameterDict()
        for name, shape in shapes.items():
            if len(shape) == 1:
                value = torch.ones(shape)
            else:
                writes = "o_proj" in name or "down_proj" in name
                scale = 0.02 / math.sqrt(2 * LAYERS) if writes else 0.02
                value = torch.randn(shape, generator=generator) * scale
            self.weights[name.replace(".", "/")] = nn.Parameter(value)

    def __getitem__(self, name):
        return self.weights[name.replace(".", "/")]

    def state(self):
        return {name.replace("/", "."): value.detach() for name, value in self.weights.items()}

    def load(self, path):
        for name, value in load_file(path).items():
            self[name].data.copy_(value)

    def save(self, path, dtype=torch.float32):
        save_file({k: v.to(dtype).cpu().contiguous() for k, v in self.state().items()}, path, {"format": "pt"})

    def hidden(self, ids):
        """Hidden states [rows * length, hidden] of ids [rows, length], before the last norm."""
        rows, length = ids.shape
        cos, sin = rotation(rows, length, ids.device)
        x = F.embedding(ids.reshape(-1), self["model.embed_tokens.weight"]).to(torch.bfloat16)
        for i in range(LAYERS):
            of = lambda name: self[f"model.layers.{i}.{name}.weight"]
            q, k, v = before_attention(x, of("input_layernorm"), of("self_attn.q_proj"), of("self_attn.k_proj"),
                                       of("self_attn.v_proj"), cos, sin)
            split = lambda t, heads: t.view(rows, length, heads, HEAD_DIM).transpose(1, 2)
            a = F.scaled_dot_product_attention(split(q, HEADS), split(k, KV_HEADS), split(v, KV_HEADS), is_causal=True,
                                               enable_gqa=True)
            a = a.transpose(1, 2).reshape(rows * length, HIDDEN)
            x = after_attention(x, a, of("self_attn.o_proj"), of("post_attention_layernorm"), of("mlp.gate_proj"),
                                of("mlp.up_proj"), of("mlp.down_proj"))
        return x

    def loss(self, ids, weights):
        """Weighted mean loss of ids [rows, length]; of the tokens that weigh 1 or more: the right ones, all."""
        target, weight = ids.roll(-1, 1), weights.roll(-1, 1)
        weight[:, -1] = 0
        return head(self.hidden(ids), self["model.norm.weight"], self["model.embed_tokens.weight"], target.reshape(-1),
                    weight.reshape(-1))

    @torch.no_grad()
    def predict(self, ids):
        """The most likely next token after each of ids [rows, length]."""
        x = rms_norm(self.hidden(ids), self["model.norm.weight"])
        logits = x @ self["model.embed_tokens.weight"].to(x.dtype).T
        return logits.argmax(-1).view(ids.shape)


def rotation(rows, length, device):
    """Cosines and sines of the rotary embedding for `rows` sequences laid end to end."""
    pairs = torch.arange(0, HEAD_DIM, 2, device=device, dtype=torch.float32) / HEAD_DIM
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] / CONFIG["rope_theta"] ** pairs
    angles = torch.cat([angles, angles], -1).repeat(rows, 1)[:, None, :]
    return angles.cos(), angles.sin()


def rms_norm(x, weight):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]) * weight).to(x.dtype)


def linear(x, weight):
    return F.linear(x, weight.to(x.dtype))


def rotate(x, cos, sin):
    wide = x.float()
    first, second = wide.chunk(2, -1)
    return (wide * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


@torch.compile
def before_attention(x, norm, q, k, v, cos, sin):
    x = rms_norm(x, norm)
    queries = rotate(linear(x, q).view(-1, HEADS, HEAD_DIM), cos, sin)
    keys = rotate(linear(x, k).view(-1, KV_HEADS, HEAD_DIM), cos, sin)
    return queries, keys, linear(x, v)


@torch.compile
def after_attention(x, a, o, norm, gate, up, down):
    x = x + linear(a, o)
    inner = rms_norm(x, norm)
    return x + linear(F.silu(linear(inner, gate)) * linear(inner, up), down)


@torch.compile
def head(x, norm, embedding, target, weight):
    logits = linear(rms_norm(x, norm), embedding).float()
    each = F.cross_entropy(logits, target, reduction="none")
    matters = weight >= 1
    right = (logits.argmax(-1) == target) & matters
    return (each * weight).sum() / weight.sum(), right.sum(), matters.sum()


if __name__ == "__main__":
    for name, value in (("config.json", CONFIG), ("generation_config.json", GENERATION)):
        (Path(__file__).parent / "model" / name).write_text(json.dumps(value, indent=2) + "\n")
