# shellcheck shell=bash disable=SC2154  # stages.sh and tasks.sh set them
# The rows of AD-TUNING's Table 2 as sections `tuning`, and one run of each. To be sourced after stages.sh and tasks.sh.
# All recipes here keep their runs in the same folders, $out/TASK/ROW-sSEED, so that a figure finds those of a table.

# Rows in the table's order; bitfit is a common control that the paper has not.
TABLE2_ROWS="full frozen houlsby adapter_bias lora prefix cnn_adapter chapter weighted_sum bitfit"
TABLE2_ROWS+=" child-0.1 child-0.01 child-0.001 ad_tuning"

# rate_of ROW: the learning rate that --rates names for a row, else that of --upstream-lr, else nothing.
rate_of() {
  local item
  for item in $(listed "${rates:-}"); do
    [[ "${item%%=*}" != "$1" ]] || { echo "${item#*=}"; return; }
  done
  echo "${upstream_lr:-}"
}

# check_rates ROWS: stop where --rates names no row of these, or a row without a rate.
check_rates() {
  local item
  for item in $(listed "${rates:-}"); do
    [[ "$item" == ?*=?* && " $(listed "$1" | tr '\n' ' ')" == *" ${item%%=*} "* ]] ||
      stop "--rates takes ROW=RATE of the rows $(comma "$1"), not '$item'."
  done
}

# tuning_of ROW TASK: set tuning to the overrides for -o that make a row of Table 2, or random-P for CHILD-TUNING_F of
# Table 1.
tuning_of() {
  local rate="" ratio=0.1 given pass=",'fisher':{'preset':'official'}"
  given="$(rate_of "$1")"
  if [[ -n "$mini" ]]; then
    # learning rate of the upstream's own weights; the head keeps that of the task
    case "$1,$2" in
      full,* | *,asr | *,pr) rate=",'lr':${given:-1e-4}" ;;   # 1e-3 unlearns what a CTC model knows
      *) rate=",'lr':${given:-1e-3}" ;;
    esac
    pass=",'fisher':{'granularity':'sample','max_batches':96}"   # Eq. 6 over 96 clips drawn from the whole split
    ratio=0.2
  elif [[ -n "$given" ]]; then
    rate=",'lr':$given"
  fi
  case "$2" in asr | sf) ratio=0.2 ;; esac   # as released
  case "$1" in
    frozen | weighted_sum) printf -v tuning "config.tuning={'method':'%s'}" "$1" ;;
    full | bitfit) printf -v tuning "config.tuning={'method':'%s'%s}" "$1" "$rate" ;;
    houlsby | adapter_bias | lora | prefix | cnn_adapter | chapter)
      # new weights: they take the head's rate
      printf -v tuning "config.tuning={'method':'%s'}" "$1" ;;
    child-*) printf -v tuning "config.tuning={'method':'child','density':%s%s%s}" "${1#child-}" "$rate" "$pass" ;;
    random-*) printf -v tuning "config.tuning={'method':'child','mask':'random','density':%s%s}" "${1#random-}" "$rate" ;;
    ad_tuning)
      printf -v tuning "config.tuning={'method':'child','density':[0.1,0.01,0.001]%s%s},,config.early_stop={'ratio':%s}" \
        "$rate" "$pass" "${race_ratio:-$ratio}" ;;
    *) stop "unknown row '$1'; known: $TABLE2_ROWS random-P." ;;
  esac
}

# run_row TASK ROW SEED [PLACE] [OVERRIDES]: train and score one row of a table, once, in PLACE/TASK/ROW-sSEED.
# Call `task` first.
run_row() {
  local folder="${4:-$out}/$1/$2-s$3" once="" more="${5:-}"
  if [[ -n "$mini" && "$1" =~ ^(ks|asr|sid|ic)$ && ! "$2" =~ ^(child|random|ad_tuning) ]]; then
    # no curve is drawn of these: dev and test at the last step, in the same process
    once="config.runner.eval_step=$total,,config.runner.eval_dataloaders=['$dev_split','$test_split']"
  fi
  tuning_of "$2" "$1"
  train "$folder" "${upstream_flags[@]}" "${task_flags[@]}" --seed "$3" \
    -o "$(joined "$tuning" "$settings" "$once" "$more")"
  [[ -n "$once" ]] || evaluate "$folder" "$checkpoint" "$test_split"
}

# run_rows TASKS ROWS SEEDS: all combinations, seed by seed, so that an interrupted table has its first seeds complete.
run_rows() {
  local name row seed
  check_rates "$2"
  for seed in $(listed "$3"); do
    for name in $(listed "$1"); do
      task "$name" ad_tuning
      corpus_of "$name"
      for row in $(listed "$2"); do
        run_row "$name" "$row" "$seed"
      done
    done
  done
}
