"""The commands of ``s3prl-ext``, one file each; the table of them is in :mod:`s3prl_ext.cli`."""
