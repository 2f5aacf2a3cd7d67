"""Makes the checkpoints and goldens in this folder: `python generate.py` with torch 2.15 and transformers 5.23.

Each model is random, tiny and of another architecture, so that every branch of the engine's forward pass has numbers to
agree with: Llama 3 (scaled rotation, tied, bf16), Qwen2 (biases, f16), Qwen3 (norms of heads, explicit head_dim, tied,
bf16), Mistral (sliding window smaller than the prompt, two shards with an index).
`golden.json` holds, computed in f32 from the weights as stored: logits after each of two prompts and what greedy
decoding goes on with.
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

HERE = pathlib.Path(__file__).parent
COMMON = dict(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.15,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
MODELS = {
    "llama3": (LlamaForCausalLM, LlamaConfig, dict(rope_theta=500000.0, rope_scaling=LLAMA3, tie_word_embeddings=True), torch.bfloat16, 1),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, dict(rope_theta=1000000.0, tie_word_embeddings=False), torch.float16, 1),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, dict(rope_theta=1000000.0, head_dim=32, tie_word_embeddings=True), torch.bfloat16, 1),
    "mistral": (MistralForCausalLM, MistralConfig, dict(rope_theta=10000.0, sliding_window=8, head_dim=16, tie_word_embeddings=False), torch.bfloat16, 2),
}
PROMPTS = [[1, 17, 93, 4, 55, 120, 33], [1] + [(i * 37 + 11) % 126 + 2 for i in range(39)]]
STEPS = 24


def main():
    golden = {}
    for number, (name, (kind, config_kind, extra, dtype, shards)) in enumerate(MODELS.items()):
        torch.manual_seed(1000 + number)
        config = config_kind(**COMMON, **extra)
        config._attn_implementation = "eager"
        model = kind(config)
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.data = 1 + 0.2 * torch.randn_like(parameter)
            if key.endswith("bias"):
                parameter.data = 0.3 * torch.randn_like(parameter)
        
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        written = config.to_dict()
        written["architectures"] = [kind.__name__]
        written = {key: value for key, value in written.items() if value is not None and not key.startswith("_")}
        if "rope_parameters" in written and name != "qwen2":  # both spellings are found in the wild
            parameters = dict(written.pop("rope_parameters"))
            written["rope_theta"] = parameters.pop("rope_theta")
            if parameters.get("rope_type", "default") != "default":
                written["rope_scaling"] = parameters
        written["torch_dtype"] = str(dtype).removeprefix("torch.")
        for key in ("dtype", "transformers_version"):
            written.pop(key, None)
        (folder / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")

        tensors = {key: value.to(dtype).contiguous() for key, value in model.state_dict().items()}
        if config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        names = sorted(tensors)
        if shards == 1:
            save_file({key: tensors[key].clone() for key in names}, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            weight_map = {}
            for shard in range(shards):
                file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
                part = names[shard::shards]
                save_file({key: tensors[key].clone() for key in part}, folder / file, metadata={"format": "pt"})
                weight_map.update({key: file for key in part})
            total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

        # Read back as others would: casting a model as a whole also rounds what is no weight (the rotation's
        # frequencies).
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        golden[name] = []
        for prompt in PROMPTS:
            with torch.no_grad():
                logits = model(torch.tensor([prompt])).logits[0, -1]
                tokens, gap = list(prompt), float("inf")
                for _ in range(STEPS):
                    row = model(torch.tensor([tokens])).logits[0, -1]
                    best = row.topk(2)
                    gap = min(gap, float(best.values[0] - best.values[1]))
                    tokens.append(int(best.indices[0]))
            print(name, len(prompt), "smallest gap", gap, "logits", float(logits.min()), float(logits.max()))
            golden[name].append(
                {"prompt": prompt, "logits": [round(float(x), 6) for x in logits], "greedy": tokens[len(prompt):], "gap": gap}
            )
    (HERE / "golden.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
