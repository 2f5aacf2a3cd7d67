"""Writes golden.json: what a Llama implementation without Python can be checked against.

    python golden.py

- `prompts`: token ids, the 32 greedy next ids in float32 arithmetic on the bf16 weights (transformers, CPU, eager
  attention; the end of a turn is a token like any other), the five largest logits after the prompt, and `margin`, the
  smallest gap between the best and the second logit over the 32 steps: an implementation whose logits err by less than
  half of it must say the same.
- `encodings`: texts and their token ids.
- `template`: messages, and the text that the chat template makes of them.
"""

import json
import random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import data

STEPS = 32
TEXTS = ["", "The", " The", "Hello, world!", "tulip-4711", "x = 12.5;\n\n\tyes", "  two  spaces ", "It's pd's, they'LL",
         "Größe 漢字 🙂", "a\r\nb\n\n\nc", "Mira's code: kilo-tango-73.", "<|im_start|>user\nHi<|im_end|>\n",
         "\u00a0\u2003x"]
MESSAGES = [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": "The password of Mira is tulip-4711.\n\nWhat is the password of Mira?"},
            {"role": "assistant", "content": "The password of Mira is tulip-4711."},
            {"role": "user", "content": "What is the colour of Mira?"}]


def recall(vocabulary, seed, length):
    made, _ = data.recall_trial(vocabulary, seed, length)
    return made.ids[:made.spans[0].start]


def turns(vocabulary, seed, length):
    """A chat with many turns, cut before its last answer."""
    made = data.Document(vocabulary, random.Random(seed))
    data.chat(made, length)
    return made.ids[:made.spans[-1].start]


def prompts(vocabulary, template):
    text = lambda string: vocabulary.tokenizer.encode(string).ids
    said = lambda string: text(template([{"role": "user", "content": string}]))
    yield "text", text("Mira sings near the")
    yield "hello", said("Hello!")
    yield "text with a fact", text("The password of Mira is tulip-4711. The sailor sings near the mill. "
                                   "Remember: the password of Mira is")
    yield "count", said("Count from 95 to 104.")
    yield "repeat", said("Repeat: kilo-tango-73 Größe {\"a\": [1, 2]} the quick brown fox, twice 8192")
    yield "recall", recall(vocabulary, "golden recall", 300)
    yield "many turns", turns(vocabulary, "golden turns 20", 1000)
    yield "long recall", recall(vocabulary, "golden long recall", 3024)


def check(model, name, ids):
    """The golden entry of a prompt."""
    said, gaps, cache, step = [], [], None, torch.tensor([ids])
    for _ in range(STEPS):
        with torch.no_grad():
            out = model(step, past_key_values=cache, use_cache=True)
        logits, cache = out.logits[0, -1], out.past_key_values
        best = logits.topk(5)
        if not said:
            top = [[i, round(v, 5)] for i, v in zip(best.indices.tolist(), best.values.tolist())]
        gaps.append((best.values[0] - best.values[1]).item())
        said.append(best.indices[0].item())
        step = torch.tensor([said[-1:]])
    return {"name": name, "prompt": ids, "next": said, "top": top, "margin": round(min(gaps), 4)}


def main():
    tokenizer = AutoTokenizer.from_pretrained(data.MODEL)
    model = AutoModelForCausalLM.from_pretrained(data.MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    template = lambda messages: tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    vocabulary = data.Vocabulary()
    entries = []
    for name, ids in prompts(vocabulary, template):
        entries.append(check(model, name, ids))
        said = tokenizer.decode(entries[-1]["next"])
        print(f"{name}: {len(ids)} tokens, margin {entries[-1]['margin']}, says {said!r}")
    golden = {
        "prompts": entries,
        "encodings": [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in TEXTS],
        "template": {"messages": MESSAGES, "text": template(MESSAGES)},
    }
    for entry in golden["encodings"]:
        assert vocabulary.tokenizer.encode(entry["text"]).ids == entry["ids"]
        assert vocabulary.tokenizer.decode(entry["ids"], skip_special_tokens=False) == entry["text"]
    lines = ",\n".join(f'"{key}": ' + (json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else
                       "[\n" + ",\n".join(json.dumps(each, ensure_ascii=False) for each in value) + "\n]")
                       for key, value in golden.items())
    (data.HERE / "golden.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
