"""Repairs from outside that let s3prl 0.4.18 run on today's libraries, each applied only where it is needed."""
