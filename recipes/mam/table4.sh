#!/usr/bin/env bash
# MAM, Table 4: transcripts that change most, target against merge.
#
#   recipes/mam/table4.sh [--tasks LIST] [options]
#   recipes/mam/table4.sh --mini --recordings DIR --hubert DIR --tasks ljspeech
#
#   --tasks LIST       out of ljspeech,vctk,esc50 (default: ljspeech,vctk)
#   --folds LIST       test folds of ESC-50 (default: all five; with --mini fold 4)
#   The sweeps of Tables 1 to 3 below --out decide which merge is compared: run one of them first.
#   --out DIR          folder for everything (default: exp/mam); the tables of MAM share it
#   --mini             miniature corpora and small models on a CPU; --recordings DIR makes the corpora of recordings (strings
#                      of spoken digits, --digits N of them, 300; without recordings all speech is synthesised, its figures
#                      mean nothing). Small models of your own: --hubert DIR (default: S3PRL_EXT_TARGET), --beats FILE,
#                      --vit DIR; what is not given is trained here. --esc50 DIR: a whole ESC-50-master. --steps N shortens
#                      every training
#   --stage N --stop-stage N   1 corpora and small models, 3 transcripts, 4 comparison
#   --dry-run          print the commands
#
# Full size: LJSPEECH, VCTK and ESC50 name the corpora, BEATS_ITER3 the BEATs file (default: fetched); the others are
# facebook/hubert-large-ls960-ft, bert-large-uncased and google/vit-base-patch16-224-in21k. Safe to run again: what is done
# is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$(dirname "${BASH_SOURCE[0]}")/pairs.sh"

options="" tasks=ljspeech,vctk
begin "$@"
if wants esc50; then stop "Table 4 compares transcripts: ESC-50 has none."; fi
if due 1 "corpora and small models"; then corpora_and_models; fi
if due 3 "transcripts of the target and of the merge that dev prefers"; then
  for unit in $(units); do transcripts "$unit"; done
fi
if due 4 "comparison"; then
  for unit in $(units); do
    execute s3prl-ext compare "$out/zero_shot/$unit/target/transcripts-test.jsonl" \
      "$out/zero_shot/$unit/merged/transcripts-test.jsonl" --top 8 --out "$out/zero_shot/$unit/compare.json"
    execute python "$RECIPES/shared/comparisons.py" "$out/zero_shot/$unit/compare.json" --task "$unit" \
      --out "$out/${unit}_transcripts.json"
  done
fi
