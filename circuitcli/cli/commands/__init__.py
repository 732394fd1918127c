"""The commands, one module each: settings, records in, stage, records out."""
