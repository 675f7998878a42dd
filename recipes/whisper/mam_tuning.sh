#!/usr/bin/env bash
# MAM with fine-tuning (Table 5 of the paper) on learnt features, and a control: the encoder of Whisper base as it is, with its
# decoder's attention merged in, with noise of the same statistics in its place, and with a lambda for each layer that is learnt;
# everything trains, on small tasks of recorded speech. The study is recipes/studies/whisper_mam.yaml.
#
#   recipes/whisper/mam_tuning.sh --recordings DIR [--ckpt FOLDER] [--tasks LIST] [options]
#
#   --recordings DIR   folder of recordings, as for s3prl-ext prepare mini_superb
#   --ckpt FOLDER      a Whisper as a transformers folder (default: Whisper base, made of two pip packages)
#   --tasks LIST       out of ks,sid (default: both)
#   --lambda X         of the merges, and where the learnt ones begin (default: 0.1, up to which transcripts survive a merge)
#   --head-lrs LIST    learning rates of the head (default: 1e-4,3e-4,1e-3,3e-3,1e-2), one of which is chosen on the unmerged
#                      model where nothing else trains
#   --lrs LIST         learning rates of what trains in the upstream (default: 3e-6,1e-5,3e-5,1e-4), for each of the four
#   --seeds LIST       of the runs that are scored on test (default: 0,1,2); those that search have others
#   --steps N          optimizer steps of each run (default: those of the study)
#   --takes N          training takes of each digit (default: 3); 0: all speakers are in each split
#   --out DIR          folder for everything (default: exp/whisper/mam_tuning)
#   --jobs N --engine E   of s3prl-ext study: runs at a time; ray or slurm
#   --stage N --stop-stage N   1 model and merge, 2 corpora, 3 the head alone, 4 fine-tuning, 5 tables and pictures
#   --dry-run          print the commands
#
# Without --recordings speech is synthesised, and its figures mean nothing. Safe to run again: what is done is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/shared/tasks.sh"
. "$RECIPES/shared/study.sh"

out=exp/whisper/mam_tuning seeds=0,1,2 tasks="ks sid" head_lrs="" lrs="" takes=3 lambda=0.1
options="tasks lambda head_lrs lrs takes"
parse_options "$@"
for name in $(listed "$tasks"); do
  [[ "$name" =~ ^(ks|sid)$ ]] || stop "unknown task '$name'; known: ks sid."
done
[[ "$lambda" =~ ^(0?\.[0-9]+|0|1|1\.0*)$ ]] || stop "--lambda takes a number from 0 to 1, not '$lambda'."
keep_settings "lambda=$lambda head_lrs=$head_lrs lrs=$lrs takes=$takes"
export WHISPER="${ckpt:-$out/whisper_base}" PAIR="$out/pair.yaml"

if due 1 "the model and the merge"; then
  [[ -n "$ckpt" ]] || unless "$WHISPER/config.json" s3prl-ext prepare whisper --out "$WHISPER"
  if [[ -z "$dry_run" ]]; then
    printf 'target: {model: "%s"}\nsource: {model: "%s", prefix: decoder}\nlambda: %s\n' "$WHISPER" "$WHISPER" "$lambda" >"$PAIR"
  fi
fi
if [[ $stage -le 4 ]]; then
  printf '\n# stage 2: corpora\n'
  hard=()
  [[ -z "$recordings" || "$takes" == 0 ]] || hard=(--takes "$takes")
  for name in $(listed "$tasks"); do mini_corpora "$name" "${hard[@]}"; done
fi
mini=""   # the studies are small in any case
if due 3 "a learning rate for the head"; then
  upstream=whisper_local ckpt="$WHISPER"
  run_study whisper_heads "$out/heads" "${head_lrs:+axes.lr=[$(comma "$head_lrs")]}" --only "task=$(comma "$tasks")" \
    --only method=weighted_sum
fi
upstream=""   # the study names its four
if due 4 "a learning rate for each upstream, then its scores"; then
  for name in $(listed "$tasks"); do   # a study each, because the head's rate is a setting
    over=""
    [[ -z "$lrs" ]] || over="axes={tuning.lr: [$(comma "$lrs")]}"
    if [[ -z "$dry_run" ]]; then
      rate="$(python "$RECIPES/whisper/methods.py" --head-rate "$out/heads" --tasks "$name" --row weighted_sum)"
      over="$(joined "$over" "adjust+=[{task: $name, set: {optimizer.lr: $rate}}]")"
    fi
    run_study whisper_mam "$out/tuned/$name" "$over" --only "task=$name"
  done
fi
if due 5 "tables and pictures"; then
  for name in $(listed "$tasks"); do
    [[ -n "$dry_run" || -d "$out/tuned/$name" ]] || stop "there are no runs of $name in $out/tuned: do stage 4 first."
    execute python "$RECIPES/shared/evidence.py" pack "$out/tuned/$name" "$out/mam_tuning_$name.json" --variables WHISPER PAIR
    execute python "$RECIPES/whisper/mam_tuning.py" "$out/mam_tuning_$name.json"
  done
fi
