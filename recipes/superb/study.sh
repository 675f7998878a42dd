# shellcheck shell=bash disable=SC2034,SC2154  # shared with stages.sh and tasks.sh
# One task of recipes/studies/superb.yaml. To be sourced by recipes/superb/TASK.sh, which then calls: superb TASK "$@"
. "$RECIPES/shared/tasks.sh"
. "$RECIPES/shared/study.sh"

# superb TASK FLAGS...: the corpus, the study, and for sd the score as SUPERB gives it.
superb() {
  local name="$1" rates="" tuning result
  shift
  out=exp/superb seeds=0 method=weighted_sum lrs="" grid=superb preset=superb
  options="method lrs grid preset"
  parse_options "$@"
  case "$grid" in
    superb) ;;
    ad_tuning) lrs="${lrs:-${mini:+1e-3,1e-4}}" lrs="${lrs:-1e-5,3e-5,1e-4,3e-4,1e-3}" ;;
    *) stop "--grid is superb or ad_tuning, not '$grid'; --lrs takes a list of your own." ;;
  esac
  case "$method" in
    child-*) tuning="{label: $method, method: child, density: ${method#child-}}" ;;
    ad_tuning) tuning="{label: ad_tuning, method: child, density: [0.1, 0.01, 0.001], set: {early_stop: {ratio: 0.1}}}" ;;
    *) tuning="$method" ;;
  esac
  choose_upstream hubert_base
  keep_settings "preset=$preset"
  task "$name" "$preset"
  corpus_of "$name"
  if due 1 "learning rate chosen on dev, score on test"; then
    run_study superb "$out" "$(joined "${lrs:+axes.lr=[$(comma "$lrs")]}" "methods=[$tuning]" "$([[ -n "$mini" ]] || echo "preset=$preset")")" \
      --only "task=$name"
  fi
  if [[ "$name" == sd && -z "$dry_run" ]] && due 2 "score as SUPERB gives it"; then
    for result in "$out"/sd/*/*/*/seed=*/result-test.json; do
      turns_of_dev "$(dirname "$result")" "$(sed -n 's/.*"past_exp": "\([^"]*\)".*/\1/p' "$result")"
      s3prl-ext report "$(dirname "$result")" --out "$(dirname "$result")/report"
    done
  fi
}

# model_of RESULT: what a result says of its model: checkpoint, step, hash of the upstream.
model_of() {
  sed -n 's/,$//; /^    "init_ckpt":/p; /^  "step":/p; /^  "upstream_sha256":/p' "$1"
}

# turns_of_dev FOLDER CHECKPOINT: what the model says of dev, in FOLDER/on_dev, so that the report can choose a threshold there.
# Those of another checkpoint than the one that test was scored with are replaced.
# FOLDER is called by a link: s3prl takes no '=' in a value of -o.
turns_of_dev() {
  if [[ -e "$1/on_dev/result-test.json" && "$(model_of "$1/on_dev/result-test.json")" != "$(model_of "$1/result-test.json")" ]]; then
    echo "$1/on_dev is of another checkpoint than $1/result-test.json: scoring dev again."
    rm -rf "$1/on_dev"
  fi
  ln -sfn "$(cd "$1" && pwd)" "$out/tested"
  unless "$1/on_dev/result-test.json" s3prl-ext run -m evaluate -e "$2" -t test \
    -o "args.expdir='$out/tested/on_dev',,config.downstream_expert.loaderrc.test_dir='$LIBRI2MIX_DIARIZATION/dev'"
}
