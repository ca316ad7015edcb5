"""The pages of the documentation that are made, not typed: from results, options and contracts to Markdown."""
