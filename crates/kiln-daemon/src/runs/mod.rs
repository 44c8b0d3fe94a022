//! Runs: queue, admission, workers followed to their end.
