"""From a photograph to a label map."""
