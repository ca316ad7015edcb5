"""Generated parts of the documentation: results, the command line, module lists, links and docstrings."""
