"""Measures the tiny model with transformers.

    python evaluate.py --out results.json               # everything, on a GPU
    python evaluate.py --trials 32 --lengths 512 2048   # a look, on a CPU
    python evaluate.py --parts pages --out results.json # one part, its results merged into the file

An answer counts if each of its tokens, its end of turn included, is the most likely one after the prompt and the tokens
before it: that is what greedy decoding gives. The parts:

- recall: one fact in a context of a given length, by depth
- chats: held-out chats with many questions, by task and by distance to the fact
- generated: recall again, decoded step by step with a KV cache, to confirm the shortcut above
- text: the share of sampled sentences that the generator's grammar could have made
- pages: whether wrong KV pages are seen in answers
"""

import argparse
import copy
import json
import re
from collections import defaultdict
from multiprocessing import Pool
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import data

BATCH_TOKENS = 1 << 18


def make_trial(job):
    seed, length = job
    made, depth = data.recall_trial(VOCABULARY, f"evaluation {seed}", length)
    return made.ids, made.spans, depth


def make_chat(job):
    seed, length = job
    made = data.Document(VOCABULARY, data.random.Random(f"held out {seed}"))
    data.chat(made, length)
    return made.ids[:length], [span for span in made.spans if span.end <= length], 0.0


def start_worker():
    global VOCABULARY
    VOCABULARY = data.Vocabulary()


def judge(model, documents, length):
    """For each document, whether each of its answers is right."""
    rows = max(1, BATCH_TOKENS // length)
    for first in range(0, len(documents), rows):
        part = documents[first:first + rows]
        ids = torch.zeros(len(part), length, dtype=torch.int64)
        for row, (tokens, _, _) in enumerate(part):
            ids[row, :len(tokens)] = torch.tensor(tokens)
        ids = ids.to(model.device)
        with torch.no_grad():
            states = model.model(ids, use_cache=False).last_hidden_state
            said = torch.stack([model.lm_head(row).argmax(-1) for row in states])
        for row, (_, spans, _) in enumerate(part):
            yield [bool((said[row, s.start - 1:s.end - 1] == ids[row, s.start:s.end]).all()) for s in spans]


def recall(model, pool, length, trials):
    """Recall of one fact in a context of `length` tokens, in all and by tenth of the depth."""
    documents = pool.map(make_trial, [(f"{length}/{i}", length) for i in range(trials)], chunksize=8)
    tenths = [[] for _ in range(10)]
    for (_, _, depth), rights in zip(documents, judge(model, documents, length)):
        tenths[min(9, int(depth * 10))].append(rights[0])
    right = sum(map(sum, tenths))
    return {"trials": trials, "right": right, "recall": right / trials,
            "by_depth": [round(sum(t) / len(t), 4) if t else None for t in tenths]}


def chats(model, pool, length, count):
    """Held-out chats with many questions: rights by task, and recall by distance to the fact."""
    documents = pool.map(make_chat, [(f"{length}/{i}", length) for i in range(count)], chunksize=4)
    tasks, distances = defaultdict(list), defaultdict(list)
    for (_, spans, _), rights in zip(documents, judge(model, documents, length)):
        for span, right in zip(spans, rights):
            tasks[span.task].append(right)
            if span.task == "recall":
                distances[1 << max(6, span.distance.bit_length())].append(right)
    share = lambda table: {k: {"answers": len(v), "right": round(sum(v) / len(v), 4)} for k, v in sorted(table.items())}
    return {"chats": count, "tasks": share(tasks), "recall_by_distance_below": share(distances)}


def generated(model, pool, length, trials):
    """Recall again, decoded greedily with a KV cache."""
    right = 0
    for ids, (span,), _ in pool.map(make_trial, [(f"{length}/{i}", length) for i in range(trials)]):
        prompt = torch.tensor([ids[:span.start]], device=model.device)
        said = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False)
        right += said[0, span.start:].tolist() == ids[span.start:]
    return {"length": length, "trials": trials, "right": right}


def grammatical(texts):
    """Complete sentences in texts, and how many of them the generator could have written."""
    any_of = lambda *lists: "(?:" + "|".join(sorted({word for each in lists for word in each})) + ")"
    names = f"(?:{any_of(data.NAMES)}|(?:{any_of(data.SYLLABLES, [s.capitalize() for s in data.SYLLABLES])})+)"
    who = (f"(?:{names}|The {any_of(data.COLOURS)} {any_of(data.ANIMALS)}"
           f"|The (?:{any_of(data.ADJECTIVES)} )?{any_of(data.PEOPLE)})")
    when = any_of(["".join(each).strip() for each in data.TIMES])
    place = f"the {any_of(data.PLACES)}"
    there = f"{any_of(data.AT)} {place}"
    does = (f"(?:{any_of(data.MOVES)} {any_of(data.TOWARDS)} {place}|{any_of(data.RESTS)} {there}"
            f"|{any_of(data.ACTS)} an? (?:{any_of(data.QUALITIES)} )?{any_of(data.OBJECTS)}(?: {there})?)")
    sentence = re.compile(
        f"(?:The {any_of(data.THINGS)} of {names} is {any_of(data.STATES)}"
        f"|It is {any_of(data.WEATHERS)} {there} {when}"
        f"|{who} {does}(?: {when}| {any_of(data.MANNERS)})?"
        "|(?:Remember: the|The) [a-z]+ of [A-Z][a-z]+ is [^.]+)")
    count = right = 0
    for text in texts:
        for each in re.split(r"\.\s+", text)[:-1]:
            count += 1
            right += sentence.fullmatch(each.strip()) is not None
    return count, right


