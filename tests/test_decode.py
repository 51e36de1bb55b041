"""The fast decode step against the clear one, `model.hidden`."""

from types import SimpleNamespace

import pytest
import torch

from engine import decode
from engine.decode import decoder
from engine.lora import add_lora
from model import KVCache
from rollout import sample_token

KINDS = {
    "modern": dict(n_kv_head=2, qk_norm=True, qkv_bias=True),
    "gpt2": dict(norm="layer", position="learned", mlp="gelu", bias=True, qk_norm=False, tie_weights=True),
    "plain": dict(qk_norm=False),
    "lora": dict(n_kv_head=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_a_pass_of_the_model(small_gpt, kind):
    """Ragged rows, several steps, then with fewer rows than the cache has: the same logits, the same keys and
    values.
    """
    model = small_gpt(**KINDS[kind])
    if kind == "lora":
        add_lora(model, 3)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3) if "lora_b" in name else None
    ids, lengths = torch.randint(0, 90, (5, 9)), torch.tensor([5, 9, 7, 3, 2])
    clear, fast = KVCache(model.config, 5, 20), KVCache(model.config, 5, 20)
    with torch.no_grad():
        for cache in (clear, fast):
            model.hidden(ids, cache)
            cache.advance(lengths, 9)
        step = decoder(model, fast)
        for n in (5, 5, 3, 1):
            token = torch.randint(0, 90, (n,))
            expected = model.head(model.hidden(token[:, None], clear)[:, 0])
            found = model.head(step(token, fast.lengths[:n], fast.longest + 1))
            assert torch.allclose(found, expected, atol=1e-4) and expected.std() > 0.1
            for cache in (clear, fast):
                cache.advance(1, cache.longest + 1)
    assert torch.allclose(clear.data[..., :11, :], fast.data[..., :11, :], atol=1e-4)


def test_bfloat16_steps_are_as_near_to_float32_as_the_clear_path(small_gpt):
    exact = small_gpt(n_kv_head=2)
    rough = small_gpt(n_kv_head=2).bfloat16()
    ids, errors = torch.randint(0, 90, (8, 10)), []
    with torch.no_grad():
        for path in (
            lambda cache, ids: rough.hidden(ids[:, None], cache)[:, 0],
            lambda cache, ids: decoder(rough, cache)(ids, cache.lengths, 10),
        ):
            cache = KVCache(rough.config, 8, 12, dtype=torch.bfloat16)
            rough.hidden(ids[:, :9], cache)
            cache.advance(9, 9)
            errors.append((path(cache, ids[:, 9]) - exact.hidden(ids)[:, 9]).abs().mean())
    assert 0 < errors[1] < 1.3 * errors[0]


def test_a_sequence_that_grows_too_long_is_named(small_gpt):
    model = small_gpt(max_len=8)
    cache = KVCache(model.config, 1, 20)
    with torch.no_grad():
        model.hidden(torch.zeros(1, 8, dtype=torch.long), cache)
    cache.advance(8, 8)
    with pytest.raises(ValueError, match="max_len=8"):
        decode.fast_sample_turn(
            model, cache, torch.zeros(1, 32), 0, 1.0, torch.full((1, 2), 0.5), sample_token
        )


def test_a_graph_of_each_shape_is_recorded_once_and_gives_what_a_step_gives(small_gpt, monkeypatch):
    """All but CUDA's own part: here "replaying" runs the step on what the graph's inputs hold."""
    model, recorded = small_gpt(n_kv_head=2, max_len=400), []

    def record(step, ids, positions, end):
        recorded.append((len(ids), end))
        inputs, hidden = (torch.zeros_like(ids), torch.zeros_like(positions)), torch.zeros(len(ids), 32)
        graph = SimpleNamespace(replay=lambda: hidden.copy_(step(*inputs, end)))
        return graph, inputs, hidden

    monkeypatch.setattr(decode, "record", record)
    plain, graphed = KVCache(model.config, 6, 300), KVCache(model.config, 6, 300)
    with torch.no_grad():
        step, replay = decoder(model, plain), decode.replayed(decoder(model, graphed), 300)
        for longest in (0, 1, 2, 3, 4, 254, 255, 256, 257, 258):
            n = 6 if longest < 3 else 3
            ids = torch.randint(0, 90, (n,))
            for cache in (plain, graphed):
                cache.lengths = longest - torch.arange(6).clamp(max=longest)  # ragged rows
                cache.longest = longest
            where = plain.lengths[:n], longest + 1
            assert torch.allclose(replay(ids, *where), step(ids, *where), atol=1e-5)
    assert recorded == [(6, 256), (3, 256), (3, 300)]


def test_a_gpu_halves_the_rows_and_a_cpu_takes_multiples_of_eight():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    halved = [decode.fewer_rows(left, 256, gpu) for left in (256, 129, 128, 65, 64, 1)]
    assert halved == [256, 256, 128, 128, 64, 1]
    assert [decode.fewer_rows(left, 9, gpu) for left in (9, 5, 4, 3, 2)] == [9, 9, 5, 5, 3]
    assert [decode.fewer_rows(left, 256, cpu) for left in (129, 128, 1)] == [136, 128, 8]


def test_rows_of_the_cache_change_places(small_gpt):
    cache = KVCache(small_gpt().config, 4, 6)
    cache.data.normal_()
    cache.lengths, cache.longest = torch.tensor([1, 2, 3, 4]), 4
    before = cache.data.clone()
    cache.move(torch.tensor([0, 3]), torch.tensor([3, 0]))
    assert cache.lengths.tolist() == [4, 2, 3, 1]
    assert torch.equal(cache.data[:, :, [0, 1, 2, 3], :, :4], before[:, :, [3, 1, 2, 0], :, :4])
