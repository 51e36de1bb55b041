"""The project's code on a GPU that is not there. test_gpu.py runs this file, in a process of its own.

Fake tensors have a shape and a device but no numbers. An operation on tensors of two devices fails on them,
as it would on a GPU. PyTorch's CPU builds can't compute the gradients of fake CUDA tensors, so we register a
device of our own. It must be there before the first backward pass and can't be removed again: hence the own
process.
"""

from random import Random
from types import SimpleNamespace

import pytest
import torch
from test_model import KINDS
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

import rollout
import train
from data import Environment, load_task
from engine.lora import add_lora, without_lora
from engine.memory import micro_batches
from engine.optim import make_optimizer, master_weights
from engine.supervised import supervised_loss
from model import KVCache, rope_frequencies
from rollout import sample_token, sample_turn

aten = torch.ops.aten
backend_registration._setup_privateuseone_for_python_backend("gpu")
GPU, HALF = torch.device("gpu:0"), torch.bfloat16


class Host(TorchDispatchMode):
    """What the host asks of the device. `waits` lists each operation for which it would wait.

    Fake tensors have no numbers to answer with. So every number is 1, every condition is `says`, and two
    places of a mask are set.
    """

    says = True

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        here = bool(tensors) and tensors[0].device.type == GPU.type
        if function is aten._local_scalar_dense.default and here:
            self.waits.append(function)
            return self.says if tensors[0].dtype == torch.bool else 1
        if function is aten.nonzero.default and here:
            self.waits.append(function)
            return tensors[0].new_zeros((2, tensors[0].ndim), dtype=torch.long)
        if function in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) and here:
            args = (args[0], [self.as_numbers(index) for index in args[1]], *args[2:])
            args = (args[0], [i for index in args[1] for i in index], *args[2:])
        result = function(*args, **(kwargs or {}))
        if function in (aten._to_copy.default, aten.copy_.default):
            both = {tensors[-1].device.type, result.device.type}
            self.waits += [function] * (len(both) > 1)
        return result

    def as_numbers(self, index) -> list:
        """An index for each dimension in the place of a mask. An index on the CPU is copied: a wait."""
        if index is None:
            return [None]
        masked = index.dtype == torch.bool
        self.waits += ["index"] * (masked or index.device.type == "cpu")
        return [torch.zeros(2, dtype=torch.long, device=GPU)] * index.ndim if masked else [index]


@pytest.fixture
def host():
    rope_frequencies.cache_clear()  # it keeps tensors from test to test
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(list, device=GPU) makes its tensor on the CPU
    with FakeTensorMode(), Host() as host:
        yield host
    torch._C._set_only_lift_cpu_tensors(False)


def on_gpu(small_gpt, dtype=torch.float32, **overrides):
    """The model made there: fake parameters can't be moved."""
    torch.set_default_dtype(dtype)
    try:
        with GPU:
            return small_gpt(**overrides)
    finally:
        torch.set_default_dtype(torch.float32)


def batch_of(rows=4, width=9):
    masks = torch.ones(rows, 2, width, dtype=torch.bool, device=GPU)
    ids = torch.zeros(rows, width, dtype=torch.long, device=GPU)
    return {"ids": ids, "masks": masks, "advantages": torch.ones(rows, 2, device=GPU)}


