# shellcheck shell=bash disable=SC2034  # recipes use what is set here
# What recipes share: options, stages, runs that are done once. To be sourced by a recipe (bash 4 or later):
#
#   set -euo pipefail
#   . "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
#   out=exp/table1 stage=1 stop_stage=2 lambda=0.1           # each variable that --NAME may set, with its default
#   options="lambda"                                         # the recipe's own, in addition to the COMMON ones below
#   parse_options "$@"
#   if due 1 "corpora"; then mini_corpora ks,asr; fi
#   if due 2 "train"; then
#     for seed in $(listed "$seeds"); do
#       train "$out/full-$seed" -u "$upstream" -d speech_commands -c ks/superb --seed "$seed"
#       evaluate "$out/full-$seed" dev-best.ckpt test
#     done
#   fi
#
# A stage may be entered and left anywhere. What has its result is kept, training that was interrupted goes on where it
# stopped, and a command that fails ends the recipe with its exit status.
# --help prints the comment at the head of the recipe, up to its first line that is not a comment. It must name each option that
# the recipe is to take: what it does not name would have no effect, and is refused.

RECIPES="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"   # the folder of all recipes
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Options that a recipe takes in addition to its own, where the comment at its head names them.
COMMON_OPTIONS="out stage stop_stage recordings upstream ckpt seeds steps jobs engine"
COMMON_FLAGS="mini dry_run"

out="${out:-}"                # folder for everything that is written
stage=1 stop_stage=99         # first and last stage to do
recordings=""                 # folder of real recordings for the miniature corpora; empty: synthesised speech
upstream="" ckpt=""           # -u and -k
seeds=""                      # list such as 0,1,2
steps=""                      # optimizer steps of each training; empty: those of the task file
jobs="" engine=""            # processes at a time, and where they run (ray, slurm), of a study or a sweep
mini="" dry_run=""            # "yes" where the flag was given
options="" flags=""           # a recipe's own further option and flag names, with _ for -

# stop MESSAGE: end with one sentence and the status of a usage error.
stop() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

