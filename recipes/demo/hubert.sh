#!/usr/bin/env bash
# The demo without a download: keyword spotting end to end on a CPU: miniature corpus, a small HuBERT with a text model's
# attention merged in, the task on the frozen upstream, the same with a child network tuned, test accuracies, one picture.
#
#   recipes/demo/hubert.sh [--recordings DIR] [--target DIR] [options]
#
#   --recordings DIR   folder of recorded spoken digits (fsdd/fsdd.tsv inside) in place of synthesised keywords
#   --target DIR       a HuBERT of your own: transformers folder, 6 layers, 384 wide (default: one with random weights)
#   --steps N          optimizer steps of each training (default: those of hubert_ks.yaml)
#   --out DIR          folder for everything that is written (default: demo)
#   --stage N --stop-stage N   1 corpus, 2 speech model, 3 untrained, 4 frozen, 5 child, 6 report
#   --dry-run          print the commands
#   --mini             changes nothing: the demo is miniature
#
# Safe to run again: what is done is kept, and training that was interrupted continues where it stopped.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"

out=demo target=""
options="target"
parse_options "$@"
[[ -z "$target" || -f "$target/config.json" ]] || stop "--target $target is not a transformers folder: it has no config.json."
mini=""
keep_settings "target=$target"
[[ ! -e "$out/without_whisper" ]] || echo "$(<"$out/without_whisper") The demo goes on with a small HuBERT that has learnt nothing:" \
  "with the packages at hand, remove $out and run it again."

task=(-u mam_hubert_tiny_minilm -d speech_commands -c "$RECIPES/demo/hubert_ks.yaml")
frozen="config.tuning={'method':'weighted_sum'}"
fewer="${steps:+config.runner.total_steps=$steps}"

if due 1 "corpus: keywords in the layout of Speech Commands"; then mini_corpora ks; fi
if due 2 "speech model"; then
  [[ -n "$target" ]] || unless "$out/hubert/config.json" python "$RECIPES/demo/make_hubert.py" "$out/hubert"
fi
if [[ $stage -le 5 && $stop_stage -ge 3 ]]; then
  [[ $stage -le 1 ]] || mini_corpora ks                            # where the corpus is: SPEECH_COMMANDS
  execute export S3PRL_EXT_TARGET="$(realpath -m "${target:-$out/hubert}")"   # which HuBERT is merged into
fi
if due 3 "before training: merged upstream, untrained head"; then
  unless "$out/untrained/result-test.json" s3prl-ext run -m evaluate "${task[@]}" -p "$out/untrained" \
    -o "$frozen,,args.untrained_head=True"
fi
if due 4 "merged upstream frozen: head and layer weights train"; then
  train "$out/frozen" "${task[@]}" -o "$frozen${fewer:+,,$fewer}"
  evaluate "$out/frozen" dev-best.ckpt test
fi
if due 5 "child network of the merged upstream trains as well"; then
  train "$out/child" "${task[@]}" ${fewer:+-o "$fewer"}
  evaluate "$out/child" dev-best.ckpt test
fi
if due 6 "result"; then execute python "$RECIPES/demo/hubert_report.py" "$out"; fi
