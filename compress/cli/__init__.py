"""The command line: one command per file. Only click is imported before a command runs, so `--help` is instant."""
