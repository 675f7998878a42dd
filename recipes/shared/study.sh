# shellcheck shell=bash disable=SC2034,SC2154  # recipes use what is set here; stages.sh and tasks.sh set the rest
# A study as a recipe runs it. To be sourced after stages.sh and tasks.sh:
#
#   parse_options "$@"
#   choose_upstream hubert_base
#   run_study superb exp/superb "methods=[lora]" --only task=ks

# study_file NAME [OVERRIDES]: set study to the file recipes/studies/NAME.yaml, with --mini NAME_mini.yaml, and what --upstream,
# --ckpt, --seeds and --steps change in it; without an upstream those of the file stay.
study_file() {
  local over name
  name="$(basename "$upstream")"
  over="seeds=[$(comma "$seeds")]"
  [[ -z "$upstream" ]] || over="upstreams=[{label: $name, upstream: $upstream${ckpt:+, ckpt: \"$ckpt\"}}],,$over"
  if [[ -n "$steps" ]]; then   # five evaluations, whatever the number of steps
    over+=",,set.runner.total_steps=$steps,,set.runner.eval_step=$(((steps + 4) / 5)),,set.runner.save_step=$steps"
  fi
  study=("$RECIPES/studies/$1${mini:+_mini}.yaml" -o "$(joined "$over" "${2:-}")")
}

# run_study NAME FOLDER OVERRIDES [FLAGS...]: run it in FOLDER; under --dry-run print its commands.
run_study() {
  study_file "$1" "$3"
  s3prl-ext study "${study[@]}" -p "$2" "${@:4}" ${jobs:+--jobs "$jobs"} ${engine:+--engine "$engine"} \
    ${dry_run:+--dry-run}
}
