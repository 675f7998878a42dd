#!/usr/bin/env bash
# AD-TUNING, Table 2: every tuning method on seven tasks of SUPERB, scored on test.
#
#   recipes/ad_tuning/table2.sh [--tasks LIST] [--rows LIST] [--seeds LIST] [options]
#   recipes/ad_tuning/table2.sh --mini --recordings DIR --ckpt DIR --tasks ks,asr --seeds 0,1,2
#
#   --tasks LIST       out of asr,pr,sd,sid,sf,ic,ks (default: all)
#   --rows LIST        out of full, frozen, houlsby, adapter_bias, lora, prefix, cnn_adapter, chapter, weighted_sum,
#                      bitfit, child-0.1, child-0.01, child-0.001, ad_tuning (default: all)
#   --seeds LIST       one run each (default: 0)
#   --upstream-lr X    learning rate of the upstream's own weights (default: that of the task file; with --mini
#                      1e-3, for full, asr and pr 1e-4)
#   --rates LIST       learning rates of single rows that go before it, such as child-0.1=3e-4,full=1e-4
#   --upstream NAME --ckpt FILE   -u and -k (default: wav2vec2)
#   --steps N          optimizer steps of each run (default: those released with AD-TUNING)
#   --out DIR          folder for everything (default: exp/ad_tuning); the other recipes here share its runs
#   --mini             miniature corpora on a CPU, 60 steps (pr 120, asr 150); --recordings DIR makes them of recordings,
#                      --ckpt DIR names a small transformers HuBERT (default: an untrained one)
#   --jobs N --engine E   of s3prl-ext study: runs at a time; ray or slurm
#   --stage N --stop-stage N   1 train and score, 2 cost of a step, 3 table
#   --dry-run          print the commands
#
# The real corpora are named by SPEECH_COMMANDS, FLUENT_SPEECH_COMMANDS, VOXCELEB1, LIBRISPEECH, LIBRISPEECH_LEXICON,
# AUDIO_SNIPS, LIBRI2MIX_DIARIZATION. Safe to run again: what is done is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/ad_tuning/methods.sh"

out=exp/ad_tuning seeds=0 tasks="$SUPERB_TASKS" rows="$TABLE2_ROWS"
options="tasks rows $AD_TUNING_OPTIONS"
parse_options "$@"
choose_upstream wav2vec2
keep_rates

if due 1 "train and score"; then
  run_rows "$tasks" "$rows"
fi
if due 2 "cost of an optimizer step, each method in a process of its own"; then
  corpora_of "$tasks"
  study_file ad_tuning "$(rates_given)"
  for name in $(listed "$tasks"); do
    for row in $(listed "$rows"); do
      [[ "$row" == ad_tuning ]] || unless "$out/$name/cost/$row.json" python "$RECIPES/ad_tuning/step_cost.py" \
        "$out/$name/cost/$row.json" "${study[@]}" --only "task=$name" --only "method=$row"
    done
  done
fi
if due 3 "table"; then
  execute python "$RECIPES/ad_tuning/tables.py" table2 --runs "$out" --tasks "$(comma "$tasks")" \
    --rows "$(comma "$rows")"
fi
