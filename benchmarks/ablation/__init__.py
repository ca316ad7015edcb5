"""What each part of the method is worth: the paper's tables on any trained classifier, and other methods beside it."""
