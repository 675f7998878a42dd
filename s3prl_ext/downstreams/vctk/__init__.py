"""The task VCTK."""
