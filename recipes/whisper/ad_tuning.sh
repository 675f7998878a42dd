#!/usr/bin/env bash
# AD-TUNING's methods on learnt features: the encoder of Whisper base on small tasks of recorded speech, each row with the
# learning rate that is best for it on dev, scored on test with other seeds. The studies are recipes/studies/whisper_heads.yaml,
# where nothing but the head trains, and whisper.yaml, where the head has the rate that the first one chose.
#
#   recipes/whisper/ad_tuning.sh --recordings DIR [--ckpt FOLDER] [--tasks LIST] [--rows LIST] [options]
#
#   --recordings DIR   folder of recordings, as for s3prl-ext prepare mini_superb
#   --ckpt FOLDER      a Whisper as a transformers folder (default: Whisper base, made of two pip packages)
#   --tasks LIST       out of ks,sid,ic,sf,pr,asr (default: all)
#   --rows LIST        methods besides the two frozen ones: full, full_last, houlsby, lora, bitfit, child-P and random-P with P of
#                      0.1, 0.01, 0.001, ad_tuning (default: all)
#   --head-lrs LIST    learning rates of the head (default: 1e-4,3e-4,1e-3,3e-3,1e-2)
#   --lrs LIST         learning rates of what trains in the upstream, for every row (default: five for each, three
#                      on pr and asr, out of 3e-6 to 3e-3)
#   --seeds LIST       of the runs that are scored on test (default: 0,1,2); those that search have others
#   --steps N          optimizer steps of each run (default: those of the studies)
#   --takes N          training takes of each digit in ks and sid (default: 3); 0: the easier form, in which the splits
#                      differ in takes and all speakers are in each
#   --digits N         pr and asr are N strings of spoken digits (default: LibriSpeech utterances)
#   --upstream NAME    -u of another model, which --ckpt names (default: whisper_local)
#   --out DIR          folder for everything (default: exp/whisper/ad_tuning)
#   --jobs N --engine E   of s3prl-ext study: runs at a time; ray or slurm
#   --stage N --stop-stage N   1 model, 2 corpora, 3 the head alone, 4 what trains in the upstream, 5 tables, pictures
#                      and AD-TUNING's Figs. 2, 3 and 7 of what has ended
#   --dry-run          print the commands
#
# KS has unseen speakers in dev and test and three takes of each digit in train, SID utterances of one digit, IC drink orders,
# SF synthesised requests (no recording at hand has slots in its text), PR and ASR LibriSpeech utterances of unseen speakers
# with a linear head.
# Without --recordings speech is synthesised, and its figures mean nothing. Safe to run again: what is done is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/shared/tasks.sh"
. "$RECIPES/shared/study.sh"

out=exp/whisper/ad_tuning seeds=0,1,2 tasks="ks sid ic sf pr asr" rows="" head_lrs="" lrs="" takes=3 digits=""
options="tasks rows head_lrs lrs takes digits"
parse_options "$@"
keep_settings "head_lrs=$head_lrs lrs=$lrs takes=$takes${digits:+ digits=$digits}"
variable=WHISPER   # which the packed studies write in place of the model's folder
if [[ -n "$upstream" && "$upstream" != whisper_local ]]; then
  [[ -n "$ckpt" ]] || stop "--upstream $upstream needs its model: give --ckpt."
  variable=MODEL
fi
upstream="${upstream:-whisper_local}" model="${ckpt:-$out/whisper_base}"
export "$variable=$model"

if due 1 "the model"; then
  [[ -n "$ckpt" ]] || unless "$model/config.json" s3prl-ext prepare whisper --out "$model"
fi
if [[ $stage -le 4 ]]; then
  printf '\n# stage 2: corpora\n'
  for name in $(listed "$tasks"); do
    hard=()
    if [[ "$name" =~ ^(ks|sid)$ && "$takes" != 0 ]]; then
      hard=(--takes "$takes")
    elif [[ "$name" =~ ^(pr|asr)$ ]]; then
      hard=(--all)
    fi
    [[ -n "$recordings" ]] || hard=()
    [[ -z "$digits" || ! "$name" =~ ^(pr|asr)$ ]] || hard=(--digits "$digits")
    mini_corpora "$name" "${hard[@]}"
  done
fi
ckpt="$model" mini=""   # the studies are small in any case
# head_rate TASK ROW: the rate that the first study chose for a frozen row.
head_rate() { python "$RECIPES/whisper/methods.py" --head-rate "$out/heads" --tasks "$1" --row "$2"; }

trained=""
for row in $(listed "$rows"); do
  [[ "$row" =~ ^(frozen|weighted_sum)$ ]] || trained+=" $row"
done
if due 3 "a learning rate for the head"; then
  run_study whisper_heads "$out/heads" "${head_lrs:+axes.lr=[$(comma "$head_lrs")]}" --only "task=$(comma "$tasks")"
fi
if due 4 "a learning rate for each row, then its scores" && [[ -z "$rows" || -n "$trained" ]]; then
  for name in $(listed "$tasks"); do   # a study each, because the head's rate is a setting
    over=""
    [[ -z "$lrs" ]] || over="axes={tuning.lr: [$(comma "$lrs")]},,exclude=[]"
    if [[ -z "$dry_run" ]]; then
      weighted_sum="$(head_rate "$name" weighted_sum)"
      frozen="$(head_rate "$name" frozen)"
      over="$(joined "$over" "adjust+=[{task: $name, set: {optimizer.lr: $weighted_sum}}]" \
        "adjust+=[{task: $name, method: full_last, set: {optimizer.lr: $frozen}}]")"
    fi
    if [[ -n "$digits" && "$name" =~ ^(pr|asr)$ ]]; then   # short strings need no bfloat16
      over="$(joined "$over" "adjust+=[{task: $name, set: {runner.amp: null}}]")"
    fi
    run_study whisper "$out/methods/$name" "$over" --only "task=$name" ${trained:+--only "method=$(comma "$trained")"}
  done
fi
if due 5 "tables and pictures"; then
  files=()
  for study in heads $(listed "$tasks" | sed 's,^,methods/,'); do
    [[ -n "$dry_run" || -d "$out/$study" ]] || continue
    files+=("$out/${study/\//_}.json")
    execute python "$RECIPES/shared/evidence.py" pack "$out/$study" "${files[-1]}" --variables "$variable"
  done
  execute python "$RECIPES/whisper/methods.py" "${files[@]}"
  masks=() children=()   # of the tasks whose child networks by Fisher information have been trained
  for name in $(listed "$tasks"); do
    [[ -n "$dry_run" ]] || compgen -G "$out/methods/$name/$name/*/child-*" >/dev/null || continue
    execute python "$RECIPES/whisper/child_networks.py" masks "$out/methods/$name" "$out/masks_$name.json"
    masks+=("$out/masks_$name.json") children+=("$out/methods_$name.json")
  done
  if [[ ${#masks[@]} -gt 0 ]]; then
    for figure in fig2 fig7; do
      execute python "$RECIPES/whisper/child_networks.py" "$figure" "${masks[@]}" --out "$out/$figure.png"
    done
    execute python "$RECIPES/whisper/child_networks.py" fig3 "${children[@]}" --out "$out/fig3.png"
  fi
fi
