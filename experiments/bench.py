"""How much the KV cache saves: sample_dialogues against a loop that computes every row anew for each token.

python experiments/bench.py        same weights, batch and lengths, in alternating pairs; medians of 5
"""

import statistics
import time

import torch
import torch.nn.functional as F

from data import load_task, train_problems
from data.tokenizer import CORRECTION_REQUEST, build_tokenizer
from rollout import pick, right_pad, sample_dialogues
from train import Config, make_model


@torch.no_grad()
def without_cache(model, prompts, follow_up, turns, max_new, generator, end) -> int:
    """Samples like `sample_dialogues`, without a cache. Returns the number of sampled tokens."""
    rows, sampled = [list(p) for p in prompts], 0
    for turn in range(turns):
        if turn:
            rows = [row + follow_up for row in rows]
        alive = set(range(len(rows)))
        for _ in range(max_new):
            ids, lengths = right_pad(rows, end, "cpu")
            hidden = model.hidden(ids)[torch.arange(len(rows)), lengths - 1]
            tokens = pick(F.log_softmax(model.head(hidden), -1), 1.0, generator).tolist()
            for b in list(alive):
                rows[b].append(tokens[b])
                sampled += 1
                if tokens[b] == end:
                    alive.remove(b)
            if not alive:
                break
    return sampled


def main() -> None:
    c, task = Config(), load_task("division")
    tokenizer = build_tokenizer(task.DIGITS_PER_TOKEN)
    model = make_model(c, tokenizer.vocab_size)
    problem_at = train_problems(task, c.size, 0)
    prompts = [tokenizer.user_turn(problem_at(i).prompt) for i in range(c.batch)]
    follow_up, max_new, end = tokenizer.user_turn(CORRECTION_REQUEST, first=False), 17, tokenizer.end_id  # 17: a whole attempt
    rates = {"with cache": [], "without": []}
    for pair in range(6):
        generator = torch.Generator().manual_seed(pair)
        start = time.perf_counter()
        rollout = sample_dialogues(model, tokenizer, prompts, follow_up, 2, max_new, 1.0, generator)
        middle = time.perf_counter()
        plain = without_cache(model, prompts, follow_up, 2, max_new, generator, end)
        if pair:  # the first is warm-up
            rates["with cache"].append(int(rollout.masks.sum()) / (middle - start))
            rates["without"].append(plain / (time.perf_counter() - middle))
    for name, values in rates.items():
        print(f"{name:>10}: {statistics.median(values):8.0f} tokens/s   ({min(values):.0f} to {max(values):.0f})")
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    print(f"     ratio: {statistics.median(ratios):8.1f}            ({min(ratios):.1f} to {max(ratios):.1f})   batch {c.batch}")


if __name__ == "__main__":
    main()
