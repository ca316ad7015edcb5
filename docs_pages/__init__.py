"""The pages of the documentation that are made, not typed: pure functions from results, options and contracts to Markdown."""
