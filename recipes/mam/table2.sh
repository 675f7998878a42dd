#!/usr/bin/env bash
# MAM, Table 2: blocks of layers, lambda chosen on dev for each.
#
#   recipes/mam/table2.sh [--tasks LIST] [options]
#   recipes/mam/table2.sh --mini --recordings DIR --hubert DIR --tasks ljspeech
#
#   --tasks LIST       out of ljspeech,vctk,esc50 (default: all)
#   --folds LIST       test folds of ESC-50 (default: all five; with --mini fold 4)
#   --lambdas LIST     grid of lambda (default: the paper's)
#   --test-all         score every arm on test, not only those that dev chooses and those that the paper prints
#   --out DIR          folder for everything (default: exp/mam); the tables of MAM share it
#   --mini             miniature corpora and small models on a CPU; --recordings DIR makes the corpora of recordings (strings
#                      of spoken digits, --digits N of them, 300; without recordings all speech is synthesised, its figures
#                      mean nothing). Small models of your own: --hubert DIR (default: S3PRL_EXT_TARGET), --vit DIR,
#                      --beats FILE (FOLD in its name stands for the test fold; a file for all folds must not have been
#                      trained with labels of ESC-50); what is not given is trained here. --esc50 DIR: a whole
#                      ESC-50-master. --steps N shortens every training
#   --jobs N --engine E   of s3prl-ext sweep: processes that divide the merges; ray or slurm
#   --stage N --stop-stage N   1 corpora and small models, 2 heads, 3 sweeps
#   --dry-run          print the commands
#
# Full size: LJSPEECH, VCTK and ESC50 name the corpora, BEATS_ITER3 the BEATs file (default: fetched); the others are
# facebook/hubert-large-ls960-ft, bert-large-uncased and google/vit-base-patch16-224-in21k. Safe to run again: what is done
# is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$(dirname "${BASH_SOURCE[0]}")/pairs.sh"

test_all=""
options="" flags="test_all"
begin "$@"
if due 1 "corpora and small models"; then corpora_and_models; fi
if due 2 "head of ESC-50 on the unmerged target"; then heads; fi
if due 3 "blocks of layers"; then
  for unit in $(units); do
    experiment "$unit"
    grid=(--grid table2-24 --paper "${unit%-*}")
    [[ "$unit" != esc50-* ]] || grid=(--grid table2-12 --paper esc50)
    grid+=(--test-paper)   # also at the paper's one lambda
    if [[ -n "$mini" ]]; then   # 6 layers, and 4 of the small BEATs
      grid=(--lambda "0,0.05,0.1,0.15,0.2,0.25" --layers "0-1,2-3,4-5,0-2,3-5,all")
      [[ "$unit" != esc50-* ]] || grid=(--lambda "0,0.1,0.15,0.2,0.25,0.3" --layers "0-1,2-3,0-2,1-3,all")
    fi
    sweep "$out/table2/$unit" "${pair[@]}" "${task[@]}" "${grid[@]}" \
      ${lambdas:+--lambda "$lambdas"} ${test_all:+--test-all}
  done
  keep_sweeps table2 "blocks of layers"
  mean_of_folds table2 "blocks of layers"
fi
