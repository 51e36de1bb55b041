"""The README's table: the default run over three seeds, and plain two-turn RL from the same base for the first.

    python experiments/seeds.py [SEED ...]        writes out/seed<N>, out/plain<N> and experiments/results/seeds.{json,md}

Runs that are done are not repeated; one that was stopped is resumed.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t for a 95 % interval of a mean of n seeds
PLAIN_SEEDS = 1  # of the seeds, so many are trained by plain RL as well: each takes as long as the run itself
ROWS = {"acc_t1": "Acc@t1", "acc_t2": "Acc@t2", "delta": "Δ", "i_to_c": "i→c", "c_to_i": "c→i", "fix_rate": "fix rate",
        "change_rate": "changed"}  # fmt: skip


def run(name: str, *settings: str) -> dict:
    """The results of the run out/<name>, made now if need be, and its minutes of training."""
    folder = ROOT / "out" / name
    if not (folder / "results.json").exists():
        how = [f"--resume={folder}"] if (folder / "last.pt").exists() else [f"--name={name}", *settings]
        subprocess.run([sys.executable, ROOT / "train.py", *how], cwd=ROOT, check=True)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {**json.loads((folder / "results.json").read_text()), "minutes": last["seconds"] / 60}


def cell(values: list[float], key: str) -> str:
    """Mean ± 95 % interval over seeds, in percent."""
    n, mean = len(values), sum(values) / len(values)
    sign = "+" if key == "delta" else ""
    if n < 2:
        return f"{100 * mean:{sign}.1f}"
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return f"{100 * mean:{sign}.1f} ± {100 * T_95.get(n, 1.96) * deviation / math.sqrt(n):.1f}"


def main() -> None:
    seeds = [int(s) for s in sys.argv[1:]] or [0, 1, 2]
    score = {s: run(f"seed{s}", f"--seed={s}") for s in seeds}
    contrast = seeds[:PLAIN_SEEDS]
    plain = {s: run(f"plain{s}", "--preset=plain", f"--seed={s}", f"--init=out/seed{s}/base.pt") for s in contrast}
    kinds = {
        "base, sampled": [score[s]["base"]["sampled"] for s in seeds],
        "base": [score[s]["base"]["greedy"] for s in seeds],
        "after Stage I": [score[s]["stage1"]["greedy"] for s in seeds],
        "**after Stage II**": [score[s]["stage2"]["greedy"] for s in seeds],
        f"plain two-turn RL (seed {', '.join(map(str, contrast))})": [plain[s]["stage2"]["greedy"] for s in contrast],
    }
    lines = [f"Mean of seeds {', '.join(map(str, seeds))} ± 95 % interval over seeds, percent of held-out problems, greedy.", ""]
    lines += ["| | " + " | ".join(ROWS.values()) + " |", "|---" * (1 + len(ROWS)) + "|"]
    lines += [f"| {name} | " + " | ".join(cell([m[k] for m in ms], k) for k in ROWS) + " |" for name, ms in kinds.items()]
    head = ["seed", "checkpoint", *list(ROWS.values())[:6], "swap: own / wrong / near", "attempts 3, 4, 5", "minutes"]
    lines += [
        "",
        "Each seed ± one standard error over its problems. Swap: Acc@t2 on the problems with a wrong first attempt, after the",
    ]
    lines += [
        "model's own attempt / an unrelated wrong one / a near miss.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for s in seeds:
        for label, result, name in [
            *((n, score[s], n) for n in ("base", "stage1", "stage2")),
            ("plain RL", plain.get(s), "stage2"),
        ]:
            if result is None:
                continue
            m, swap = result[name]["greedy"], result[name]["swap"]["wrong_first"]
            cells = [f"{100 * m[k]:{'+' if k == 'delta' else ''}.1f} ± {100 * m['se'][k]:.1f}" for k in list(ROWS)[:6]]
            read = " / ".join(f"{100 * swap[k]:.0f}" for k in ("own", "wrong", "near"))
            later = " ".join(f"{100 * a:.1f}" for a in m["acc"][2:])
            minutes = f"{result['minutes']:.1f}" if name == "stage2" else ""
            lines.append(f"| {s} | {label} | " + " | ".join(cells) + f" | {read} | {later} | {minutes} |")
    folder = ROOT / "experiments" / "results"
    folder.mkdir(exist_ok=True)
    (folder / "seeds.md").write_text("\n".join(lines) + "\n")
    (folder / "seeds.json").write_text(json.dumps({"score": score, "plain": plain}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
