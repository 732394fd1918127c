"""The command line: options, records in and out, the one printer, errors and exit statuses."""
