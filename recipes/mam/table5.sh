#!/usr/bin/env bash
# MAM, Table 5: target, merge (MAM), fine-tuned target (FT), MAM + FT, L-MAM + FT.
#
#   recipes/mam/table5.sh [--tasks LIST] [options]
#   recipes/mam/table5.sh --mini --recordings DIR --hubert DIR --tasks ljspeech
#
#   --tasks LIST       out of ljspeech,vctk,esc50 (default: all)
#   --folds LIST       test folds of ESC-50 (default: all five; with --mini fold 4)
#   --seeds LIST       one fine-tuning each (default: 0,1,2)
#   --lambda-lr X      learning rate of lambda (default: 1e-3; 1e-5 is the paper's to the letter)
#   --block            L-MAM: lambda only for the layers of that merge (default: for every layer, elsewhere beginning at 0)
#   The sweeps of Tables 1 to 3 below --out decide which merge is taken, and where lambda begins: run one of them first.
#   --out DIR          folder for everything (default: exp/mam); the tables of MAM share it
#   --mini             miniature corpora and small models on a CPU; --recordings DIR makes the corpora of recordings (strings
#                      of spoken digits, --digits N of them, 300; without recordings all speech is synthesised, its figures
#                      mean nothing). Small models of your own: --hubert DIR (default: S3PRL_EXT_TARGET), --vit DIR,
#                      --beats FILE (FOLD in its name stands for the test fold; a file for all folds must not have been
#                      trained with labels of ESC-50); what is not given is trained here. --esc50 DIR: a whole
#                      ESC-50-master. --steps N shortens every training
#   --stage N --stop-stage N   1 corpora and small models, 2 heads, 3 target and MAM, 4 FT, 5 MAM + FT, 6 L-MAM + FT, 7 table
#   --dry-run          print the commands
#
# Full size: LJSPEECH, VCTK and ESC50 name the corpora, BEATS_ITER3 the BEATs file (default: fetched); the others are
# facebook/hubert-large-ls960-ft, bert-large-uncased and google/vit-base-patch16-224-in21k. Safe to run again: what is done
# is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$(dirname "${BASH_SOURCE[0]}")/pairs.sh"

block=""
options="lambda_lr" flags="block" seeds=0,1,2 lambda_lr=1.0e-3
begin "$@"
if due 1 "corpora and small models"; then corpora_and_models; fi
if due 2 "head of ESC-50 on the unmerged target"; then heads; fi
if due 3 "without training: target and merge"; then
  for unit in $(units); do transcripts "$unit"; done
fi
# What is learnt by another rate of lambda, or for some layers only, are other runs.
lmam=lmam_ft
[[ -z "$block" ]] || lmam+=_block
[[ "$lambda_lr" == 1.0e-3 ]] || lmam+="_$lambda_lr"

# tune UNIT ARM FLAGS...: train and score one arm with every seed.
tune() {
  local folder="$out/table5/$1/$2" seed
  for seed in $(listed "$seeds"); do
    train "$folder-$seed" "${@:3}" "${tuning[@]}" --seed "$seed"
    evaluate "$folder-$seed" dev-best.ckpt test
  done
}
for arm in "4 ft" "5 mam_ft" "6 $lmam"; do
  due "${arm% *}" "fine-tuning: ${arm#* }" || continue
  for unit in $(units); do
    experiment "$unit"
    tuning_of "$unit"
    case "$arm" in
      *" ft") merge_with "lambda=0" ;;
      *" mam_ft") best_merge "$unit" && merge_with "$best" ;;
      *) best_merge "$unit" && learnable_with "$best" && tuning_of "$unit" "$lambda_lr" ;;
    esac
    tune "$unit" "${arm#* }" "${merged[@]}"
  done
done
if due 7 "table"; then
  for unit in $(units); do execute python "$RECIPES/mam/table5.py" "$out" "$unit" --learnt "$lmam" --keep "$out/${unit}_table5.json"; done
  [[ $(units | grep -c "^esc50-") -lt 2 ]] || execute python "$RECIPES/mam/table5.py" "$out" esc50 --learnt "$lmam" --keep "$out/esc50_table5.json"
fi
