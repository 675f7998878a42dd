# shellcheck shell=bash disable=SC2034,SC2154  # recipes use what is set here; stages.sh sets the rest
# The seven tasks of SUPERB as recipes run them. To be sourced after stages.sh:
#
#   choose_upstream wav2vec2                  # the default of a full-size recipe
#   task ks ad_tuning                         # or superb; --mini replaces the preset by mini
#   train "$out/ks/x" -u "$upstream" "${task_flags[@]}" -o "$(joined "$tuning" "$settings")"
#   evaluate "$out/ks/x" "$checkpoint" "$test_split"

SUPERB_TASKS="asr pr sd sid sf ic ks"   # in the order of AD-TUNING's Table 2

# task NAME PRESET: set task_flags (-d, -c), variable, corpus, checkpoint, dev_split, test_split, metric, total (steps;
# empty: those of the preset), and settings: overrides for -o that --mini and --steps ask for. With --mini the checkpoint
# is that of the last step: nothing is chosen on dev.
task() {
  settings="" variable="" corpus="" checkpoint="" dev_split="" test_split="" metric=""
  local downstream="" facts
  [[ " $SUPERB_TASKS " == *" $1 "* ]] || stop "unknown task '$1'; known: $SUPERB_TASKS."
  facts="$(python -m s3prl_ext.tasks "$1")" || exit
  eval "$facts"
  task_flags=(-d "$downstream" -c "$1/$2")
  if [[ -n "$mini" ]]; then
    task_flags=(-d "$downstream" -c "$1/mini" --device cpu)
    settings="config.optimizer.lr=1e-3"
    if [[ "$1" == asr ]]; then   # a linear head: s3prl's LSTM needs more steps than a miniature run has
      settings="config.optimizer.lr=2e-3,,config.downstream_expert.modelrc.RNNs.dim=[]"
    elif [[ "$1" == pr ]]; then
      settings="config.optimizer.lr=2e-3"
    fi
  fi
  total="$steps"
  if [[ -n "$total" ]]; then
    # five evaluations, whatever the number of steps
    settings+="${settings:+,,}config.runner.total_steps=$total,,config.runner.eval_step=$(((total + 4) / 5))"
    settings+=",,config.runner.save_step=$total"
  fi
  [[ -z "$mini" || -z "$total" ]] || checkpoint="states-$total.ckpt"
}

# joined PART...: one -o from several, empty ones left out.
joined() {
  local part line=""
  for part in "$@"; do
    line+="${part:+${line:+,,}$part}"
  done
  printf '%s' "$line"
}

# choose_upstream DEFAULT: set upstream and ckpt where the options did not. With --mini the default is a transformers folder
# in --ckpt, or else an untrained small HuBERT that the demo's script writes into $out/hubert.
choose_upstream() {
  if [[ -n "$mini" && -z "$upstream" ]]; then
    upstream=hf_hubert_custom
    if [[ -z "$ckpt" ]]; then
      ckpt="$out/hubert"
      unless "$ckpt/config.json" python "$RECIPES/demo/make_hubert.py" "$ckpt"
    fi
  fi
  upstream="${upstream:-$1}"
}

# corpus_of TASK: have its corpus, miniature or real; call task first.
corpus_of() {
  if [[ -n "$mini" ]]; then
    local strings=()
    if [[ -n "$recordings" && "$1" =~ ^(asr|pr)$ && -d "$recordings/fsdd" ]]; then
      strings=(--digits "${digit_strings:-200}")   # strings of spoken digits, which a few steps can learn
    fi
    mini_corpora "$1" "${strings[@]}"
  else
    need_variable "$variable" "$corpus"
  fi
}
