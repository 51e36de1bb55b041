#!/usr/bin/env bash
# The race: the best second attempts after 60 seconds of processor time on one core.
#     bash course/race.sh FOLDER NAME [SEED]      prints a line for the leaderboard
# FOLDER has race.txt, the settings of train.py in one line, and may have its own train.py and rollout.py. All
# else is this project's, the checker and the evaluation on 2,000 held-out problems above all.
set -euo pipefail
folder=$(realpath "$1") name=$2 seed=${3:-0}
cd "$(dirname "$0")/.."
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
cp -r ./*.py data engine "$tree"
for file in train.py rollout.py; do [ ! -f "$folder/$file" ] || cp "$folder/$file" "$tree"; done
fixed="--name=race --out=$tree/out --seed=$seed --task=calculator --size=3 --device=cpu --report=false --save_every=5"
words=$(cat "$folder/race.txt")
export OMP_NUM_THREADS=1
(cd "$tree" && ulimit -t 60 && exec python train.py $words $fixed >/dev/null 2>&1) || true
found=$(python eval.py "$tree/out/race/last.pt" --n=2000 --json)
python - "$name" "$found" <<'PYTHON'
import json, sys
m = json.loads(sys.argv[2])
print(f"| {sys.argv[1]} | {100 * m['acc_t1']:.1f} | {100 * m['acc_t2']:.1f} |")
PYTHON
