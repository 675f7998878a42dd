"""Upstreams for s3prl: each folder has a hubconf.py with the entry functions and an expert.py behind them."""
