"""What the grader tries on each function, in plain words: what was called, what came, what is right, and why.

A check is a function without arguments. It gives its points if it passes on the student's version of one
function, its hole, in an otherwise right project. Its docstring says what is checked, and `Wrong` is what a
student reads. It imports the project's modules when it runs, so it finds those of the tree that is graded.
None asks for what a right solution may do otherwise: no chunks, no memory, no exact zeros.
"""

import copy
import importlib
import math

import torch


class Wrong(Exception):
    """What is wrong, for the student."""


def require(fine: bool, text: str) -> None:
    if not fine:
        raise Wrong(text)


def table(*rows: str) -> torch.Tensor:
    """Rows of 0 and 1, bool."""
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


def shown(x) -> str:
    """A number, tensor or other argument, in short."""
    if not torch.is_tensor(x):
        return repr(x)[:100]
    rows = x.double().reshape(-1, x.shape[-1] if x.ndim else 1).tolist()
    texts = ["[" + ", ".join(f"{v:.4g}" for v in row) + "]" for row in rows]
    text = texts[0] if x.ndim < 2 else f"[{', '.join(texts)}]"
    return text if len(text) < 150 else f"{text[:150]} ..."


def expect(call: str, got, want, idea: str, within: float = 1e-4) -> None:
    """Wrong unless `got` has the shape and the numbers of `want`. Its type may be another one."""
    want = torch.as_tensor(want)
    try:
        got = torch.as_tensor(got).detach()
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{call} gave {type(got).__name__}, not numbers. {idea}") from None
    shapes = f"{call} has the shape {list(got.shape)}, and {list(want.shape)} is right. {idea}"
    require(got.shape == want.shape, shapes)
    fine = torch.allclose(got.double(), want.double(), atol=within, rtol=1e-4, equal_nan=True)
    require(fine, f"{call} gave {shown(got)}, and {shown(want)} is right. {idea}")


def called(name: str, *args):
    """What `module.function` gives, and the call in words. Wrong if it changes an argument."""
    module, _, function = name.partition(".")
    given = [x.clone() if torch.is_tensor(x) else x for x in args]
    got = getattr(importlib.import_module(module), function)(*given)
    call = f"{function}({', '.join(map(shown, args))})"
    for before, after in zip(args, given, strict=True):
        same = not torch.is_tensor(before) or torch.equal(before, after)
        require(same, f"{call} has changed its argument. Work on a copy: others use it, too.")
    return got, call


def case(name: str, args: tuple, want, idea: str) -> None:
    got, call = called(name, *args)
    expect(call, got, want, idea)


def tokens_of(logits, temperature, uniform) -> torch.Tensor:
    tokens, call = called("rollout.sample_token", logits, temperature, uniform)
    fine = torch.is_tensor(tokens) and tokens.shape == uniform.shape and not tokens.is_floating_point()
    require(fine, f"{call} gave {getattr(tokens, 'shape', type(tokens))}: one integer a row, [n], is right.")
    return tokens


def tokens_have_their_probabilities():
    """tokens come as often as their probabilities say, at two temperatures; temperature 0 is greedy"""
    p, n = torch.tensor([0.1, 0.6, 0.05, 0.25]), 4000
    logits, uniform = p.log().expand(n, 4), (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for temperature in (1.0, 0.5):
        share = tokens_of(logits, temperature, uniform).bincount(minlength=4) / n
        want = (p.log() / temperature).softmax(-1)
        call = f"sample_token at temperature {temperature}, of 4 tokens with {shown(p)}: their shares"
        expect(call, share, want, "The logits are divided by the temperature before the softmax.", 2e-3)
    greedy = tokens_of(logits[:9], 0, uniform[:9])
    expect("sample_token at temperature 0", greedy, [1] * 9, "It takes the likeliest token.")


def impossible_tokens_are_never_taken():
    """a token of probability 0 is never taken, not even for uniform = 0"""
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-53], dtype=torch.float64)
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(5, 1)
    idea = "Tokens 0, 2 and 4 have probability 0. 1 - uniform is above 0: it is reached where the sum rises."
    expect("sample_token for uniform 0 to almost 1", tokens_of(logits, 1.0, uniform), [3, 3, 1, 1, 1], idea)
    logits = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0))
    logits[:, ::2] = -torch.inf
    tokens = tokens_of(logits, 0.7, torch.zeros(2000, dtype=torch.float64))
    bad = int(((tokens % 2 == 0) | (tokens < 0) | (tokens >= 50)).sum())
    text = f"sample_token for uniform = 0 took a token of probability 0 in {bad} of 2000 rows. "
    require(bad == 0, text + "The sum may end a little below 1: then nothing reaches 1 - uniform.")


