# shellcheck shell=bash
# shellcheck disable=SC2034  # variables for the recipes
# What the tables of MAM share: corpora, pairs of models, heads, the merge that dev prefers. To be sourced after stages.sh.
#
# A *unit* is what one sweep or one training is made on: ljspeech, vctk, or a test fold of ESC-50, esc50-1 to esc50-5.

# Options of every table; --help of each says what they mean.
PAIR_OPTIONS="tasks folds lambdas digits hubert beats vit esc50"
tasks=ljspeech,vctk,esc50
folds="" lambdas="" digits=300
hubert="${S3PRL_EXT_TARGET:-}" beats="" vit="" esc50=""

# begin "$@": read the options, set the rest of the defaults.
begin() {
  options="$PAIR_OPTIONS $options"
  out="${out:-exp/mam}"
  parse_options "$@"
  : "${folds:=$([[ -n "$mini" ]] && echo 4 || echo 1,2,3,4,5)}"
  local one
  for one in $(listed "$tasks"); do
    [[ "$one" =~ ^(ljspeech|vctk|esc50)$ ]] || stop "unknown task '$one'; known: ljspeech, vctk, esc50."
  done
  for one in $(listed "$folds"); do
    [[ "$one" =~ ^[1-5]$ ]] || stop "ESC-50 has the folds 1 to 5, not '$one'."
  done
  [[ -z "$beats$vit$esc50" || -n "$mini" ]] || stop "--beats, --vit and --esc50 belong to --mini."
  keep_settings "digits=$digits beats=$beats vit=$vit esc50=$esc50${mini:+ hubert=$hubert}"
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  speech_pair=mam_hubert_large_ls960_bert_large
  if [[ -n "$mini" ]]; then
    speech_pair=mam_hubert_tiny_minilm
    : "${hubert:=$out/models/hubert}" "${beats:=$out/models/beats-FOLD.pt}" "${vit:=$out/models/vit}"
    local corpora
    corpora="$(realpath -m "$out/corpora")"
    export S3PRL_EXT_TARGET="$hubert"
    [[ -z "$dry_run" ]] || show export "S3PRL_EXT_TARGET=$hubert" "ESC50=${esc50:-$corpora/esc50/ESC-50-master}"
    export LJSPEECH="$corpora/ljspeech/LJSpeech-1.1" VCTK="$corpora/vctk/VCTK-Corpus-0.92"
    export ESC50="${esc50:-$corpora/esc50/ESC-50-master}"
  else
    beats="${BEATS_ITER3:-lpepino/beats_ckpts:BEATs_iter3.pt@5b53b0404df452a3a607d7e67687227730e5bad1}"
    if wants ljspeech; then need_variable LJSPEECH LJSpeech-1.1; fi
    if wants vctk; then need_variable VCTK VCTK-Corpus-0.92; fi
    if wants esc50; then
      need_variable ESC50 ESC-50-master
      keep_input BEATS_ITER3 "$beats"
    fi
  fi
}

# units: the units of --tasks and --folds, one a line.
units() {
  local task
  for task in $(listed "$tasks"); do
    if [[ "$task" == esc50 ]]; then
      listed "$folds" | sed 's/^/esc50-/'
    else
      echo "$task"
    fi
  done
}

# wants TASK: whether the recipe is to do it.
wants() { [[ " $(listed "$tasks" | tr '\n' ' ') " == *" $1 "* ]]; }

# corpora_and_models: have the miniature ones; full-size corpora are named by variables, the models by their hub ids.
corpora_and_models() {
  [[ -n "$mini" ]] || return 0
  if wants ljspeech; then mini_corpora ljspeech ${recordings:+--digits "$digits"}; fi
  if wants vctk; then mini_corpora vctk ${recordings:+--digits "$digits"}; fi
  if wants ljspeech || wants vctk; then small_hubert; fi
  if wants esc50; then small_sound_pair; fi
}

