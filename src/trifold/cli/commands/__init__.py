"""The commands as functions: their options and their help. Each imports what it needs when it runs."""
