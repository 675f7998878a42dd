# shellcheck shell=bash disable=SC2034,SC2154  # recipes use what is set here; stages.sh and tasks.sh set the rest
# The rows of AD-TUNING's tables, which are the methods of recipes/studies/ad_tuning.yaml. To be sourced after stages.sh. All
# recipes here keep their runs in the same folders, $out/TASK/UPSTREAM/ROW/seed=N, so that a figure finds those of a table.
. "$RECIPES/shared/tasks.sh"
. "$RECIPES/shared/study.sh"

# Rows in the table's order; bitfit is a common control that the paper does not have.
TABLE2_ROWS="full frozen houlsby adapter_bias lora prefix cnn_adapter chapter weighted_sum bitfit"
TABLE2_ROWS+=" child-0.1 child-0.01 child-0.001 ad_tuning"
# What every recipe here takes and keeps with the runs of its $out.
AD_TUNING_OPTIONS="upstream_lr rates"
upstream_lr="" rates=""
keep_rates() { keep_settings "upstream_lr=$upstream_lr${rates:+ rates=$rates}"; }

# Rows that train the upstream's own weights, for which --upstream-lr is; new weights take the head's rate.
TUNED_ROWS="full bitfit child-0.1 child-0.01 child-0.001 random-0.1 ad_tuning"

# check_rates: stop where --rates names no row of the tables, or a row without a rate.
check_rates() {
  local item known="$TABLE2_ROWS random-0.1"
  for item in $(listed "$rates"); do
    [[ "$item" == ?*=?* && " $known " == *" ${item%%=*} "* ]] ||
      stop "--rates takes ROW=RATE of the rows $(comma "$known"), not '$item'."
  done
}

# rates_given: what --upstream-lr and --rates change in the study.
rates_given() {
  local item found=""
  if [[ -n "$upstream_lr" ]]; then
    found="{method: [$(comma "$TUNED_ROWS")], set: {tuning.lr: $upstream_lr}}"
  fi
  for item in $(listed "$rates"); do
    found+="${found:+, }{method: ${item%%=*}, set: {tuning.lr: ${item#*=}}}"
  done
  echo "${found:+adjust+=[$found]}"
}

# corpora_of TASKS: have their corpora.
corpora_of() {
  local name
  for name in $(listed "$1"); do
    task "$name" ad_tuning
    corpus_of "$name"
  done
}

# run_rows TASKS ROWS [FOLDER] [OVERRIDES]: have the corpora; train and score all combinations with $seeds in FOLDER
# (default: $out).
run_rows() {
  corpora_of "$1"
  train_rows "$@"
}

# train_rows TASKS ROWS [FOLDER] [OVERRIDES]: the same on the corpora that the variables name.
train_rows() {
  check_rates
  run_study ad_tuning "${3:-$out}" "$(joined "$(rates_given)" "${4:-}")" \
    --only "task=$(comma "$1")" --only "method=$(comma "$2")"
}

# fisher_pass TASKS ROW [OVERRIDES]: the masks of a row, from an optimizer step in $out/fisher_pass where the row has not run.
fisher_pass() {
  local name missing="" found
  for name in $(listed "$1"); do
    found=("$out/$name"/*/"$2"/seed=0/masks.safetensors)
    [[ -e "${found[0]}" ]] || missing+="$name "
  done
  [[ -z "$missing" ]] || seeds=0 steps="" run_rows "$missing" "$2" "$out/fisher_pass" \
    "$(joined "set.runner.total_steps=1,,set.runner.eval_step=1,,set.runner.save_step=1,,set.runner.evaluate_ratio=0.01" "${3:-}")"
}
