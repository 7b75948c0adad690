"""π(v | s) by a model: a module role chooses which ready node of a plan starts."""
