#!/usr/bin/env bash
# Speaker diarization on Libri2Mix: SUPERB's setting with a search for the learning rate on dev, then
# diarization error rate on test as s3prl's training reports it (frame-wise), and as SUPERB scores it.
#
#   recipes/superb/sd.sh [--upstream NAME] [--seeds LIST] [options]
#   recipes/superb/sd.sh --mini --recordings DIR --ckpt DIR
#
#   --upstream NAME --ckpt FILE   -u and -k (default: hubert_base)
#   --method NAME      tuning.method, or child-0.1, child-0.01, child-0.001, ad_tuning (default: weighted_sum)
#   --grid NAME        superb: 1e-1 to 1e-7 by factors of ten (default); ad_tuning: 1e-5 to 1e-3
#   --lrs LIST         a list of your own
#   --preset NAME      task file: superb (default) or ad_tuning
#   --steps N          optimizer steps (default: those of the task file)
#   --seeds LIST       of the final runs; the first one searches (default: 0)
#   --out DIR          default exp/superb
#   --mini             recipes/studies/superb_mini.yaml: miniature corpus, CPU, few steps; --recordings DIR makes the
#                      corpus of recordings, --ckpt DIR names a small transformers HuBERT (default: an untrained one)
#   --jobs N --engine E   of s3prl-ext study: runs at a time; ray or slurm
#   --stage N --stop-stage N   1 study, 2 score as SUPERB gives it
#   --dry-run          print the commands
#
# LIBRI2MIX_DIARIZATION: folder with train/, dev/, test/, as s3prl's recipe prepares them.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/superb/study.sh"

superb sd "$@"
