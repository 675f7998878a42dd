"""The help page of ``s3prl-ext run``: what is needed most, on one screen; s3prl's own page lists 200 upstreams."""

from __future__ import annotations

import textwrap

from s3prl_ext.tasks import TASKS


def _tasks() -> str:
    """Return the names for ``-d`` with the short names of their tasks, wrapped for the page."""
    names = []
    for downstream in sorted({task.downstream for task in TASKS}):
        short = [task.name.upper() for task in TASKS if task.downstream == downstream != task.name]
        names.append(f"{downstream} ({', '.join(short)})" if short else downstream)
    return textwrap.fill(", ".join([*names, "..."]), 100).replace("\n", "\n" + 22 * " ")


PAGE = f"""usage: s3prl-ext run -m train    -u UPSTREAM -d TASK [-c TASK/PRESET] -p EXP [FLAGS]
       s3prl-ext run -m train    -u UPSTREAM -d TASK ... -p EXP -a         (start, or resume)
       s3prl-ext run -m evaluate -e EXP/dev-best.ckpt [-t SPLIT]

s3prl's run_downstream with merged upstreams, child-tuning and task files.

experiment
  -m MODE             train, evaluate, or inference (-t names an audio file)
  -p EXP              folder of the experiment (-n NAME: result/downstream/NAME)
  -d TASK             {_tasks()}
  -c TASK/PRESET      a shipped task file, such as ks/superb, ks/ad_tuning, ks/mini; or a FILE of your own
  -o CHANGES          changes to the task file: "config.runner.total_steps=1000,,config.optimizer.lr=1e-4"
                      "args.until=500": stop at that step and score dev there; -a goes on as if it had not stopped
  -a                  resume the experiment in EXP, or start it
  -e EXP|CKPT|DELTA   resume (train) or score (evaluate) an experiment, a checkpoint or a delta.safetensors; of an EXP
                      it is the last checkpoint: name EXP/dev-best.ckpt for the best one on dev
  -i CKPT             begin with the weights of a checkpoint, in a new experiment
  --track KIND        tensorboard (default), or also wandb or mlflow, with KIND:PROJECT in a project of that name
  --fisher_scores DIR where runs of one upstream, task and seed share the Fisher scores of their child networks
  -t SPLIT            split of an evaluation (default: test; asr: test-clean)

upstream
  -u UPSTREAM         its name: s3prl-ext run --help-upstreams lists them
  -k CKPT             checkpoint, transformers folder or hub id, for names that end in _local, _custom, _url
  -g FILE,,KEY=VALUE  merge of -u merged_attention, and changes to it; for -u mam_... the changes alone: -g lambda=0.2
  -f                  fine-tune the whole upstream (in a task file: section tuning, with methods such as child and lora)
  -s NAME, -l N       features: hidden_states (default: their weighted sum) last_hidden_state; or hidden state N
  --upstream_feature_normalize   normalise each hidden state before the weighted sum
  -r                  download the upstream's checkpoint again

machine
  --device DEVICE     cpu, cuda or cuda:N (default: cuda where there is one)
  --seed N            default 1337
  --cache_dir FOLDER  for s3prl's downloads
  --disable_cudnn     without cuDNN
  --backend NAME      of torchrun: nccl, or gloo (default where there is no CUDA)

several GPUs:  torchrun --nproc_per_node N -m s3prl_ext.run_downstream FLAGS
also, as in s3prl: -v --hub --push_to_hf_hub --hf_hub_org --upstream_model_name --upstream_revision; torchrun sets
--local_rank
--verbose is accepted and has no effect, in s3prl as here

examples:
  s3prl-ext run -m train -u hubert_base -d speech_commands -c ks/superb -p exp/ks
  s3prl-ext run -m train -u hubert_base -d asr -c asr/ad_tuning -p exp/asr -o "config.optimizer.lr=1e-4"
  s3prl-ext run -m evaluate -e exp/ks/dev-best.ckpt
"""


def upstreams_page() -> str:
    """Return the names for ``-u``, ours first, with a mark where ``-k`` or ``-g`` is read."""
    import s3prl_ext

    s3prl_ext.install()
    from s3prl import hub

    from s3prl_ext.training.upstream_checks import is_stock, is_upstream, reads_checkpoint, reads_options

    names = sorted(name for name in hub.options() if is_upstream(name))
    ours = [name for name in names if not is_stock(name)]
    lines = []
    for title, group in (("s3prl_ext and extensions", ours), ("s3prl", [n for n in names if n not in ours])):
        lines += ["", f"{title} ({len(group)}):"]
        for name in group:
            flags = [flag for flag, reads in (("-k", reads_checkpoint), ("-g", reads_options)) if reads(name)]
            lines.append(f"  {name}  {' '.join(flags)}".rstrip())
    return "upstreams for -u; -k and -g are shown where they are read\n" + "\n".join(lines)
