"""Four of the functions once more, from their docstrings alone and in plain loops: another way than ours.

tests/test_course.py grades them. They must have all points, or a test of ours fails a right solution.
"""

import math

import torch


def sample_token(logits, temperature, uniform):
    tokens, log_probs = [], []
    for row, scores in enumerate(logits.tolist()):
        scale, largest = (1.0 if temperature == 0 else temperature), max(scores)
        weights = [math.exp((x - largest) / scale) for x in scores]
        total = sum(weights)
        probs = [weight / total for weight in weights]
        if temperature == 0:
            token = probs.index(max(probs))
        else:
            token, total, goal = -1, 0.0, 1.0 - uniform[row].item()
            while token + 1 < len(probs) and (token < 0 or total < goal):
                token += 1
                total += probs[token]
            while probs[token] == 0:  # rounding has carried the search past the last possible token
                token -= 1
        tokens.append(token)
        log_probs.append(math.log(probs[token]))
    return torch.tensor(tokens), torch.tensor(log_probs)


def advantages(returns, correct, problem_of, baseline):
    result = torch.zeros_like(returns)
    B, K = returns.shape
    for row in range(B):
        for turn in range(K):
            others = []
            for other in range(B):
                if other == row:
                    continue
                if baseline == "rloo":
                    comparable = bool(problem_of[other] == problem_of[row])
                else:
                    comparable = turn == 0 or bool(correct[other, turn - 1] == correct[row, turn - 1])
                if comparable:
                    others.append(returns[other, turn].item())
            mean = sum(others) / len(others) if others else 0.0
            result[row, turn] = returns[row, turn].item() - mean
    return result


def token_scores(model, reference, ids, mask, temperature):
    log_probs, kls, entropies = [], [], []
    for row in range(len(ids)):
        ours = (model(ids[row : row + 1])[0] / temperature).log_softmax(-1)
        with torch.no_grad():
            theirs = (reference(ids[row : row + 1])[0] / temperature).log_softmax(-1)
        for t in range(ids.shape[1]):
            if mask[row, t]:
                p, q = ours[t - 1], theirs[t - 1]
                log_probs.append(p[ids[row, t]])
                kls.append(sum(p[v].exp() * (p[v] - q[v]) for v in range(len(p))))
                entropies.append(-sum(p[v].detach().exp() * p[v].detach() for v in range(len(p))))
    return torch.stack(log_probs), torch.stack(kls), torch.stack(entropies)


def self_correction_metrics(correct, changed=None):
    rows = [[bool(x) for x in row[:2]] for row in correct]
    lists = {
        "acc_t1": [float(a) for a, b in rows],
        "acc_t2": [float(b) for a, b in rows],
        "delta": [float(b) - float(a) for a, b in rows],
        "i_to_c": [float(b and not a) for a, b in rows],
        "c_to_i": [float(a and not b) for a, b in rows],
        "fix_rate": [float(b) for a, b in rows if not a],
        "change_rate": [] if changed is None else [float(x) for x in changed],
    }
    result, errors = {"n": len(rows)}, {}
    for name, values in lists.items():
        if not values:
            result[name] = errors[name] = math.nan
            continue
        mean = sum(values) / len(values)
        result[name] = mean
        errors[name] = math.sqrt(sum((x - mean) ** 2 for x in values) / len(values) / len(values))
    result["se"] = errors
    return result
