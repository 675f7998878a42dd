"""Racing candidates: AD-TUNING's early stop and successive halving."""
