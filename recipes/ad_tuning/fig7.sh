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
#   --upstream, --ckpt, --upstream-lr, --rates, --mini, --recordings, --jobs, --engine, --dry-run   as for
#                      table2.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/ad_tuning/methods.sh"

out=exp/ad_tuning tasks="asr pr sd sid" density=0.1
options="tasks density $AD_TUNING_OPTIONS"
parse_options "$@"
choose_upstream wav2vec2
keep_rates

if due 1 "Fisher pass"; then
  fisher_pass "$tasks" "child-$density"
fi
if due 2 "picture"; then
  execute python "$RECIPES/ad_tuning/figures.py" fig7 --runs "$out" --tasks "$(comma "$tasks")" --density "$density"
fi
