# shellcheck shell=bash disable=SC2154  # stages.sh and tasks.sh set them
# Figs. 5 and 6: phoneme recognition on nested subsets of LibriSpeech. To be sourced after methods.sh:
#
#   low_resource fig5 "child-0.1 child-0.01 child-0.001"

# low_resource FIGURE ROWS: the three stages of a recipe.
low_resource() {
  local size subsets="$out/corpora/low_resource"
  task pr ad_tuning
  keep_input LIBRILIGHT "${librilight:-none, a seeded draw}"
  if due 1 "nested training subsets"; then
    corpus_of pr
    unless "$subsets/env.sh" s3prl-ext prepare low_resource --out "$subsets" \
      --librispeech "${LIBRISPEECH:-/path/to/LibriSpeech}" ${librilight:+--librilight "$librilight"} \
      --hours "$(comma "$hours")"
  fi
  if due 2 "train and score"; then
    [[ -n "$mini" ]] || need_variable LIBRISPEECH_LEXICON "s3prl's two lexica"
    execute . "$subsets/env.sh"
    for size in $(listed "$hours"); do
      [[ -n "$dry_run" || -d "$subsets/train-${size}h" ]] ||
        stop "$subsets was made with other --hours and has no train-${size}h: remove it, it holds links alone, and begin at stage 1."
      train_rows pr "$2" "$out/low_resource/${size}h" "set.downstream_expert.corpus.train=[train-${size}h]"
    done
  fi
  if due 3 "picture"; then
    execute python "$RECIPES/ad_tuning/figures.py" "$1" --runs "$out" --rows "$(comma "$2")"
  fi
}
