"""One frozen settings object that every command loads; a section, and a file, for each concern."""
