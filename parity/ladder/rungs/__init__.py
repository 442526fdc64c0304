"""The ladder's rungs, one question each: plain functions that yield rows in forward order."""
