"""Where the numbers of a training can be watched, beside metrics.jsonl: one file for each program."""
