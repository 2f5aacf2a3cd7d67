"""Requests that the load generator does not make: a shared prefix that is warm, restarts, the same tokens everywhere."""

import json
import random
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor


def ask(port, ids, tokens, **sampling):
    """The answer's tokens, its meta_info and milliseconds."""
    sampling = {"temperature": 0, "ignore_eos": True, "max_new_tokens": tokens, **sampling}
    body = json.dumps({"input_ids": ids, "sampling_params": sampling}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/generate", body, {"content-type": "application/json"}
    )
    begin = time.monotonic()
    answer = json.load(urllib.request.urlopen(request, timeout=120))
    return answer["output_ids"], answer["meta_info"], 1e3 * (time.monotonic() - begin)


def ids(seed, count):
    draw = random.Random(seed)
    return [draw.randrange(3, 2000) for _ in range(count)]


def tell(what, answer):
    tokens, meta, ms = answer
    print(f"    {what}: {ms:.0f} ms, {meta['cached_tokens']} cached: {meta['cached_tokens_details']}, {meta['miss_reasons']}")
    return tokens


def shared():
    prefix = ids(3, 4096)
    ask(30010, prefix + ids(4, 256), 1)
    times = []
    for trial in range(5):
        prompts = [prefix + ids(1000 * trial + at, 256) for at in range(64)]
        begin = time.monotonic()
        with ThreadPoolExecutor(64) as pool:
            list(pool.map(lambda prompt: ask(30010, prompt, 1), prompts))
        times.append(1e3 * (time.monotonic() - begin))
    print(f"64 requests, 4,096 shared tokens (warm) and 256 own, all prefilled: {sorted(times)[2]:.0f} ms, the median of 5")


def before():
    ask(30010, ids(7, 2048), 1)
    ask(30010, ids(8, 25_153), 1)
    prompt = ids(1, 25_153)
    tell("computed", ask(30010, prompt, 1))
    tell("from L1", ask(30010, prompt, 1))
    for seed in (11, 12, 13):
        ask(30010, ids(seed, 24_000), 1)
    tell("from L2", ask(30010, prompt, 1))
    time.sleep(1)


def after(policy):
    ask(30010, ids(7, 64), 1)
    tell(f"after kill -9, {policy}", ask(30010, ids(1, 25_153), 1))
    tell("seven tokens", ask(30010, ids(99, 7), 1))


def same():
    draw = random.Random(5)
    cases = []
    for at in range(200):
        length = draw.choice([5, 16, 17, 100, 500, 1500, 3000])
        sampling = [{}, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9, "top_k": 50}][at % 3]
        cases.append((ids(5000 + at, length), 40, {**sampling, "sampling_seed": at}))

    def all_of(port, width):
        with ThreadPoolExecutor(width) as pool:
            return list(pool.map(lambda case: ask(port, case[0], case[1], **case[2])[0], cases))

    alone = all_of(30030, 1)
    for name, port, width in [("prefill/decode", 30010, 1), ("prefill/decode", 30010, 32), ("unified, cached", 30030, 32)]:
        agree = sum(one == other for one, other in zip(alone, all_of(port, width)))
        print(f"same tokens as unified, one at a time: {name}, {width} at a time: {agree} of {len(cases)}")
    times = {30010: [], 30030: []}
    for trial in range(5):
        for port, of_port in times.items():
            of_port.append(ask(port, ids(port + trial, 8192), 1)[2])
    unified, pair = (sorted(times[port])[2] for port in (30030, 30010))
    print(f"first token of 8,192: unified {unified:.1f} ms, prefill/decode {pair:.1f} ms")


{"shared": shared, "before": before, "after": lambda: after(sys.argv[2]), "same": same}[sys.argv[1]]()
