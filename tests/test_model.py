"""The decoder: both kinds of block, causality, the cache."""

import pytest
import torch

from engine.hf import gpt2_config
from model import GPT, GPTConfig, KVCache, rope, rotate

KINDS = {
    "modern": dict(n_kv_head=2, qk_norm=True, qkv_bias=True),
    "gpt2": dict(norm="layer", position="learned", mlp="gelu", bias=True, qk_norm=False, tie_weights=True),
    "plain": dict(qk_norm=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_cached_pass_equals_plain_pass_on_ragged_rows(small_gpt, kind):
    """Also of a cache that is longer than what is in it: several tokens more, then one by one."""
    model = small_gpt(**KINDS[kind])
    lengths = torch.tensor([5, 9, 7])
    ids, found = torch.randint(0, 90, (3, 15)), []
    cache = KVCache(model.config, 3, 20)
    with torch.no_grad():
        plain = model(ids)
        first = model(ids[:, :9], cache)  # rows 0 and 2 hold padding here, as the sampler's prompts do
        cache.keep(lengths.tolist())
        found.append(model(ids.gather(1, lengths[:, None] + torch.arange(4)), cache))
        cache.keep((lengths + 4).tolist())
        for more in (4, 5):
            found.append(model(ids.gather(1, lengths[:, None] + more), cache))
            cache.advance()
    for row, length in enumerate(lengths.tolist()):
        assert torch.allclose(first[row, :length], plain[row, :length], atol=1e-4)
        assert torch.allclose(torch.cat(found, 1)[row], plain[row, length : length + 6], atol=1e-4)
    assert cache.lengths.tolist() == [11, 15, 13] and cache.longest == 15


@pytest.mark.parametrize("kind", ["modern", "gpt2"])
def test_no_token_sees_the_future(small_gpt, kind):
    model = small_gpt(**KINDS[kind])
    ids = torch.randint(0, 90, (2, 10))
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 90
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_rope_scores_depend_on_distance_only():
    cos, sin = (t[:, None] for t in rope(GPTConfig(vocab_size=9), torch.arange(256)))  # [T, 1, D]
    q, k = torch.randn(2, 1, 1, 1, 32)

    def at(x, i):
        return rotate(x, cos[None, i : i + 1], sin[None, i : i + 1])

    def score(i, j):
        return (at(q, i) * at(k, j)).sum()

    assert torch.allclose(score(7, 3), score(107, 103), atol=1e-4)
    assert not torch.allclose(score(7, 3), score(7, 4), atol=1e-2)


def test_rotation_is_the_textbook_one():
    """Pair (i, i + D/2) turned by position * theta^(-2i/D), against complex multiplication."""
    config = GPTConfig(vocab_size=9, head_dim=6, max_len=11)
    x = torch.randn(1, 11, 2, 6)
    cos, sin = (t[None, :, None] for t in rope(config, torch.arange(11)))
    angle = torch.arange(11)[:, None] * config.rope_theta ** (-2 * torch.arange(3) / 6)
    turned = torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones_like(angle), angle)[None, :, None]
    assert torch.allclose(rotate(x, cos, sin), torch.cat((turned.real, turned.imag), -1), atol=1e-5)


def test_grouped_queries_share_keys(small_gpt):
    """With each kv head repeated, full attention gives what grouped-query attention gives."""
    grouped, full = small_gpt(n_kv_head=2, qk_norm=False), small_gpt(n_kv_head=4, qk_norm=False)
    full.load_state_dict({k: v for k, v in grouped.state_dict().items() if "qkv" not in k}, strict=False)
    for a, b in zip(grouped.blocks, full.blocks, strict=True):
        q, k, v = a.attn.qkv.weight.data.split((32, 16, 16))
        k, v = (t.view(2, 8, 32).repeat_interleave(2, 0).reshape(32, 32) for t in (k, v))
        b.attn.qkv.weight.data = torch.cat((q, k, v))
    ids = torch.randint(0, 90, (2, 12))
    with torch.no_grad():
        assert torch.allclose(grouped(ids), full(ids), atol=1e-4)


def test_gpt2_has_its_size():
    with torch.device("meta"):
        model = GPT(gpt2_config())
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_too_long_and_bad_configs_are_named(small_gpt):
    model = small_gpt()
    with pytest.raises(ValueError, match="max_len=128"):
        model(torch.zeros(1, 129, dtype=torch.long))
    with pytest.raises(ValueError, match="n_kv_head"):
        GPTConfig(vocab_size=9, n_head=4, n_kv_head=3)


def test_a_new_model_begins_with_blocks_that_do_nothing():
    model = GPT(GPTConfig(50, n_layer=2, n_head=2, n_kv_head=2, dim=16, head_dim=8, ffn_dim=24, max_len=16))
    ids = torch.randint(0, 50, (2, 10))
    assert torch.equal(model.hidden(ids), model.norm(model.embed(ids)))
