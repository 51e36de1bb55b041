"""What a run warns of: nothing to correct, no signal, a turn 2 that only copies. And of nothing else."""

import pytest
from engine.log import warnings_of

from train import Config, Stage, train

RL = Stage("stage1", 100, 0.01, (0.0, 1.0))


def row(acc_t1=0.5, no_signal=False, change_rate=0.3):
    return dict(acc_t1=acc_t1, no_signal=no_signal, change_rate=change_rate)


@pytest.mark.parametrize(
    "step, recent, names",
    [
        (0, [row()], []),
        (0, [row(acc_t1=0.96)], ["nothing to correct"]),
        (0, [row(acc_t1=0.01)], ["nothing to correct"]),
        (0, [row(acc_t1=0.95)], []),
        (5, [row(acc_t1=0.99)] * 6, []),  # RL may well come this far: only the base is looked at
        (18, [row(no_signal=True)] * 19, []),
        (19, [row(no_signal=True)] * 20, ["no signal"]),
        (19, [row(no_signal=True)] * 19 + [row()], []),
        (19, [row(change_rate=0.01)] * 20, ["copies"]),
        (19, [row(change_rate=0.0)] * 19 + [row(change_rate=0.5)], []),
        (18, [row(change_rate=0.0)] * 19, []),
    ],
)
def test_warnings(step, recent, names):
    assert list(warnings_of(RL, step, recent)) == names


def test_a_supervised_stage_has_no_warnings():
    assert not warnings_of(Stage("base", 100, 0.01), 0, [{"loss": 1.0}])


def test_a_run_prints_a_warning_once_a_stage(tmp_path, capsys):
    """A base of one step is right at nothing, and so are all its attempts for 25 updates."""
    tiny = dict(n_layer=1, n_head=2, dim=8, size=2, base_batch=4, base_steps=1, batch=4, max_new=12)
    steps = dict(stage1_steps=25, stage2_steps=1, log_every=100, show_every=100)
    (tmp_path / "short").mkdir()
    train(Config(**tiny, **steps, out=str(tmp_path), name="short", report=False), {})
    shown = capsys.readouterr().out
    assert shown.count("warning: 0 % of the first attempts are right") == 2
    assert shown.count("warning: for 20 updates no attempt did better") == 1