@pytest.mark.parametrize("lora", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_pass(small_gpt, host, kind, lora):
    model = on_gpu(small_gpt, **KINDS[kind])
    if lora:
        add_lora(model, lora)
    logits = model(torch.zeros(2, 5, dtype=torch.long, device=GPU))
    logits.logsumexp(-1).sum().backward()
    assert logits.device == GPU
    assert all(p.grad.device == GPU for p in model.parameters() if p.requires_grad)
    assert not host.waits


def test_a_tensor_on_the_wrong_device_is_found(small_gpt, host):
    model = on_gpu(small_gpt)
    model.norm.weight = torch.nn.Parameter(torch.ones(32))
    with pytest.raises(FakeTensorDeviceMismatchError):
        model(torch.zeros(2, 5, dtype=torch.long, device=GPU))


def test_a_micro_batch_of_size_0_is_the_whole_batch(host):
    batch = {name: torch.cat([t] * 20) for name, t in batch_of().items()}
    assert [micro["ids"].shape[0] for micro in micro_batches(batch, 0)] == [len(batch["ids"])]


@pytest.mark.parametrize("lora, dtype", [(0, torch.float32), (0, HALF), (3, HALF)])
def test_an_update(small_gpt, host, lora, dtype):
    model, reference = on_gpu(small_gpt, dtype), on_gpu(small_gpt, dtype)
    if lora:
        reference = without_lora(add_lora(model, lora))
    optimizer = make_optimizer(model, master_weights(model, {}), None)
    weights = optimizer.param_groups[0]["params"]
    for micro in micro_batches(batch_of(), 2):
        train.policy_loss(model, reference, micro, (0.1, 0.2), 1.0, 4)[0].backward()
        supervised_loss(model, micro, 7).backward()
    assert torch.nn.utils.clip_grad_norm_(weights, 1.0).item() == 1  # the number of Host
    optimizer.step()
    states = [s for state in optimizer.state.values() for s in state.values()]
    assert states and all(s.device == GPU for s in states if s.ndim)


@pytest.mark.parametrize("offline", [False, True])
def test_a_batch_of_dialogues(small_gpt, tokenizer, host, monkeypatch, offline):
    """Sampled, scored and turned into advantages. The texts are lists of ones."""
    monkeypatch.setattr(torch, "Generator", lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    policy, c = on_gpu(small_gpt, n_layer=1), train.Config(batch=12, max_new=9, offline_first=offline)
    task = load_task(c.task)
    env = Environment(task, tokenizer, lambda i: task.sample(Random(i), c.size))
    stage = train.Stage("stage2", 1, 0.1, (1.0, 1.0), 10.0, 0.5, (0.1, 0.1))
    batch, metrics, _ = train.rollout_batch(c, stage, 0, env, policy, policy)
    assert {name: t.device for name, t in batch.items()} == dict.fromkeys(batch, GPU)
    assert host.waits and metrics["acc_t1"] == 1  # the number of Host


def turn(model, max_new: int, temperature: float = 1.0) -> None:
    """Samples a turn of two rows. A recorded pass has the same operations."""
    cache = KVCache(model.config, 2, 5 + max_new, GPU, model.embed.weight.dtype)
    hidden = model.hidden(torch.zeros(2, 5, dtype=torch.long, device=GPU), cache)[:, -1]
    cache.keep([5, 5])
    uniform = torch.rand(2, max_new, dtype=torch.float64, device=GPU)
    sample_turn(model, cache, lambda ids: model.hidden(ids, cache), hidden, 0, temperature, uniform)


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("kind", ["modern", "gpt2"])
@torch.no_grad()
def test_no_token_waits_for_the_device(small_gpt, host, kind, temperature, monkeypatch):
    """Only the look whether all rows have ended does, after every eighth token, and the end of the turn."""
    monkeypatch.setattr(Host, "says", False)  # no row has ended, and no number is finite
    with pytest.raises(FloatingPointError):
        turn(on_gpu(small_gpt, n_layer=1, **KINDS[kind]), 20, temperature)
    assert host.waits == [aten.copy_.default] + 3 * [aten._local_scalar_dense.default]  # first: `keep`


@torch.no_grad()
def test_a_wait_in_a_token_is_found(small_gpt, host, monkeypatch):
    def waits(logits, temperature, uniform):
        assert uniform.sum().item()
        return sample_token(logits, temperature, uniform)

    monkeypatch.setattr(rollout, "sample_token", waits)
    turn(on_gpu(small_gpt, n_layer=1), 6)
    assert host.waits.count(aten._local_scalar_dense.default) == 7
