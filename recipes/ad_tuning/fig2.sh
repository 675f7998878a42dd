#!/usr/bin/env bash
# AD-TUNING, Fig. 2: distribution of Fisher information over the upstream's weights, with P = 0.1 and smaller densities
# as lines.
#
#   recipes/ad_tuning/fig2.sh [--tasks LIST] [options]
#   recipes/ad_tuning/fig2.sh --mini --recordings DIR --ckpt DIR --tasks ks,asr
#
#   --tasks LIST       one panel each (default: sd,pr, those of the figure)
#   --official         scores as the released code computes them: train mode, its loader, clipped tensor by tensor
#   --stage N --stop-stage N   1 Fisher pass (one optimizer step follows; not done where table2.sh has run, whose scores
#                      at full size are the released code's), 2 picture
#   --out DIR          default exp/ad_tuning; the picture is fig2.png in it
#   --upstream, --ckpt, --upstream-lr, --rates, --mini, --recordings, --jobs, --engine, --dry-run   as for
#                      table2.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/ad_tuning/methods.sh"

out=exp/ad_tuning tasks="sd pr" official="" seeds=0
options="tasks $AD_TUNING_OPTIONS" flags="official"
parse_options "$@"
[[ -z "$official" || "$out" != exp/ad_tuning ]] || out=exp/ad_tuning_official
choose_upstream wav2vec2
keep_rates

if due 1 "Fisher pass"; then
  fisher_pass "$tasks" child-0.1 "${official:+adjust+=[{set: {tuning.fisher: {preset: official\}\}\}]}"
fi
if due 2 "picture"; then
  execute python "$RECIPES/ad_tuning/figures.py" fig2 --runs "$out" --tasks "$(comma "$tasks")"
fi
