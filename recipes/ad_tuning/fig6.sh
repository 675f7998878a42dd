#!/usr/bin/env bash
# AD-TUNING, Fig. 6: low-resource phoneme recognition, AD-TUNING and the other methods: phone error rate on test-clean
# over 0.5, 1, 5 and 10 hours of training speech. The subsets are nested; 10 h and 1 h are Libri-Light's lists where
# --librilight is given, else a seeded draw from train-clean-100, and the picture says so.
#
#   recipes/ad_tuning/fig6.sh [--librilight DIR] [--seeds LIST] [options]
#   recipes/ad_tuning/fig6.sh --mini --recordings DIR --ckpt DIR --seeds 0 --hours 0.01,0.04
#
#   --librilight DIR   Libri-Light's librispeech_finetuning
#   --hours LIST       default 0.5,1,5,10; with --mini 0.01,0.02,0.04
#   --rows LIST        methods, as for table2.sh (at most eight in one picture)
#   --seeds LIST       default 0,1,2
#   --steps N          of every run, whatever the subset (default: 100000, those released for the whole corpus)
#   --stage N --stop-stage N   1 subsets, 2 train and score, 3 picture
#   --out DIR          default exp/ad_tuning; the picture is fig6.png in it
#   --upstream, --ckpt, --upstream-lr, --rates, --mini, --recordings, --jobs, --engine, --dry-run   as for
#                      table2.sh
#
# LIBRISPEECH names the corpus, LIBRISPEECH_LEXICON the folder with s3prl's lexica.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/ad_tuning/methods.sh"
. "$RECIPES/ad_tuning/low_resource.sh"

out=exp/ad_tuning seeds=0,1,2 hours="" librilight=""
rows="full frozen houlsby adapter_bias prefix weighted_sum ad_tuning"
options="hours rows librilight $AD_TUNING_OPTIONS"
parse_options "$@"
hours="${hours:-$([[ -n "$mini" ]] && echo 0.01,0.02,0.04 || echo 0.5,1,5,10)}"
choose_upstream wav2vec2
keep_rates
low_resource fig6 "$rows"