# small_hubert: a HuBERT-CTC for the miniature pair, unless --hubert names one.
small_hubert() {
  local corpus="$out/corpora/hubert"
  [[ "$hubert" == "$out/models/hubert" && ! -e "$hubert" ]] || return 0
  unless "$corpus/env.sh" s3prl-ext prepare mini_superb --tasks ljspeech --out "$corpus" \
    ${recordings:+--recordings "$recordings" --digits "$((10 * digits))"}
  execute mkdir -p "$out/models"
  unless "$hubert" python "$RECIPES/mam/train_small_hubert.py" --corpus "$corpus/LJSpeech-1.1" --out "$hubert" \
    ${steps:+--steps "$steps"}
}

# beats_of FOLD: the target of a test fold. A small one is trained with the labels of three folds, so each fold has its own.
beats_of() { echo "${beats//FOLD/$1}"; }

# small_sound_pair: BEATs and ViT for the miniature pair, unless --beats and --vit name them; ESC-50 unless --esc50 does.
small_sound_pair() {
  local few="" fold
  [[ -z "$steps" ]] || few=$(((steps + 37) / 38))   # epochs of 38 steps
  if [[ -z "$esc50" ]]; then mini_corpora esc50; fi
  execute mkdir -p "$out/models" "$out/esc50"
  unless "$vit" python "$RECIPES/mam/train_small_vit.py" --out "$vit" ${few:+--epochs "$few"}
  for fold in $(listed "$folds"); do
    unless "$(beats_of "$fold")" python "$RECIPES/mam/train_small_beats.py" --esc50 "$ESC50" --fold "$fold" \
      --out "$(beats_of "$fold")" ${few:+--epochs "$few"}
    if [[ -z "$dry_run" ]]; then
      printf 'target: {upstream: beats_local, ckpt: "%s"}\nsource: {model: "%s"}\nlambda: 0.1\n' \
        "$(beats_of "$fold")" "$vit" >"$out/esc50/pair-$fold.yaml"
    fi
  done
}

# keep_sweeps TABLE WHAT: what each sweep of a table measured as a small file with a picture; pages are made of such files.
keep_sweeps() {
  local unit
  for unit in $(units); do
    execute python "$RECIPES/shared/lambdas.py" "$out/$1/$unit/sweep.json" --out "$out/${unit}_$1.json" --title "$2"
  done
}

