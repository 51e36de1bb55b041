"""One SCoRe update written with transformers and plain torch, as a careful user would. bench.py times it.

It does what train.py does: two sampled attempts, RLOO, REINFORCE with the KL over the whole
vocabulary and the KL still to come. Nothing is done twice and nothing is written for speed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def sample(model, prompts: list[list[int]], request: list[int], new: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two attempts of `new` tokens at each prompt: ids and attention mask [B, T], turn masks [B, 2, T].

    `generate` wants rows that are padded on the left. Turn 2 goes on with the keys and values of turn 1.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    length = dict(max_new_tokens=new, min_new_tokens=new, eos_token_id=None, pad_token_id=0)
    past, starts = None, []
    for turn in range(2):
        if turn:
            asked = torch.tensor([request], device=model.device).expand(len(ids), -1)
            ids = torch.cat((ids, asked), 1)
        mask = F.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
        starts.append(ids.shape[1])
        done = model.generate(
            ids, attention_mask=mask, past_key_values=past, do_sample=True, top_k=0,
            return_dict_in_generate=True, **length,
        )  # fmt: skip
        ids, past = done.sequences, done.past_key_values
    mask = F.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
    columns = torch.arange(ids.shape[1], device=model.device)
    turns = torch.stack([(columns >= start) & (columns < start + new) for start in starts])  # [2, T]
    return ids, mask, turns.expand(len(ids), -1, -1)


def advantages(rewards: Tensor, n: int) -> Tensor:
    """Each reward minus the mean of the other n - 1 dialogues on the same problem [B, 2]."""
    rows = []
    for b in range(len(rewards)):
        first = b // n * n
        others = [rewards[i] for i in range(first, first + n) if i != b]
        rows.append(rewards[b] - torch.stack(others).mean(0))
    return torch.stack(rows)


def loss_of(model, reference, ids, mask, turns, advantage, betas: tuple[float, float], rows: int) -> Tensor:
    """REINFORCE with a KL penalty, for a micro-batch of a batch of `rows` rows."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = dict(attention_mask=mask, position_ids=positions, use_cache=False)
    log_p = model(ids, **inputs).logits[:, :-1].float().log_softmax(-1)  # [B, T - 1, V]
    with torch.no_grad():
        log_q = reference(ids, **inputs).logits[:, :-1].float().log_softmax(-1)
    turns = turns[:, :, 1:]  # [B, 2, T - 1]
    chosen = log_p.gather(2, ids[:, 1:, None])[:, :, 0]  # [B, T - 1]
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    kl_of = kl.detach()[:, None] * turns
    to_come = kl_of.flip(-1).cumsum(-1).flip(-1) - kl_of
    beta = torch.tensor(betas, device=ids.device)[None, :, None]
    credit = ((advantage[:, :, None] - beta * to_come) * turns).sum(1)
    return ((beta * turns).sum(1) * kl - credit * chosen).sum() / rows


def step(model, reference, optimizer, prompts, request, new: int, correct: Tensor, micro: int) -> None:
    """Sample, score, update. `correct` [B, 2] stands for the checker's verdicts, so nothing is decoded."""
    ids, mask, turns = sample(model, prompts, request, new)
    rewards = correct.float()
    rewards[:, 1] += 10 * (rewards[:, 1] - rewards[:, 0])
    advantage = advantages(rewards, 4)
    for part in torch.arange(len(ids), device=ids.device).split(micro):
        batch = ids[part], mask[part], turns[part], advantage[part]
        loss_of(model, reference, *batch, (0.3, 0.3), len(ids)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