def rare_tokens_are_not_swallowed():
    """the cumulative sum is in float64, so that rare tokens of a large vocabulary are not swallowed"""
    logits = torch.full((1, 200_000), -20.0)
    logits[0, 0] = 0.0
    total = logits.softmax(-1).double().cumsum(-1)[0]
    for token in (1, 100_000, 199_999):
        u = 1 - (total[token - 1] + total[token]) / 2 / total[-1]
        idea = (
            "Sum in uniform's precision. float32 probabilities don't add up to 1: take (1 - uniform) * sum."
        )
        expect("sample_token of 200,000 tokens", tokens_of(logits, 1.0, u[None]), [token], idea)


def masks_are_half_open():
    """spans are half open, a turn may be empty, and the masks are bool"""
    args = torch.tensor([[1, 4], [0, 2]]), torch.tensor([[3, 5], [2, 2]]), 6
    idea = "Position t is in a turn if start <= t < stop. A turn with start = stop has no token."
    want = torch.stack((table("011000", "000010"), table("110000", "000000")))
    case("rollout.turn_masks", args, want, idea)
    dtype = getattr(called("rollout.turn_masks", *args)[0], "dtype", None)
    bool_ = dtype == torch.bool or str(dtype) == "bool"
    require(bool_, f"turn_masks gave {dtype}: bool is right, as integers pick rows, not masked places.")


def rewards_of_each_stage():
    """the four cases of (r1, r2) in Stage I, Stage II and plain RL"""
    idea = "Reward k is w_k r_k, and turn 2 has alpha (r_2 - r_1) on top. Rewards are floats."
    for weights, alpha, want in [
        ((0.0, 1.0), 0.0, [[0, 0], [0, 1], [0, 0], [0, 1]]),  # Stage I
        ((1.0, 1.0), 10.0, [[0, 0], [0, 11], [1, -10], [1, 1]]),  # Stage II
        ((1.0, 1.0), 0.0, [[0, 0], [0, 1], [1, 0], [1, 1]]),  # plain RL
    ]:
        case("rewards.turn_rewards", (table("00", "01", "10", "11"), weights, alpha), want, idea)


def the_bonus_has_no_weight():
    """the bonus is not multiplied by the turn's weight; with three turns it is r3 - r2"""
    idea = "The bonus alpha (r_2 - r_1) is added as it is: w_2 multiplies r_2 alone."
    case("rewards.turn_rewards", (table("01", "10"), (0.5, 0.25), 4.0), [[0, 4.25], [0.5, -4]], idea)
    idea, args = "Each turn is compared with the one before it.", (table("011", "110"), (1.0, 1.0, 1.0), 10.0)
    case("rewards.turn_rewards", args, [[0, 11, 1], [1, 1, -10]], idea)


def returns_count_all_later_turns():
    """returns with gamma 0, 0.5 and 1, of three turns"""
    rewards = torch.tensor([[0.0, 11.0, 3.0], [1.0, -10.0, 2.0]])
    wants = {0.0: rewards, 0.5: [[6.25, 12.5, 3], [-3.5, -9, 2]], 1.0: [[14, 14, 3], [-7, -8, 2]]}
    for gamma, want in wants.items():
        idea = "The last turn's return is its reward; G_k = R_k + gamma G_(k+1), from behind."
        case("rewards.turn_returns", (rewards, gamma), want, idea)


def coefficients(settings: dict, want: list[tuple]) -> None:
    """Are these the stages of a run with these settings?"""
    from train import Config, stages

    own = dict(base_steps=3, stage1_steps=4, stage2_steps=5, base_lr=0.3, lr=0.2, stage2_lr=0.1)
    fields = "name", "steps", "lr", "weights", "alpha", "gamma", "betas", "reference"
    rows = stages(Config(**own | settings))
    found, names = [getattr(row, "name", row) for row in rows], [values[0] for values in want]
    text = f"stages gave the rows {found}, and {names} is right: a stage of 0 steps has no row."
    require(found == names, text)
    for row, values in zip(rows, want, strict=True):
        for field, value in zip(fields, values, strict=True):
            got = getattr(row, field)
            got = tuple(got) if isinstance(got, list) else got
            text = f"stages gave {row.name} the {field} {got}, and {value} is right."
            require(got == value, f"{text} Compare it with the tables of the handout.")


