#!/usr/bin/env bash
# AD-TUNING, Fig. 7: share of the weights that child-tuning updates, by encoder layer, and by module.
#
#   recipes/ad_tuning/fig7.sh [--tasks LIST] [--density P] [options]
#   recipes/ad_tuning/fig7.sh --mini --recordings DIR --ckpt DIR --tasks ks,asr
#
#   --tasks LIST       one line and one panel each (default: asr,pr,sd,sid)
#   --density P        of the child network: 0.1, 0.01 or 0.001 (default: 0.1; the paper does not say which)
#   --stage N --stop-stage N   1 Fisher pass (one optimizer step follows; not done where table2.sh has run), 2 picture
#   --out DIR          default exp/ad_tuning; the picture is fig7.png in it
#   --upstream, --ckpt, --mini, --recordings, --dry-run   as for table2.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/shared/tasks.sh"
. "$RECIPES/ad_tuning/methods.sh"

out=exp/ad_tuning tasks="asr pr sd sid" upstream_lr="" density=0.1
options="tasks upstream_lr density"
parse_options "$@"
choose_upstream wav2vec2
keep_settings "upstream_lr=$upstream_lr"

if due 1 "Fisher pass"; then
  for name in $(listed "$tasks"); do
    [[ ! -e "$out/$name/child-$density-s0/masks.safetensors" ]] || continue
    task "$name" ad_tuning
    corpus_of "$name"
    tuning_of "child-$density" "$name"
    train "$out/$name/fisher-s0" "${upstream_flags[@]}" "${task_flags[@]}" --seed 0 \
      -o "$(joined "$tuning" "$settings" "config.runner.total_steps=1,,config.runner.evaluate_ratio=0.01")"
  done
fi
if due 2 "picture"; then
  execute python "$RECIPES/ad_tuning/figures.py" fig7 --runs "$out" --tasks "$(comma "$tasks")" --density "$density"
fi