def free_text(model, count):
    """Sampled continuations of the beginnings of a sentence."""
    torch.manual_seed(0)
    vocabulary = data.Vocabulary()
    texts = []
    for prompt in ("The", "It is", "The old", "Mira"):
        ids = torch.tensor([vocabulary.tokenizer.encode(prompt).ids] * count, device=model.device)
        said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=150, do_sample=True,
                              temperature=1.0, top_k=0, top_p=1.0)
        texts += [vocabulary.tokenizer.decode(row) for row in said.tolist()]
    sentences, right = grammatical(texts)
    return {"sentences": sentences, "grammatical": right, "share": round(right / max(1, sentences), 4)}


PAGE = 16


def pages(model, contexts, length=1024):
    """Breaks each page of a cached context full of facts, and asks for the facts that lie in it.

    A page counts as seen if at least one of these answers is no longer right. Ways to break a page: its keys and values
    are those of another context (stale), those of the page before (neighbour), or zero; in all layers or in one.
    """
    vocabulary = data.Vocabulary()
    ways = ["intact", "stale", "neighbour", "zero"] + [f"stale in layer {i}" for i in range(len(model.model.layers))]
    seen = {way: [0, 0] for way in ways}
    for number in range(contexts):
        (ids, stated), (other, _) = (facts_only(vocabulary, f"pages {number} {i}", length) for i in range(2))
        cache, stale = prefill(model, ids[:length]), prefill(model, other[:length])
        # Page 0 holds the beginning of the turn.
        for page in range(1, length // PAGE):
            here = [(fact, start, end) for fact, start, end in stated
                    if start < (page + 1) * PAGE and end > page * PAGE and end <= length]
            if not here:
                continue
            for way in ways:
                broken = broken_page(cache, stale, page, way)
                right = all(answered(model, vocabulary, broken, fact) for fact, _, _ in here)
                seen[way][0] += not right
                seen[way][1] += 1
    return {way: {"pages": of, "seen": count, "share": round(count / max(1, of), 4)}
            for way, (count, of) in seen.items()}


def facts_only(vocabulary, seed, length):
    """The tokens of a user's turn of nothing but facts, and where each fact begins and ends."""
    rng = data.random.Random(seed)
    made = data.Document(vocabulary, rng)
    made.open_turn("user")
    source, stated = data.Facts(rng, length // 8), []
    while len(made) < length + PAGE:
        fact = source.draw()
        start = made.fact(fact)
        stated.append((fact, start, len(made)))
    return made.ids, stated


def prefill(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids], device=model.device), use_cache=True).past_key_values


def broken_page(cache, stale, page, way):
    """A copy of a cache in which one page is broken."""
    out = copy.deepcopy(cache)
    here, before = slice(page * PAGE, (page + 1) * PAGE), slice((page - 1) * PAGE, page * PAGE)
    for index, (layer, other) in enumerate(zip(out.layers, stale.layers)):
        for to, source in ((layer.keys, other.keys), (layer.values, other.values)):
            if way == "stale" or way == f"stale in layer {index}":
                to[:, :, here] = source[:, :, here]
            elif way == "neighbour":
                to[:, :, here] = to[:, :, before].clone()
            elif way == "zero":
                to[:, :, here] = 0
    return out


def answered(model, vocabulary, cache, fact):
    """Whether a question after a cached context is answered rightly."""
    made = data.Document(vocabulary, data.random.Random(0))
    made.add(["\n\n"])
    made.is_line_start = True
    made.ask([" What", " is", " the", fact.attribute, " of", fact.name, "?"])
    made.answer("recall", [" The", fact.attribute, " of", fact.name, " is", *fact.value, "."])
    span = made.spans[0]
    with torch.no_grad():
        ids = torch.tensor([made.ids], device=model.device)
        said = model(ids, past_key_values=copy.deepcopy(cache), use_cache=True).logits[0].argmax(-1).tolist()
    return said[span.start - 1:span.end - 1] == made.ids[span.start:span.end]


PARTS = ("recall", "chats", "generated", "text", "pages")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=data.MODEL)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--trials", type=int, default=1024)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype).eval().to("cuda" if gpu else "cpu")
    results = {}
    with Pool(12 if gpu else 2, start_worker) as pool:
        for part in options.parts:
            if part == "recall":
                got = {length: recall(model, pool, length, options.trials) for length in options.lengths}
            elif part == "chats":
                lengths = sorted({*options.lengths[1::2], options.lengths[-1]})
                got = {length: chats(model, pool, length, max(4, options.trials // 8)) for length in lengths}
            elif part == "generated":
                got = generated(model, pool, options.lengths[-2], max(2, min(32, options.trials // 8)))
            elif part == "text":
                got = free_text(model, 64 if gpu else 16)
            else:
                got = pages(model, max(1, options.trials // 512))
            results[part] = {"dtype": options.dtype, "device": "GPU" if gpu else "CPU", "results": got}
            print(part, json.dumps(results[part]), flush=True)
    if options.out:
        merged = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.write_text(json.dumps(merged | results, indent=1) + "\n")


if __name__ == "__main__":
    main()