BASE, ONE = ("base", 3, 0.3, (), 0, 0, (), "base"), ("stage1", 4, 0.2, (0, 1), 0, 0, (0.2, 0.01), "base")


def stages_are_rows_of_coefficients():
    """the coefficients of each stage, and which stages there are"""
    betas = dict(beta1=0.01, beta2=0.2, stage2_beta=0.4)
    two = ("stage2", 5, 0.1, (1, 1), 7, 0.8, (0.4, 0.4), "base")
    coefficients(dict(alpha=7.0, gamma=0.8, **betas), [BASE, ONE, two])
    alone = ("stage2", 5, 0.1, (1, 1), 10, 0, (0.4, 0.4), "base")
    coefficients(dict(init="base.pt", stage1_steps=0, **betas), [alone])
    imitate = ("imitate", 6, 0.2, (), 0, 0, (), "base")
    single = ("stage2", 5, 0.1, (1, 0), 0, 0, (0.4, 0), "base")
    more = dict(imitate="file", imitate_steps=6, stage2_weight2=0.0, alpha=0.0)
    coefficients(more | betas, [BASE, imitate, ONE, single])


# ---------------------------------------------------------------------------------- A3 and A4


def advantages_by_hand():
    """the return minus the mean of the others of the same problem, of three dialogues and of two"""
    idea = "The return minus the mean of the other n - 1 of its problem and turn: no clamp, no deviation."
    returns = torch.tensor([[1.0, 20.0], [0.0, -10.0], [5.0, 2.0], [8.0, 0.0], [8.0, 0.0], [2.0, 6.0]])
    want = [[-1.5, 24], [-3, -21], [4.5, -3], [3, -3], [3, -3], [-6, 6]]
    case("train.advantages", (returns, 3), want, idea)
    returns = torch.tensor([[1.0, 2.0, 4.0], [0.0, 5.0, 4.0], [11.0, 1.0, 1.0], [11.0, -10.0, 0.0]])
    case("train.advantages", (returns, 2), [[1, -3, 0], [-1, 3, 0], [0, 11, 1], [0, -11, -1]], idea)


def toys():
    """A random policy and a reference, small enough to visit every dialogue. Both want gradients."""
    from model import GPT, GPTConfig

    torch.manual_seed(0)
    sizes = dict(n_layer=1, n_head=1, n_kv_head=1, dim=8, head_dim=8, ffn_dim=8, max_len=16)
    policy = GPT(GPTConfig(vocab_size=3, **sizes)).double()
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    reference = copy.deepcopy(policy)
    for parameter in reference.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return policy, reference


