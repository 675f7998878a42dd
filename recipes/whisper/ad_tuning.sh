#!/usr/bin/env bash
# AD-TUNING's methods on learnt features: the encoder of Whisper base on small tasks of recorded speech, each row with the
# learning rate that is best for it on dev, scored on test with other seeds. The study is recipes/studies/whisper.yaml.
#
#   recipes/whisper/ad_tuning.sh --recordings DIR [--ckpt FOLDER] [--tasks LIST] [--rows LIST] [options]
#
#   --recordings DIR   folder of recordings, as for s3prl-ext prepare mini_superb
#   --ckpt FOLDER      a Whisper as a transformers folder (default: Whisper base, made of two pip packages)
#   --tasks LIST       out of ks,sid,ic,sf,pr,asr (default: all)
#   --rows LIST        methods of the study: weighted_sum, frozen, full, houlsby, lora, bitfit, child-P and random-P with P of
#                      0.1, 0.01, 0.001, full_last, ad_tuning (default: all)
#   --lrs LIST         learning rates (default: 3e-5,1e-4,3e-4,1e-3,3e-3)
#   --seeds LIST       of the runs that are scored on test (default: 0,1,2); those that search have others
#   --steps N          optimizer steps of each run (default: those of the study)
#   --takes N          training takes of each digit in ks and sid (default: 3)
#   --out DIR          folder for everything (default: exp/whisper/ad_tuning)
#   --jobs N --engine E   of s3prl-ext study: runs at a time; ray or slurm
#   --stage N --stop-stage N   1 model, 2 corpora, 3 search and scores, 4 tables and pictures of what has ended
#   --dry-run          print the commands
#
# KS has unseen speakers in dev and test and three takes of each digit in train, SID utterances of one digit, IC drink orders,
# SF synthesised requests (no recording at hand has slots in its text), PR and ASR LibriSpeech utterances with a linear head.
# Without --recordings speech is synthesised, and its figures mean nothing. Safe to run again: what is done is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/shared/tasks.sh"
. "$RECIPES/shared/study.sh"

out=exp/whisper/ad_tuning seeds=0,1,2 tasks="ks sid ic sf pr asr" rows="" lrs="" takes=3
options="tasks rows lrs takes $STUDY_OPTIONS"
parse_options "$@"
keep_settings "lrs=$lrs takes=$takes"
export WHISPER="${ckpt:-$out/whisper_base}"

if due 1 "Whisper base"; then
  [[ -n "$ckpt" ]] || unless "$WHISPER/config.json" s3prl-ext prepare whisper --out "$WHISPER"
fi
if [[ $stage -le 3 ]]; then
  printf '\n# stage 2: corpora\n'
  for name in $(listed "$tasks"); do
    hard=()
    [[ -z "$recordings" || ! "$name" =~ ^(ks|sid)$ ]] || hard=(--takes "$takes")
    mini_corpora "$name" "${hard[@]}"
  done
fi
if due 3 "a learning rate for each row, then its scores"; then
  only=(--only "task=$(comma "$tasks")" ${rows:+--only "method=$(comma "$rows")"})
  upstream=whisper_local ckpt="$WHISPER" mini=""   # the study is small in any case
  run_study whisper "$out/study" "${lrs:+axes.lr=[$(comma "$lrs")]}" "${only[@]}"
fi
if due 4 "tables and pictures"; then
  execute python "$RECIPES/shared/evidence.py" pack "$out/study" "$out/methods.json" --variables WHISPER
  execute python "$RECIPES/whisper/methods.py" "$out/methods.json"
fi
