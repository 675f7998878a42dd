#!/usr/bin/env bash
# Keyword spotting end to end, on a CPU and without a download: miniature corpus, a HuBERT with a text model's attention
# merged in, the task on the frozen upstream, the same with a child network tuned, test accuracies and one picture.
#
#   recipes/demo/run.sh [--out DIR] [--recordings DIR] [--target DIR] [--stage N] [--stop-stage N]
#
#   --out         folder for everything that is written (default: demo)
#   --recordings  folder of recorded spoken digits (fsdd/fsdd.tsv inside) in place of synthesised keywords
#   --target      a HuBERT of your own: transformers folder, 6 layers, 384 wide (default: one with random weights)
#   --stage, --stop-stage   first and last stage to do: 1 corpus, 2 speech model, 3 untrained, 4 frozen, 5 child, 6 report
#
# Safe to run again: what is done is kept, and training that was interrupted continues where it stopped.
set -euo pipefail

out=demo recordings="" target="" stage=1 stop_stage=6
stop() {
  echo "run.sh: $1" >&2
  exit 2
}
while [[ $# -gt 0 ]]; do
  case "$1" in
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    --out | --recordings | --target | --stage | --stop-stage) [[ -n "${2:-}" ]] || stop "$1 needs a value." ;;
  esac
  case "$1" in
    --out) out="$2" ;;
    --recordings) recordings="$2" ;;
    --target) target="$2" ;;
    --stage) stage="$2" ;;
    --stop-stage) stop_stage="$2" ;;
    *) stop "unknown option '$1'; --help lists the options." ;;
  esac
  shift 2
done
[[ -z "$target" || -f "$target/config.json" ]] || stop "--target $target is no transformers folder: it has no config.json."

recipe="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

mkdir -p "$out"
settings="recordings=$recordings target=$target"
if [[ -f "$out/settings" && "$(<"$out/settings")" != "$settings" ]]; then
  stop "$out holds a demo with other settings ($(<"$out/settings")); give another --out, or remove $out."
fi
printf '%s\n' "$settings" >"$out/settings"

due() { [[ $stage -le $1 && $stop_stage -ge $1 ]]; }
say() { printf '\n== %s\n' "$*"; }

task=(-u mam_hubert_tiny_minilm -d speech_commands -c "$recipe/ks.yaml")

# train NAME [FLAGS]: train into $out/NAME unless that is done, then score its best checkpoint on the test set.
train() {
  local name="$1"
  shift
  if [[ ! -f "$out/$name/result.json" ]]; then
    s3prl-ext run -m train -a "${task[@]}" -p "$out/$name" "$@"
  fi
  if [[ ! -f "$out/$name/result-test.json" ]]; then
    s3prl-ext run -m evaluate -e "$out/$name/dev-best.ckpt"
  fi
}

if due 1; then
  say "1/6 corpus: keywords in the layout of Speech Commands"
  if [[ ! -f "$out/corpora/env.sh" ]]; then
    s3prl-ext prepare mini_superb --tasks ks --out "$out/corpora" ${recordings:+--recordings "$recordings"}
  fi
fi
if due 2; then
  say "2/6 speech model"
  if [[ -z "$target" && ! -d "$out/hubert" ]]; then
    python "$recipe/make_hubert.py" "$out/hubert"
  fi
fi


if [[ $stage -le 5 && $stop_stage -ge 3 ]]; then
  . "$out/corpora/env.sh"                                          # where the corpus is: SPEECH_COMMANDS
  S3PRL_EXT_TARGET="$(cd "${target:-$out/hubert}" && pwd)"         # which HuBERT is merged into
  export S3PRL_EXT_TARGET
fi
frozen="config.tuning={'method':'weighted_sum'}"
if due 3; then
  say "3/6 before training: merged upstream, untrained head"
  if [[ ! -f "$out/untrained/result-test.json" ]]; then
    s3prl-ext run -m evaluate "${task[@]}" -p "$out/untrained" -o "$frozen"
  fi
fi
if due 4; then
  say "4/6 merged upstream frozen: head and layer weights train"
  train frozen -o "$frozen"
fi
if due 5; then
  say "5/6 child network of the merged upstream trains as well"
  train child
fi
if due 6; then
  say "6/6 result"
  python "$recipe/report.py" "$out"
fi
