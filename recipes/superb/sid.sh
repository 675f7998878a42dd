#!/usr/bin/env bash
# Speaker identification on VoxCeleb1: SUPERB's setting with a search for the learning rate on dev, then
# accuracy on test.
#
#   recipes/superb/sid.sh [--upstream NAME] [--seeds LIST] [options]
#   recipes/superb/sid.sh --mini --recordings DIR --ckpt DIR
#
#   --upstream NAME --ckpt FILE   -u and -k (default: hubert_base)
#   --method NAME      tuning.method, or child-0.1, child-0.01, child-0.001, ad_tuning (default: weighted_sum)
#   --grid NAME        superb: 1e-1 to 1e-7 by factors of ten (default); ad_tuning: 1e-5 to 1e-3
#   --lrs LIST         a list of your own
#   --preset NAME      task file: superb (default) or ad_tuning
#   --search-steps N   optimizer steps of each search run (default: as many as the final run has)
#   --steps N          optimizer steps (default: those of the task file)
#   --seeds LIST       of the final runs; the first one searches (default: 0)
#   --out DIR          default exp/superb
#   --mini             miniature corpus on a CPU, two rates, few steps; --recordings DIR makes it of recordings,
#                      --ckpt DIR names a small transformers HuBERT (default: an untrained one)
#   --stage N --stop-stage N   1 search, 2 choice, 3 training, 4 test, 5 table
#   --dry-run          print the commands; RATE means the rate that is not chosen yet
#
# VOXCELEB1: folder with dev/wav/ and test/wav/; VOXCELEB1_SPLIT: veri_test_class.txt of s3prl's git repository.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/shared/tasks.sh"
. "$RECIPES/superb/search.sh"

superb sid "$@"