def gradient(loss, model) -> torch.Tensor:
    text = "the loss has no gradient: it must depend on the policy's log-probs, not on detached numbers."
    require(torch.is_tensor(loss) and loss.requires_grad, text)
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    pairs = zip(grads, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def same_gradient(what: str, mine, right, policy, idea: str) -> None:
    expected = gradient(right, policy)
    found = gradient(mine, policy)
    off = ((found - expected).norm() / expected.norm()).item()
    other_way = " It points the other way: mind the signs." if found @ expected < 0 else ""
    text = f"{what}: the gradient is off by {100 * off:.1f} % of its length.{other_way} {idea}"
    require(off < 1e-3, text)


def dialogues() -> dict:
    """A batch of two turns with attempts of one to three tokens, and padding. A clamp would show."""
    ids = torch.tensor([[1, 0, 2, 1, 1, 2, 0, 2], [1, 1, 2, 0, 2, 1, 0, 2], [1, 2, 1, 2, 0, 2, 1, 1]])
    masks = table("01000000", "00001110"), table("01100000", "00000010"), table("01110000", "00000011")
    return {
        "ids": ids,
        "masks": torch.stack(masks),
        "advantages": torch.tensor([[1.0, -2], [9, 3], [-12, 0.5]]),
    }


def loss_of(policy, reference, batch, betas, temperature, rows=3):
    from train import policy_loss

    given = batch["advantages"].clone()
    result = policy_loss(policy, reference, batch, betas, temperature, rows)
    same = torch.equal(given, batch["advantages"])
    require(same, "policy_loss has changed batch['advantages']. Work on a copy: others use it, too.")
    pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    require(pair, f"policy_loss gave {type(result).__name__}, and a pair is right: the loss, a dictionary.")
    found, names = sorted(result[1]), ["entropy", "kl_t1", "kl_t2"]
    require(found == names, f"policy_loss gave the parts {found}, and {names} is right.")
    return result


def by_the_formula(betas, temperature, idea: str) -> None:
    """Are the loss's gradient and the KLs those of the handout's formula?"""
    (policy, reference), batch, right, kls = toys(), dialogues(), 0.0, []
    p, q = ((m(batch["ids"])[:, :-1] / temperature).log_softmax(-1) for m in (policy, reference))
    log_probs = p.gather(-1, batch["ids"][:, 1:, None])[..., 0]
    kl = (p.exp() * (p - q.detach())).sum(-1)
    for k, beta in enumerate(betas):
        mask = batch["masks"][:, k, 1:]
        later = (kl * mask).detach().flip(-1).cumsum(-1).flip(-1) - (kl * mask).detach()
        credit = batch["advantages"][:, k, None] - beta * later
        right = right + ((beta * kl - credit * log_probs) * mask).sum() / 3
        kls.append((kl * mask).sum().item() / 3)
    loss, parts = loss_of(policy, reference, batch, betas, temperature)
    what = f"policy_loss of three dialogues at temperature {temperature}, betas {betas}"
    same_gradient(what, loss, right, policy, idea)
    found = torch.tensor([float(parts["kl_t1"]), float(parts["kl_t2"])])
    expect(f"{what}: kl_t1 and kl_t2", found, torch.tensor(kls), "The sum of a turn's KLs, divided by rows.")
    leak = gradient(loss + 0 * sum(x.sum() for x in reference.parameters()), reference).norm()
    require(leak == 0, "the loss has a gradient through the reference, which is frozen: use torch.no_grad().")


def the_gradient_of_rewards():
    """without KL: each token's log-prob times its turn's advantage, at temperature 1 and 0.6"""
    idea = "It is the sum of advantage times log-prob, over tokens that weigh alike, divided by rows."
    by_the_formula((0.0, 0.0), 1.0, idea)
    by_the_formula((0.0, 0.0), 0.6, f"{idea} The log-probs are at the sampler's temperature.")


def the_gradient_with_kl():
    """with KL: each token's KL has a gradient, and the KL in the weights of the log-probs has none"""
    by_the_formula((0.7, 0.3), 1.0, "beta * KL has a gradient of its own. The credit, with its KL, has none.")


def micro_batches_add_up():
    """the losses and parts of micro-batches add up to the batch's"""
    models, batch = toys(), dialogues()
    parts = [{key: x[cut] for key, x in batch.items()} for cut in (slice(0, 3), slice(0, 1), slice(1, 3))]
    found = [loss_of(*models, part, (0.2, 0.1), 1.0) for part in parts]
    whole, *halves = (torch.tensor([float(x) for x in (loss, *sums.values())]) for loss, sums in found)
    idea = "Each is divided by `rows`, the rows of the whole batch, not by its own."
    expect("policy_loss of one row and of two, rows=3: the sums of loss and parts", sum(halves), whole, idea)


def scores(temperature: float):
    """What token_scores gives, what is right, and the policy."""
    (policy, reference), mask = toys(), table("01101", "00110")
    ids, at = torch.tensor([[1, 2, 0, 1, 2], [2, 2, 1, 0, 0]]), mask[:, 1:]
    p, q = ((m(ids)[:, :-1] / temperature).log_softmax(-1)[at] for m in (policy, reference))
    want = p.gather(-1, ids[:, 1:][at][:, None])[:, 0], (p.exp() * (p - q.detach())).sum(-1)
    got, _ = called("train.token_scores", policy, reference, ids, mask, temperature)
    require(isinstance(got, tuple) and len(got) == 3, "token_scores must give log-probs, KL and entropy.")
    return got, (*want, -(p.exp() * p).sum(-1).detach()), policy


def scores_of_each_token():
    """log-probs, KL and entropy of the masked tokens, both models' logits divided by the temperature"""
    idea = "Position t - 1 scores token t, with both models' logits divided by the temperature."
    for temperature in (1.0, 0.7):
        got, want, _ = scores(temperature)
        for name, mine, right in zip(("log-probs", "KL", "entropy"), got, want, strict=True):
            expect(f"token_scores at temperature {temperature}: the {name}", mine, right.detach(), idea)


def scores_have_gradients():
    """the gradients of log-probs and KL flow to the policy, and they are those of the values"""
    got, want, policy = scores(1.0)
    idea = "The KL is KL(policy || reference), the sum over v of p_v log(p_v / q_v)."
    same_gradient("token_scores, log-probs", got[0].sum(), want[0].sum(), policy, idea)
    same_gradient("token_scores, KL", got[1].sum(), want[1].sum(), policy, idea)


def credit_by_hand():
    """a token is charged for the KL that it leads to in its own turn, not its own and not other turns'"""
    kl = torch.tensor([[0.0, 1.0, 2.0, 4.0, 0.0, 8.0, 16.0, 0.0]])
    args = torch.zeros(1, 2), kl, table("01110000", "00000110")[None], (0.5, 0.25)
    idea = "Token 1 leads to the KLs 2 and 4 of its turn, at beta 0.5: -3. A turn's last token leads to none."
    case("train.token_credit", args, [[0, -3, -2, 0, 0, -4, 0, 0]], idea)


def credit_has_the_whole_advantage():
    """every token of a turn has the turn's whole advantage, and tokens outside the masks have 0"""
    masks = torch.stack((table("01100", "00001"), table("01000", "00110")))
    args = torch.tensor([[3.0, -7.0], [20.0, 1.0]]), torch.zeros(2, 5), masks, (0.5, 0.25)
    idea = "Each token of a turn has its advantage, not divided by the length, nor at one end alone."
    case("train.token_credit", args, [[0, 3, 3, 0, -7], [0, 20, 1, 1, 0]], idea)


def metrics(idea: str, rows: torch.Tensor, want: dict, *changed) -> None:
    """Has self_correction_metrics these values? `se_...` is the standard error of ..."""
    m, call = called("eval.self_correction_metrics", rows, *changed)
    for name, value in want.items():
        group, key = (m.get("se", {}), name[3:]) if name.startswith("se_") else (m, name)
        require(key in group, f"self_correction_metrics gave no {name!r}: see its docstring.")
        expect(f"{call}: {name}", group[key], value, idea)


def metrics_of_a_table():
    """accuracies, delta, transitions and fix rate of a row of the paper's table; later turns are left out"""
    counts = {"010": 58, "101": 14, "110": 586, "001": 342}
    rows = torch.cat([table(row).expand(n, 3) for row, n in counts.items()])
    want = {"acc_t1": 0.6, "acc_t2": 0.644, "delta": 0.044, "i_to_c": 0.058, "c_to_i": 0.014}
    idea = "i_to_c and c_to_i are shares of all problems, fix_rate of those with a wrong first attempt."
    metrics(idea, rows, want | {"fix_rate": 0.145, "n": 1000})


def errors_are_paired():
    """standard errors; that of delta is paired"""
    variance = sum((d - 0.125) ** 2 for d in (1, 0, 0, 0, 0, 0, -1, 1)) / 8
    want = {"se_acc_t1": math.sqrt(0.25 / 8), "se_delta": math.sqrt(variance / 8), "se_fix_rate": 0.25}
    idea = "It is sqrt(mean((x - mean)^2) / len(x)). For delta the x are the differences r2 - r1."
    metrics(idea, table("01", "11", "11", "00", "00", "11", "10", "01"), want)


def no_wrong_attempt_has_no_fix_rate():
    """without a wrong first attempt the fix rate is NaN"""
    metrics("A share of nothing is not a number.", table(*["11"] * 5), {"fix_rate": math.nan, "delta": 0})


def changes_are_counted():
    """the change rate is the mean of `changed`, and NaN if that is not given"""
    rows, changed = table("00", "01", "10", "11"), table("1011")[0]
    metrics("It is the mean of `changed`, whatever is right.", rows, {"change_rate": 0.75}, changed)
    metrics("Where nothing is known the answer is NaN, not 0.", rows, {"change_rate": math.nan})
