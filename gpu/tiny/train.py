"""Trains the tiny model: Muon for matrices, Adam for the rest, sequence lengths that grow from 256 to 8192.

    python train.py --out OUT                            # on one GPU
    python train.py --out OUT --steps 20 --tokens 2048   # on a CPU, to see that it runs

Writes `weights.safetensors` (float32, every 1000 steps), `model.safetensors` (bf16, at the end) and `train.jsonl`.
The run is a function of its arguments, up to the order of float sums, unless --seconds cuts it short.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import data
from model import Llama

# From which part of the run on which length is the longest.
CURRICULUM = ((0.0, 256), (0.07, 1024), (0.18, 2048), (0.32, 4096), (0.55, 8192))
LONGEST_SHARE = 0.6
ECHOES = ((0.0, 0.3), (0.1, 0.0))
MUON_RATE, ADAM_RATE = 4e-3, 2e-3
WEIGHT_DECAY = 0.05
WARMUP, DECAY = 0.01, 0.4


def at(table, progress):
    return [value for start, value in table if progress >= start][-1]


class Batches(Dataset):
    """The batch of a step: ids and weight classes of `tokens` tokens, of one length."""

    def __init__(self, seed, tokens, steps, first, begin):
        self.seed, self.tokens, self.steps, self.first, self.begin = seed, tokens, steps, first, begin
        self.vocabulary = None

    def __len__(self):
        return self.steps - self.first

    def __getitem__(self, index):
        if self.vocabulary is None:
            self.vocabulary = data.Vocabulary()
        step = self.first + index
        progress = max(step / self.steps, self.begin)
        rng = random.Random(f"{self.seed}/{step}")
        length = at(CURRICULUM, progress)
        if rng.random() >= LONGEST_SHARE:
            length = rng.choice([each for _, each in CURRICULUM if each <= length])
        length = min(length, self.tokens)
        ids, weights = data.batch(self.vocabulary, f"{self.seed}/{step}", self.tokens // length, length,
                                  at(ECHOES, progress))
        return torch.from_numpy(ids.astype(np.int32)), torch.from_numpy(weights)


class Muon:
    """Momentum whose update is made orthogonal (Newton-Schulz), for stacks of matrices of one shape."""

    def __init__(self, parameters, momentum=0.95):
        self.momentum = momentum
        shapes = {}
        for parameter in parameters:
            shapes.setdefault(tuple(parameter.shape), []).append(parameter)
        self.groups = [(group, torch.zeros(len(group), *shape, device=group[0].device))
                       for shape, group in shapes.items()]

    @torch.no_grad()
    def step(self, rate):
        for group, average in self.groups:
            update = orthogonal(torch.stack([p.grad for p in group]), average, self.momentum)
            # Scaled to the size of Adam's updates.
            update *= 0.2 * max(update.shape[-2:]) ** 0.5 * rate
            torch._foreach_mul_(group, 1 - rate * WEIGHT_DECAY)
            torch._foreach_sub_(group, list(update.unbind()))


@torch.compile
def orthogonal(gradient, average, momentum):
    average.lerp_(gradient, 1 - momentum)
    x = gradient.lerp(average, momentum).bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


def trials(vocabulary, length, count):
    """Recall trials as one padded tensor, and where their answers are."""
    made = [data.recall_trial(vocabulary, f"training {i}", length)[0] for i in range(count)]
    ids = torch.zeros(count, length, dtype=torch.int64)
    for row, each in enumerate(made):
        ids[row, :len(each)] = torch.tensor(each.ids)
    return ids, [each.spans[0] for each in made]


def recalled(model, ids, spans):
    """The share of trials whose answer is predicted token by token, end of turn included."""
    said = model.predict(ids)
    right = sum(torch.equal(said[i, s.start - 1:s.end - 1], ids[i, s.start:s.end]) for i, s in enumerate(spans))
    return right / len(spans)


def rate_at(progress):
    return min(1.0, progress / WARMUP + 0.01, (1 - progress) / DECAY)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--tokens", type=int, default=131072, help="tokens of a step")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1e9, help="cut the schedule short after this time")
    parser.add_argument("--init", type=Path, help="float32 weights to go on from")
    parser.add_argument("--first", type=int, default=0, help="the step to start at")
    parser.add_argument("--begin", type=float, default=0.0, help="least progress in the curriculum of lengths")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()

    model = Llama(options.seed).to(device)
    if options.init:
        model.load(options.init)
    matrices = [p for name, p in model.weights.items() if "proj" in name]
    muon = Muon(matrices)
    adam = torch.optim.Adam([p for name, p in model.weights.items() if "proj" not in name], betas=(0.9, 0.98),
                            fused=device == "cuda")
    batches = DataLoader(Batches(options.seed, options.tokens, options.steps, options.first, options.begin),
                         batch_size=None, num_workers=options.workers, pin_memory=device == "cuda",
                         prefetch_factor=4 if options.workers else None)
    class_weights = torch.tensor(data.WEIGHTS, device=device)
    vocabulary = data.Vocabulary()
    lengths = [length for length in (512, 2048, 8192) if length <= options.tokens]
    probes = {length: trials(vocabulary, length, 64 if device == "cuda" else 2) for length in lengths}
    log = (options.out / "train.jsonl").open("w")

    tokens, seen, waited, first_done = 0, [], 0.0, None
    before = time.perf_counter()
    for step, (ids, weights) in enumerate(batches, options.first):
        waited += time.perf_counter() - before
        spent = (before - first_done) / max(1.0, options.seconds - (first_done - started)) if first_done else 0.0
        progress = max(step / options.steps, spent)
        if progress >= 1:
            break
        rate = rate_at(progress)
        ids, weights = ids.to(device, non_blocking=True).long(), weights.to(device, non_blocking=True).long()
        loss, right, answers = model.loss(ids, class_weights[weights])
        loss.backward()
        muon.step(MUON_RATE * rate)
        adam.param_groups[0]["lr"] = ADAM_RATE * rate
        adam.step()
        model.zero_grad()
        tokens += ids.numel()
        seen.append((ids.shape[1], loss.detach(), right, answers))
        if len(seen) == 100 or step + 1 == options.steps or step < 5:
            report(log, step, tokens, time.perf_counter() - started, waited, rate, seen)
            seen, waited = [], 0.0
        if (step + 1) % 1000 == 0:
            model.save(options.out / "weights.safetensors")
            scores = {length: recalled(model, ids.to(device), spans) for length, (ids, spans) in probes.items()}
            print("recall", scores, flush=True)
        before = time.perf_counter()
        first_done = first_done or before
    model.save(options.out / "weights.safetensors")
    model.save(options.out / "model.safetensors", torch.bfloat16)
    scores = {length: recalled(model, ids.to(device), spans) for length, (ids, spans) in probes.items()}
    print(f"{step + 1} steps, {tokens / 1e6:.0f} M tokens, {time.perf_counter() - started:.0f} s, recall {scores}")


def report(log, step, tokens, elapsed, waited, rate, seen):
    """Writes loss and the share of right answer tokens since the last report, by length."""
    lines = {}
    for length, loss, right, answers in seen:
        lines.setdefault(length, []).append((loss.item(), right.item(), answers.item()))
    by_length = {length: {"loss": round(float(np.mean([l for l, _, _ in each])), 4),
                          "right": round(sum(r for _, r, _ in each) / max(1, sum(a for _, _, a in each)), 5)}
                 for length, each in sorted(lines.items())}
    entry = {"step": step + 1, "tokens": tokens, "seconds": round(elapsed, 1), "waited": round(waited, 1),
             "rate": round(rate, 3), "lengths": by_length}
    log.write(json.dumps(entry) + "\n")
    log.flush()
    short = " ".join(f"{length}:{v['loss']}/{v['right']}" for length, v in by_length.items())
    print(f"{step + 1} {elapsed:.0f}s (waited {waited:.1f}) rate {rate:.3f} {short}", flush=True)


if __name__ == "__main__":
    main()
