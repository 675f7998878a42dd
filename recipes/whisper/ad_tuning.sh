#!/usr/bin/env bash
# AD-TUNING's methods on learnt features: the encoder of Whisper base on small tasks of recorded speech, each row with the
# learning rate that is best for it on dev, scored on test with several seeds.
#
#   recipes/whisper/ad_tuning.sh --recordings DIR [--ckpt FOLDER] [--tasks LIST] [--rows LIST] [options]
#
#   --recordings DIR   folder of recordings, as for s3prl-ext prepare mini_superb
#   --ckpt FOLDER      a Whisper as a transformers folder (default: Whisper base, made of two pip packages)
#   --tasks LIST       out of ks,sid,ic,sf,pr,asr (default: all)
#   --rows LIST        frozen, weighted_sum, full, houlsby, lora, child-P, random-P, ad_tuning (default: these, with P of
#                      0.1, 0.01, 0.001)
#   --lrs LIST         learning rates of what a row trains in the upstream (default: 1e-5 to 3e-3)
#   --head-lrs LIST    learning rates of the head, for the rows that train it alone (default: 1e-4 to 3e-2); the head
#                      of the other rows has the rate that weighted_sum chose
#   --seeds LIST       of the final runs; the first one searches (default: 0,1,2)
#   --steps N          optimizer steps of each run (default: ks 100, sid 60, ic 40, sf, pr and asr 100)
#   --takes N          training takes of each digit in ks and sid (default: 3)
#   --out DIR          folder for everything (default: exp/whisper/ad_tuning)
#   --stage N --stop-stage N   1 model, 2 corpora, 3 search, 4 other seeds, 5 tables
#   --dry-run          print the commands; RATE means a rate that is not chosen yet
#
# Features are the weighted sum of all hidden states, that of `full` too; only `frozen` reads the last one. KS has unseen
# speakers in dev and test and three takes of each digit in train, SID utterances of one digit, IC drink orders, SF
# synthesised requests (no recording at hand has slots in its text), PR and ASR LibriSpeech utterances with a linear head.
# Without --recordings speech is synthesised, and its figures mean nothing. Nothing but the rate is chosen, on dev at the
# last step, which is the one that is tested. Safe to run again: what is done is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/shared/tasks.sh"

out=exp/whisper/ad_tuning seeds=0,1,2 tasks="ks sid ic sf pr asr" takes=3
lrs=1e-5,3e-5,1e-4,3e-4,1e-3,3e-3 head_lrs=1e-4,3e-4,1e-3,3e-3,1e-2,3e-2   # six for every row
rows="weighted_sum frozen full houlsby lora child-0.1 child-0.01 child-0.001 random-0.1 random-0.01 random-0.001 ad_tuning"
options="tasks rows lrs head_lrs takes"
parse_options "$@"
mini=yes upstream=whisper_local
keep_settings "lrs=$lrs head_lrs=$head_lrs takes=$takes"
model="${ckpt:-$out/whisper_base}"
first="$(listed "$seeds" | head -n 1)"

# whisper_task NAME: set what `task` sets, for the settings of this recipe.
whisper_task() {
  local asked="$steps"
  case "$1" in ks | sf | pr | asr) steps="${steps:-100}" ;; sid) steps="${steps:-60}" ;; ic) steps="${steps:-40}" ;; esac
  task "$1" superb
  steps="$asked"
  task_flags+=(-s hidden_states)
  settings+=",,config.runner.eval_step=$total,,config.runner.eval_dataloaders=['$dev_split','$test_split']"
}

# chosen_rate TASK ROW: the rate that is best on dev, or RATE.
chosen_rate() {
  local file="$out/$1/$2/chosen.json"
  [[ -f "$file" ]] && sed -n 's/.*"rate": "\([^"]*\)".*/\1/p' "$file" || echo RATE
}

# tuning_of ROW RATE: set tuning to the overrides for -o that make a row.
tuning_of() {
  local rate=",'lr':$2" pass=",'fisher':{'granularity':'sample','max_batches':96}"   # Eq. 6 over 96 drawn clips
  case "$1" in
    frozen | weighted_sum) tuning="config.tuning={'method':'$1'}" ;;
    full | houlsby | lora) tuning="config.tuning={'method':'$1'$rate}" ;;
    child-*) tuning="config.tuning={'method':'child','density':${1#child-}$rate$pass}" ;;
    random-*) tuning="config.tuning={'method':'child','mask':'random','density':${1#random-}$rate}" ;;
    ad_tuning) tuning="config.tuning={'method':'child','density':[0.1,0.01,0.001]$rate$pass},,config.early_stop={'ratio':0.2}" ;;
    *) stop "unknown row '$1'; known: frozen weighted_sum full houlsby lora child-P random-P ad_tuning." ;;
  esac
}

# run_at TASK ROW RATE SEED: train one row and score it on dev and test at the last step.
run_at() {
  local features=() head
  case "$2" in
    frozen | weighted_sum) head="$3" ;;
    *) head="$(chosen_rate "$1" weighted_sum)" ;;
  esac
  tuning_of "$2" "$3"
  case "$2" in
    frozen) features=(-s last_hidden_state) ;;
    ad_tuning)   # the comparison is made on dev, test is scored once
      tuning+=",,config.runner.eval_step=$((total / 5)),,config.runner.eval_dataloaders=['$dev_split']" ;;
  esac
  train "$out/$1/$2/lr-$3-s$4" -u whisper_local -k "$model" "${task_flags[@]}" "${features[@]}" --seed "$4" \
    -o "$(joined "$settings" "config.optimizer.lr=$head" "$tuning")"
}

if due 1 "Whisper base"; then
  [[ -n "$ckpt" ]] || unless "$model/config.json" s3prl-ext prepare whisper --out "$model"
fi
if [[ $stage -le 4 ]]; then
  printf '\n# stage 2: corpora\n'
  for name in $(listed "$tasks"); do
    hard=()
    [[ -z "$recordings" || ! "$name" =~ ^(ks|sid)$ ]] || hard=(--takes "$takes")
    mini_corpora "$name" "${hard[@]}"
  done
fi
for name in $(listed "$tasks"); do
  whisper_task "$name"
  if due 3 "$name: a learning rate for each row"; then
    for row in $(listed "$rows"); do
      case "$row" in frozen | weighted_sum) grid="$head_lrs" ;; *) grid="$lrs" ;; esac
      for rate in $(listed "$grid"); do
        run_at "$name" "$row" "$rate" "$first"
      done
      execute python "$RECIPES/whisper/rates.py" choose "$out/$name/$row" --metric "$metric" --dev "$dev_split" --seed "$first"
    done
  fi
  if due 4 "$name: the other seeds"; then
    for seed in $(listed "$seeds"); do
      for row in $(listed "$rows"); do
        rate="$(chosen_rate "$name" "$row")"
        run_at "$name" "$row" "$rate" "$seed"
        [[ "$row" != ad_tuning ]] || evaluate "$out/$name/$row/lr-$rate-s$seed" "$checkpoint" "$test_split"
      done
    done
  fi
  if due 5 "$name: table"; then
    execute python "$RECIPES/whisper/summary.py" --runs "$out" --task "$name" --rows "$(comma "$rows")"
  fi
done
