# shellcheck shell=bash disable=SC2034,SC2154  # shared with stages.sh and tasks.sh
# One task of SUPERB with a search for the learning rate, the only thing that SUPERB lets differ between upstreams.
# To be sourced by recipes/superb/TASK.sh, which then calls: superb TASK "$@"

SUPERB_GRID="1e-1 1e-2 1e-3 1e-4 1e-5 1e-6 1e-7"
AD_TUNING_GRID="1e-5 3e-5 1e-4 3e-4 1e-3"

# superb TASK FLAGS...: search, train with the rate that is best on dev, score on test, print.
superb() {
  local name="$1" folder rate seed first tuning
  shift
  out=exp/superb seeds=0 method=weighted_sum lrs="" grid=superb preset=superb search_steps=""
  options="method lrs grid preset search_steps"
  parse_options "$@"
  case "$grid" in
    superb) lrs="${lrs:-${mini:+1e-2 1e-3}}" lrs="${lrs:-$SUPERB_GRID}" ;;
    ad_tuning) lrs="${lrs:-${mini:+1e-3 1e-4}}" lrs="${lrs:-$AD_TUNING_GRID}" ;;
    *) stop "--grid is superb or ad_tuning, not '$grid'; --lrs takes a list of your own." ;;
  esac
  case "$method" in
    child-*) tuning="config.tuning={'method':'child','density':${method#child-}}" ;;
    ad_tuning) tuning="config.tuning={'method':'child','density':[0.1,0.01,0.001]},,config.early_stop={'ratio':0.1}" ;;
    *) tuning="config.tuning={'method':'$method'}" ;;
  esac
  [[ -z "$search_steps" || "$search_steps" =~ ^[1-9][0-9]*$ ]] || stop "--search-steps takes a number, not '$search_steps'."
  choose_upstream hubert_base
  keep_settings "preset=$preset search_steps=$search_steps"
  task "$name" "$preset"
  folder="$out/$(basename "$upstream")/$name/$method"
  first="$(listed "$seeds" | head -n 1)"

  if [[ $stage -le 4 ]]; then
    corpus_of "$name"
  fi
  if due 1 "a run for each learning rate"; then
    for rate in $(listed "$lrs"); do
      if [[ -n "$search_steps" ]]; then
        run_rate "$folder/search-lr-$rate" "$rate" "$first" \
          "config.runner.total_steps=$search_steps,,config.runner.eval_step=$search_steps"
      else
        run_rate "$folder/lr-$rate-s$first" "$rate" "$first" ""
      fi
    done
  fi
  if due 2 "the learning rate that is best on dev"; then
    execute python "$RECIPES/superb/rates.py" choose "$folder" --metric "$metric" --dev "$dev_split" --seed "$first"
  fi
  rate="$([[ -f "$folder/chosen.json" ]] && sed -n 's/.*"rate": "\([^"]*\)".*/\1/p' "$folder/chosen.json" || echo RATE)"
  if due 3 "train with it"; then
    for seed in $(listed "$seeds"); do
      run_rate "$folder/lr-$rate-s$seed" "$rate" "$seed" ""
    done
  fi
  if due 4 "test"; then
    for seed in $(listed "$seeds"); do
      evaluate "$folder/lr-$rate-s$seed" "$checkpoint" "$test_split"
      [[ "$name" != sd ]] || turns_of_dev "$folder/lr-$rate-s$seed"
    done
  fi
  if due 5 "table"; then
    execute python "$RECIPES/superb/rates.py" table "$folder" --metric "$metric" --dev "$dev_split" \
      --test "$test_split" --seed "$first"
    if [[ "$name" == sd ]]; then   # as SUPERB scores it
      for seed in $(listed "$seeds"); do
        execute s3prl-ext report "$folder/lr-$rate-s$seed" --out "$folder/lr-$rate-s$seed/report"
      done
    fi
  fi
}

# turns_of_dev FOLDER: what the model says of dev, in FOLDER/on_dev, so that the report can choose a threshold there.
turns_of_dev() {
  unless "$1/on_dev/result-test.json" s3prl-ext run -m evaluate -e "$1/$checkpoint" -t test \
    -o "args.expdir='$1/on_dev',,config.downstream_expert.loaderrc.test_dir='${LIBRI2MIX_DIARIZATION:-/path/to}/dev'"
}

# run_rate FOLDER RATE SEED OVERRIDES: one training of `superb`.
run_rate() {
  train "$1" "${upstream_flags[@]}" "${task_flags[@]}" --seed "$3" \
    -o "$(joined "$tuning" "$settings" "$4" "config.optimizer.lr=$2")"
}
