"""Measurements of what a user may suffer: kills, damage, hostile files, two runs at once, full disks.

See the README there.
"""