# parse_options "$@": set the variable NAME for each --NAME VALUE, and NAME=yes for each flag.
parse_options() {
  local name head
  head="$(sed -n '2,${/^#/!q;s/^# \{0,1\}//;p;}' "$0")"
  while [[ $# -gt 0 ]]; do
    case "$1" in
      -h | --help) printf '%s\n' "$head"; exit 0 ;;
      --*)
        [[ "$head " =~ "$1"[^a-z-] ]] || stop "unknown option '$1'; --help lists the options."
        name="${1#--}"; name="${name//-/_}"
        ;;
      *) stop "'$1' is not an option; --help lists them." ;;
    esac
    if [[ " $COMMON_FLAGS $flags " == *" $name "* ]]; then
      printf -v "$name" yes
      shift
    elif [[ " $COMMON_OPTIONS $options " == *" $name "* ]]; then
      [[ $# -ge 2 && -n "$2" && "$2" != --* ]] || stop "$1 needs a value."
      printf -v "$name" %s "$2"
      shift 2
    else
      stop "unknown option '$1'; --help lists the options."
    fi
  done
  [[ "$stage" =~ ^[0-9]+$ && "$stop_stage" =~ ^[0-9]+$ ]] || stop "--stage and --stop-stage take whole numbers."
  [[ -z "$steps" || "$steps" =~ ^[1-9][0-9]*$ ]] || stop "--steps takes a whole number of at least 1, not '$steps'."
  [[ -z "$recordings" || -d "$recordings" ]] || stop "--recordings $recordings is not a folder."
  [[ -n "$out" ]] || stop "--out is missing: the folder for everything that is written."
}

# due N TITLE: whether stage N is to be done; announces it.
due() {
  [[ $stage -le $1 && $stop_stage -ge $1 ]] || return 1
  printf '\n# stage %s: %s\n' "$1" "$2"
}

# listed LIST: the items of a list that is separated by commas or blanks, one a line.
listed() { tr -s ', ' '\n' <<<"$1" | sed '/^$/d'; }

# comma LIST: the same items, separated by commas.
comma() { listed "$1" | paste -sd, -; }

# execute COMMAND...: run it, or print it under --dry-run.
execute() {
  if [[ -n "$dry_run" ]]; then
    show "$@"
  else
    "$@"
  fi
}

# show COMMAND...: print it as it would be typed.
show() {
  local word line=""
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+="$word "
    elif [[ "$word" != *[\"\$\`\\]* ]]; then
      line+="\"$word\" "
    else
      line+="$(printf %q "$word") "
    fi
  done
  printf '%s\n' "${line% }"
}

# unless FILE COMMAND...: run the command unless the file, its result, is there; the file must be there afterwards.
unless() {
  local result="$1"
  shift
  if [[ -e "$result" ]]; then
    [[ -z "$dry_run" ]] || echo "# done: $result"
    return 0
  fi
  execute "$@"
  [[ -n "$dry_run" || -e "$result" ]] || stop "$1 ended without writing $result; its messages above say why."
}

# train FOLDER FLAGS...: s3prl-ext run -m train into FOLDER; result: FOLDER/result.json.
train() {
  local folder="$1"
  shift
  unless "$folder/result.json" s3prl-ext run -m train -a -p "$folder" "$@"
}

# evaluate FOLDER CHECKPOINT SPLIT [FLAGS...]: score FOLDER/CHECKPOINT; result: FOLDER/result-SPLIT.json.
evaluate() {
  local folder="$1" checkpoint="$2" split="$3"
  shift 3
  unless "$folder/result-$split.json" s3prl-ext run -m evaluate -e "$folder/$checkpoint" -t "$split" "$@"
}

# sweep FOLDER FLAGS...: s3prl-ext sweep into FOLDER, which keeps what is done, its arms divided as --jobs and --engine say.
sweep() {
  execute s3prl-ext sweep "${@:2}" -p "$1" ${jobs:+--jobs "$jobs"} ${engine:+--engine "$engine"}
}

# mini_corpora TASKS [FLAGS...]: miniature corpora of the tasks in $out/corpora/TASK, and the variables that name them.
# Under --dry-run the commands are printed and no variable is set.
mini_corpora() {
  local task
  for task in $(listed "$1"); do
    unless "$out/corpora/$task/env.sh" s3prl-ext prepare mini_superb --tasks "$task" --out "$out/corpora/$task" \
      ${recordings:+--recordings "$recordings"} "${@:2}"
    execute . "$out/corpora/$task/env.sh"
  done
}

# need_variable NAME WHAT: stop unless the environment variable is set, which names a corpus, and is that of the runs that $out
# holds; free under --dry-run.
need_variable() {
  [[ -n "$dry_run" || -n "${!1:-}" ]] || stop "the variable $1 is not set: export $1=/path/to ($2), or use --mini."
  keep_input "$1" "${!1:-}"
}

# keep_input NAME VALUE: refuse a folder that holds runs with another corpus or model under this name; $out/inputs keeps them.
keep_input() {
  local value="$2" kept=""
  [[ -z "$dry_run" ]] || return 0
  [[ ! -e "$value" ]] || value="$(realpath "$value")"
  [[ ! -f "$out/inputs" ]] || kept="$(sed -n "s|^$1=||p" "$out/inputs")"
  if [[ -n "$kept" && "$kept" != "$value" ]]; then
    stop "$out holds runs with $1=$kept, but now it is $value: give another --out; if only the place of it is another, \
change the line in $out/inputs."
  fi
  if [[ -z "$kept" ]]; then
    mkdir -p "$out"
    printf '%s=%s\n' "$1" "$value" >>"$out/inputs"
  fi
}

# keep_settings: refuse a folder that holds runs with other settings, so that they are never mixed.
keep_settings() {
  local settings="mini=$mini recordings=$recordings upstream=$upstream ckpt=$ckpt steps=$steps $*"
  [[ -z "$dry_run" ]] || return 0
  if [[ -f "$out/settings" && "$(<"$out/settings")" != "$settings" ]]; then
    stop "$out holds runs with other settings ($(<"$out/settings")): give another --out, or remove $out."
  fi
  mkdir -p "$out"
  printf '%s\n' "$settings" >"$out/settings"
}