# mean_of_folds TABLE WHAT: one table over the folds of ESC-50, where there are several, as a small file with a picture too.
mean_of_folds() {
  local unit files=()
  for unit in $(units); do
    [[ "$unit" != esc50-* ]] || files+=("$out/$1/$unit/sweep.json")
  done
  [[ ${#files[@]} -lt 2 ]] || execute python "$RECIPES/mam/folds.py" "${files[@]}" --keep "$out/esc50_$1.json" --title "$2"
}

# heads: fit the linear head of every fold of ESC-50 on the unmerged target. Speech recognition needs none.
heads() {
  local fold
  wants esc50 || return 0
  for fold in $(listed "$folds"); do
    train "$out/esc50/head-$fold" -u beats_local -k "$(beats_of "$fold")" -d esc50 -c esc50/mam \
      -o "config.downstream_expert.fold=$fold${mini:+,,config.downstream_expert.datarc.num_workers=0}"
  done
}

# experiment UNIT: set the arrays pair (-u, -g) and task (-d, -c, -o) of evaluation without training.
experiment() {
  local fold="${1##*-}"
  if [[ "$1" == esc50-* ]]; then
    pair=(-u mam_beats_iter3_vit_base)
    [[ -z "$mini" ]] || pair=(-g "$out/esc50/pair-$fold.yaml")
    task=(-d esc50 -c esc50/mam -o "config.downstream_expert.fold=$fold${mini:+,,config.downstream_expert.datarc.num_workers=0},,config.downstream_expert.head.ckpt='$out/esc50/head-$fold/dev-best.ckpt'")
  else
    pair=(-u "$speech_pair")
    task=(-d "$1" -c "$1/mam")
    [[ -z "$mini" ]] || task=(-d "$1" -c "$1/mini" -o "config.downstream_expert.head.init='target'")
  fi
}

# merge_with SETTINGS: set merged to the -u and -g of the present pair with settings such as "lambda=0.1,,layers=4-11".
merge_with() {
  if [[ "${pair[0]}" == -g ]]; then
    merged=(-u merged_attention -g "${pair[1]},,$1")
  else
    merged=("${pair[@]}" -g "$1")
  fi
}

# learnable_with SETTINGS: the same with a learnable lambda, which begins there.
# Every layer has a lambda, outside the layers of SETTINGS with the first value 0; with $block only those layers have one.
learnable_with() {
  local only=",,learnable={layers: merged}"
  [[ -n "${block:-}" ]] || only=""
  if [[ "${pair[0]}" == -u ]]; then
    merged=(-u "l${pair[1]}" -g "$1$only")
  else
    merge_with "$1${only:-,,learnable=True}"
  fi
}

# best_merge UNIT: set best to the merge that dev prefers among the sweeps of Tables 1, 2 and 3 below $out. The choice is
# kept in $out/merge-UNIT: where the sweeps prefer another one later, the runs that were made with it are of the former, and
# the recipe stops. Without a sweep, --dry-run shows the paper's choice.
best_merge() {
  local sweeps=() table kept=""
  [[ ! -s "$out/merge-$1" ]] || kept="$(<"$out/merge-$1")"
  for table in table1 table2 table3; do
    [[ ! -e "$out/$table/$1/sweep.md" ]] || sweeps+=("$out/$table/$1/sweep.json")
  done
  if [[ ${#sweeps[@]} -gt 0 ]]; then
    best="$(python "$RECIPES/mam/best_merge.py" "${sweeps[@]}")" || exit   # also where the caller looks at the status
    [[ -z "$kept" || "$kept" == "$best" ]] || stop "the runs of $1 in $out are made with the merge $kept \
(merge-$1), but in the sweeps that are there now dev prefers $best: remove $out/merge-$1, $out/zero_shot/$1 and \
$out/table5/$1 to make them again, or give another --out."
    [[ -n "$dry_run" ]] || printf '%s\n' "$best" >"$out/merge-$1"
  elif [[ -n "$kept" ]]; then
    best="$kept"
  elif [[ -n "$dry_run" ]]; then
    case "$mini$1" in
      ljspeech) best="lambda=0.25,,layers=12-19" ;;
      vctk) best="lambda=0.05,,layers=all" ;;
      esc50-*) best="lambda=0.1,,layers=4-11" ;;
      *) best="lambda=0.1,,layers=all" ;;
    esac
    echo "# $best is the merge that dev prefers in the sweeps of Tables 1 to 3"
  else
    stop "there is no sweep of $1 in $out yet: run table1.sh or table2.sh with the same options first."
  fi
}

# transcripts UNIT: score target and best merge on test without training, in $out/zero_shot/UNIT/{target,merged}.
transcripts() {
  local kind
  experiment "$1"
  best_merge "$1"
  for kind in target merged; do
    if [[ "$kind" == target ]]; then merge_with "lambda=0"; else merge_with "$best"; fi
    unless "$out/zero_shot/$1/$kind/result-test.json" s3prl-ext run -m evaluate "${merged[@]}" "${task[@]}" -t test \
      -p "$out/zero_shot/$1/$kind"
  done
}

# tuning_of UNIT [LAMBDA_LR]: set the array tuning (-d, -c, -o) of fine-tuning as in the paper.
tuning_of() {
  local changes=() fold="${1##*-}" corpus=LJSPEECH
  if [[ "$1" == esc50-* ]]; then
    tuning=(-d esc50 -c esc50/mam_ft)
    changes+=("config.downstream_expert.fold=$fold")
    changes+=("config.downstream_expert.head.ckpt='$out/esc50/head-$fold/dev-best.ckpt'")
  else
    tuning=(-d "$1" -c "$1/mam")
    [[ "$1" == ljspeech ]] || corpus=VCTK
    [[ -z "$mini" ]] || changes+=("config.downstream_expert.datarc.split='${!corpus}/splits.json'")
  fi
  [[ -z "$mini" ]] || changes+=("config.downstream_expert.datarc.num_workers=0")
  [[ -z "${2:-}" ]] || changes+=("config.tuning={'method':'full','lambda_lr':$2}")
  [[ -z "$steps" ]] || changes+=("config.runner.epochs=None" "config.runner.total_steps=$steps")
  [[ ${#changes[@]} -eq 0 ]] || tuning+=(-o "$(printf ',,%s' "${changes[@]}" | cut -c3-)")
}
